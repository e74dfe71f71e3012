"""Copies of the database that readers may open while the dashboard goes on writing.

DuckDB locks a file that one process writes against every other process, readers too. So readers get a copy, made from
one snapshot of the database and never changed afterwards.
"""

import fcntl
import subprocess
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from metamoe_backend.errors import StorageError

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

KEPT = 2
"""The newest copy, and the one before it: a reader may have been given its name but not have opened it yet."""

_publishing = threading.Lock()


def publish(store: "Store") -> Path:
    """A copy of the whole database as it is now, made only if it changed since the last one. Returns its path.

    Copies that nobody reads any more are removed.
    """
    with _publishing:
        target = store.workspace.published / f"{_stamp(store)}.duckdb"
        if not target.exists():
            _copy(store, target)
            _remove_old_copies(store.workspace.published)
        return target


def _stamp(store: "Store") -> str:
    """Differs whenever something was committed: a commit lengthens the log, and a checkpoint rewrites the file."""
    parts = []
    for path in (store.workspace.database, _log_of(store.workspace.database)):
        if path.exists():
            stat = path.stat()
            parts.append(f"{stat.st_mtime_ns:x}-{stat.st_size:x}")
    return "_".join(parts)


def _copy(store: "Store", target: Path) -> None:
    """Copy the file and its log as they lie between two commits, then fold the log in.

    This takes a second where copying table by table takes half a minute (20 million rows of activations). `cp` does it
    in a process of its own: closing any handle of the file here would drop the lock that DuckDB holds on it.
    """
    unfinished = target.with_suffix(f".{uuid.uuid4().hex[:8]}.unfinished")
    log = _log_of(unfinished)
    try:
        with store.writers_held_back():
            _copy_file(store.workspace.database, unfinished)
            if _log_of(store.workspace.database).exists():
                _copy_file(_log_of(store.workspace.database), log)
        with duckdb.connect(str(unfinished)) as copy:
            copy.execute("CHECKPOINT")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def _log_of(database: Path) -> Path:
    return Path(f"{database}.wal")


def _copy_file(source: Path, target: Path) -> None:
    done = subprocess.run(["cp", "--", str(source), str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StorageError(
            f"The database could not be copied for readers ({done.stderr.strip()}); make room on the disk."
        )


def _remove_old_copies(folder: Path) -> None:
    copies = sorted(folder.glob("*.duckdb"), key=lambda path: path.stat().st_mtime_ns)
    for path in copies[:-KEPT]:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # a query still reads it; the next publication looks again
            path.unlink()
