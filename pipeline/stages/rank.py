"""One rank of a gang: a process that holds its shard of a model and does what the gang's owner asks.

Flows in: over a pipe from the owner, which model to load and where this rank stands, then one request at a time.
Flows out: over the same pipe, "ready", then an answer to each request (rank 0's carries the result; all ranks compute
it in lockstep). A second pipe carries a heartbeat out, a third ends the rank when its owner is gone, whatever it was
doing: a collective that waits for a dead partner cannot keep it alive.

Run by `gang.Gang` as `python -m pipeline.stages.rank REQUESTS HEARTBEAT LIFELINE` (file descriptors).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.engine.model import DtypeName, Model
    from pipeline.engine.sharding import RankPlace

HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True)
class RankSpec:
    """What a rank loads, and where it stands among its gang."""

    name: str
    checkpoint: Path
    dtype: DtypeName
    device: str
    num_threads: int
    place: RankPlace
    timeout: float  # seconds a collective may wait


def requests() -> dict[str, Callable[..., Any]]:
    """What a replica can be asked for, by name: functions of a loaded model. The one list for ranks and for a replica
    of a single rank."""
    from pipeline.engine.extract import read_activations
    from pipeline.engine.sweep import sweep

    return {"read_activations": read_activations, "sweep": sweep}


def main(arguments: list[str]) -> None:
    """Serve until the owner closes the request pipe."""
    request_fd, heartbeat_fd, lifeline_fd = (int(a) for a in arguments)
    threading.Thread(target=_die_with_owner, args=(lifeline_fd,), daemon=True).start()
    threading.Thread(target=_beat, args=(heartbeat_fd,), daemon=True).start()
    pipe = Connection(request_fd)
    spec: RankSpec = pipe.recv()
    try:
        model = _load(spec)
        pipe.send(("ready", None))
        known = requests()
        while True:
            name, args = pipe.recv()
            result = known[name](model, *args)
            pipe.send(("done", result if spec.place.rank == 0 else None))
    except EOFError:
        os._exit(0)  # the owner is done with this gang
    except UserError as error:
        pipe.send(("refused", error))
    except BaseException:
        pipe.send(("broken", traceback.format_exc()))
    os._exit(1)  # at once: partners may be stuck in a collective that a clean exit would wait for


def _load(spec: RankSpec) -> Model:
    import torch

    from pipeline.engine.sharding import load_rank

    torch.set_num_threads(spec.num_threads)
    return load_rank(spec.checkpoint, spec.dtype, spec.device, spec.name, spec.place, spec.timeout)


def _die_with_owner(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)  # returns when the owner's end closes; nothing is ever written
    os._exit(1)


def _beat(heartbeat_fd: int) -> None:
    while True:
        try:
            os.write(heartbeat_fd, b".")
        except OSError:
            return
        time.sleep(HEARTBEAT_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
