"""A database whose write-ahead log is damaged, mended without losing what comes before the damage."""

import os
import re
import shutil

import duckdb

from metamoe_backend.errors import StorageError
from metamoe_backend.store.connection import take_lock, utc_now
from metamoe_backend.workspace import Workspace

_PLACE = re.compile(r"WAL file.*byte position (\d+)", re.DOTALL)


def repair(workspace: Workspace) -> dict[str, str | int]:
    """Truncate a damaged write-ahead log at the byte DuckDB names; the damaged files are kept beside it.

    Returns what was done and where the copy lies. People's acts are in events/ and runs in runs/, so opening the
    workspace afterwards brings back whatever the lost tail held. Raises `StorageError` when the damage is elsewhere.
    """
    with take_lock(workspace, "repair"):
        problem = _find_problem(workspace)
        if problem is None:
            return {"repaired": "nothing: the database opens", "kept_copy": "", "bytes_cut": 0}
        place = _PLACE.search(problem)
        wal = workspace.database.with_name(workspace.database.name + ".wal")
        if place is None or not wal.is_file():
            raise StorageError(
                f"{workspace.database} is damaged beyond its write-ahead log ({problem.splitlines()[0]}); "
                "run `python -m metamoe_backend rebuild` to make it again from events and runs."
            )
        copy = workspace.root / f"damaged-{utc_now():%Y%m%dT%H%M%S}"
        copy.mkdir()
        shutil.copy2(workspace.database, copy)
        shutil.copy2(wal, copy)
        size = wal.stat().st_size
        os.truncate(wal, int(place[1]))
        problem = _find_problem(workspace)
        if problem is not None:
            raise StorageError(
                f"{workspace.database} still does not open ({problem.splitlines()[0]}); "
                "run `python -m metamoe_backend rebuild` to make it again from events and runs."
            )
        return {"repaired": wal.name, "kept_copy": str(copy), "bytes_cut": size - int(place[1])}


def _find_problem(workspace: Workspace) -> str | None:
    try:
        duckdb.connect(str(workspace.database)).close()
    except duckdb.Error as error:
        return str(error)
    return None
