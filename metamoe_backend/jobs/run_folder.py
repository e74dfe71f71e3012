"""The folder of one run: the truth about it, whoever started it. The one place that knows its file names.

    spec.json         what was asked for; written once
    state.json        queued, running, finished …; who works on it
    control.json      a person asked to stop or to cancel
    heartbeat.json    how far it is; renewed every few seconds while the worker lives
    progress.jsonl    one line a report of progress, with its metrics
    log.txt           everything the worker printed
    inputs/           NAME.parquet: what `prepare` read
    checkpoints/      the stage's own; survives a stop
    output/           TABLE-NNNN.parquet: what the stage emitted
    manifest.json     the parts that are handed over, with their checksums; never takes a part back

The stages of a run's life: `create_run` makes it queued; `jobs.context` takes it to running and to its end;
`jobs.supervisor` puts a stopped or failed one back to queued.
"""

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, NaiveDatetime, ValidationError

from metamoe_backend.config import NAME_PATTERN, StageConfig, parse_config
from metamoe_backend.errors import StorageError
from metamoe_backend.jobs.durable import replace_file, replace_text, sync_folder
from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.rows import RunState
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
"""Of manifest.json and the parts it names."""
STALE_AFTER_S = 30.0
"""A heartbeat older than this: the run is "not responding"."""
_LOG_TAIL_BYTES = 256 * 1024
_PART_NAME = re.compile(r"([a-z_]+)-(\d{4,})\.parquet")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class RunSpec(BaseModel):
    """spec.json: what was asked for."""

    run_id: str
    stage: str
    name: str
    config: dict[str, Any]
    by: str
    created_at: NaiveDatetime
    cwd: str
    """Where relative paths of the config start: the folder the person stood in."""


class StateFile(BaseModel):
    """state.json. Read runs through `RunFolder.read_state`, which knows what a dead worker's file means."""

    state: RunState
    place: int | None = None
    """Place in the local queue, kept while it runs; None: the local supervisor leaves this run alone."""
    attempt: int = 0
    device: str | None = None
    process: ProcessIdentity | None = None
    started_at: NaiveDatetime | None = None
    ended_at: NaiveDatetime | None = None
    error: str | None = None
    exit_code: int | None = None


class Heartbeat(BaseModel):
    """heartbeat.json: the newest figures of a running attempt."""

    at: float
    done: int = 0
    total: int = 0
    metrics: dict[str, float] = {}
    s_per_item: float | None = None
    progress_at: float | None = None


class Request(BaseModel):
    """control.json: stop (save) or cancel."""

    save: bool
    at: float


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands, for pages, command line and tests. Times are UTC."""

    run_id: str
    stage: str
    name: str
    by: str
    created_at: datetime
    state: RunState
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Newest value of each metric."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str | None = None
    eta_s: float | None = None
    """Seconds until done, as far as progress tells."""
    device: str | None = None
    pid: int | None = None
    place: int | None = None
    """Place in the local queue: lower starts first."""
    responding: bool = True
    """False: it runs, but has given no sign of life for `STALE_AFTER_S`."""
    stopping: str | None = None
    """stop or cancel, while a running worker has been asked to."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One emitted Parquet file."""

    part: str
    target: str
    path: Path


