"""One connection to one workspace's database.

DuckDB lets one process hold a file for writing and then locks every other one out, so the process that opens a
workspace takes `holder.lock` first and says who it is: a second dashboard then gets one sentence, not a stack trace.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

import duckdb
import pandas as pd

from metamoe_backend.errors import BusyError, StorageError
from metamoe_backend.jobs.durable import room_needed
from metamoe_backend.store.migrations import migrate
from metamoe_backend.workspace import Workspace

THE_QUEUE = "the queue"
"""As a holder: it reads the rows of runs that waited for others (see `metamoe_backend.late_rows`)."""
QUEUE_HOLDS_S = 60.0
"""It takes seconds; after so long it counts as any other holder."""


def utc_now() -> datetime:
    """Now in UTC, without a time zone, in whole microseconds: what TIMESTAMP columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


class Store:
    """The open database of one workspace. Safe to share between threads: each call takes its own cursor."""

    def __init__(self, workspace: Workspace, connection: duckdb.DuckDBPyConnection, lock_file: IO[str]) -> None:
        self.workspace = workspace
        self.version = 0
        """Grows with each committed write: pages cache on it."""
        self._connection = connection
        self._lock_file = lock_file
        self._write_lock = threading.RLock()

    @classmethod
    def open(cls, workspace: Workspace, holder: str = "the command line") -> "Store":
        """Open the workspace, bring the tables up to date and take in what runs and events left behind.

        Raises `BusyError` when another process holds it, `StorageError` when the file is damaged.
        """
        from metamoe_backend.store.events import replay_events
        from metamoe_backend.store.ingestion import ingest_finished_runs

        workspace.create()
        lock_file = take_lock(workspace, holder)
        try:
            store = cls(workspace, _connect(workspace), lock_file)
            migrate(store.cursor())
            replay_events(store)
            ingest_finished_runs(store)
        except BaseException:
            lock_file.close()
            raise
        return store

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor of its own for one thread."""
        return self._connection.cursor()

    def frame(self, sql: str, parameters: list[Any] | dict[str, Any] | None = None) -> pd.DataFrame:
        """Rows of a SELECT."""
        return self.cursor().execute(sql, parameters or []).df()

    def value(self, sql: str, parameters: list[Any] | None = None) -> Any:
        """First column of the first row, or None."""
        row = self.cursor().execute(sql, parameters or []).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """All or nothing. One writer at a time, so that same-row updates never collide.

        Raises `DiskFullError` where there is no room for it; the store stays usable.
        """
        with self._write_lock, room_needed(self.workspace.database):
            cursor = self.cursor()
            cursor.execute("BEGIN")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")
            self.version += 1

    @contextmanager
    def writers_held_back(self) -> Iterator[None]:
        """While the block runs nothing is committed, so that the file and its log can be copied as they lie."""
        with self._write_lock:
            yield

    @property
    def closed(self) -> bool:
        """Whether others may have the workspace by now."""
        return self._lock_file.closed

    def close(self) -> None:
        """Close the database and let others in."""
        self._connection.close()
        self._lock_file.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_lock(workspace: Workspace, holder: str) -> IO[str]:
    """Hold the workspace, or raise `BusyError` naming who does. One that the queue holds is waited for.

    flock is released by the kernel when the holder dies, so a crash never leaves the workspace locked.
    """
    lock_file = open(workspace.holder_lock, "a+", encoding="utf-8")  # noqa: SIM115 - held as long as the store is open
    give_up_at = time.monotonic() + QUEUE_HOLDS_S
    while True:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            lock_file.seek(0)
            text = lock_file.read()
            who = json.loads(text) if text else {"holder": "another process", "pid": "?", "host": "?", "since": "?"}
            if who["holder"] == THE_QUEUE and time.monotonic() < give_up_at:
                time.sleep(0.1)
                continue
            lock_file.close()
            raise BusyError(
                f"Workspace {workspace.name} is held by {who['holder']} (process {who['pid']} on {who['host']}, since "
                f"{who['since']} UTC); use that one, or stop it first."
            ) from None
    lock_file.seek(0)
    lock_file.truncate()
    since = utc_now().isoformat(sep=" ", timespec="seconds")
    lock_file.write(json.dumps({"holder": holder, "pid": os.getpid(), "host": socket.gethostname(), "since": since}))
    lock_file.flush()
    return lock_file


def _connect(workspace: Workspace) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(str(workspace.database), config={"autoinstall_known_extensions": False})
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            raise BusyError(
                f"Another program has {workspace.database} open; close it (DuckDB lets one process write at a time)."
            ) from None
        raise StorageError(
            f"{workspace.database} cannot be read ({str(error).splitlines()[0]}); "
            "run `python -m metamoe_backend rebuild` to make it again from events and runs."
        ) from error
    except duckdb.Error as error:
        raise StorageError(
            f"{workspace.database} is damaged ({str(error).splitlines()[0]}); "
            "run `python -m metamoe_backend rebuild` to make it again from events and runs."
        ) from error
