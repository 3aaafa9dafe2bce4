"""Ray, as a study needs it: a cluster to run on, pools of actors, and settings that keep rows in order.

Flows in: the study's `[cluster]` section and what the cluster has. Flows out: the keyword arguments each stage gives
to Ray Data's `map_batches`, and a running Ray.

A laptop's two cores must carry the model and, at the same time, tokenising, reducing and writing; a model actor
therefore asks Ray for a little less than the threads it uses, and every other task, reading included, for a tenth of a
CPU: an operator that finds no CPU free waits for ever (reading asks for a whole one unless told). So small a share lets
Ray start a process for every block at once, so those stages also say how many tasks may run: one a replica.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StudyError
from pipeline.study import ClusterSection

_SIDE_CPUS = 0.1  # of one task that tokenises, reduces or writes
_SPARE_CPUS = 0.5  # left free by model actors for those
_OBJECT_STORE_BYTES = 1 << 30  # of an embedded Ray; activations stream through it and are never all there


WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait by spinning take the core from the process they wait for: beside other work, a sweep on two
threads took 15 s, and 4 s without spinning."""


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster has now."""

    num_cpus: float
    num_gpus: float
    most_gpus_per_node: float


@contextmanager
def running_ray(address: str | None = None) -> Iterator[ClusterSize]:
    """A Ray to run on: the one this process is connected to, the cluster at `address`, or an embedded one that ends
    with the block."""
    import ray

    was_running = ray.is_initialized()
    if not was_running:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            os.environ.update(WORKER_ENVIRONMENT)  # inherited by every process of the Ray that starts here
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        else:
            ray.init(address, runtime_env={"env_vars": WORKER_ENVIRONMENT}, **quiet)
    try:
        _configure_data()
        resources = ray.cluster_resources()
        per_node = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
        yield ClusterSize(resources.get("CPU", 0.0), resources.get("GPU", 0.0), max(per_node, default=0.0))
    finally:
        if not was_running:
            ray.shutdown()


def _configure_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # so that a rerun merges and writes in the same order
    context.enable_progress_bars = False  # the study shows its own
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # Ray's own wrapper keeps only the text of what a stage raised
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised, and told once by the command


@dataclass(frozen=True)
class Pools:
    """How the stages of one model are placed. `read` holds arguments of a reader, the others of `map_batches`."""

    read: dict[str, Any]
    tokenise: dict[str, Any]
    model: dict[str, Any]
    side: dict[str, Any]  # reducing and writing
    device: str
    num_threads: int


def make_pools(cluster: ClusterSection, size: ClusterSize, tensor_parallel: int, model: str) -> Pools:
    """Place one model's stages. Raises StudyError when the cluster cannot hold one replica."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    use_gpu = cluster.gpus == "yes" or (cluster.gpus == "auto" and size.num_gpus > 0)
    if cluster.gpus == "auto" and use_gpu and tensor_parallel > size.most_gpus_per_node:
        raise StudyError(
            f"model {model!r}: tensor_parallel = {tensor_parallel}, but no node has more than "
            f"{size.most_gpus_per_node:g} GPU(s), and a gang stays on one node; lower it, "
            "or say gpus = 'yes' where the cluster can grow a larger node"
        )
    least, most = cluster.replica_range
    threads = cluster.cpus_per_replica or max(1, int(size.num_cpus) // most)
    if not use_gpu and threads > size.num_cpus:
        raise StudyError(
            f"model {model!r}: cluster.cpus_per_replica is {threads}, but the cluster has {size.num_cpus:g} CPUs; "
            "lower it"
        )
    placed = {"num_gpus": tensor_parallel} if use_gpu else {"num_cpus": max(0.25, threads - _SPARE_CPUS)}
    batch = {"batch_size": cluster.batch_size, "batch_format": "pyarrow"}
    return Pools(
        read={"num_cpus": _SIDE_CPUS, "concurrency": most},
        tokenise={"compute": ActorPoolStrategy(size=1), "num_cpus": _SIDE_CPUS, **batch},
        model={"compute": ActorPoolStrategy(min_size=least, max_size=most), **placed, **batch},
        side={
            "compute": TaskPoolStrategy(size=most),
            "num_cpus": _SIDE_CPUS,
            "batch_size": None,
            "batch_format": "pyarrow",
        },
        device="cuda" if use_gpu else "cpu",
        num_threads=max(1, threads // tensor_parallel),
    )
