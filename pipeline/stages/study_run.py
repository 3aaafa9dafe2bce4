"""One study from start to end: what is missing is computed, published and summed up.

Flows in: a checked `StudyPlan` and a warehouse. Flows out: published partitions (run, model, concept, stage), events in
the run's log, and a `RunSummary` of what was done, what had been done before, and where the time went.

A partition is published the moment its last row has arrived, so an interruption loses at most the partitions that
were under way; running the same command again does the rest.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa

from pipeline.engine.sweep import SweepGrid
from pipeline.engine.vectors import SteeringVectors, VectorOrigin
from pipeline.engine.weights import WeightTraffic
from pipeline.errors import StudyError, UserError, WarehouseError
from pipeline.provenance import commit, versions
from pipeline.schemas import MODELS, PROMPTS, RUNS, VECTORS
from pipeline.stages.gang import ReplicaSpec, Reservation
from pipeline.stages.partition_work import partition_work
from pipeline.stages.pools import ClusterSize, Pools, ending_gangs, make_pools, running_ray
from pipeline.stages.reduce import VectorReducer, partial_moments
from pipeline.stages.replica import ExtractActivations, ScorePrompts, ScoreSpec
from pipeline.stages.study_plan import ConceptPlan, ModelPlan, StudyPlan, concept_files
from pipeline.stages.tokenise import TokenisePairs, TokenisePrompts, TokeniseSpec
from pipeline.stages.weight_passes import TrafficBook, TrafficWriter, prompts_per_batch
from pipeline.stages.write import WriteScores
from pipeline.warehouse.lock import run_lock
from pipeline.warehouse.manifest import DataFile, PartitionKey, Warehouse
from pipeline.warehouse.run_log import RunLog

if TYPE_CHECKING:
    import ray.data

Stage = Literal["extract", "score"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_ACCELERATOR = "accelerator_type:"  # what Ray's resource of a kind of GPU begins with
_SAFETENSORS = ".safetensors"
_RAY_ADDS = "\nFailed to apply UDF transform"  # what Ray appends to the message of an exception it passes on


@dataclass(frozen=True)
class Progress:
    """What a study says of itself while it runs: `done` of `total` prompts of one model's stage."""

    model: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class StageTime:
    """Where the time of one model's stage went, in seconds of wall time. `start_up` is from asking for the pool to
    its first result (processes, imports, weights, first batch), `work` all after that. `weights` is what of an
    offloaded model's weights passed, in all its replicas."""

    model: str
    stage: str
    num_prompts: int
    start_up: float
    work: float
    weights: WeightTraffic | None = None

    @property
    def prompts_per_pass(self) -> float:
        """Prompts that shared one pass of an offloaded model's weights."""
        return self.num_prompts / self.weights.num_passes if self.weights and self.weights.num_passes else 0.0


@dataclass
class RunSummary:
    """What one invocation did. `wanted` are the partitions asked for; `failures` maps a model to why it lacks some."""

    run: str
    wanted: list[PartitionKey] = field(default_factory=list)
    seconds: float = 0.0
    start_ray: float = 0.0
    times: list[StageTime] = field(default_factory=list)
    computed: list[PartitionKey] = field(default_factory=list)
    skipped: list[PartitionKey] = field(default_factory=list)
    failures: dict[str, UserError] = field(default_factory=dict)

    @property
    def num_model_prompts(self) -> int:
        """Prompts that went through a model, extraction and scoring together."""
        return sum(t.num_prompts for t in self.times)

    @property
    def remaining(self) -> list[PartitionKey]:
        """Partitions asked for that are not there."""
        there = {*self.computed, *self.skipped}
        return [key for key in self.wanted if key not in there]

    def concepts_left(self, model: str, stage: str) -> list[str]:
        """Concepts of which `stage` of `model` was asked for and is not there."""
        return [key.concept or "" for key in self.remaining if (key.model, key.stage) == (model, stage)]


def run_study(
    plan: StudyPlan,
    warehouse: Warehouse,
    fresh: bool = False,
    address: str | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    stages: Sequence[Stage] = STAGES,
    summary: RunSummary | None = None,
) -> RunSummary:
    """Compute what `warehouse` lacks of the `stages` of `plan`; with `fresh`, all of it (each partition is replaced
    when its new content is whole). Runs on the Ray at `address`, or on one of its own.

    A model that fails with a UserError is put into the summary's `failures` and the others go on; so is one whose
    vectors are missing where scores alone are asked for. Any other exception is ours and is raised; a `summary` given
    then says how far it came.
    """
    started = time.perf_counter()
    run = plan.study.run_id
    summary = RunSummary(run) if summary is None else summary
    with run_lock(warehouse.root, run):
        warehouse.sweep(run)
        todo = _Todo.of(plan, warehouse, fresh, summary, stages)
        _publish_descriptions(plan, warehouse)
        log = RunLog(warehouse.root, run)
        with _logged(log, plan, stages, todo, summary):
            if todo.partitions:
                before_ray = time.perf_counter()
                with running_ray(address) as size:
                    summary.start_ray = time.perf_counter() - before_ray
                    for model in plan.models:
                        if todo.of_model(model):
                            _run_model(plan, model, todo, warehouse, size, summary, report, log)
            summary.seconds = time.perf_counter() - started
        warehouse.sweep(run)
    return summary


