"""Weights, read from safetensors slice by slice into where they belong: a rank's share, or some tensors whole.

Flows in: a checked checkpoint, a rank's place, a model whose parameters are there but empty. Flows out: the filled
parameters and a count of the bytes read. Nothing is ever whole in memory: a slice is copied from the mapped file
straight into the parameter, in the parameter's dtype.

Checkpoints store experts singly (`experts.E.gate_proj.weight`); transformers 5 holds them fused, `gate_up_proj`
[E, gate rows then up rows, H] and `down_proj` [E, H, I].
"""

from __future__ import annotations

import math
import resource
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from torch import Tensor

from pipeline.engine.batching import BLOCKS_AT_ONCE
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.layout import Cut, ExpertName, cut_of
from pipeline.engine.ranks import RankPlace
from pipeline.errors import CheckpointError

Place = Literal["cpu", "disk"]
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_MAPPED_BYTES = 32 * 1024 * 1024  # a file is mapped anew after so much: its touched pages count as resident


@dataclass(frozen=True)
class LoadReport:
    """What loading cost one rank. Bytes read are those of the slices asked for, as stored on disk; where each row of a
    matrix is cut (`o_proj`, `down_proj`), ranks share the pages these lie on. `seconds` are those of reading, from the
    first weight on. Resident memory is the process's, before the weights and at most (since the process began)."""

    bytes_read: int
    share_bytes: int  # this rank's parameters in memory
    share_bytes_on_disk: int  # the same parameters in the dtype they are stored in
    seconds: float
    rss_before: int
    peak_rss: int


@dataclass
class WeightTraffic:
    """Where the weights lie and what of them passed. `model_bytes` and `bytes_read` are counted where the weights lie:
    as stored in the files for "disk", in the model's dtype for "cpu". `bytes_read` holds what stays on the device
    (once) and every block that was brought; `num_passes` is how often the blocks were begun anew."""

    place: Place
    model_bytes: int
    resident_bytes: int  # on the device all the time
    block_bytes: int  # on the device, of the largest block; up to BLOCKS_AT_ONCE are there at once
    bytes_read: int = 0
    num_passes: int = 0

    @property
    def blocks_to_come(self) -> int:
        """Bytes that blocks take on the device while they run."""
        return BLOCKS_AT_ONCE * self.block_bytes


