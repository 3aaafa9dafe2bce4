"""Which code made a result: package versions and the commit.

Flows in: nothing but this installation. Flows out: what is written beside every run.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "steerability",
    "ray",
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "pyarrow",
    "duckdb",
    "numpy",
    "scipy",
)


def versions() -> dict[str, str]:
    """Version of Python and of each package that matters to a number; "missing" where it is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def commit() -> str:
    """The commit of the source checkout this runs from, with "+changes" if files differ; "" when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
