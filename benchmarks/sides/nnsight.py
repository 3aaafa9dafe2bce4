"""The `nnsight` library, as its "steering" and "probing" pages show: a `trace` over a batch of token ids, in which
`block.output` is read or added to in place, under `torch.no_grad()`.

It pads batches on the left itself, so the last token is at -1; rows to read end at their read token.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import nnsight
import numpy as np
import torch
from nnsight import TransformersModel
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.sides.side import BATCH, batches, over_grid
from benchmarks.sides.workload import Workload
from pipeline.engine.tokens import EncodedAnswer


class NNsightLibrary:
    name = "nnsight"
    version = version("nnsight")
    mean_difference = True
    notes = "A trace with block.output[:] += step for each batch of 8, layer and strength; baseline once."
    documented_batch = 8
    baseline_every_layer = False

    @torch.no_grad()
    def extract(self, workload: Workload) -> NDArray[np.float32]:
        traced = _traced(workload)
        means = [_mean_activation(traced, rows) for rows in (workload.matching, workload.other)]
        return (means[0] - means[1]).cpu().numpy()

    @torch.no_grad()
    def sweep(
        self,
        workload: Workload,
        directions: NDArray[np.float32],
        layers: Sequence[int],
        strengths: Sequence[float],
        batch: int = BATCH,
    ) -> NDArray[np.float32]:
        traced = _traced(workload)

        def run(layer: int, strength: float) -> NDArray[np.float32]:
            step = (strength * torch.from_numpy(directions[layer])).to(workload.hf.device, workload.hf.dtype)
            found = []
            for group in batches(len(workload.prompts), batch):
                rows = [list(workload.prompts[i].ids) for i in group]
                last = _steered(traced, rows, layer, step) if strength else _unsteered(traced, rows)
                found.append(last[:, list(workload.answer_ids)].float().cpu().numpy())
            return np.concatenate(found)

        return over_grid(run, layers, strengths)


def _traced(workload: Workload) -> Any:
    return TransformersModel(workload.hf, task="text-generation", tokenizer=workload.tokenizer)


def _steered(traced: Any, rows: list[list[int]], layer: int, step: Tensor) -> Tensor:
    with traced.trace(rows):
        traced.model.layers[layer].output[:] += step
        last = traced.lm_head.output[:, -1].save()
    return last


def _unsteered(traced: Any, rows: list[list[int]]) -> Tensor:
    with traced.trace(rows):
        last = traced.lm_head.output[:, -1].save()
    return last


def _mean_activation(traced: Any, rows: Sequence[EncodedAnswer]) -> Tensor:
    """Mean over `rows` of what leaves each block at the read token: float32 [L, H]."""
    sums = []
    for group in batches(len(rows)):
        ids = [list(rows[i].ids[: rows[i].read + 1]) for i in group]
        with traced.trace(ids):
            read = nnsight.save([block.output[:, -1] for block in traced.model.layers])
        sums.append(torch.stack([state.float().sum(0) for state in read]))
    return torch.stack(sums).sum(0) / len(rows)


SIDE = NNsightLibrary()
