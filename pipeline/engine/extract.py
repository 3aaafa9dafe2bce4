"""Activations at the read position, for both sides of each pair.

Flows in: prompts with an answer given. Flows out: float32 activations [rows, layers, hidden] at one site, and, for
the notebook, the steering vectors they make. Padding is never read: each row's own read index is gathered.

Legend: R rows, L layers, H hidden, N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engine.batching import micro_batches, token_budget
from pipeline.engine.model import Model, pad_right
from pipeline.engine.moments import Moments
from pipeline.engine.stream import Visit, boundary, on_stream
from pipeline.engine.tokens import EncodedAnswer, PromptEncoder
from pipeline.engine.vectors import SteeringVectors, VectorOrigin
from pipeline.errors import ActivationError
from pipeline.protocols import Protocol, Site, load_protocol

if TYPE_CHECKING:
    from pipeline.prompts import Prompt


@torch.inference_mode()
def read_activations(
    model: Model, rows: Sequence[EncodedAnswer], site: Site, budget: int = 0, names: Sequence[str] = ()
) -> NDArray[np.float32]:
    """The residual stream at `site` of every layer, at each row's read index: float32 [R, L, H].

    `budget` is the number of tokens a block may take at once (0: from the device). Raises ActivationError, with the
    row's entry in `names`, when an activation is NaN or infinite.
    """
    num_layers = model.num_layers
    out = np.empty((len(rows), num_layers, model.hidden_size), dtype=np.float32)
    for group in micro_batches([len(row.ids) for row in rows], 1, budget or token_budget(model)):
        ids = pad_right([rows[i].ids for i in group], model.device)
        read = torch.tensor([rows[i].read for i in group], device=model.device)
        index = torch.arange(len(group), device=model.device)
        taken: dict[int, Tensor] = {}

        def take(layer: int, taken: dict[int, Tensor] = taken, index: Tensor = index, read: Tensor = read) -> Visit:
            def visit(stream: Tensor) -> None:
                taken[layer] = stream[index, read].to(torch.float32)

            return visit

        visits = {boundary(site, layer, num_layers): take(layer) for layer in range(num_layers)}
        with on_stream(model, visits):
            model.forward_blocks(ids)
        out[group] = torch.stack([taken[layer] for layer in range(num_layers)], dim=1).cpu().numpy()
    broken = np.argwhere(~np.isfinite(out).all(axis=-1))
    if len(broken):
        row, layer = (int(i) for i in broken[0])
        name = names[row] if names else f"row {row}"
        raise ActivationError(
            f"model {model.name!r}, {name}: the activation at {site}[{layer}] is not finite; "
            "check the checkpoint, or run with dtype float32"
        )
    return out


def pair_moments(matching: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[Moments, Moments]:
    """Moments of the pair differences [L, H] and of the residual norms [L] of both sides.

    `matching` and `other` are [N, L, H], row by row the two sides of one pair. Differences are taken in float64.
    """
    first, second = matching.astype(np.float64), other.astype(np.float64)
    norms = np.concatenate([np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)])  # [2N, L]
    return Moments.of(first - second), Moments.of(norms)


def compute_vectors(
    model: Model, prompts: Sequence[Prompt], protocol: Protocol | str = "caa", budget: int = 0
) -> SteeringVectors:
    """Steering vectors of the concept that `prompts` belong to: mean over pairs of activation(matching) minus
    activation(other), at the protocol's read site and position (Rimsky et al. 2024, "Contrastive Activation
    Addition"). For a notebook; studies use the same functions through `stages`."""
    chosen = load_protocol(protocol) if isinstance(protocol, str) else protocol
    encoder = PromptEncoder(model.tokenizer, chosen.answer_form, model.max_positions)
    sides = []
    for side in ("matching", "other"):
        rows = [encoder.answered(p.text, getattr(p, side), chosen.read_position, p.id) for p in prompts]
        sides.append(read_activations(model, rows, chosen.read_site, budget, [p.id for p in prompts]))
    origin = VectorOrigin(model.name, prompts[0].concept, chosen.read_site, chosen.read_position, chosen.name)
    return SteeringVectors.from_moments(origin, *pair_moments(sides[0], sides[1]))