@contextmanager
def _logged(log: RunLog, plan: StudyPlan, stages: Sequence[Stage], todo: _Todo, summary: RunSummary) -> Iterator[None]:
    """The first and the last event of an invocation around its work, however that ends."""
    planned = []
    for model in plan.models:
        for stage in stages:
            for concept in (c for c in plan.concepts if c.name in summary.concepts_left(model.name, stage)):
                work = partition_work(plan, model, concept, stage)
                names = {"stage": stage, "model": model.name, "concept": concept.name}
                planned.append({**names, "prompts": work.num_prompts, "forwards": round(work.forwards, 3)})
    log.write("started", stages=list(stages), kept=len(summary.skipped), partitions=planned)
    refused: dict[str, list[str]] = {}
    for key in summary.remaining:
        if key not in todo.partitions:
            refused.setdefault(key.model or "", []).append(key.concept or "")
    for name, error in summary.failures.items():  # known before anything runs: no vectors
        log.write("failed", model=name, stage="score", concepts=refused[name], **_told(error))
    outcome, reason = "crashed", ""
    try:
        yield
        outcome = "incomplete" if summary.failures else "complete"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    except BaseException as error:
        reason = _told(error)["reason"]
        raise
    finally:
        done = len(summary.computed)
        log.write("ended", outcome=outcome, computed=done, seconds=round(summary.seconds, 3), reason=reason)


def _told(error: BaseException) -> dict[str, str]:
    return {"error": type(error).__name__, "reason": str(error) or type(error).__name__}


@dataclass(frozen=True)
class _Todo:
    """The partitions to compute."""

    run: str
    partitions: frozenset[PartitionKey]

    @classmethod
    def of(
        cls, plan: StudyPlan, warehouse: Warehouse, fresh: bool, summary: RunSummary, stages: Sequence[Stage]
    ) -> _Todo:
        """What is missing of `stages`. Scores that lack their vectors, where those are not asked for, go into the
        summary's failures and are not among it."""
        run = plan.study.run_id
        wanted: set[PartitionKey] = set()
        for model in plan.models:
            without_vectors = []
            for concept in plan.concepts:
                fingerprints = {
                    "extract": plan.extract_fingerprint(model, concept),
                    "score": plan.score_fingerprint(model, concept),
                }
                vectors = PartitionKey(run, "extract", model.name, concept.name)
                for stage in stages:
                    key = PartitionKey(run, stage, model.name, concept.name)
                    summary.wanted.append(key)
                    if not fresh and warehouse.is_complete(key, fingerprints[stage]):
                        summary.skipped.append(key)
                    elif "extract" in stages or warehouse.is_complete(vectors, fingerprints["extract"]):
                        wanted.add(key)
                    else:
                        without_vectors.append(concept.name)
            if without_vectors:
                summary.failures[model.name] = _no_vectors(run, model.name, without_vectors)
        return cls(run, frozenset(wanted))

    def of_model(self, model: ModelPlan) -> bool:
        return any(key.model == model.name for key in self.partitions)

    def concepts(self, plan: StudyPlan, model: ModelPlan, stage: str) -> list[ConceptPlan]:
        return [c for c in plan.concepts if PartitionKey(self.run, stage, model.name, c.name) in self.partitions]


def _no_vectors(run: str, model: str, concepts: Sequence[str]) -> WarehouseError:
    return WarehouseError(
        f"model {model!r}: run {run} has no steering vectors of {', '.join(concepts)} from these prompts and this "
        "checkpoint, and scoring needs them; run the study with --stage extract (or all) first"
    )


