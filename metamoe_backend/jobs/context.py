"""What a stage's `compute` may do to the outside, kept in the run folder: `stage.Context` for real."""

import fcntl
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamoe_backend.errors import ConflictError, DiskFullError, MetaMoEError, StopRequested, UserError
from metamoe_backend.jobs.durable import locked, replace_file, replace_text, room_needed
from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.jobs.records import Heartbeat, ProgressLine, StateFile
from metamoe_backend.jobs.run_folder import RunFolder, queue_lock, reason_of_death, utc_now
from metamoe_backend.rows import RunState

if TYPE_CHECKING:
    import pandas as pd

HEARTBEAT_S = 5.0
PROGRESS_EVERY_S = 0.25
"""Reports that bring no new metrics are written at most this often."""
ROOM_BYTES = 64 * 1024
"""Held while a run works, and given back for writing down its end where the disk is full."""
PACE_OVER_S = 60.0
"""Time left is told from about this much of the latest progress."""


class RunContext:
    """One attempt at one run: `start`, then the stage's reports, then `finish` or `fail`."""

    def __init__(self, run: RunFolder, on_progress: Callable[[int, int], None] | None = None) -> None:
        spec = run.read_spec()
        self.run = run
        self.run_id, self.by, self.created_at = spec.run_id, spec.by, spec.created_at
        self.workspace_root: Path = run.workspace.root
        self.scratch: Path = run.checkpoints
        self.terminated = threading.Event()
        """Set by whoever ends the process kindly (SIGTERM): the next report raises, as for stop-and-save."""
        self.stop_asked: StopRequested | None = None
        """What `progress` raised, if it did: the run then ends as stopped or cancelled."""
        self._on_progress = on_progress
        self._beat = Heartbeat(at=time.time())
        self._beat_lock = threading.Lock()
        self._ended = threading.Event()
        self._claim: int | None = None
        self._handed_over: tuple[RunState, datetime | None] | None = None
        """State and end once the manifest is written: from then on the run has ended so, whatever follows."""
        self._pace = _Pace()
        self._unwritten: ProgressLine | None = None
        self._written_at = 0.0

    def start(self, device: str | None = None) -> None:
        """Take the run from queued (or from a dead process) to running, and begin to give signs of life.

        Parts that an earlier attempt emitted but did not hand over are removed, and what it left half-written.
        Raises `ConflictError` when the run has ended or another process works on it, `DiskFullError` where there is no
        room to begin, and `StorageError` when its manifest is damaged.
        """
        self._claim = _claim(self.run)
        with locked(queue_lock(self.run.workspace)):
            state = self._see_through(self.run.read_state_file())
            if state.state != "queued" and not (state.state == "running" and not _is_alive(state.process)):
                os.close(self._claim)
                raise ConflictError(f"Run {self.run_id} is {state.state}; only a queued run can be started.")
            running: dict[str, Any] = {"state": "running", "attempt": state.attempt + 1, "device": device}
            running |= {"process": ProcessIdentity.of_this_process(), "started_at": utc_now()}
            running |= dict.fromkeys(("ended_at", "error", "failure", "waits_for", "exit_code"))
            self.run.discard_unfinished_files()
            replace_file(self.run.room_file, lambda file: file.write(os.urandom(ROOM_BYTES)))
            self._write_beat()
            self.run.write_state(state.model_copy(update=running))
        for folder in (self.run.output, self.run.checkpoints):
            folder.mkdir(exist_ok=True)
        self.run.discard_unlisted_parts()
        # A crash may have left half a line: the mark begins on a line of its own.
        mark = ProgressLine(time=time.time(), attempt=state.attempt + 1)
        self._append_progress("\n" + mark.model_dump_json(include={"time", "attempt"}))
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()

    def _see_through(self, state: StateFile) -> StateFile:
        """A worker that died right after its manifest has finished: nobody may do the work again."""
        if state.state != "running" or _is_alive(state.process):
            return state
        ended = self.run.settle(gone=reason_of_death(None))
        if ended.state not in ("finished", "cancelled"):
            return state
        self.run.write_state(ended)
        return ended

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Report progress and metrics; raises `StopRequested` when a person asked to stop (once) or to cancel."""
        now = time.time()
        values = {name: float(value) for name, value in metrics.items()}
        line = ProgressLine(time=now, done=int(done), total=int(total), metrics=values)
        with self._beat_lock:
            news = any(self._beat.metrics.get(name) != value for name, value in line.metrics.items())
            figures = {"done": line.done, "total": line.total, "metrics": self._beat.metrics | line.metrics}
            pace = {"s_per_item": self._pace.add(now, line.done, line.total), "progress_at": now}
            self._beat = self._beat.model_copy(update=figures | pace)
        self._unwritten = line
        if news or done == total or now - self._written_at >= PROGRESS_EVERY_S:
            self._write_progress()
            if self._on_progress is not None:
                self._on_progress(done, total)
        self._raise_if_asked()

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Write rows of `table`; raises `ValueError` naming a column that does not fit."""
        self.run.emit(table, frame)

    def log(self, message: str) -> None:
        """One line for the run's log."""
        self.run.append_log(message)

    def finish(self, state: RunState | None = None) -> None:
        """Hand over what was emitted (not when cancelled) and end the run.

        By default as finished, or as what a person asked for where `progress` raised it.
        """
        state = state or _end_state(self.stop_asked)
        ended_at = utc_now()
        if state in ("finished", "stopped"):
            self._hand_over(state, ended_at)
        self._end(state, ended_at, None)

    def hand_back(self) -> None:
        """Hand over what was emitted and wait for the next attempt: whoever started this one will start it again."""
        self._hand_over("stopped", utc_now())
        self._handed_over = ("queued", None)
        self._end("queued", None)

    def start_over(self) -> None:
        """Hand over nothing and wait for the next attempt, which goes on from the newest checkpoint."""
        self._end("queued", None)

    def _hand_over(self, state: RunState, ended_at: datetime) -> None:
        self.run.write_manifest(state, ended_at)
        self._handed_over = (state, ended_at)

    @property
    def interrupted(self) -> bool:
        """Whether the stage stopped because its process was asked to end, not because a person asked the run to."""
        return self.stop_asked is not None and self.run.read_request() is None

    def fail(self, error: BaseException) -> None:
        """End the run as failed, with the reason; what it emitted is not handed over. A bug's traceback is logged.

        An error that is a person's wish ends it as that wish: `StopRequested`, `KeyboardInterrupt` (cancelled).
        Raises `DiskFullError` where there is no room for writing down the end.
        """
        if self._handed_over is not None:  # only its end could not be written
            self._end(*self._handed_over)
            return
        if isinstance(error, StopRequested | KeyboardInterrupt):
            self.finish(_end_state(error if isinstance(error, StopRequested) else StopRequested(save=False)))
            return
        sentence = str(error) if isinstance(error, MetaMoEError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # no room: the state says it, too
            self.log(sentence if isinstance(error, UserError) else "".join(traceback.format_exception(error)))
        self._end("failed", utc_now(), " ".join(sentence.removesuffix(": ").split())[:1000], type(error).__name__)

    def _raise_if_asked(self) -> None:
        request = self.run.read_request()
        if request is not None and not request.save:
            self.stop_asked = StopRequested(save=False)
        elif (request is not None or self.terminated.is_set()) and self.stop_asked is None:
            self.stop_asked = StopRequested(save=True)
        else:
            return
        raise self.stop_asked

    def _end(
        self, state: RunState, ended_at: datetime | None, error: str | None = None, failure: str | None = None
    ) -> None:
        self._ended.set()
        self.run.room_file.unlink(missing_ok=True)
        with suppress(DiskFullError):
            self._write_progress()
        ended = {"state": state, "ended_at": ended_at, "error": error, "failure": failure}
        self.run.write_state(self.run.read_state_file().model_copy(update=ended))
        if self._claim is not None:
            os.close(self._claim)

    def _write_progress(self) -> None:
        if self._unwritten is not None:
            self._append_progress(self._unwritten.model_dump_json(exclude={"attempt"}))
            self._written_at, self._unwritten = time.time(), None
        self._write_beat()

    def _append_progress(self, line: str) -> None:
        with room_needed(self.run.progress_file), self.run.progress_file.open("ab") as file:
            file.write(f"{line}\n".encode())

    def _write_beat(self) -> None:
        with self._beat_lock:
            self._beat = self._beat.model_copy(update={"at": time.time()})
            replace_text(self.run.heartbeat_file, self._beat.model_dump_json(), keep=False)

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            if not self.run.path.is_dir():
                return  # the run was thrown away
            with suppress(DiskFullError):  # there may be room again the next time
                self._write_beat()


class _Pace:
    """Seconds an item takes, over the latest progress; starts anew when a new phase counts from the beginning."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self.total = 0

    def add(self, now: float, done: int, total: int) -> float | None:
        if total != self.total or (self.seen and done < self.seen[-1][1]):
            self.seen, self.total = [], total
        if not self.seen or now - self.seen[-1][0] >= 1.0 or len(self.seen) == 1:
            self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[1][0] > PACE_OVER_S:
            self.seen.pop(0)
        since, first = self.seen[0]
        return (now - since) / (done - first) if done > first and now > since else None


def _claim(run: RunFolder) -> int:
    """Lock the run for this process: a record lock, which forked children do not inherit and which dies with us."""
    handle = os.open(run.worker_lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(handle)
        raise ConflictError(f"Another process works on run {run.run_id}; wait for it, or cancel the run.") from None
    return handle


def _is_alive(process: ProcessIdentity | None) -> bool:
    # One on another machine that held the run would hold its lock, too.
    return process is not None and process.is_alive() is True


def _end_state(stop: StopRequested | None) -> RunState:
    if stop is None:
        return "finished"
    return "stopped" if stop.save else "cancelled"
