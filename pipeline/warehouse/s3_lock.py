"""One writer a run, where there is no `flock`: a lease on an object.

Flows in: an S3 client and the lock's key. Flows out: the right to write a run until the block ends, and a check that it
is still held. The lock object says who holds it; its holder rewrites it every `renew` seconds, so that its ETag moves.
Every write of it is conditional (`If-None-Match: *` to make it, `If-Match` with the ETag last seen to renew it, to free
it or to take it over), so of two processes one wins.

A holder that died leaves an object that no longer moves. Who finds a lock taken watches it: where it moves, its holder
lives, and is named in the error; where it did not for `lease` seconds, by the watcher's own clock, it is taken over. No
two clocks are compared. A holder that was too slow (stopped, cut off from the network) finds another ETag when it next
renews, which `check` does on the spot: it must not publish any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.errors import LockLostError, WarehouseError

log = logging.getLogger(__name__)

ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
"""Codes of an error that says that an object is not there."""
CONDITION_FAILED = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
"""Codes of an error that says that an object is another than the request wants it to be."""


@dataclass(frozen=True)
class Intervals:
    """In seconds: how often a holder renews its lock, how long one that does not move stands, how often it is looked
    at meanwhile."""

    renew: float = 5.0
    lease: float = 30.0
    look: float = 1.0


@dataclass(frozen=True)
class _State:
    """What the lock object says, under which ETag. `token` is empty where nobody holds it."""

    token: str
    holder: str
    etag: str


class S3Lock:
    """The lock at `key`; one object for one attempt to hold it."""

    def __init__(self, client: Any, bucket: str, key: str, run: str, intervals: Intervals) -> None:
        self._client, self._bucket, self._key, self._run = client, bucket, key, run
        self._intervals = intervals
        self._token = uuid.uuid4().hex
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._etag = ""
        self._beat = 0
        self._is_lost = False
        self._mutex = threading.Lock()  # of the ETag: the thread and a check may renew at once

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the lock; gives `check`. Raises WarehouseError, naming the holder, where another process holds it."""
        self._acquire()
        self._check_store()
        ended = threading.Event()
        renewing = threading.Thread(target=self._keep_renewing, args=(ended,), daemon=True, name="lock of a run")
        renewing.start()
        try:
            yield self.check
        finally:
            ended.set()
            renewing.join()
            self._release()

    def check(self) -> None:
        """Renew the lock now: who returns from here holds it for a whole lease. Raises LockLostError."""
        with self._mutex:
            if not self._is_lost:
                self._renew()
            if self._is_lost:
                raise LockLostError(
                    f"run {self._run}: another process took this run over, because this one did not renew its lock for "
                    f"{self._intervals.lease:g} s (was it stopped, or cut off?); nothing more is published here; what "
                    "was finished is kept"
                )

    def is_held(self) -> bool:
        """Whether the lock is taken and was renewed within the lease, by the store's own clock."""
        found = self._read()
        return found is not None and bool(found[0].token) and found[1] < self._intervals.lease

    # --- inside -------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        seen: _State | None = None
        since = 0.0
        while True:
            found = self._read()
            if found is None:
                if self._put(IfNoneMatch="*"):
                    return
            elif found[0].token == self._token:  # a PUT that arrived though its answer did not
                self._etag = found[0].etag
                return
            elif not found[0].token:
                if self._put(IfMatch=found[0].etag):
                    return
            elif seen is None:
                seen, since = found[0], time.monotonic()
                log.warning(
                    "run %s: %s holds its lock; looking for up to %g s whether that still runs",
                    self._run, seen.holder, self._intervals.lease,
                )  # fmt: skip
            elif found[0].etag != seen.etag:
                raise WarehouseError(
                    f"run {self._run} is being written by {found[0].holder}; wait for it, stop it, or give another "
                    "--warehouse"
                )
            elif time.monotonic() - since >= self._intervals.lease and self._put(IfMatch=seen.etag):
                log.warning("run %s: taken over from %s, which no longer renews its lock", self._run, seen.holder)
                return
            time.sleep(self._intervals.look)

    def _check_store(self) -> None:
        """Raises WarehouseError if the store ignores the condition of a write: no lock holds there."""
        if self._put(IfNoneMatch="*"):
            raise WarehouseError(
                f"run {self._run}: this object store ignores the conditions of a write (If-None-Match), so two writers "
                "could not be told apart; use a store that has conditional writes, or a folder"
            )

    def _keep_renewing(self, ended: threading.Event) -> None:
        while not ended.wait(self._intervals.renew):
            with self._mutex:
                try:
                    self._renew()
                except Exception as error:  # the store may answer again within the lease; `check` asks it anyway
                    log.warning("run %s: its lock could not be renewed (%s); trying again", self._run, error)
                if self._is_lost:
                    return

    def _renew(self) -> None:
        """Move the lock on; it is lost where it is no longer as this process left it."""
        if self._put(IfMatch=self._etag):
            return
        found = self._read()
        if found is not None and found[0].token == self._token:  # a PUT that arrived though its answer did not
            self._etag = found[0].etag
        else:
            self._is_lost = True

    def _release(self) -> None:
        """Free the lock, if it is still ours. Where that fails, the next writer waits for the lease."""
        with self._mutex:
            if self._is_lost:
                return
            try:
                self._put("", IfMatch=self._etag)
            except Exception as error:
                log.warning("run %s: its lock could not be freed (%s)", self._run, error)

    def _put(self, token: str | None = None, **condition: str) -> bool:
        """Write the lock if the condition holds; whether it did."""
        from botocore.exceptions import ClientError

        self._beat += 1  # another content, so another ETag
        token = self._token if token is None else token
        body = json.dumps({"holder": self._holder, "token": token, "beat": f"{self._token}/{self._beat}"}).encode()
        try:
            done = self._client.put_object(Bucket=self._bucket, Key=self._key, Body=body, **condition)
        except ClientError as error:
            if error_code(error) in CONDITION_FAILED or (error_code(error) in ABSENT and "IfMatch" in condition):
                return False
            raise
        self._etag = done["ETag"]
        return True

    def _read(self) -> tuple[_State, float] | None:
        """The lock as it is, and its age in seconds by the store's own clock; None where there is none."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._key)
        except ClientError as error:
            if error_code(error) in ABSENT:
                return None
            raise
        try:
            value = json.loads(found["Body"].read())
            state = _State(str(value["token"]), str(value["holder"]), found["ETag"])
        except (KeyError, TypeError, ValueError):  # not ours: it stands until its lease has passed
            state = _State("unknown", "an unknown process", found["ETag"])
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        return state, (now - found["LastModified"]).total_seconds()


def error_code(error: Any) -> str:
    """The code of a `ClientError`."""
    return str(error.response.get("Error", {}).get("Code", ""))
