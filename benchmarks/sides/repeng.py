"""The `repeng` library, as its README shows: `ControlVector.train` on texts, then a `ControlModel` with
`set_control(vector, coefficient)` before each forward.

It has no mean difference: `train` gives the first principal component of the pairs' differences, of norm 1, its
default. It reads each text's last token, so the texts end at the read token, and at the last layer it reads after the
final norm. A `ControlModel` steers all layers it was made for, so each tested layer gets its own, unwrapped after use.

The library is written against numpy 1: its annotations name `np.float_`, which numpy 2 dropped. The name is lent to
it while it is imported.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.sides.side import BATCH, batches, over_grid
from benchmarks.sides.workload import Workload

_lent = not hasattr(np, "float_")
if _lent:
    np.float_ = np.float64  # type: ignore[attr-defined]
try:
    from repeng import ControlModel, ControlVector, DatasetEntry
finally:
    if _lent:
        del np.float_  # type: ignore[attr-defined]


class Repeng:
    name = "repeng"
    version = version("repeng")
    mean_difference = False
    notes = "ControlVector.train (first principal component); set_control, one prompt a forward; baseline once."
    documented_batch = 1
    baseline_every_layer = False

    def extract(self, workload: Workload) -> NDArray[np.float32]:
        pairs = [
            DatasetEntry(*(workload.text(row.ids[: row.read + 1]) for row in pair))
            for pair in zip(workload.matching, workload.other, strict=True)
        ]
        layers = range(workload.model.num_layers)
        with redirect_stderr(io.StringIO()):  # its progress bars
            options = {"hidden_layers": list(layers), "batch_size": BATCH}
            vector = ControlVector.train(workload.hf, workload.tokenizer, pairs, **options)
        return np.stack([vector.directions[layer] for layer in layers])

    @torch.no_grad()
    def sweep(
        self,
        workload: Workload,
        directions: NDArray[np.float32],
        layers: Sequence[int],
        strengths: Sequence[float],
        batch: int = BATCH,
    ) -> NDArray[np.float32]:
        texts = [workload.text(prompt.ids) for prompt in workload.prompts]

        def run(layer: int, strength: float) -> NDArray[np.float32]:
            control = ControlModel(workload.hf, [layer])
            try:
                if strength:
                    vector = ControlVector(workload.hf.config.model_type, {layer: directions[layer]})
                    control.set_control(vector, strength)
                found = []
                for group in batches(len(texts), batch):
                    inputs = workload.tokenizer([texts[i] for i in group], return_tensors="pt", padding=True)
                    inputs = inputs.to(workload.hf.device)
                    last = control(**inputs, position_ids=_positions(inputs["attention_mask"])).logits[:, -1]
                    found.append(last[:, list(workload.answer_ids)].float().cpu().numpy())
                return np.concatenate(found)
            finally:
                control.unwrap()

        return over_grid(run, layers, strengths)


def _positions(mask: Tensor) -> Tensor:
    """Position ids as `generate` makes them; the library finds a row's padding by them."""
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)


SIDE = Repeng()
