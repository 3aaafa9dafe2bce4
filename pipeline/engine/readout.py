"""Answer logits and the log-sum-exp over the vocabulary, in float32 whatever the model's dtype.

Flows in: the stream before the final norm at each row's last token. Flows out: per row the two answers' logits
and the log-sum-exp, from which log-probabilities and choice mass follow.

A bf16 head leaves logits on a grid so coarse that thousands of scores take a few dozen values, so norm and head
are computed in float32 from the weights as they are stored, a slice of the vocabulary at a time. Where the vocabulary
is sharded, a rank finds answers and log-sum-exp among its own tokens, and three floats a row go over the ranks.

Legend: R rows, H hidden, V vocabulary (of this rank).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.engine.model import Model

_VOCABULARY_SLICE = 16_384


@dataclass(frozen=True)
class Readout:
    """`logits` [R, 2] of the two answers and `logsumexp` [R], float32."""

    logits: Tensor
    logsumexp: Tensor


def read_answers(model: Model, stream: Tensor, answer_ids: Tensor) -> Readout:
    """Readout of `stream` [R, H] (before the final norm) for `answer_ids` [2] or [R, 2]."""
    normed = model.final_norm(stream.to(torch.float32)).to(torch.float32)  # [R, H]
    weight = model.head_weight  # [V, H]
    answers = answer_ids.to(weight.device).expand(normed.shape[0], 2) - model.first_token
    absent = (answers < 0) | (answers >= weight.shape[0])
    rows = weight[answers.masked_fill(absent, 0)].to(torch.float32)  # [R, 2, H]
    logits = torch.einsum("rh,rah->ra", normed, rows).masked_fill(absent, 0)
    parts = [
        torch.logsumexp(normed @ weight[start : start + _VOCABULARY_SLICE].to(torch.float32).T, dim=-1)
        for start in range(0, weight.shape[0], _VOCABULARY_SLICE)
    ]
    logsumexp = torch.logsumexp(torch.stack(parts), dim=0)
    shards = model.gather(torch.cat([logits, logsumexp[:, None]], dim=1))  # [ranks, R, 3]
    return Readout(shards[..., :2].sum(dim=0), torch.logsumexp(shards[..., 2], dim=0))
