"""What a stage's `compute` may do to the outside, kept in the run folder: `stage.Context` for real."""

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from metamoe_backend.errors import StopRequested
from metamoe_backend.jobs.durable import replace_text
from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.jobs.run_folder import Heartbeat, RunFolder, utc_now
from metamoe_backend.rows import RunState

if TYPE_CHECKING:
    import pandas as pd

HEARTBEAT_S = 5.0
PROGRESS_EVERY_S = 0.25
"""Reports without metrics are written at most this often."""


class RunContext:
    """One attempt at one run: `start`, then the stage's reports, then `finish` or `fail`."""

    def __init__(self, run: RunFolder, on_progress: Callable[[int, int], None] | None = None) -> None:
        spec = run.read_spec()
        self.run = run
        self.run_id, self.by, self.created_at = spec.run_id, spec.by, spec.created_at
        self.workspace_root: Path = run.workspace.root
        self.scratch: Path = run.checkpoints
        self.stop_asked: StopRequested | None = None
        """What `progress` raised, if it did: the run then ends as stopped or cancelled."""
        self._on_progress = on_progress
        self._beat = Heartbeat(at=time.time())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._first: tuple[float, int] | None = None
        self._written_at = 0.0

    def start(self, device: str | None = None) -> None:
        """Take the run from queued to running and begin to give signs of life."""
        state = self.run.read_state_file()
        attempt = state.attempt + 1
        self.run.clear_request()
        with self.run.progress_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"attempt": attempt}) + "\n")
        running = state.model_copy(
            update={
                "state": "running",
                "attempt": attempt,
                "device": device,
                "process": ProcessIdentity.of_this_process(),
                "started_at": utc_now(),
                "ended_at": None,
                "error": None,
                "exit_code": None,
            }
        )
        self._write_beat()
        self.run.write_state(running)
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Report progress and metrics; raises `StopRequested` when a person asked to stop or to cancel."""
        now = time.time()
        with self._lock:
            if self._first is None:
                self._first = (now, done)
            since, first_done = self._first
            pace = (now - since) / (done - first_done) if done > first_done else None
            self._beat = self._beat.model_copy(
                update={
                    "done": done,
                    "total": total,
                    "metrics": {**self._beat.metrics, **{name: float(value) for name, value in metrics.items()}},
                    "s_per_item": pace,
                    "progress_at": now,
                }
            )
        if metrics or done == total or now - self._written_at >= PROGRESS_EVERY_S:
            self._written_at = now
            line = {"done": done, "total": total, "time": now, "metrics": metrics}
            with self.run.progress_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=float) + "\n")
            self._write_beat()
            if self._on_progress is not None:
                self._on_progress(done, total)
        request = self.run.read_request()
        if request is not None:
            self.stop_asked = StopRequested(request.save)
            raise self.stop_asked

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Write rows of `table`; raises `ValueError` naming a column that does not fit."""
        self.run.emit(table, frame)

    def log(self, message: str) -> None:
        """One line for the run's log."""
        self.run.append_log(message)

    def finish(self, state: RunState) -> datetime:
        """Hand over what was emitted and end the run."""
        ended_at = utc_now()
        self._stop_beating()
        if state in ("finished", "stopped"):
            self.run.write_manifest(state, ended_at)
        self._end(state, ended_at, None)
        return ended_at

    def fail(self, error: BaseException | str) -> None:
        """End the run as failed; nothing it emitted is handed over."""
        self._stop_beating()
        self._end("failed", utc_now(), str(error) or type(error).__name__)

    def _end(self, state: RunState, ended_at: datetime, error: str | None) -> None:
        ended = self.run.read_state_file().model_copy(
            update={"state": state, "ended_at": ended_at, "error": error, "exit_code": None}
        )
        self.run.write_state(ended)

    def _write_beat(self) -> None:
        with self._lock:
            self._beat = self._beat.model_copy(update={"at": time.time()})
            replace_text(self.run.heartbeat_file, self._beat.model_dump_json(), keep=False)

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self._write_beat()

    def _stop_beating(self) -> None:
        self._ended.set()
        self._write_beat()
