"""Offloaded models: batches that take few passes of the weights, and what passed.

Flows in: how much a stage has to do; what each replica says of its weights after a batch. Flows out: how many prompts
travel together, and the stage's `WeightTraffic`, all replicas together.

One forward passes all weights once, whatever its number of rows: a small batch costs as many bytes as a large one.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.engine.weights import WeightTraffic

PROMPTS_PER_BATCH = 1_024
BATCH_BYTES = 256 * 2**20  # of activations that leave a replica at once


def prompts_per_batch(asked: int, num_prompts: int, num_replicas: int, bytes_per_prompt: int) -> int:
    """How many prompts of an offloaded model travel together: every replica gets an equal share where one batch can
    hold it, and never fewer than `asked`. `bytes_per_prompt` is what a prompt leaves behind."""
    most = min(PROMPTS_PER_BATCH, BATCH_BYTES // max(1, bytes_per_prompt))
    return max(asked, min(most, math.ceil(num_prompts / num_replicas)))


def together(traffic: Iterable[WeightTraffic]) -> WeightTraffic | None:
    """What passed in several replicas of one model; None of none."""
    each = list(traffic)
    if not each:
        return None
    num_bytes, num_passes = sum(t.bytes_read for t in each), sum(t.num_passes for t in each)
    return replace(each[0], bytes_read=num_bytes, num_passes=num_passes)


class TrafficBook:
    """Where the replicas of one stage write down what passed so far: a small Ray actor. Made by the driver; goes to the
    replicas with the stage."""

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=0)(_Book).remote()

    def writer(self) -> TrafficWriter:
        return TrafficWriter(self._actor)

    def total(self) -> WeightTraffic | None:
        """What passed in all replicas; None where none has said anything."""
        import ray

        return together(ray.get(self._actor.read.remote()))


class TrafficWriter:
    """A replica's pen."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._replica: str | None = None

    def write(self, traffic: WeightTraffic) -> None:
        """What passed in this replica since it was loaded; returns when it is written."""
        import ray

        self._replica = self._replica or uuid.uuid4().hex  # in the replica's process, not in the driver's
        ray.get(self._actor.write.remote(self._replica, traffic))


class _Book:
    def __init__(self) -> None:
        self._by_replica: dict[str, WeightTraffic] = {}

    def write(self, replica: str, traffic: WeightTraffic) -> None:
        self._by_replica[replica] = traffic

    def read(self) -> list[WeightTraffic]:
        return list(self._by_replica.values())
