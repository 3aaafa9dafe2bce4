"""How many rows go through a block at once.

Flows in: prompt lengths, how many rows one prompt grows into, a token budget. Flows out: micro-batches of prompt
indexes, of similar length, that stay within the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from pipeline.engine.model import Model

_CPU_TOKENS = 16_384  # larger batches leave the cache and are slower, see DECISIONS.md
_GPU_TOKENS = 262_144
_CPU_SHARE = 0.25  # of the memory that is free: the rest is for Ray's object store and other replicas
_GPU_SHARE = 0.5


def token_budget(model: Model) -> int:
    """Tokens that may go through a block of `model` at once, from its sizes and the device's free memory: the least of
    any rank's, so that all ranks cut the same batches."""
    config = model.hf.config
    element = torch.finfo(model.dtype).bits // 8
    attention = 4 * config.num_attention_heads * config.head_dim
    experts = getattr(config, "num_experts_per_tok", 0)
    mlp = 3 * (experts * config.moe_intermediate_size if experts else config.intermediate_size)
    per_token = element * (6 * config.hidden_size + attention + mlp) + 3 * 4 * config.hidden_size
    if model.device.type == "cuda":
        free, most = _GPU_SHARE * torch.cuda.mem_get_info(model.device)[0], _GPU_TOKENS
    else:
        free, most = _CPU_SHARE * psutil.virtual_memory().available, _CPU_TOKENS
    return model.least(max(1, min(most, int(free / per_token))))


def micro_batches(lengths: Sequence[int], rows_per_prompt: int, budget: int) -> list[list[int]]:
    """Indexes of prompts in groups whose rows times their longest length stay within `budget` tokens.

    Sorted by length, so little is padded. A prompt that alone exceeds the budget gets a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        fits = groups and (len(groups[-1]) + 1) * rows_per_prompt * lengths[index] <= budget
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
