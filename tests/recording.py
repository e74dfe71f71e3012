"""A context that keeps what a stage does, for tests that run `compute` without a job."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pandas as pd

from metamoe_backend.jobs.parts import make_arrow_table


class RecordingContext:
    """Satisfies `stage.Context`. `act(done)` is called at each report and may raise."""

    def __init__(self, root: Path, run_id: str = "run-1", act: Callable[[int], None] = lambda done: None) -> None:
        self.run_id = run_id
        self.by = "ana"
        self.created_at = datetime(2026, 11, 21)
        self.workspace_root = root
        self.scratch = root / "runs" / run_id / "checkpoints"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.act = act
        self.reports: list[tuple[int, int, dict[str, float]]] = []
        self.emitted: dict[str, list[pd.DataFrame]] = {}
        self.messages: list[str] = []

    def progress(self, done: int, total: int, **metrics: float) -> None:
        self.reports.append((done, total, metrics))
        self.act(done)

    def emit(self, table: str, frame: pd.DataFrame) -> None:
        rows = make_arrow_table(table, frame, self.run_id)  # refuses what the table would not take
        self.emitted.setdefault(table, []).append(rows.to_pandas())

    def log(self, message: str) -> None:
        self.messages.append(message)

    def rows(self, table: str) -> pd.DataFrame:
        """All emitted rows of a table."""
        return pd.concat(self.emitted[table], ignore_index=True)
