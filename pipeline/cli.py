"""The `steer` command: a thin layer over the modules that do the work.

Flows in: command-line arguments. Flows out: text on stdout (results), on stderr (progress, messages), and the exit
code: 0 only if all that was asked for is done, 1 if part of it failed, 2 if the input is wrong, 130 if interrupted.

Heavy packages are imported inside the commands that use them, so that `steer --help` and `steer sql` answer at once.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.errors import QueryError, UserError

app = typer.Typer(
    name="steer",
    help="Measure how strongly, and at which depth, behaviours can be steered in language models.",
    epilog="Start with:  steer doctor   then   steer run data/studies/demo.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Check the prompts of a concept.", no_args_is_help=True)
app.add_typer(data_app, name="data")

out = Console()
err = Console(stderr=True)

DEFAULT_WAREHOUSE = Path("results")
WarehouseOption = Annotated[
    Path, typer.Option("--warehouse", "-w", help="Folder of the Parquet warehouse.", metavar="DIR")
]


class TableFormat(StrEnum):
    md = "md"
    csv = "csv"
    json = "json"


class SqlFormat(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study file (TOML).", metavar="STUDY.toml")],
    warehouse: WarehouseOption = DEFAULT_WAREHOUSE,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--resume",
            help="Compute everything again, or only what is not in the warehouse yet (the default).",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a key of the study, e.g. sweep.controls=8. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Run this model of the study alone. Repeatable.", metavar="MODEL")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (auto, ray://...); without it Ray starts here.")
    ] = None,
) -> None:
    """Run a study: vectors from the train prompts, the sweep on the test prompts, tables at the end.

    Finished parts are kept whenever it stops; run the same command again to go on.
    """
    from pipeline.run_command import run_to_tables

    code = run_to_tables(
        study, warehouse, fresh=fresh, overrides=set_ or [], only=only or [], address=address, out=out, err=err
    )
    raise typer.Exit(code)


@app.command()
def tables(
    name: Annotated[
        str | None,
        typer.Argument(help="model, concept, best_layer, method or architecture; all of them if left out."),
    ] = None,
    warehouse: WarehouseOption = DEFAULT_WAREHOUSE,
    format_: Annotated[TableFormat, typer.Option("--format", help="md is rounded for reading.")] = TableFormat.md,
    wide: Annotated[
        bool, typer.Option("--wide", help="All columns in md too (csv and json always have them).")
    ] = False,
) -> None:
    """Print the steerability tables."""
    from pipeline.warehouse import format as formats
    from pipeline.warehouse.tables import TABLES, brief, fetch
    from pipeline.warehouse.views import connect

    if name is not None and name not in TABLES:
        raise QueryError(f"no table {name!r}; the tables are {', '.join(TABLES)}")
    names = list(TABLES) if name is None else [name]
    with connect(warehouse) as con:
        results = {each: fetch(con, each) for each in names}
    if format_ is TableFormat.json:
        import json

        objects = {each: formats.as_objects(result) for each, result in results.items()}
        print(json.dumps(objects if name is None else objects[name], indent=1, allow_nan=False))
    elif format_ is TableFormat.csv:
        for each, result in results.items():
            if name is None:
                print(f"# {each}")
            print(formats.as_csv(result), end="")
    else:
        for each, result in results.items():
            print(formats.as_markdown(result if wide else brief(each, result), title=TABLES[each].title))


@app.command()
def sql(
    query: Annotated[
        str, typer.Argument(help='One SELECT, e.g. "SELECT model, avg_delta FROM steerability_by_model".')
    ],
    warehouse: WarehouseOption = DEFAULT_WAREHOUSE,
    format_: Annotated[SqlFormat, typer.Option("--format", help="csv and json keep all digits.")] = SqlFormat.table,
    timeout: Annotated[float, typer.Option(help="Seconds after which the query is stopped.")] = 300.0,
    memory_limit: Annotated[str | None, typer.Option(help="Most memory the query may take, e.g. 4GB.")] = None,
) -> None:
    """Run one read-only SQL query over the views.

    Views: runs, models, prompts, vectors, scores, control_scores, layer_effects, best_layers, steerability_by_model,
    steerability_by_concept, steerability_by_method, steerability_by_architecture and those they stand on. Nothing can
    be written, attached, installed or read beside the warehouse. DESCRIBE name shows a view's columns.
    """
    from pipeline.warehouse import format as formats
    from pipeline.warehouse.query import run_query

    result = run_query(warehouse, query, timeout=timeout, memory_limit=memory_limit)
    if format_ is SqlFormat.json:
        print(formats.as_json(result), end="")
    elif format_ is SqlFormat.csv:
        print(formats.as_csv(result), end="")
    else:
        out.print(formats.as_rich(result))
        out.print(f"{len(result.rows)} row{'' if len(result.rows) == 1 else 's'}", style="dim")


@data_app.command("check")
def data_check(
    path: Annotated[
        str, typer.Argument(help="A concept folder, a folder of them, a .jsonl file, or a concept's name.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Validate prompts: form, balance, near-duplicates, and whether answers can be told by length or wording."""
    from pipeline.prompt_checks import check_path

    report = check_path(path)
    if json_:
        import json

        print(json.dumps(report.to_dict(), indent=1))
    else:
        print("\n".join(report.lines()))
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def doctor(
    warehouse: WarehouseOption = DEFAULT_WAREHOUSE,
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Start Ray here for a moment to see that it works.")
    ] = True,
) -> None:
    """Say what this machine and installation can do, and what to mend."""
    from pipeline.doctor import Status, examine

    worst = Status.ok
    marks = {Status.ok: "[green]ok  [/]", Status.warn: "[yellow]warn[/]", Status.fail: "[red]fail[/]"}
    for check in examine(warehouse, start_ray=ray):
        out.print(f"{marks[check.status]}  {check.name:<12} {escape(check.found)}", highlight=False, soft_wrap=True)
        if check.fix:
            out.print(f"{'':>18} -> {escape(check.fix)}", style="dim", highlight=False, soft_wrap=True)
        worst = max(worst, check.status)
    raise typer.Exit(1 if worst is Status.fail else 0)


def main() -> None:
    """Entry point: a UserError becomes one message on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
