"""Columns and rows, as they come from DuckDB.

Flows in: an executed DuckDB cursor. Flows out: a `Result` of plain Python values, which tables, formats
and the report share.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import duckdb


class Result(NamedTuple):
    """Column names, and rows as tuples in that order. Unpacks as `columns, rows`."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def fetch_result(cursor: duckdb.DuckDBPyConnection) -> Result:
    """All rows of the statement that `cursor` has just executed."""
    description = cursor.description or []
    columns = [column[0] for column in description]
    if any("TIME ZONE" in str(column[1]).upper() for column in description):
        # DuckDB makes such values through pytz, which nothing here needs; Arrow makes them without it
        # (a second copy of the rows, of which DuckDB 2 warns, is no matter at this size)
        name = "to_arrow_table" if hasattr(cursor, "to_arrow_table") else "fetch_arrow_table"  # DuckDB 2, 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            table = getattr(cursor, name)()
        return Result(columns, list(zip(*(column.to_pylist() for column in table.columns), strict=True)))
    return Result(columns, cursor.fetchall())
