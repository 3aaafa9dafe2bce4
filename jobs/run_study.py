"""A whole study as a Ray job: the same run as `steer run`, on the cluster the job was submitted to.

Flows in: a study file and a warehouse that all nodes reach. Flows out: what `steer run` leaves behind; the job's exit
status is the study's.

    ray job submit --working-dir . -- python jobs/run_study.py data/studies/qwen3.toml --warehouse /shared/warehouse
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run", "--address", "auto"]
    main()
