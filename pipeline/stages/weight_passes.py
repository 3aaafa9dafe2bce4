"""Offloaded models: batches that take few passes of the weights.

Flows in: how much a stage has to do. Flows out: how many prompts travel together. What passed is in the work book.

One forward passes all weights once, whatever its number of rows: a small batch costs as many bytes as a large one.
"""

from __future__ import annotations

import math

PROMPTS_PER_BATCH = 1_024
BATCH_BYTES = 256 * 2**20  # of activations that leave a replica at once


def prompts_per_batch(asked: int, num_prompts: int, num_replicas: int, bytes_per_prompt: int) -> int:
    """How many prompts of an offloaded model travel together: every replica gets an equal share where one batch can
    hold it, and never fewer than `asked`. `bytes_per_prompt` is what a prompt leaves behind."""
    most = min(PROMPTS_PER_BATCH, BATCH_BYTES // max(1, bytes_per_prompt))
    return max(asked, min(most, math.ceil(num_prompts / num_replicas)))