def _run_model(
    plan: StudyPlan,
    model: ModelPlan,
    todo: _Todo,
    warehouse: Warehouse,
    size: ClusterSize,
    summary: RunSummary,
    report: Callable[[Progress], None],
    log: RunLog,
) -> None:
    """Extraction, then scoring, of one model; a UserError goes into the summary."""
    running: Stage = next(stage for stage in STAGES if todo.concepts(plan, model, stage))
    try:
        pools = make_pools(plan.study.file.cluster, size, model.section.tensor_parallel, model.name)
        pools = _on_accelerator(pools, model, plan.study.file.cluster.gpus, size)
        offloaded = model.section.offload != "none"
        stages: Sequence[tuple[Stage, Callable[..., Iterator[tuple[PartitionKey | None, int]]]]] = (
            ("extract", _extract),
            ("score", _score),
        )
        for stage, compute in stages:
            concepts = todo.concepts(plan, model, stage)
            if not concepts:
                continue
            running = stage
            total = sum(len(c.train if stage == "extract" else c.test) for c in concepts)
            report(Progress(model.name, stage, 0, total))
            log.write("stage_started", model=model.name, stage=stage, concepts=[c.name for c in concepts])
            begun = first = time.perf_counter()
            done = 0
            book = TrafficBook() if offloaded else None
            placed = _few_passes(plan, model, stage, total, pools) if offloaded else pools
            results = compute(plan, model, concepts, placed, warehouse, book.writer() if book else None)
            with ending_gangs(plan.study.run_id, pools, results) as results:
                for key, num_prompts in results:
                    first = time.perf_counter() if not done else first
                    done += num_prompts
                    report(Progress(model.name, stage, done, total))
                    if key is not None:
                        summary.computed.append(key)
                        log.write("published", model=model.name, stage=stage, concept=key.concept)
            ended = time.perf_counter()
            weights = book.total() if book else None
            spent = StageTime(model.name, stage, done, first - begun, ended - first, weights)
            summary.times.append(spent)
            seconds = {"start_up": round(spent.start_up, 3), "work": round(spent.work, 3)}
            passed = {"weights": asdict(weights)} if weights else {}
            log.write("stage_ended", model=model.name, stage=stage, prompts=done, **seconds, **passed)
    except Exception as error:
        cause = user_error_in(error)
        under_way = {c.name for c in todo.concepts(plan, model, running)}
        left = [name for name in summary.concepts_left(model.name, running) if name in under_way]
        log.write("failed", model=model.name, stage=running, concepts=left, **_told(cause or error))
        if cause is None:
            raise
        summary.failures[model.name] = cause


def _on_accelerator(pools: Pools, model: ModelPlan, gpus: str, size: ClusterSize) -> Pools:
    """`pools` with the model's actors on nodes of the kind of GPU it names. Raises StudyError when there is none and
    none can come."""
    kind = model.section.accelerator
    if kind is None or pools.device != "cuda" or pools.per_rank is not None:
        return pools  # (ranks on several nodes reserve for themselves)
    if gpus != "yes" and not size.total(f"{_ACCELERATOR}{kind}"):
        there = sorted(
            {name.removeprefix(_ACCELERATOR) for node in size.nodes for name in node if _ACCELERATOR in name}
        )
        raise StudyError(
            f"model {model.name!r}: accelerator = {kind!r}, but the cluster has {', '.join(there) or 'no known kind'}; "
            "change it, or say gpus = 'yes' where the cluster can grow"
        )
    return replace(pools, model={**pools.model, "accelerator_type": kind})


def _few_passes(plan: StudyPlan, model: ModelPlan, stage: Stage, num_prompts: int, pools: Pools) -> Pools:
    """`pools` with as many prompts in a batch as an offloaded model's weights should pass for at once."""
    cluster, facts = plan.study.file.cluster, model.facts
    activations = 2 * 4 * facts.num_layers * facts.hidden_size if stage == "extract" else 0  # of a pair's two sides
    size = prompts_per_batch(cluster.batch_size, num_prompts, cluster.replica_range[1], activations)
    return replace(pools, model={**pools.model, "batch_size": size})


def _extract(
    plan: StudyPlan,
    model: ModelPlan,
    concepts: list[ConceptPlan],
    pools: Pools,
    warehouse: Warehouse,
    passes: TrafficWriter | None,
) -> Iterator[tuple[PartitionKey | None, int]]:
    """Yields, as results arrive, the partition just published (or None) and how many pairs arrived."""
    protocol = plan.study.protocol
    pairs = _read_prompts(plan, concepts, "train", pools).map_batches(
        TokenisePairs, fn_constructor_args=(_tokenise_spec(plan, model, concepts, "train"),), **pools.tokenise
    )
    moments = pairs.map_batches(
        ExtractActivations,
        fn_constructor_args=(_replica_spec(plan, model, pools), protocol.read_site, passes),
        **pools.model,
    ).map_batches(partial_moments, **pools.side)
    reducer = VectorReducer()
    waiting = {c.name: c for c in concepts}
    for batch in moments.iter_batches(batch_size=None, batch_format="pyarrow"):
        before = {name: reducer.num_pairs(name) for name in waiting}
        reducer.add(batch)
        arrived = sum(reducer.num_pairs(name) - count for name, count in before.items())
        whole = [c for c in waiting.values() if reducer.num_pairs(c.name) == len(c.train)]
        yield None, arrived
        for concept in whole:
            del waiting[concept.name]
            origin = VectorOrigin(model.name, concept.name, protocol.read_site, protocol.read_position, protocol.name)
            yield _publish_vectors(plan, model, concept, reducer.vectors(origin), warehouse), 0
    assert not waiting, f"pairs of {sorted(waiting)} were lost on the way"


