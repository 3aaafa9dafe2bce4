"""Readers during a write see the last complete state, in a folder and in a bucket."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import WarehouseError
from pipeline.warehouse.layout import RetiredFile, entry_from_json, entry_to_json, manifest_path
from pipeline.warehouse.manifest import Warehouse
from pipeline.warehouse.query import run_query
from pipeline.warehouse.views import connect
from tests.warehouse.planted import FINGERPRINT
from tests.warehouse.test_manifest import KEY, some_scores

AT_ONCE = timedelta(0)


@pytest.fixture(params=["folder", "bucket"])
def wh(request: pytest.FixtureRequest, tmp_path: Path) -> Warehouse:
    root = tmp_path / "warehouse" if request.param == "folder" else request.getfixturevalue("bucket_url")
    return Warehouse.create(root)


def state(number: int) -> list[pa.Table]:
    """Two files that tell which state they are of by every row's logsumexp; the number of rows differs too."""
    tables = []
    for seed in (0, 1):
        table = some_scores(seed, num_prompts=3 + number % 3)
        marked = pa.array([float(100 + number)] * len(table), pa.float32())
        tables.append(table.set_column(table.schema.get_field_index("logsumexp"), "logsumexp", marked))
    return tables


def publish_state(wh: Warehouse, number: int) -> None:
    wh.publish(KEY, [wh.write_table("scores", KEY, table) for table in state(number)], FINGERPRINT)


SEEN = "select count(*), min(logsumexp), max(logsumexp) from scores"


def test_every_query_sees_one_whole_state(wh: Warehouse) -> None:
    publish_state(wh, 0)
    ended = threading.Event()
    seen: list[tuple[int, float, float]] = []
    published, failed = [0], list[BaseException]()

    def write() -> None:
        try:
            while published[-1] < 24 or (len(seen) < 10 and published[-1] < 1000):
                publish_state(wh, published[-1] + 1)
                published.append(published[-1] + 1)
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        seen += run_query(wh.root, SEEN).rows
    writer.join(60)
    assert not failed
    seen += run_query(wh.root, SEEN).rows
    assert set(seen) <= {(2 * 6 * (3 + n % 3), 100.0 + n, 100.0 + n) for n in published}
    assert [row[1] for row in seen] == sorted(row[1] for row in seen)
    assert len(set(seen)) > 1
    assert seen[-1][1] == 100.0 + published[-1]


def test_a_connection_reads_on_after_its_files_were_replaced_and_taken_out(wh: Warehouse) -> None:
    publish_state(wh, 0)
    listed = wh.listed_files()["scores"]
    con = connect(wh.root)
    publish_state(wh, 1)
    wh.sweep("R")
    assert con.execute(SEEN).fetchall() == [(36, 100.0, 100.0)]
    other = connect(wh.root)
    wh.retract(KEY)
    wh.sweep("R")
    assert other.execute(SEEN).fetchall() == [(48, 101.0, 101.0)]
    assert all(path.is_file() for path in listed)
    assert run_query(wh.root, "select count(*) from scores").rows == [(0,)]


def test_replaced_files_go_once_their_grace_has_passed(wh: Warehouse) -> None:
    for number in range(3):
        publish_state(wh, number)
    assert len(wh.storage.files_in("scores")) == 6
    assert wh.sweep("R") == 0
    entry = wh.entry(KEY)
    assert entry is not None
    assert len(entry.retired) == 4
    wh.write_table("scores", KEY, some_scores())
    assert wh.sweep("R") == 1  # a lost attempt has none
    impatient = Warehouse.open(wh.root, grace=AT_ONCE)
    assert impatient.sweep("R") == 4
    publish_state(impatient, 3)
    assert len(wh.storage.files_in("scores")) == 2
    assert run_query(wh.root, SEEN).rows == [(36, 103.0, 103.0)]
    entry = wh.entry(KEY)
    assert entry is not None
    assert entry.retired == ()


def test_a_file_that_is_published_again_is_not_retired(wh: Warehouse) -> None:
    files = [wh.write_table("scores", KEY, table) for table in state(0)]
    wh.publish(KEY, files, "unfinished")
    assert wh.publish(KEY, files, FINGERPRINT).retired == ()
    assert wh.publish(KEY, files[:1], FINGERPRINT).retired[0].path == files[1].path
    assert wh.publish(KEY, files, FINGERPRINT).retired == ()


def test_what_was_taken_out_can_be_published_again(wh: Warehouse) -> None:
    publish_state(wh, 0)
    wh.retract(KEY)
    assert wh.entry(KEY) is None
    publish_state(wh, 1)
    entry = wh.entry(KEY)
    assert entry is not None
    assert not entry.retracted
    assert len(entry.retired) == 2


def test_an_entry_from_before_retired_files_opens(wh: Warehouse) -> None:
    publish_state(wh, 0)
    path = str(manifest_path(KEY))
    value = json.loads(wh.storage.read(path))
    del value["retired"], value["retracted"]
    wh.storage.replace(path, json.dumps(value).encode())
    assert run_query(wh.root, SEEN).rows == [(36, 100.0, 100.0)]
    publish_state(wh, 1)
    assert run_query(wh.root, SEEN).rows == [(48, 101.0, 101.0)]


def test_an_entry_is_the_same_after_json(wh: Warehouse) -> None:
    publish_state(wh, 0)
    publish_state(wh, 1)
    entry = wh.entry(KEY)
    assert entry is not None
    assert isinstance(entry.retired[0], RetiredFile)
    assert entry_from_json(json.loads(json.dumps(entry_to_json(entry)))) == entry


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "scores/run=S/model=M/concept=C/p.parquet",
        "manifest/run=R/stage=run.json",
        "locks/R.lock",
    ],
)
def test_an_entry_cannot_have_other_files_deleted(wh: Warehouse, path: str) -> None:
    publish_state(wh, 0)
    value = json.loads(wh.storage.read(str(manifest_path(KEY))))
    value["retired"] = [{"path": path, "since": "2020-01-01T00:00:00+00:00"}]
    wh.storage.replace(str(manifest_path(KEY)), json.dumps(value).encode())
    with pytest.raises(WarehouseError, match="unreadable"):
        wh.entry(KEY)
