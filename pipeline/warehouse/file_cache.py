"""Copies, on this machine, of data files that lie in an object store.

Flows in: data files as manifest entries list them, and a way to download one. Flows out: local paths that DuckDB and
safetensors read. A listed file is never changed and its name is never used again, so a copy that is there, whole, is
good for ever; the manifest says its size and SHA-256, so one that is not is noticed. The folder may be deleted at any
time; nothing here deletes from it.

    ~/.cache/steerability/BUCKET/PREFIX/TABLE/run=R/.../part-UUID.parquet
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import WarehouseError
from pipeline.warehouse.layout import DataFile
from pipeline.warehouse.storage import readable_root


def default_cache() -> Path:
    """The folder of all copies, below the user's cache folder."""
    from platformdirs import user_cache_path  # (a dependency of the extra alone)

    return user_cache_path("steerability", appauthor=False)


class FileCache:
    """The copies of one warehouse, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = readable_root(folder, "cache")

    def place(self, file: DataFile) -> Path:
        """Where the copy of `file` is or would be. Raises WarehouseError if a link leads that out of the cache."""
        place = self.folder / file.path
        if not place.parent.resolve().is_relative_to(self.folder):
            raise WarehouseError(f"cache {self.folder}: {file.path} leads out of it; delete the folder")
        return place

    def has(self, file: DataFile) -> bool:
        """Whether a copy of the recorded size is there."""
        try:
            return self.place(file).stat().st_size == file.num_bytes
        except OSError:
            return False

    def add(self, file: DataFile, download: Callable[[Path], None]) -> None:
        """Put into its place what `download` writes to a path, in one step, once its SHA-256 is the recorded one.

        Raises WarehouseError if it is not, or if the folder cannot be written.
        """
        place = self.place(file)
        draft = place.with_name(f".{uuid.uuid4().hex}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                download(draft)
                with draft.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if digest != file.sha256:
                    raise WarehouseError(
                        f"{file.path} is not the file that was published (its SHA-256 is another); run the study "
                        "again with --fresh to make it again"
                    )
                os.replace(draft, place)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise WarehouseError(
                f"cannot write {place}: {error.strerror or error}; files of an object store are read through this "
                "folder; make room, or make it a link to a larger disk"
            ) from error
