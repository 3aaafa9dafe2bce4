"""Writing the warehouse, so that every result is in it exactly once.

Flows in: Arrow tables, or files that others wrote, under a `PartitionKey`. Flows out: a manifest entry,
which makes them visible in one step.

A task may die, be retried, or run twice; so a writer never overwrites. It writes attempt-unique files
into the final folder, where nobody sees them, and `publish` then replaces one small JSON file
(`os.replace`, atomic) that lists what counts. Readers read listed files and nothing else. A crash
before the replace leaves the old state, a crash after it the new one; what is left over is swept.
No renamed data folders, so the same layout holds where a folder cannot be renamed in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.errors import WarehouseError
from pipeline.warehouse.disk import writing
from pipeline.warehouse.layout import (
    SIDE_FILES,
    DataFile,
    ManifestEntry,
    PartitionKey,
    entry_from_json,
    entry_to_json,
    manifest_path,
    table_folder,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DataFile", "ManifestEntry", "PartitionKey", "Warehouse"]

_MARKER = "warehouse.json"
_KIND = "steerability warehouse"
_OURS = ".steer-"  # temporary files begin so; they do not make a folder non-empty


class Warehouse:
    """A warehouse folder. Make one with `Warehouse.create`, open one with `Warehouse.open`.

    Two processes may publish different keys at once. `sweep` wants the run to itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- opening ------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Warehouse:
        """The warehouse at `root`. Raises WarehouseError if there is none, or one of another schema."""
        path = _checked_root(root)
        marker = path / _MARKER
        if not marker.is_file():
            what = "is not there" if not path.exists() else f"is not a warehouse (it has no {_MARKER})"
            raise WarehouseError(
                f"warehouse {path} {what}; give the folder of an earlier run, or make one with "
                f"`steer run STUDY.toml --warehouse {path}`"
            )
        _check_marker(marker)
        return cls(path)

    @classmethod
    def create(cls, root: str | os.PathLike[str]) -> Warehouse:
        """The warehouse at `root`, made if absent; raises WarehouseError if it cannot be written."""
        path = _checked_root(root)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            marker = path / _MARKER
            if marker.exists():
                _check_marker(marker)
            elif any(not child.name.startswith(_OURS) for child in path.iterdir()):
                raise WarehouseError(f"{path} is not empty and not a warehouse; name a new or empty folder")
            probe = path / f"{_OURS}probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
            if not marker.exists():
                from pipeline.schemas import SCHEMA_VERSION

                _write_json(marker, {"kind": _KIND, "schema_version": SCHEMA_VERSION})
        return cls(path)

    # --- what is there ------------------------------------------------------------------------------

    def entry(self, key: PartitionKey) -> ManifestEntry | None:
        """The published entry of `key`, or None. Raises WarehouseError if the entry is unreadable."""
        path = self.root / manifest_path(key)
        return self._read_entry(path) if path.exists() else None

    def entries(self, run: str | None = None) -> list[ManifestEntry]:
        """Every published entry (of `run`, or of all runs), in path order."""
        folder = self.root / "manifest"
        if run is not None:
            folder = folder / PartitionKey(run, "run").hive
        return [self._read_entry(path) for path in sorted(folder.rglob("stage=*.json"))]

    def is_complete(self, key: PartitionKey, fingerprint: str) -> bool:
        """Whether `key` is published, was made from `fingerprint`, and its files have their recorded size."""
        try:
            entry = self.entry(key)
        except WarehouseError:
            return False
        if entry is None or entry.fingerprint != fingerprint:
            return False
        return all(self._fault(file) is None for file in entry.files)

    def listed_files(self) -> dict[str, list[Path]]:
        """Table name -> the files that count, in manifest order. What readers read, and all they read.

        Raises WarehouseError naming the first listed file that is missing or truncated.
        """
        listed: dict[str, list[Path]] = {}
        for entry in self.entries():
            for file in entry.files:
                fault = self._fault(file)
                if fault:
                    raise WarehouseError(
                        f"warehouse {self.root}: {file.path} {fault}, but {entry.key} lists it; "
                        "run the study again with --resume to make it again, or delete "
                        f"{manifest_path(entry.key)} to do without"
                    )
                listed.setdefault(file.table, []).append(self.root / file.path)
        return listed

    # --- writing data -------------------------------------------------------------------------------

    def new_file(self, table: str, key: PartitionKey, suffix: str = ".parquet") -> Path:
        """A fresh, attempt-unique path in the final folder (made here). Invisible until an entry lists it.

        With `table` "" it is a side file, named for the stage and ending in `suffix`.
        """
        folder = self.root / table_folder(table, key)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{'part' if table else key.stage}-{uuid.uuid4().hex}{suffix}"

    def write_table(self, table: str, key: PartitionKey, data: pa.Table) -> DataFile:
        """Write `data` as one zstd Parquet file of exactly the table's schema; returns what to publish."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.new_file(table, key)
        schema = _schema(table)
        _check_columns(table, data.column_names, schema.names, f"{key}")
        try:
            exact = data.select(schema.names).cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise WarehouseError(f"table {table}, {key}: a column does not fit its type: {error}") from error
        with writing(path):
            pq.write_table(exact, path, compression="zstd")
        return self.describe(table, path)

    def describe(self, table: str, path: str | os.PathLike[str]) -> DataFile:
        """The `DataFile` of a file at `path` that others wrote: checks its schema, counts rows and bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = Path(path).resolve()
        if not file.is_relative_to(self.root):
            raise WarehouseError(f"{file} is not inside the warehouse {self.root}; write to new_file()")
        num_rows = 0
        if table:
            try:
                schema = pq.read_schema(file)
                num_rows = pq.read_metadata(file).num_rows
            except (OSError, pa.ArrowInvalid) as error:
                raise WarehouseError(f"table {table}: {file} is no readable Parquet file: {error}") from error
            expected = _schema(table)
            _check_columns(table, schema.names, expected.names, str(file))
            for column in expected:
                found = schema.field(column.name).type
                if found != column.type:
                    raise WarehouseError(
                        f"table {table}: {file} holds {column.name} as {found}; it must be {column.type}"
                    )
        with writing(file):
            num_bytes, digest = _sizes(file)
        return DataFile(table, file.relative_to(self.root).as_posix(), num_rows, num_bytes, digest)

    # --- publishing ---------------------------------------------------------------------------------

    def publish(
        self,
        key: PartitionKey,
        files: Sequence[DataFile],
        fingerprint: str,
        info: Mapping[str, Any] | None = None,
    ) -> ManifestEntry:
        """Make `files` the whole content of `key`, in one step; what they replace is deleted after it.

        `info` is kept with the entry (timings, devices, versions, counts; JSON values).
        """
        if len({file.path for file in files}) != len(files):
            raise WarehouseError(f"cannot publish {key}: the same file is listed twice")
        for file in files:
            folder = table_folder(file.table, key)
            if PurePosixPath(file.path).parent != folder:
                raise WarehouseError(f"cannot publish {file.path} under {key}: it does not lie in {folder}")
            fault = self._fault(file)
            if fault:
                raise WarehouseError(f"cannot publish {key}: {file.path} {fault}; write it again")
        entry = ManifestEntry(key, tuple(files), fingerprint, datetime.now(UTC), dict(info or {}))
        target = self.root / manifest_path(key)
        replaced: ManifestEntry | None = None
        with contextlib.suppress(WarehouseError):  # an unreadable entry: the sweep takes its files
            replaced = self.entry(key)
        with writing(target):
            for file in files:
                _sync(self.root / file.path)
            for folder_path in {(self.root / file.path).parent for file in files}:
                _sync(folder_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_json(target, entry_to_json(entry))
        if replaced is not None:
            kept = {file.path for file in files}
            self._delete(file for file in replaced.files if file.path not in kept)
        return entry

    def retract(self, key: PartitionKey) -> bool:
        """Take `key` out, its files after it. Returns whether there was anything to take out."""
        entry = self.entry(key)
        if entry is None:
            return False
        target = self.root / manifest_path(key)
        with writing(target):
            target.unlink()
            _sync(target.parent)
        self._delete(entry.files)
        return True

    def sweep(self, run: str) -> int:
        """Delete the data files of `run` that no entry lists (lost attempts). Returns how many.

        Only while nobody else writes this run: a file not yet published looks just like a lost one.
        """
        from pipeline.schemas import TABLES

        listed = {file.path for entry in self.entries(run) for file in entry.files}
        partition = PartitionKey(run, "run").hive
        num_swept = 0
        with writing(self.root):
            for table in (*TABLES, SIDE_FILES):
                folder = self.root / table / partition
                for path in sorted(folder.rglob("*"), reverse=True):  # children before their folder
                    if path.is_dir() and not path.is_symlink():
                        if not any(path.iterdir()):
                            path.rmdir()
                    elif path.relative_to(self.root).as_posix() not in listed:
                        path.unlink()
                        num_swept += 1
            for path in (self.root / "manifest" / partition).rglob(f"{_OURS}*"):
                path.unlink()
        return num_swept

    # --- inside -------------------------------------------------------------------------------------

    def _read_entry(self, path: Path) -> ManifestEntry:
        try:
            entry = entry_from_json(json.loads(path.read_text(encoding="utf-8")))
            if self.root / manifest_path(entry.key) != path:
                raise ValueError(f"it is the entry of {entry.key}")
            for file in entry.files:
                if PurePosixPath(file.path).parent != table_folder(file.table, entry.key):
                    raise ValueError(f"{file.path} lies outside its partition")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise WarehouseError(
                f"manifest entry {path} is unreadable ({type(error).__name__}: {error}); delete it, then run "
                "the study again with --resume"
            ) from error
        return entry

    def _fault(self, file: DataFile) -> str | None:
        try:
            num_bytes = (self.root / file.path).stat().st_size
        except OSError:
            return "is missing"
        if num_bytes != file.num_bytes:
            return f"has {num_bytes} bytes instead of {file.num_bytes}"
        return None

    def _delete(self, files: Iterator[DataFile] | Sequence[DataFile]) -> None:
        for file in files:
            with contextlib.suppress(OSError):  # already invisible; the sweep takes what stays
                (self.root / file.path).unlink()


def _checked_root(root: str | os.PathLike[str]) -> Path:
    """The absolute root. DuckDB reads `*?[` in a path as a pattern and `name=value` as a partition column."""
    path = Path(root).expanduser().resolve()
    bad = [part for part in path.parts if any(char in part for char in "*?[=\n\r\0")]
    if bad:
        raise WarehouseError(
            f"warehouse {path}: the folder {bad[0]!r} has one of * ? [ = in its name; name another folder"
        )
    return path


def _check_marker(marker: Path) -> None:
    from pipeline.schemas import SCHEMA_VERSION

    try:
        value = json.loads(marker.read_text(encoding="utf-8"))
        kind, version = value["kind"], value["schema_version"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WarehouseError(f"{marker} is unreadable ({error}); name another folder") from error
    if kind != _KIND:
        raise WarehouseError(f"{marker} says {kind!r}, not {_KIND!r}; name another folder")
    if version != SCHEMA_VERSION:
        raise WarehouseError(
            f"warehouse {marker.parent} has schema version {version}; this installation reads and writes "
            f"version {SCHEMA_VERSION}; use the version of steer that made it, or name a new folder"
        )


def _schema(table: str) -> pa.Schema:
    from pipeline.schemas import TABLES

    if table not in TABLES:
        raise WarehouseError(f"no table {table!r}; the tables are {', '.join(TABLES)}")
    return TABLES[table][0]


def _check_columns(table: str, found: Sequence[str], expected: Sequence[str], where: str) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra or len(found) != len(expected):
        raise WarehouseError(
            f"table {table}, {where}: the columns must be {', '.join(expected)}; "
            f"missing: {', '.join(missing) or 'none'}; not among them: {', '.join(extra) or 'none'}"
        )


def _sizes(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def _write_json(target: Path, value: dict[str, Any]) -> None:
    """Replace `target` in one step: temporary file, fsync, rename, fsync of the folder."""
    temporary = target.with_name(f"{_OURS}{uuid.uuid4().hex}.tmp")
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Push a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