def check_stored_dtypes(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for weights stored in a dtype that cannot be read as it is, such as a quantised one."""
    for name, entry in checkpoint.tensors.items():
        if entry.dtype not in _ITEM_BYTES:
            raise CheckpointError(
                f"{entry.file}: tensor {name} is stored as {entry.dtype}; "
                f"use a checkpoint in {', '.join(sorted(_ITEM_BYTES))}"
            )


def fill(hf: Any, checkpoint: Checkpoint, place: RankPlace) -> int:
    """Fill every parameter of `hf` with this rank's part; returns the bytes read.

    Raises CheckpointError for a tensor that DeepSpeed cut otherwise than `layout` says, or left out.
    """
    facts = checkpoint.facts
    by_file: dict[Path, list[tuple[str, Cut]]] = defaultdict(list)
    for name, entry in checkpoint.tensors.items():
        if facts.tied_embeddings and name == "lm_head.weight":
            continue
        cut = cut_of(name, entry.shape, facts, place.rank, place.world_size)
        if cut is not None:
            by_file[entry.file].append((name, cut))
    parameters = {_unsharded(name): parameter.data for name, parameter in hf.named_parameters()}
    return _fill(parameters, checkpoint, by_file, place)


def read_whole(parameters: Mapping[str, Tensor], checkpoint: Checkpoint, names: Iterable[str]) -> int:
    """Fill `parameters`, by the names of an unsharded model, from the checkpoint tensors `names`, whole. Returns the
    bytes read. Raises CheckpointError when `names` leave a parameter unfilled."""
    by_file: dict[Path, list[tuple[str, Cut]]] = defaultdict(list)
    for name in names:
        entry = checkpoint.tensors[name]
        by_file[entry.file].append((name, Cut(0, 0, entry.shape[0])))
    return _fill(parameters, checkpoint, by_file, RankPlace(0, 1, ""))


def _parameter_of(name: str) -> str:
    """The parameter of an unsharded model that checkpoint tensor `name` is in: experts are fused in memory."""
    expert = ExpertName.of(name)
    if expert is None:
        return name
    return f"{expert.experts}.{'down_proj' if expert.part == 'down' else 'gate_up_proj'}"


def stored_bytes(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    """Bytes of the tensors `names` as they lie on disk."""
    entries = [checkpoint.tensors[name] for name in names]
    return sum(math.prod(entry.shape) * _ITEM_BYTES[entry.dtype] for entry in entries)


def _unsharded(name: str) -> str:
    """A rank's parameter by the name it has in an unsharded model."""
    return "lm_head.weight" if name == "lm_head.shard" else name.replace(".mlp.experts.local.", ".mlp.experts.")


def _fill(
    parameters: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    by_file: Mapping[Path, list[tuple[str, Cut]]],
    place: RankPlace,
) -> int:
    filled: dict[str, int] = defaultdict(int)
    bytes_read = 0
    for file, cuts in by_file.items():
        for group in _groups(checkpoint, cuts):
            bytes_read += _fill_from(file, group, checkpoint, place, parameters, filled)
    empty = [name for name, parameter in parameters.items() if filled[name] != parameter.numel()]
    if empty:
        raise CheckpointError(f"{checkpoint.path}: {len(empty)} parameters were not filled, first {empty[0]}")
    return bytes_read


def _groups(checkpoint: Checkpoint, cuts: list[tuple[str, Cut]]) -> list[list[tuple[str, Cut]]]:
    """`cuts` in runs whose tensors span no more than `_MAPPED_BYTES` (or hold a single tensor)."""
    groups: list[list[tuple[str, Cut]]] = []
    mapped = 0
    for name, cut in cuts:
        entry = checkpoint.tensors[name]
        shape = entry.shape if cut.dim else cut.shape(entry.shape)  # where rows are cut, all pages are touched
        size = math.prod(shape) * _ITEM_BYTES[entry.dtype]
        if groups and mapped + size <= _MAPPED_BYTES:
            groups[-1].append((name, cut))
            mapped += size
        else:
            groups.append([(name, cut)])
            mapped = size
    return groups


def _fill_from(
    file: Path,
    cuts: list[tuple[str, Cut]],
    checkpoint: Checkpoint,
    place: RankPlace,
    parameters: Mapping[str, Tensor],
    filled: dict[str, int],
) -> int:
    from safetensors import safe_open

    num_experts = checkpoint.facts.num_experts // place.world_size
    bytes_read = 0
    with safe_open(str(file), framework="pt") as stored:
        for name, cut in cuts:
            entry = checkpoint.tensors[name]
            whole = stored.get_slice(name)
            part = whole[:, cut.start : cut.stop] if cut.dim else whole[cut.start : cut.stop]
            parameter = _parameter_of(name)
            target = _part_for(name, parameters[parameter], place.rank * num_experts)
            if target.shape != part.shape:
                raise CheckpointError(
                    f"{file}: {name} gives rank {place.rank} of {place.world_size} shape {list(part.shape)}, but "
                    f"DeepSpeed made {list(target.shape)}; this version of DeepSpeed cuts otherwise"
                )
            target.copy_(part)
            filled[parameter] += target.numel()
            bytes_read += part.numel() * _ITEM_BYTES[entry.dtype]
    return bytes_read


def _part_for(name: str, parameter: Tensor, first_expert: int) -> Tensor:
    """The part of `parameter` that checkpoint tensor `name` fills."""
    expert = ExpertName.of(name)
    if expert is None:
        return parameter
    own = parameter[expert.expert - first_expert]
    if expert.part == "down":
        return own
    half = own.shape[0] // 2
    return own[:half] if expert.part == "gate" else own[half:]


def share_bytes_on_disk(hf: Any, checkpoint: Checkpoint) -> int:
    """Bytes of this rank's parameters in the dtype of the checkpoint (that of its first tensor)."""
    item = _ITEM_BYTES[next(iter(checkpoint.tensors.values())).dtype]
    return item * sum(parameter.numel() for parameter in hf.parameters())


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most resident memory this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():  # the counter of getrusage may be inherited from the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
