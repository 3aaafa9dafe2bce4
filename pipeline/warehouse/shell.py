"""The views as an SQL script, so that the DuckDB shell (or any DuckDB) can be asked without this package.

Flows in: a warehouse. Flows out: SQL on standard output.

    python -m pipeline.warehouse.shell DIR > views.sql
    duckdb -init views.sql

The script names the files that are published now, by absolute path; what is published later needs a new one.
Views that say `build: once` become tables, worked out as the shell starts.
"""

from __future__ import annotations

import sys

from pipeline.errors import UserError
from pipeline.warehouse.manifest import Warehouse
from pipeline.warehouse.storage import Root
from pipeline.warehouse.views import is_built_once, view_selects


def view_script(root: Root) -> str:
    """One CREATE statement per view of the warehouse at `root`, in build order."""
    statements = ["set TimeZone = 'UTC';"]
    for name, select in view_selects(Warehouse.open(root).listed_files()).items():
        kind = "table" if is_built_once(select) else "view"
        statements.append(f'create {kind} "{name}" as\n{select.rstrip()}\n;')
    return "\n".join(statements) + "\n"


def main() -> int:
    """Prints the script for the folder that is the only argument."""
    if len(sys.argv) != 2:
        print("usage: python -m pipeline.warehouse.shell DIR > views.sql", file=sys.stderr)
        return 2
    try:
        print(view_script(sys.argv[1]), end="")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
