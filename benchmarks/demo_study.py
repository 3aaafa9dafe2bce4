"""Wall time and peak memory of the demo study, from a cold process.

Flows in: nothing. Flows out: seconds and the peak resident memory of the whole process tree (Ray included; pages shared
between processes are counted once each process, so it is an upper bound), as a line of text and one JSON line.

    python benchmarks/demo_study.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 1200


def main() -> None:
    """Run the demo once and report."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline", "run", "data/studies/demo.toml", "--warehouse", f"{folder}/w"]
        before = {p.pid for p in psutil.process_iter()}
        started = time.perf_counter()
        study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        peak = 0
        while study.poll() is None and time.perf_counter() - started < LIMIT_SECONDS:
            peak = max(peak, tree_bytes(study.pid, before))
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        study.kill()
        assert study.returncode == 0, f"the study ended with {study.returncode}"
    cores, memory = psutil.cpu_count(), psutil.virtual_memory().total
    print(f"demo study: {seconds:.1f} s, peak {peak / 2**30:.2f} GiB, on {cores} cores and {memory / 2**30:.0f} GiB")
    print(json.dumps({"benchmark": "demo_study", "seconds": seconds, "peak_bytes": peak, "cores": cores}))


def tree_bytes(root: int, before: set[int]) -> int:
    """Resident memory of `root` and what descends from it, in bytes; processes in `before` left out."""
    total = 0
    with suppress(psutil.Error):
        for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
            if process.pid in before:
                continue
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


if __name__ == "__main__":
    main()
