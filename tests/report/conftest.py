"""Fixtures of the report tests: one synthetic warehouse, and its page with every plot as files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.report.command import write_report
from pipeline.warehouse import layout
from tests.report.planted import HOSTILE, HOSTILE_NAME, Plan, publish


@dataclass(frozen=True)
class Written:
    """A page, its text, the folder of its figures, the warehouse, and what the command printed."""

    page: Path
    html: str
    figures: Path
    warehouse: Path
    lines: list[str]


def write(folder: Path, warehouse: Path, run: str | None = None) -> Written:
    page, figures = folder / "report.html", folder / "figures"
    lines = write_report(warehouse, page, figures=figures, run=run)
    return Written(page, page.read_text(encoding="utf-8"), figures, warehouse, lines)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("report")
    return write(folder, publish(folder / "warehouse", Plan()))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two runs, with markup wherever a warehouse may hold text, and in names that its own writer would refuse."""
    folder = tmp_path_factory.mktemp("hostile")
    plan = Plan(
        models=("_one", "$two^{x"),
        concepts=("honest", HOSTILE_NAME),
        study=HOSTILE,
        method=HOSTILE,
        config=f'{{"text": {HOSTILE!r}}}',
        num_controls=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_NAME", re.compile("[^/]+"))
        patch.setattr(layout, "_PATH", re.compile(".+"))
        warehouse = publish(folder / "warehouse", plan)
        publish(warehouse, Plan(run="second", models=("one",), concepts=("honest",), num_controls=0, width=0))
        return write(folder, warehouse)
