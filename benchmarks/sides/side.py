"""What every side of the comparison offers.

Flows in: a side's name. Flows out: the side, or MissingPeer with the command that installs its library.

Legend: P prompts, N tested layers, S strengths, L layers, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.sides.workload import Workload

SIDE_NAMES = ("branching", "naive", "steering-vectors", "repeng", "nnsight")
BATCH = 8

_NEEDS: dict[str, tuple[str, ...]] = {
    "branching": (),
    "naive": (),
    "steering-vectors": ("steering_vectors", "sklearn"),
    "repeng": ("repeng", "sklearn", "gguf"),
    "nnsight": ("nnsight",),
}
_INSTALL = 'pip install -e ".[bench]" && pip install --no-deps "steering-vectors>=0.12,<0.13" "repeng>=0.4,<0.5"'


class MissingPeer(ImportError):
    """The library of a side is not installed."""


class Side(Protocol):
    """One way to do the work. `version` is its library's; `mean_difference` is False where extraction gives another
    kind of direction; `notes` says in a sentence or two how the library was used. `documented_batch` is how many
    prompts a forward takes in the library's own examples of steering; `baseline_every_layer`, whether its example of a
    sweep computes strength 0 anew for each layer."""

    name: str
    version: str
    mean_difference: bool
    notes: str
    documented_batch: int
    baseline_every_layer: bool

    def extract(self, workload: Workload) -> NDArray[np.float32]:
        """Steering vectors of all layers [L, H], from the workload's pairs at their read tokens."""
        ...

    def sweep(
        self,
        workload: Workload,
        directions: NDArray[np.float32],
        layers: Sequence[int],
        strengths: Sequence[float],
        batch: int = BATCH,
    ) -> NDArray[np.float32]:
        """Logits of the two answers at the last token [P, N, S, 2], `strength * directions[layer]` added to what
        leaves block `layer`, at every token. `directions` is [L, H]; `batch` prompts share a forward."""
        ...


def missing_packages(name: str) -> list[str]:
    """The packages that the side called `name` imports and that are not installed."""
    return [package for package in _NEEDS[name] if find_spec(package) is None]


def load_side(name: str) -> Side:
    """The side called `name`. Raises MissingPeer when its library is not installed."""
    missing = missing_packages(name)
    if missing:
        raise MissingPeer(f"the side {name!r} needs {', '.join(missing)}; install the libraries with: {_INSTALL}")
    side: Side = import_module(f"benchmarks.sides.{name.replace('-', '_')}").SIDE
    return side


def batches(count: int, size: int = BATCH) -> Iterator[range]:
    """0..count in runs of `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def over_grid(
    run: Callable[[int, float], NDArray[np.float32]], layers: Sequence[int], strengths: Sequence[float]
) -> NDArray[np.float32]:
    """`run(layer, strength)` [P, 2] at every point of the grid, as [P, N, S, 2]. Strength 0 is run once, whatever the
    layer: no library asks for more, so the libraries are not charged for it."""
    points: list[list[NDArray[np.float32]]] = []
    baseline: NDArray[np.float32] | None = None
    for layer in layers:
        points.append([])
        for strength in strengths:
            if strength == 0:
                baseline = run(layer, 0.0) if baseline is None else baseline
                points[-1].append(baseline)
            else:
                points[-1].append(run(layer, strength))
    return np.stack([np.stack(row, axis=1) for row in points], axis=1)
