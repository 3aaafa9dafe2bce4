"""What a run said of itself, as JSON lines that anyone can follow: `logs/RUN.jsonl` in the warehouse.

Flows in: events of the one process that writes a run. Flows out: one line an event, appended in one write, and the
same events read back. The log decides nothing: what is complete is what the manifest lists. It says what the manifest
cannot: what was planned, what is under way, and why something failed.

Every event has `time` (UTC), `invocation` (the same for all events of one start of the command) and `event`:

    started        stages, kept (number of partitions already there), partitions (those to compute: stage, model,
                   concept, prompts, forwards)
    stage_started  model, stage, concepts
    published      model, stage, concept, forwards (that went through the model in this stage so far)
    stage_ended    model, stage, prompts, forwards (counted by the replicas), start_up, work (seconds), nodes (id to
                   prompts that went through ranks on it), of an offloaded model weights (`WeightTraffic`)
    failed         model, stage, concepts (those not published), error, reason
    ended          outcome (complete, incomplete, interrupted, crashed), computed, seconds, reason
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.warehouse.disk import writing
from pipeline.warehouse.layout import PartitionKey


def log_file(root: Path, run: str) -> Path:
    """Where the events of `run` are."""
    return root / "logs" / f"{PartitionKey(run, 'run').run}.jsonl"


class RunLog:
    """Appends the events of one invocation; the caller holds the run's lock."""

    def __init__(self, root: Path, run: str) -> None:
        self.path = log_file(root, run)
        self.invocation = uuid.uuid4().hex[:12]
        self._one_at_a_time = threading.Lock()  # models run side by side

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Raises WarehouseError when the log cannot be written."""
        head = {"time": datetime.now(UTC).isoformat(), "invocation": self.invocation, "event": event}
        line = json.dumps({**head, **fields}, allow_nan=False) + "\n"
        with self._one_at_a_time, writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a writer died within a line
                os.write(descriptor, (b"\n" if torn else b"") + line.encode())
            finally:
                os.close(descriptor)


def read_log(root: Path, run: str) -> list[dict[str, Any]]:
    """Every event of `run`, oldest first; a line that a dying writer left half is passed over."""
    try:
        lines = log_file(root, run).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"time", "invocation", "event"} <= event.keys():
            events.append(event)
    return events


def logged_runs(root: Path) -> list[str]:
    """Runs that have a log."""
    return sorted(path.stem for path in (root / "logs").glob("*.jsonl"))