C = TypeVar("C", bound=StageConfig)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run. Cheap to make: everything is read when asked for."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.path.parent.parent)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def progress_file(self) -> Path:
        return self.path / "progress.jsonl"

    @property
    def heartbeat_file(self) -> Path:
        return self.path / "heartbeat.json"

    @property
    def worker_lock(self) -> Path:
        """Locked by the worker for as long as it lives."""
        return self.path / "worker.lock"

    # What was asked for

    def read_spec(self) -> RunSpec:
        """What was asked for; raises `StorageError` if spec.json is damaged."""
        spec = _read(RunSpec, self.path / "spec.json")
        if spec is None:
            raise StorageError(f"{self.path / 'spec.json'} is missing or damaged; move this folder out of runs/.")
        return spec

    def parse_config(self, cls: type[C]) -> C:
        """The spec's settings, checked; raises `ConfigError`."""
        return parse_config(cls, self.read_spec().config)

    def read_inputs(self) -> "dict[str, pd.DataFrame]":
        """What `prepare` read, by name; raises `StorageError` naming a damaged file."""
        import pandas as pd
        import pyarrow as pa

        inputs = {}
        for path in sorted((self.path / "inputs").glob("*.parquet")):
            try:
                inputs[path.stem] = pd.read_parquet(path)
            except (pa.ArrowException, OSError) as error:
                raise StorageError(f"{path} is damaged ({error}); start the run anew.") from None
        return inputs

    # State

    def read_state(self) -> RunStatus:
        """How the run stands. Never raises for what lies in the files: a run with damaged files reads as failed."""
        state, spec = self.settle(), _read(RunSpec, self.path / "spec.json")
        if spec is None:
            spec = RunSpec(
                run_id=self.run_id, stage="", name=self.run_id, config={}, by="", created_at=_time_of(self), cwd=""
            )
            state = state.model_copy(update={"state": "failed", "error": "spec.json is missing or damaged."})
        beat = _read(Heartbeat, self.heartbeat_file) or Heartbeat(at=0.0)
        status = RunStatus(
            run_id=self.run_id,
            stage=spec.stage,
            name=spec.name,
            by=spec.by,
            created_at=spec.created_at,
            state=state.state,
            done=beat.done,
            total=beat.total,
            metrics=beat.metrics,
            started_at=state.started_at,
            ended_at=state.ended_at,
            error=state.error,
            device=state.device,
            pid=state.process.pid if state.process else None,
            place=state.place,
        )
        if status.state != "running":
            return status
        request = self.read_request()
        return replace(
            status,
            eta_s=_eta_s(beat),
            responding=time.time() - beat.at < STALE_AFTER_S,
            stopping=None if request is None else "stop" if request.save else "cancel",
        )

    def read_state_file(self) -> StateFile:
        """state.json as it lies there; one that is damaged reads as failed."""
        damaged = StateFile(state="failed", error="state.json is missing or damaged; resume the run or start it anew.")
        return _read(StateFile, self.path / "state.json") or damaged

    def settle(self, exit_code: int | None = None) -> StateFile:
        """The state, seen through: "running" whose process is gone means it ended, and how. Writes nothing.

        `exit_code` (negative: signal) makes the reason sharper where the caller was the worker's parent.
        """
        state = self.read_state_file()
        if state.state != "running" or _may_live(state):
            return state
        # A worker writes its end before it dies: only what is read after its death is the last word.
        state = self.read_state_file()
        if state.state != "running" or _may_live(state):
            return state
        manifest, request = self.read_manifest(), self.read_request()
        ended: dict[str, Any] = {"ended_at": self._last_sign_of_life(), "exit_code": exit_code}
        if manifest and manifest["attempt"] == state.attempt:
            ended |= {"state": manifest["state"], "ended_at": datetime.fromisoformat(manifest["ended_at"])}
        elif request and not request.save:
            ended |= {"state": "cancelled"}
        else:
            ended |= {"state": "failed", "error": reason_of_death(exit_code)}
        return state.model_copy(update=ended)

    def write_state(self, state: StateFile) -> None:
        """Replace state.json. Hold the queue's lock unless this is the worker ending its own run."""
        replace_text(self.path / "state.json", state.model_dump_json(indent=1))

    def _last_sign_of_life(self) -> datetime:
        beat = _read(Heartbeat, self.heartbeat_file)
        return datetime.fromtimestamp(beat.at, UTC).replace(tzinfo=None) if beat else utc_now()

    # Requests

    def write_request(self, save: bool) -> None:
        """Ask the worker to stop and save, or to give up."""
        replace_text(self.path / "control.json", Request(save=save, at=time.time()).model_dump_json())

    def read_request(self) -> Request | None:
        """What the worker was asked, if anything."""
        return _read(Request, self.path / "control.json")

    def clear_request(self) -> None:
        """Forget a request that an earlier attempt has obeyed."""
        (self.path / "control.json").unlink(missing_ok=True)

    # Progress and log

    def read_progress(self) -> "pd.DataFrame":
        """Every metric reported, tidy: step, total, time (UTC), name, value; in order of steps.

        An attempt that went back to a checkpoint replaces what an earlier one reported from there on.
        """
        import pandas as pd

        kept: list[dict[str, Any]] = []
        earlier_attempts = 0
        begun = True
        for line in self._progress_lines():
            if "attempt" in line:
                earlier_attempts, begun = len(kept), False
                continue
            if not begun:
                kept = [row for row in kept[:earlier_attempts] if row["step"] < line["done"]]
                begun = True
            at = datetime.fromtimestamp(line["time"], UTC).replace(tzinfo=None)
            kept += [
                {"step": line["done"], "total": line["total"], "time": at, "name": name, "value": value}
                for name, value in line["metrics"].items()
            ]
        frame = pd.DataFrame(kept, columns=["step", "total", "time", "name", "value"]).astype(
            {"step": "int64", "total": "int64", "time": "datetime64[us]", "value": "float64"}
        )
        return frame.sort_values("step", kind="stable").drop_duplicates(
            ["step", "name"], keep="last", ignore_index=True
        )

    def _progress_lines(self) -> Iterator[dict[str, Any]]:
        if not self.progress_file.is_file():
            return
        with self.progress_file.open("rb") as file:
            for raw in file:
                try:
                    line = _ProgressLine.validate_line(raw)
                except ValueError:
                    continue  # torn by a crash
                yield line

    def append_log(self, message: str) -> None:
        """One line (or several) at the end of the log, with the time."""
        with self.log_file.open("ab") as file:
            file.write(f"{utc_now():%H:%M:%S} {message.rstrip()}\n".encode(errors="backslashreplace"))

    def read_log(self, tail_lines: int = 200) -> str:
        """The last lines of the log as plain text: of a progress bar only its last state, no terminal codes."""
        if not self.log_file.is_file():
            return ""
        with self.log_file.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        lines = [_TERMINAL_CODE.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
        return "\n".join(lines[:-1] if lines[-1] == "" else lines).split("\n", max(0, len(lines) - 1 - tail_lines))[-1]

    # Output

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Write rows of `table` as the next part. An empty frame is checked and makes none.

        Raises `ValueError` naming the column that does not fit the table (see `parts.make_arrow_table`).
        """
        import pyarrow.parquet as pq

        from metamoe_backend.jobs.parts import make_arrow_table

        rows = make_arrow_table(table, frame, self.run_id)
        if rows.num_rows == 0:
            return
        output = self.path / "output"
        output.mkdir(exist_ok=True)
        number = 1 + max((_number(part) for part in self.parts(table)), default=0)
        replace_file(
            output / f"{table}-{number:04d}.parquet", lambda file: pq.write_table(rows, file, compression="zstd")
        )

    def parts(self, table: str | None = None) -> list[PartFile]:
        """Emitted parts, of one table or of all, in order."""
        output = self.path / "output"
        matches = [_PART_NAME.fullmatch(path.name) for path in output.iterdir()] if output.is_dir() else []
        found = [PartFile(m[0], m[1], output / m[0]) for m in matches if m and table in (None, m[1])]
        return sorted(found, key=lambda part: (part.target, _number(part)))

    def discard_unlisted_parts(self) -> None:
        """Remove parts that no manifest names: what a broken-off attempt left behind."""
        manifest = self.read_manifest()
        listed = {part["part"] for part in manifest["parts"]} if manifest else set()
        for part in self.parts():
            if part.part not in listed:
                part.path.unlink()

    def write_manifest(self, state: RunState, ended_at: datetime) -> None:
        """Hand over all parts emitted so far."""
        import pyarrow.parquet as pq

        parts = []
        for part in self.parts():
            with part.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            rows = pq.read_metadata(part.path).num_rows
            parts.append({"part": part.part, "target": part.target, "rows": rows, "sha256": sha256})
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "attempt": self.read_state_file().attempt,
            "state": state,
            "ended_at": ended_at.isoformat(),
            "parts": parts,
        }
        replace_text(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def read_manifest(self) -> dict[str, Any] | None:
        """{schema_version, run_id, attempt, state, ended_at, parts: [{part, target, rows, sha256}]}, or None."""
        path = self.path / "manifest.json"
        manifest = _read(_Manifest, path)
        return manifest.model_dump() if manifest else None


def create_run(
    workspace: Workspace, stage: str, name: str, config: dict[str, Any], by: str, inputs: "Mapping[str, pd.DataFrame]"
) -> RunFolder:
    """Make the folder of a new run, whole or not at all. It is queued, but in nobody's queue yet (see `submit`)."""
    now = utc_now()
    run_id = make_run_id(stage, now)
    spec = RunSpec(run_id=run_id, stage=stage, name=name, config=config, by=by, created_at=now, cwd=str(Path.cwd()))
    workspace.runs.mkdir(parents=True, exist_ok=True)
    partial = workspace.runs / f".{run_id}"
    try:
        for folder in ("inputs", "checkpoints", "output"):
            (partial / folder).mkdir(parents=True)
        for key, frame in inputs.items():
            frame.to_parquet(partial / "inputs" / f"{key}.parquet", index=False)
        replace_text(partial / "spec.json", spec.model_dump_json(indent=1))
        replace_text(partial / "state.json", StateFile(state="queued").model_dump_json(indent=1))
        partial.rename(workspace.runs / run_id)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(workspace.runs)
    return RunFolder(workspace.runs / run_id)


def make_run_id(stage: str, now: datetime) -> str:
    """Sorts by time; safe as a folder name: 20261121T034501123456-train-1f3a."""
    stage = re.sub(r"[^\w.\-]", "-", stage)
    run_id = f"{now:%Y%m%dT%H%M%S%f}-{stage[:30]}-{secrets.token_hex(2)}"
    assert re.match(NAME_PATTERN, run_id)
    return run_id


def list_runs(workspace: Workspace) -> list[RunFolder]:
    """All runs of a workspace, newest first."""
    if not workspace.runs.is_dir():
        return []
    folders = [path for path in workspace.runs.iterdir() if not path.name.startswith(".") and path.is_dir()]
    return [RunFolder(path) for path in sorted(folders, reverse=True)]


def utc_now() -> datetime:
    """Now in UTC, without a time zone: what TIMESTAMP columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


def reason_of_death(exit_code: int | None) -> str:
    """Why a worker ended that wrote no end itself, with the remedy; a negative exit code is a signal."""
    if exit_code is not None and exit_code < 0:
        hint = " (often: out of memory)" if exit_code == -9 else ""
        return f"The worker was killed by signal {-exit_code}{hint}; resume the run or start it again."
    if exit_code:
        return f"The worker ended with status {exit_code} before it could say why; read the log, then start it again."
    return "The worker is gone (killed, or the machine was restarted); resume the run or start it again."


class _ManifestPart(BaseModel):
    part: str
    target: str
    rows: int
    sha256: str


class _Manifest(BaseModel):
    schema_version: int
    run_id: str
    attempt: int
    state: RunState
    ended_at: str
    parts: list[_ManifestPart]


class _ProgressLine(BaseModel):
    done: int
    total: int
    time: float
    metrics: dict[str, float]

    @classmethod
    def validate_line(cls, raw: bytes) -> dict[str, Any]:
        """A line of progress.jsonl: a report, or the mark of a new attempt; raises `ValueError` if torn."""
        line = json.loads(raw)
        if isinstance(line, dict) and set(line) == {"attempt"}:
            return line
        return cls.model_validate(line).model_dump()


def _read(model: type[M], path: Path) -> M | None:
    """A small JSON file as its model; None where it is missing, half-written or of another shape."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _may_live(state: StateFile) -> bool:
    """A process on another machine cannot be seen from here: its heartbeat tells, not we."""
    return state.process is not None and state.process.is_alive() is not False


def _eta_s(beat: Heartbeat) -> float | None:
    if beat.s_per_item is None or beat.progress_at is None or beat.total <= 0:
        return None
    return max(0.0, beat.s_per_item * (beat.total - beat.done) - (time.time() - beat.progress_at))


def _number(part: PartFile) -> int:
    match = _PART_NAME.fullmatch(part.part)
    assert match is not None
    return int(match[2])


def _time_of(run: RunFolder) -> datetime:
    """When the folder came about, for a run whose spec is damaged."""
    try:
        return datetime.fromtimestamp(run.path.stat().st_mtime, UTC).replace(tzinfo=None)
    except OSError:
        return utc_now()
