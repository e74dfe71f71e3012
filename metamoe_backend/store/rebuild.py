"""The database made again from events and manifests."""

from metamoe_backend.rows import TABLES
from metamoe_backend.store.connection import Store, take_lock
from metamoe_backend.workspace import Workspace


def rebuild(workspace: Workspace, holder: str = "rebuild") -> dict[str, int]:
    """Set the database file aside, make a new one from events and runs, and return its rows per table.

    The old file stays beside it as metamoe.duckdb.before-rebuild, and comes back if the rebuild fails.
    Raises `StorageError` when an event or a part is damaged.
    """
    database, aside = workspace.database, workspace.database.with_suffix(".duckdb.before-rebuild")
    wal, wal_aside = database.with_suffix(".duckdb.wal"), aside.with_suffix(".before-rebuild.wal")
    moved = [(path, kept) for path, kept in ((database, aside), (wal, wal_aside)) if path.exists()]
    # Taking the lock first: no other process may have the file open while it is set aside.
    with take_lock(workspace, holder):
        for path, kept in moved:
            path.replace(kept)
    try:
        with Store.open(workspace, holder) as store:
            return {table: store.value(f'SELECT count(*) FROM "{table}"') for table in TABLES}
    except BaseException:
        wal.unlink(missing_ok=True)
        for path, kept in moved:
            kept.replace(path)
        raise
