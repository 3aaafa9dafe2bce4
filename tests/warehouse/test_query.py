"""SQL from outside reads the views and nothing else, whatever it is dressed up as."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline.errors import QueryError
from pipeline.warehouse.query import run_query
from pipeline.warehouse.views import connect, view_files
from tests.warehouse.planted import PlantedStudy


@pytest.fixture
def locked(planted: PlantedStudy) -> Iterator[duckdb.DuckDBPyConnection]:
    """The boxed connection, without the judgement of statements before it: the second wall alone."""
    con = connect(planted.root, read_only_sql=True)
    yield con
    con.close()


@pytest.mark.parametrize(
    "sql",
    [
        "select model, avg_delta from steerability_by_model order by model",
        "SELECT 1;",
        "  -- a comment; drop table x\n select /* ; copy */ 1 ;\n-- end",
        "with x as (select 1 as a) select a from x",
        "from models",
        "values (1), (2)",
        "table models",
        "describe best_layers",
        "describe select 1",
        "show tables",
        "summarize models",
        "explain select model from models",
        "EXPLAIN ANALYZE select count(*) from scores",
        "select * from (describe models)",
        "select unnest([1, 2])",
        "select i from range(3) as t (i)",
        "select 'copy x to y; attach' as text",
        "pivot best_layers on concept in ('honest', 'terse') using max(delta) group by model",
        "with recursive t as (select 1 as i union all select i + 1 from t where i < 5) select max(i) from t",
    ],
)
def test_queries_that_only_read_are_answered(planted: PlantedStudy, sql: str) -> None:
    columns, rows = run_query(planted.root, sql)
    assert columns
    assert rows


ATTACKS = [
    "copy (select 1) to '{out}'",
    "copy models to '{out}' (format parquet)",
    "copy scores from '{out}'",
    "explain analyze copy (select 1) to '{out}'",
    "/* x */ explain analyze copy (select 1) to '{out}'",
    "/* /* */ explain select 1 -- */ explain analyze copy (select 1) to '{out}'",
    "explain (analyze) copy (select 1) to '{out}'",
    "explain analyze create table t as select 1",
    "export database '{out}'",
    "import database '{out}'",
    "attach '{out}' as other",
    "attach ':memory:' as other",
    "install httpfs",
    "load httpfs",
    "load '{out}'",
    "pragma database_list",
    "pragma enable_profiling",
    "call pragma_version()",
    "set threads = 1",
    "set enable_external_access = true",
    "reset lock_configuration",
    "set variable x = 1",
    "use memory",
    "create table t (i int)",
    "create view v as select 1",
    "create or replace view models as select 1 as model",
    "create macro m() as 1",
    "create secret (type s3)",
    "drop view models",
    "alter view models rename to m",
    "insert into models values (1)",
    "update models set model = 'x'",
    "delete from models",
    "with x as (select 1) insert into models select 1",
    "begin",
    "checkpoint",
    "vacuum",
    "prepare p as select 1",
    "execute p",
    "detach memory",
    "comment on view models is 'x'",
    "select 1; select 2",
    "select 1; copy (select 1) to '{out}'",
    "select 1 /* ; */; drop view models",
    "select 1 -- \n; drop view models",
    "",
    "   ",
    ";",
    "-- nothing",
    "select * from read_text('/etc/passwd')",
    "select content from read_blob('/etc/passwd')",
    "select * from read_csv('/etc/passwd')",
    "select * from read_csv_auto('/etc/passwd')",
    "select * from read_json('/etc/passwd')",
    "select * from read_parquet('{secret}')",
    "select * from parquet_scan('{secret}')",
    "select * from parquet_metadata('{secret}')",
    "select * from parquet_schema('{secret}')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from read_duckdb('{secret}')",
    "select * from glob('/etc/*')",
    "select (select count(*) from glob('/etc/*'))",
    "with x as (select * from read_text('/etc/passwd')) select * from x",
    "select * from models where model in (select content from READ_TEXT('/etc/passwd'))",
    "select * from \"read_text\"('/etc/passwd')",
    "select * from main.read_text('/etc/passwd')",
    "select * from models, lateral (select * from read_text('/etc/passwd'))",
    "describe select * from read_text('/etc/passwd')",
    "summarize select * from read_text('/etc/passwd')",
    "explain select * from read_text('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from '/etc/*.csv'",
    "select * from '{secret}'",
    'select * from "{secret}"',
    "from '{secret}'",
    "table '{secret}'",
    "describe '{secret}'",
    "summarize '{secret}'",
    "select * from query_table('{secret}')",
    "select * from 'https://example.com/x.parquet'",
    "select * from 's3://bucket/x.parquet'",
    "select * from query('select 1')",
    "select * from json_execute_serialized_sql(json_serialize_sql('select 1'))",
    "select * from enable_logging(storage = 'file', storage_path = '{out}')",
    "select * from enable_profiling()",
    "select * from checkpoint()",
    "select * from force_checkpoint()",
    "select * from arrow_scan(1, 2, 3)",
    "select * from pandas_scan(1)",
    "select * from python_map_function(1)",
    "select * from duckdb_secrets()",
    "select write_log('x')",
    "select sum(i) from secret_variable",
    "select nothing from models",
    "select 1 from nowhere",
    "selec 1",
    "select 1/",
]


@pytest.mark.parametrize("sql", ATTACKS)
def test_all_else_is_refused_and_nothing_is_written(planted: PlantedStudy, tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.parquet"
    duckdb.sql("select 42 as i").write_parquet(str(secret))
    before = sorted(planted.root.rglob("*"))
    secret_variable = duckdb.sql("select 42 as i")
    with pytest.raises(QueryError):
        run_query(planted.root, sql.format(out=tmp_path / "out", secret=secret))
    assert secret_variable is not None
    assert [path.name for path in tmp_path.iterdir()] == ["secret.parquet"]
    assert sorted(planted.root.rglob("*")) == before


def test_the_refusal_says_what_was_refused(planted: PlantedStudy) -> None:
    for sql, message in (
        ("copy models to 'x'", r"read-only.*refused: COPY"),
        ("select 1; select 2", r"read-only.*got 2 statements"),
        ("select * from read_text('/etc/passwd')", r"refused: read_text\(\)"),
        ("select * from '/etc/passwd.csv'", r"read-only"),
        ("pivot models on method using count(*)", r"PIVOT its values"),
        ("select 1 from nowhere", r"The views: runs, models.*steerability_by_architecture"),
    ):
        with pytest.raises(QueryError, match=rf"(?s){message}"):
            run_query(planted.root, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to '{out}'",
        "copy (select 1) to '{inside}'",
        "export database '{out}'",
        "attach '{out}' as other",
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('{marker}')",
        "install httpfs",
        "load '{out}'",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "set allowed_paths = ['/etc/passwd']",
        "set temp_directory = '{out}'",
        "pragma enable_profiling = 'json'; set profile_output = '{out}'",
        "call enable_logging(storage = 'file', storage_path = '{out}')",
    ],
)
def test_the_connection_alone_holds_too(
    locked: duckdb.DuckDBPyConnection, planted: PlantedStudy, tmp_path: Path, sql: str
) -> None:
    names = {"out": tmp_path / "out", "inside": planted.root / "x.csv", "marker": planted.root / "warehouse.json"}
    with pytest.raises(duckdb.Error):
        locked.execute(sql.format(**names)).fetchall()
    assert not list(tmp_path.iterdir())
    assert not (planted.root / "x.csv").exists()


def test_a_glob_from_inside_shows_no_file_outside(locked: duckdb.DuckDBPyConnection) -> None:
    try:
        rows = locked.execute("select file from glob('/etc/*')").fetchall()
    except duckdb.Error:
        rows = []
    assert rows == []


def test_a_query_over_its_time_is_stopped(planted: PlantedStudy) -> None:
    endless = "select count(*) from range(1000000000) a, range(1000000000) b where (a.range + b.range) % 7 = 3"
    with pytest.raises(QueryError, match=r"over 0\.3 s and was stopped"):
        run_query(planted.root, endless, timeout=0.3)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and thread.is_alive()]


def test_a_query_over_its_memory_is_stopped_and_spills_nothing(planted: PlantedStudy, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="memory"):
        run_query(
            planted.root, "select list(random()) from range(100000000)", memory_limit="50MB", threads=1, timeout=60
        )
    with pytest.raises(QueryError, match="memory limit 'much'"):
        run_query(planted.root, "select 1", memory_limit="much")


def test_times_with_a_zone_come_back_as_times(planted: PlantedStudy) -> None:
    result = run_query(planted.root, "select timestamptz '2024-05-06 07:08:09+00' as a, started as b from runs")
    zoned, plain = result.rows[0]
    assert zoned == datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    assert plain == datetime.datetime(2024, 5, 6, 7, 8, 9)


def test_every_view_can_be_queried(planted: PlantedStudy) -> None:
    for view in view_files():
        _, rows = run_query(planted.root, f"select count(*) from {view}")
        assert (rows[0][0] > 0) == (view not in {"prompts", "rejects", "dose_response"}), view