def _publish_vectors(
    plan: StudyPlan, model: ModelPlan, concept: ConceptPlan, vectors: SteeringVectors, warehouse: Warehouse
) -> PartitionKey:
    key = PartitionKey(plan.study.run_id, "extract", model.name, concept.name)
    num_layers, hidden = vectors.vectors.shape
    offsets = np.arange(num_layers + 1, dtype=np.int32) * hidden
    rows = pa.Table.from_arrays(
        [
            pa.array(np.arange(num_layers, dtype=np.int32)),
            pa.array([vectors.origin.site] * num_layers),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.vectors.reshape(-1))),
            pa.array(vectors.norm),
            pa.array(vectors.residual_norm),
            pa.array(vectors.standard_error),
            pa.array(vectors.coherence),
            pa.array([vectors.num_pairs] * num_layers, pa.int64()),
        ],
        schema=VECTORS,
    )
    side_file = warehouse.new_file("", key, _SAFETENSORS)
    vectors.save(side_file)
    files = [warehouse.write_table("vectors", key, rows), warehouse.describe("", side_file)]
    warehouse.publish(key, files, plan.extract_fingerprint(model, concept), {"num_pairs": vectors.num_pairs})
    return key


def _score(
    plan: StudyPlan,
    model: ModelPlan,
    concepts: list[ConceptPlan],
    pools: Pools,
    warehouse: Warehouse,
    passes: TrafficWriter | None,
) -> Iterator[tuple[PartitionKey | None, int]]:
    """Yields, as files are written, the partition just published (or None) and how many prompts are in them."""
    study, grid = plan.study, plan.study.grid
    score = ScoreSpec(
        grid=SweepGrid(model.layers, grid.strengths, study.protocol.steer_site, grid.positions),
        vector_files={c.name: vector_file(warehouse, study.run_id, model.name, c.name) for c in concepts},
        answer_form=study.protocol.answer_form,
        strength_unit=grid.strength_unit,
        controls=grid.controls,
        seed=study.file.study.seed,
    )
    files = (
        _read_prompts(plan, concepts, "test", pools)
        .map_batches(
            TokenisePrompts, fn_constructor_args=(_tokenise_spec(plan, model, concepts, "test"),), **pools.tokenise
        )
        .map_batches(
            ScorePrompts, fn_constructor_args=(_replica_spec(plan, model, pools), score, passes), **pools.model
        )
        .map_batches(WriteScores(warehouse.root, study.run_id, model.name), **pools.side)
    )
    steered = sum(s != 0 for s in grid.strengths)
    rows_of_prompt = len(model.layers) * (len(grid.strengths) + grid.controls * steered)
    expected = {c.name: len(c.test) * rows_of_prompt for c in concepts}
    by_name = {c.name: c for c in concepts}
    written: dict[str, list[DataFile]] = {name: [] for name in expected}
    for batch in files.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            name, table, num_prompts = row.pop("concept"), row["table"], row.pop("num_prompts")
            written[name].append(DataFile(**row))
            key = None
            if sum(file.num_rows for file in written[name]) == expected[name]:
                key = PartitionKey(study.run_id, "score", model.name, name)
                info = {"num_prompts": len(by_name[name].test)}
                warehouse.publish(key, written[name], plan.score_fingerprint(model, by_name[name]), info)
                del expected[name]
            yield key, num_prompts if table == "scores" else 0
    assert not expected, f"scores of {sorted(expected)} were lost on the way"


def vector_file(warehouse: Warehouse, run: str, model: str, concept: str) -> Path:
    """The published safetensors file of steering vectors."""
    entry = warehouse.entry(PartitionKey(run, "extract", model, concept))
    assert entry is not None, f"no vectors of {model}, {concept} are published"
    return next(warehouse.root / file.path for file in entry.files if file.path.endswith(_SAFETENSORS))


