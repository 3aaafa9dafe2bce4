"""The check of each view: a query that must return no rows.

Flows in: a connection with the views, and `warehouse/checks/<view>.sql`. Flows out: what was violated, row by
row: a grain that does not hold, a score that is not finite, a prompt scored on one side only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.resources import resource_dir
from pipeline.warehouse.results import Result, fetch_result
from pipeline.warehouse.views import prepare, view_files

if TYPE_CHECKING:
    import duckdb


_MAX_ROWS = 100


@dataclass(frozen=True)
class Violation:
    """A view whose check returned rows; `result` holds the first of them."""

    view: str
    result: Result

    def __str__(self) -> str:
        columns, rows = self.result
        first = ", ".join(f"{name}={value}" for name, value in zip(columns, rows[0], strict=True))
        num_rows = f"{_MAX_ROWS} or more" if len(rows) == _MAX_ROWS else str(len(rows))
        return f"{self.view}: {num_rows} rows violate its check; first: {first}"


def check_files() -> dict[str, Path]:
    """View name -> its check, in build order. A view without a check is missing here (a test finds it)."""
    folder = resource_dir("warehouse") / "checks"
    return {view: folder / f"{view}.sql" for view in view_files() if (folder / f"{view}.sql").is_file()}


def run_checks(con: duckdb.DuckDBPyConnection) -> list[Violation]:
    """Run every check; returns the violations (at most 100 rows each), none when all holds."""
    violations = []
    prepare(con, view_files())
    for view, path in check_files().items():
        sql = path.read_text(encoding="utf-8")
        # the line break ends a comment in the check's last line
        result = fetch_result(con.execute(f"from ({sql}\n) limit {_MAX_ROWS}"))
        if result.rows:
            violations.append(Violation(view, result))
    return violations
