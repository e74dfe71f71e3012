"""What a stage is: `prepare` reads rows, `compute` does the work, the store takes in what `compute` emitted.

`compute` touches neither the database nor a page, so it runs inline, in a subprocess, on a cluster node or in a test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd

    from metamoe_backend.config import StageConfig
    from metamoe_backend.store.connection import Store

NOTE = "Note: "
"""Begins the lines of a run's log that a person should read beside its numbers."""
Inputs = dict[str, "pd.DataFrame"]
"""Named tables that `prepare` hands to `compute`; kept as Parquet under the run's inputs/."""


class Context(Protocol):
    """What `compute` may do to the outside."""

    run_id: str
    by: str
    """Who started the run."""
    created_at: datetime
    """When the run was asked for (UTC, naive)."""
    workspace_root: Path
    """Where adapters/ and mixtures/ lie. Compute may read there and publish a finished folder by renaming."""
    scratch: Path
    """The run's checkpoints/ folder: survives a stop, so that work can go on."""

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Report progress and metrics; raises `StopRequested` when a person asked to stop or cancel."""

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Write rows of one of `rows.RUN_TABLES`. The column run_id is filled in. May be called often."""

    def log(self, message: str) -> None:
        """One line for the run's log."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline."""

    name: str
    config: type["StageConfig"]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    prepare: Callable[["Store", Any], Inputs]
    compute: Callable[[Inputs, Any, Context], None]
    cut: Callable[[Inputs, Any, int], list[Inputs]] | None = None
    """Inputs of at most so many shards, whose rows together are those of one run (see `shards`); None: not cut."""
