"""Columns and rows as text: Markdown, CSV, JSON, or a terminal table.

Flows in: a `Result`. Flows out: text, or a `rich` table. Numbers are rounded for reading (Markdown and
terminal) and kept whole for machines (CSV, JSON). JSON has no NaN: what is not finite becomes null.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
from typing import TYPE_CHECKING, Any

from pipeline.warehouse.results import Result

if TYPE_CHECKING:
    from rich.table import Table


def as_markdown(result: Result, title: str | None = None) -> str:
    """A Markdown table, numbers rounded and set to the right; under a heading where a title is given."""
    columns, rows = result
    numeric = _numeric_columns(result)
    lines = [f"## {title}", ""] if title else []
    lines.append("| " + " | ".join(_escaped(column) for column in columns) + " |")
    lines.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
    lines += ["| " + " | ".join(_escaped(rounded(value)) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def as_csv(result: Result) -> str:
    """CSV with a header line; missing values are empty, floats are written to the last digit."""
    columns, rows = result
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row])
    return stream.getvalue()


def as_objects(result: Result) -> list[dict[str, Any]]:
    """One dict per row, keyed by column, of values that JSON has."""
    columns, rows = result
    return [{name: json_value(value) for name, value in zip(columns, row, strict=True)} for row in rows]


def as_json(result: Result) -> str:
    """A JSON list of objects keyed by column. Of columns with the same name the last one stands."""
    return json.dumps(as_objects(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_rich(result: Result, title: str | None = None) -> Table:
    """A table for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column, right in zip(result.columns, _numeric_columns(result), strict=True):
        table.add_column(Text(column), justify="right" if right else "left", overflow="fold")
    for row in result.rows:
        table.add_row(*(Text(rounded(value)) for value in row))
    return table


def rounded(value: Any) -> str:
    """A value for a reader: three decimals, three digits where smaller than 0.1, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float | decimal.Decimal):
        number = float(value)
        if not math.isfinite(number):
            return str(number)
        return f"{number:.3g}" if 0 < abs(number) < 0.1 else f"{number:.3f}"
    return str(value)


def json_value(value: Any) -> Any:
    """`value` as JSON has it: NaN and infinities are null, dates ISO texts, bytes hexadecimal."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | decimal.Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_value(item) for item in value]
    return str(value)


def _numeric_columns(result: Result) -> list[bool]:
    """Per column, whether every value that is there is a number."""
    numeric = []
    for index in range(len(result.columns)):
        values = [row[index] for row in result.rows if row[index] is not None]
        numeric.append(
            bool(values)
            and all(isinstance(v, int | float | decimal.Decimal) and not isinstance(v, bool) for v in values)
        )
    return numeric


def _escaped(text: str) -> str:
    """One line, with no bar that would end the cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _csv_cell(value: Any) -> Any:
    """Lists and structs as JSON, so that they can be read back; all else as Python writes it."""
    if value is None:
        return ""
    return json.dumps(json_value(value)) if isinstance(value, list | tuple | dict) else value
