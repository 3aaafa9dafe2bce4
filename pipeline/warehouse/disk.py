"""Failures of the disk as the user reads them.

Flows in: what is about to be written. Flows out: nothing, or a WarehouseError that names it and the fix; a full disk is
told as such, with the folder that needs room.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import WarehouseError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around writing `path`: what the operating system refuses becomes a WarehouseError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise WarehouseError(
                f"cannot write into {path.parent}: the disk is full; make room there; nothing finished is lost"
            ) from error
        raise WarehouseError(
            f"cannot write {path}: {error.strerror or error}; check that the folder is writable and has space"
        ) from error
