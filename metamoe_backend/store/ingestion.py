"""Taking in what runs produced: each Parquet part named in a manifest, once, after its checksum is verified.

Nothing else is ever read: a part that a dying worker left half-written is in no manifest.
"""

import hashlib
import json
from pathlib import Path

import duckdb

from metamoe_backend.errors import StorageError
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.rows import RUN_TABLES, columns
from metamoe_backend.store.connection import Store

TERMINAL_STATES = ("finished", "stopped", "cancelled", "failed")
_FINAL_STATES = ("finished", "cancelled")
"""States that nothing follows. A stopped or failed run may be resumed and end again."""
_MERGED_TABLES = {"task", "system", "adapter", "question", "map", "labelling"}
"""Tables with a primary key: a second row of the same key (two runs that both knew the task) is left out."""
_REPLACED_TABLES = {"system", "adapter"}
"""Among them, those in which a run replaces its own row: resumed, it publishes anew what it had saved at a stop."""


def ingest_finished_runs(store: Store) -> list[str]:
    """Take in every run that has ended since the last look, and the states of all runs; returns the new run ids.

    A run resumed after it had been taken in as stopped or failed is new again once it ends. Runs that stand as the
    database knows them are not written: a write makes every page forget what it has read.
    """
    known = {
        row[0]: row[1:]
        for row in store.cursor().execute("SELECT run_id, state, started_at, ended_at, error FROM run").fetchall()
    }
    taken_in = []
    for folder in sorted(store.workspace.runs.iterdir()):
        before = known.get(folder.name)
        if (before is not None and before[0] in _FINAL_STATES) or not (folder / "spec.json").is_file():
            continue
        run = RunFolder(folder)
        status = run.read_state()
        if (status.state, status.started_at, status.ended_at, status.error) == before:
            continue
        if ingest_run(store, run) in TERMINAL_STATES:
            taken_in.append(folder.name)
    return taken_in


def ingest_run(store: Store, run: RunFolder) -> str:
    """Take in one run: its row, and its parts if it has a manifest. Returns its state.

    Raises `StorageError` when a part does not have the size or checksum its manifest names; nothing is taken in then.
    """
    spec = run.read_spec()
    status = run.read_state()
    manifest = run.read_manifest()
    parts = manifest["parts"] if manifest else []
    with store.transaction() as cursor:
        done = {row[0] for row in cursor.execute("SELECT part FROM part WHERE run_id = ?", [spec.run_id]).fetchall()}
        for part in parts:
            if part["part"] not in done:
                _ingest_part(cursor, spec.run_id, run.path / "output" / part["part"], part)
        cursor.execute("DELETE FROM run WHERE run_id = ?", [spec.run_id])
        cursor.execute(
            "INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                spec.run_id,
                spec.stage,
                spec.name,
                status.state,
                json.dumps(spec.config, ensure_ascii=False, sort_keys=True),
                spec.by,
                spec.created_at,
                status.started_at,
                status.ended_at,
                status.error,
            ],
        )
    return status.state


def _ingest_part(cursor: duckdb.DuckDBPyConnection, run_id: str, path: Path, part: dict[str, str | int]) -> None:
    target = str(part["target"])
    if target not in RUN_TABLES:
        raise StorageError(
            f"{path.parent.parent / 'manifest.json'} names a table {target!r} that runs do not feed; "
            f"move the folder of run {run_id} out of runs/ and start the run again."
        )
    if not path.is_file() or _sha256(path) != part["sha256"]:
        raise StorageError(
            f"{path} is missing or differs from its manifest (cut short or changed); "
            f"move the folder of run {run_id} out of runs/ and start the run again."
        )
    written = _read_columns(path)
    names = ", ".join(f'"{column.name}"' for column in columns(target) if column.name in written)
    conflict = "OR IGNORE " if target in _MERGED_TABLES else ""
    if target in _REPLACED_TABLES:
        cursor.execute(
            f'DELETE FROM "{target}" WHERE run_id = ? AND "{target}" IN (SELECT "{target}" FROM read_parquet(?))',
            [run_id, str(path)],
        )
    cursor.execute(
        f'INSERT {conflict}INTO "{target}" ({names}) SELECT {names} FROM read_parquet(?)',
        [str(path)],
    )
    cursor.execute(
        "INSERT INTO part VALUES (?, ?, ?, ?, ?)", [run_id, part["part"], target, part["rows"], part["sha256"]]
    )


def _read_columns(path: Path) -> set[str]:
    """Columns of a part. One written before a column existed lacks it: NULL then, refused where that may not be."""
    import pyarrow.parquet

    return set(pyarrow.parquet.read_schema(path).names)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
