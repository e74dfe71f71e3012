"""The recorded demo: a workspace without its database, under data/demo; opening it is a rebuild."""

import shutil
from pathlib import Path

from metamoe_backend.errors import ConflictError, NotFoundError
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "data" / "demo"
DEMO_WORKSPACE = Path("data/workspaces/demo")
RECORDED = ("events", "runs", "adapters", "mixtures")
"""The folders that are the truth; the database is made from them."""


def open_demo(workspace: Workspace | None = None) -> Workspace:
    """Copy the recorded demo into `workspace` (default data/workspaces/demo) unless it is there, and build its tables.

    Raises `NotFoundError` when no demo was recorded, `ConflictError` when the folder holds something else.
    """
    workspace = workspace or Workspace(DEMO_WORKSPACE)
    if workspace.database.exists():
        return workspace
    if not (DEMO_FOLDER / "runs").is_dir():
        raise NotFoundError(f"No demo is recorded in {DEMO_FOLDER}; record it with `make demo` (about half an hour).")
    if workspace.root.exists() and any(workspace.root.iterdir()):
        raise ConflictError(f"{workspace.root} is not empty; name another folder with --workspace.")
    partial = workspace.root.with_name(workspace.root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in RECORDED:
        shutil.copytree(DEMO_FOLDER / folder, partial / folder)
    Store.open(Workspace(partial), "opening the demo").close()
    if workspace.root.exists():
        workspace.root.rmdir()
    partial.rename(workspace.root)
    return workspace
