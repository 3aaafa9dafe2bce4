"""A gang: the rank processes that hold one model together, and live or die as one.

Flows in: what to load, over how many ranks; then requests such as `read_activations` and `sweep`. Flows out: rank 0's
answers. A rank that dies, stops (no heartbeat) or waits too long in a collective ends the whole gang at once; it is
built anew and the request is asked again, a stated number of times. The caller therefore sees an answer or an error,
never half of one, and a request is answered once.

The ranks are children of the owner (a pool actor of Ray Data that reserved their CPUs or GPUs as one), so the owner's
death ends them, and its reservation frees what they held.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ReplicaError, UserError
from pipeline.stages.rank import RankSpec

if TYPE_CHECKING:
    from pipeline.engine.model import DtypeName

_GRACE_SECONDS = 5.0  # a killed process is given so long to be reaped


@dataclass(frozen=True)
class ReplicaSpec:
    """One model replica: what to load, over how many ranks, onto what, and how patient to be. Times are in seconds.

    `timeout` bounds loading, a request, and every collective inside them; `heartbeat_timeout` is how long a rank may
    show no sign of life; a request that loses its gang is asked again of a new one up to `rebuilds` times.
    """

    name: str
    checkpoint: Path
    dtype: DtypeName
    device: str  # "cpu" or "cuda" (rank k takes the k-th visible device)
    num_ranks: int = 1
    num_threads: int = 1  # CPU threads of each rank
    token_budget: int = 0  # tokens a block takes at once; 0: derived from the device
    timeout: float = 1800.0
    heartbeat_timeout: float = 60.0
    rebuilds: int = 3


class GangLost(Exception):
    """Why a gang ended."""


@dataclass
class _Rank:
    process: subprocess.Popen[bytes]
    pipe: Connection
    heartbeat: int
    lifeline: int
    last_beat: float = field(default_factory=time.monotonic)


class Gang:
    """Owns the ranks of one model. Built at the first request; close it, or let the owner's process end."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self.num_builds = 0
        self._ranks: list[_Rank] = []
        self._rendezvous: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks alive now."""
        return [rank.process.pid for rank in self._ranks]

    def ask(self, request: str, *args: Any) -> Any:
        """Rank 0's answer to `request` (a name of `rank.requests`).

        Raises the UserError a rank raised, or ReplicaError after the gang was lost `rebuilds + 1` times.
        """
        losses: list[str] = []
        for _ in range(self.spec.rebuilds + 1):
            try:
                if not self._ranks:
                    self._build()
                return self._exchange((request, args))
            except GangLost as loss:
                losses.append(str(loss))
                self.close()
            except BaseException:
                self.close()
                raise
        raise ReplicaError(
            f"model {self.spec.name!r}: its gang of {self.spec.num_ranks} ranks was lost {len(losses)} times "
            f"({'; '.join(dict.fromkeys(losses))}); check memory, or use more ranks, then run again"
        )

    def close(self) -> None:
        """End all ranks at once."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(_GRACE_SECONDS)
            rank.pipe.close()
            os.close(rank.heartbeat)
            os.close(rank.lifeline)
        self._ranks = []
        if self._rendezvous is not None:
            self._rendezvous.cleanup()
            self._rendezvous = None

    def _build(self) -> None:
        from pipeline.engine.sharding import RankPlace

        spec = self.spec
        self.num_builds += 1
        self._rendezvous = tempfile.TemporaryDirectory(prefix="steer-gang-")
        meeting = f"file://{self._rendezvous.name}/rendezvous"
        for index in range(spec.num_ranks):
            self._ranks.append(_start_rank(spec.num_threads))
            device = f"cuda:{index}" if spec.device == "cuda" else spec.device
            place = RankPlace(index, spec.num_ranks, meeting)
            self._ranks[-1].pipe.send(
                RankSpec(spec.name, spec.checkpoint, spec.dtype, device, spec.num_threads, place, spec.timeout)
            )
        self._collect()

    def _exchange(self, message: tuple[str, tuple[Any, ...]]) -> Any:
        for rank in self._ranks:
            try:
                rank.pipe.send(message)
            except OSError as error:
                raise GangLost(self._epitaph(rank)) from error
        return self._collect()

    def _collect(self) -> Any:
        """One answer of every rank; rank 0's is returned. Raises GangLost at the first sign that one will not come."""
        deadline = time.monotonic() + self.spec.timeout
        waiting = dict(enumerate(self._ranks))
        answer = None
        for rank in self._ranks:
            rank.last_beat = time.monotonic()
        while waiting:
            now = time.monotonic()
            if now > deadline:
                raise GangLost(f"no answer of rank {min(waiting)} within {self.spec.timeout:g} s")
            for index, rank in waiting.items():
                if now - rank.last_beat > self.spec.heartbeat_timeout:
                    raise GangLost(f"rank {index} showed no sign of life for {self.spec.heartbeat_timeout:g} s")
            ready = wait([r.pipe for r in waiting.values()] + [r.heartbeat for r in waiting.values()], timeout=1.0)
            for index, rank in list(waiting.items()):
                if rank.heartbeat in ready:
                    os.read(rank.heartbeat, 4096)
                    rank.last_beat = time.monotonic()
                if rank.pipe not in ready:
                    continue
                result = self._receive(rank)
                answer = result if index == 0 else answer
                del waiting[index]
        return answer

    def _receive(self, rank: _Rank) -> Any:
        try:
            kind, value = rank.pipe.recv()
        except (EOFError, OSError) as error:
            raise GangLost(self._epitaph(rank)) from error
        if kind == "refused":
            assert isinstance(value, UserError)
            raise value
        if kind == "broken":
            raise GangLost(f"rank {self._ranks.index(rank)} broke: {value.strip().splitlines()[-1]}")
        return value

    def _epitaph(self, rank: _Rank) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.process.wait(_GRACE_SECONDS)
        code = rank.process.returncode
        how = "died" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return f"rank {self._ranks.index(rank)} {how}"


def _start_rank(num_threads: int) -> _Rank:
    ours, theirs = multiprocessing.Pipe()
    beat_out, beat_in = os.pipe()
    lifeline_out, lifeline_in = os.pipe()
    passed = (theirs.fileno(), beat_in, lifeline_out)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # ranks share cores: one that spins stops the one it waits for
        "GLOO_SOCKET_IFNAME": "lo",  # ranks of one machine talk over loopback alone
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages.rank", *map(str, passed)],
        pass_fds=passed,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # DeepSpeed prints what it shards
    )
    theirs.close()
    os.close(beat_in)
    os.close(lifeline_out)
    return _Rank(process, ours, beat_out, lifeline_in)