def _read_prompts(plan: StudyPlan, concepts: list[ConceptPlan], split: str, pools: Pools) -> ray.data.Dataset:
    """Prompts of all concepts, streamed in blocks of about `batch_size`, so that work spreads over replicas."""
    import ray.data

    files = list(concept_files(concepts, split))
    num_prompts = sum(len(c.train if split == "train" else c.test) for c in concepts)
    num_blocks = max(len(files), math.ceil(num_prompts / plan.study.file.cluster.batch_size))
    return ray.data.read_json(files, lines=True, include_paths=True, override_num_blocks=num_blocks, **pools.read)


def _tokenise_spec(plan: StudyPlan, model: ModelPlan, concepts: list[ConceptPlan], split: str) -> TokeniseSpec:
    protocol = plan.study.protocol
    return TokeniseSpec(
        checkpoint=model.checkpoint.path,
        answer_form=protocol.answer_form,
        read_position=protocol.read_position,
        max_tokens=model.facts.max_positions,
        concept_of_file=concept_files(concepts, split),
    )


def _replica_spec(plan: StudyPlan, model: ModelPlan, pools: Pools) -> ReplicaSpec:
    cluster = plan.study.file.cluster
    return ReplicaSpec(
        name=model.name,
        checkpoint=model.checkpoint.path,
        dtype=model.section.dtype,
        device=pools.device,
        num_ranks=model.section.tensor_parallel,
        num_threads=pools.num_threads,
        offload=model.section.offload,
        token_budget=cluster.token_budget,
        timeout=cluster.rank_timeout,
        heartbeat_timeout=cluster.heartbeat_timeout,
        reservation=Reservation(plan.study.run_id, pools.per_rank, cluster.reserve_timeout) if pools.per_rank else None,
    )


def user_error_in(error: BaseException) -> UserError | None:
    """The UserError an exception from Ray wraps, however deep; None if there is none."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        current = waiting.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        if type(current).__module__ == UserError.__module__ and isinstance(current, UserError):
            return type(current)(str(current).split(_RAY_ADDS, 1)[0])  # (Ray's wrapper is a subclass of what it wraps)
        waiting += [current.__cause__, current.__context__, getattr(current, "cause", None), *current.args]
    return None


# --- what is known before any model runs: the run, its models, its prompts ------------------------------


def _publish_descriptions(plan: StudyPlan, warehouse: Warehouse) -> None:
    run = plan.study.run_id
    started = datetime.now(UTC)
    run_key = PartitionKey(run, "run")
    with suppress(UserError):  # an unreadable entry is replaced below
        previous = warehouse.entry(run_key)
        started = previous.created if previous else started
    grid, protocol = plan.study.grid, plan.study.protocol
    row = {
        "study": plan.study.name,
        "protocol": protocol.name,
        "origin": "steer run",
        "positions": grid.positions,
        "strength_unit": grid.strength_unit,
        "started": started,
        "config": json.dumps(plan.study.resolved()),
        "versions": json.dumps(versions()),
        "commit": commit(),
    }
    _publish_rows(warehouse, run_key, "runs", [row], RUNS)
    for model in plan.models:
        _publish_rows(warehouse, PartitionKey(run, "model", model=model.name), "models", [_model_row(model)], MODELS)
    for concept in plan.concepts:
        rows = [
            {
                "split": p.split,
                "prompt": p.id,
                "question": p.question,
                "choice_a": p.choices[0],
                "choice_b": p.choices[1],
                "matching": p.matching,
            }
            for p in (*concept.train, *concept.test)
        ]
        _publish_rows(warehouse, PartitionKey(run, "prompts", concept=concept.name), "prompts", rows, PROMPTS)


def _model_row(model: ModelPlan) -> dict[str, Any]:
    facts = model.facts
    return {
        "path": model.section.path,
        "architecture": facts.architecture,
        "method": model.lineage.method,
        "lineage": model.lineage.source,
        "num_layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "num_params": facts.num_params,
        "num_active_params": facts.num_active_params,
        "num_experts": facts.num_experts,
        "dtype": model.section.dtype,
        "fingerprint": model.checkpoint.fingerprint,
        "config": json.dumps(model.checkpoint.config),
    }


def _publish_rows(
    warehouse: Warehouse, key: PartitionKey, table: str, rows: list[dict[str, Any]], schema: pa.Schema
) -> None:
    import hashlib

    told = [{k: v for k, v in row.items() if k != "started"} for row in rows]
    fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    if warehouse.is_complete(key, fingerprint):
        return
    file = warehouse.write_table(table, key, pa.Table.from_pylist(rows, schema=schema))
    warehouse.publish(key, [file], fingerprint)
