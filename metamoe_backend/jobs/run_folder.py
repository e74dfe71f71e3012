"""The folder of one run: the truth about it, whoever started it. The one place that knows its file names.

    spec.json         what was asked for; written once
    state.json        queued, running, finished …; who works on it
    control.json      a person asked to stop or to cancel
    heartbeat.json    how far it is; renewed every few seconds while the worker lives
    progress.jsonl    one line a report of progress, with its metrics
    log.txt           everything the worker printed
    alerts.jsonl      the alerts that were sent elsewhere
    inputs/           NAME.parquet: what `prepare` read; not there yet while the run waits for others (`jobs.waiting`)
    slurm/            the batch scripts of a run that starts on Slurm
    checkpoints/      the stage's own; survives a stop
    output/           TABLE-NNNN.parquet: what the stage emitted
    manifest.json     the parts that are handed over, with their checksums; never takes a part back

`create_run` makes a run queued; `jobs.context` takes it to running and to its end; `jobs.supervisor` puts a stopped or
failed one back to queued. A new attempt finds the parts that an earlier one handed over and its own checkpoints/;
parts that no manifest names are gone.
"""

import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from metamoe_backend.config import NAME_PATTERN, StageConfig, parse_config
from metamoe_backend.errors import ConfigError, NotFoundError, StorageError
from metamoe_backend.jobs.durable import replace_file, replace_text, sync_folder
from metamoe_backend.jobs.records import (
    NO_ROOM,
    SCHEMA_VERSION,
    Heartbeat,
    Manifest,
    ManifestPart,
    ProgressLine,
    Request,
    RunSpec,
    Shard,
    StateFile,
    Told,
)
from metamoe_backend.rows import RunState
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

STALE_AFTER_S = 30.0
"""A heartbeat older than this: the run is "not responding"."""
_LOG_TAIL_BYTES = 256 * 1024
_PART_NAME = re.compile(r"([a-z_]+)-(\d{4,})\.parquet")
_NOT_TEXT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
"""Terminal codes and control characters; a tab stays."""


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
    failure: str | None = None
    """The class of the error, where the worker could say."""
    eta_s: float | None = None
    """Seconds until done, as far as progress tells."""
    s_per_item: float | None = None
    """Seconds an item takes at the present pace."""
    idle_s: float | None = None
    """Seconds since a running run's last progress (or its start), since a waiting one was queued."""
    device: str | None = None
    pid: int | None = None
    place: int | None = None
    """Place in the local queue: lower starts first. None: not in it."""
    profile: str | None = None
    """The profile it starts by on Slurm; None: on this machine."""
    job: str | None = None
    """Slurm's number for it."""
    waits_for: str | None = None
    """Slurm's word for why its job has not started, or the sentence why it has not taken a run that waited."""
    lost: bool = False
    """Its process is gone, and nobody has written that into state.json yet."""
    responding: bool = True
    """False: it runs, but has given no sign of life for `STALE_AFTER_S`."""
    stopping: str | None = None
    """stop or cancel, while a running worker has been asked to."""
    shard: Shard | None = None
    """Which part of the work it does; None: all of it."""
    after: tuple[str, ...] = ()
    """Runs that must have finished before its rows can be read."""
    prepared: bool = True
    """False: it is queued and its rows have not been read yet (see `jobs.waiting`)."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One emitted Parquet file."""

    part: str
    target: str
    path: Path

    @property
    def number(self) -> int:
        return int(self.part.removesuffix(".parquet").rpartition("-")[2])


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
    def inputs(self) -> Path:
        return self.path / "inputs"

    @property
    def is_prepared(self) -> bool:
        """Whether what it reads is there."""
        return self.inputs.is_dir()

    @property
    def is_repeatable(self) -> bool:
        """Whether the same can be run again: what it read lies here, or is read when others have finished.

        Without rows are stages that read none, and the runs of a recorded demo: they read the workspace as it is now.
        """
        return bool(self.read_spec().after) or any(self.inputs.glob("*.parquet"))

    @property
    def output(self) -> Path:
        return self.path / "output"

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
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def told_file(self) -> Path:
        return self.path / "alerts.jsonl"

    @property
    def room_file(self) -> Path:
        """Takes up room for as long as the worker lives, so that its end can be written where the disk is full."""
        return self.path / ".room"

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
        return {path.stem: _read_parquet(path) for path in sorted(self.inputs.glob("*.parquet"))}

    def read_input(self, name: str) -> "pd.DataFrame | None":
        """One of these alone; None where it is not there (yet). Raises `StorageError` for a damaged file."""
        path = self.inputs / f"{name}.parquet"
        return _read_parquet(path) if path.is_file() else None

    def write_inputs(self, inputs: "Mapping[str, pd.DataFrame]") -> None:
        """Keep what `prepare` read, all of it or nothing. Hold `queue_lock` unless nobody knows of the run yet."""
        if bad := [key for key in inputs if not re.match(NAME_PATTERN, key)]:
            raise ValueError(f"inputs {bad} cannot be file names")
        hidden = self.path / ".inputs"
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        for key, frame in inputs.items():
            replace_file(hidden / f"{key}.parquet", partial(_write_parquet, frame))
        hidden.rename(self.inputs)
        sync_folder(self.path)

    # State

    def read_state(self) -> RunStatus:
        """How the run stands. Never raises for what lies in the files: a run with damaged files reads as failed."""
        state, spec = self.settle(), _read(RunSpec, self.path / "spec.json")
        if spec is None:
            made_at = _time_in(self.run_id)
            spec = RunSpec(run_id=self.run_id, stage="", name=self.run_id, config={}, by="", created_at=made_at, cwd="")
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
            failure=state.failure,
            device=state.device,
            pid=state.process.pid if state.process else None,
            place=state.place,
            profile=state.profile,
            job=state.job,
            shard=spec.shard,
            waits_for=state.waits_for,
            after=tuple(spec.after),
            prepared=state.state != "queued" or self.is_prepared,
        )
        if status.state not in ("queued", "running"):
            return replace(status, lost=self.read_state_file().state == "running")
        if status.state == "queued":
            return replace(status, idle_s=self._seconds_since_written())
        request = self.read_request()
        return replace(
            status,
            eta_s=_eta_s(beat),
            s_per_item=beat.s_per_item,
            idle_s=_idle_s(beat, state),
            responding=time.time() - beat.at < STALE_AFTER_S,
            stopping=None if request is None else "stop" if request.save else "cancel",
        )

    def _seconds_since_written(self) -> float | None:
        try:
            return max(0.0, time.time() - (self.path / "state.json").stat().st_mtime)
        except OSError:
            return None

    def read_state_file(self) -> StateFile:
        """state.json as it lies there; one that is damaged reads as failed."""
        damaged = StateFile(state="failed", error="state.json is missing or damaged; resume the run or start it anew.")
        return _read(StateFile, self.path / "state.json") or damaged

    def settle(self, exit_code: int | None = None, gone: str | None = None) -> StateFile:
        """The state, seen through: "running" whose process is gone means it ended, and how. Writes nothing.

        `exit_code` (negative: a signal) makes the reason sharper where the caller was the worker's parent. `gone` is
        the reason where the caller knows that the worker is gone though it cannot be seen from here.
        """
        state = self.read_state_file()
        if state.state != "running" or (gone is None and _may_live(state)):
            return state
        # A worker writes its end before it dies: only what is read after its death is the last word.
        state = self.read_state_file()
        if state.state != "running" or (gone is None and _may_live(state)):
            return state
        manifest, request = _read(Manifest, self.manifest_file), self.read_request()
        beat = _read(Heartbeat, self.heartbeat_file)
        last_seen = utc_at(min(beat.at, time.time())) if beat else state.started_at
        ended: dict[str, Any] = {"ended_at": last_seen, "exit_code": exit_code}
        if manifest and manifest.attempt == state.attempt:
            ended |= {"state": manifest.state, "ended_at": manifest.ended_at}
        elif request and not request.save:
            ended |= {"state": "cancelled"}
        else:
            ended |= {"state": "failed", "error": gone or reason_of_death(exit_code)}
        return state.model_copy(update=ended)

    def write_state(self, state: StateFile) -> None:
        """Replace state.json. Hold `queue_lock` unless this is the worker ending its own run."""
        replace_text(self.path / "state.json", state.model_dump_json(indent=1))

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

        An attempt that went back to a checkpoint replaces what earlier ones reported from there on.
        """
        import pandas as pd

        kept: list[dict[str, Any]] = []
        begun = True
        for line in self._progress_lines():
            if line.attempt is not None:
                begun = False
                continue
            if not begun:
                kept, begun = [row for row in kept if row["step"] < line.done], True
            of_line = {"step": line.done, "total": line.total, "time": utc_at(line.time)}
            kept += [of_line | {"name": name, "value": value} for name, value in line.metrics.items()]
        frame = pd.DataFrame(kept, columns=["step", "total", "time", "name", "value"]).astype(
            {"step": "int64", "total": "int64", "time": "datetime64[us]", "name": "str", "value": "float64"}
        )
        frame = frame.sort_values("step", kind="stable")
        return frame.drop_duplicates(["step", "name"], keep="last", ignore_index=True)

    def _progress_lines(self) -> Iterator[ProgressLine]:
        if not self.progress_file.is_file():
            return
        with self.progress_file.open("rb") as file:
            for raw in file:
                try:
                    line = ProgressLine.model_validate_json(raw)
                except ValidationError:
                    continue  # torn by a crash
                yield line

    def append_told(self, alert: str, problem: str | None) -> None:
        """Remember that an alert was sent, or why it could not be."""
        line = Told(at=time.time(), alert=alert, problem=problem)
        with self.told_file.open("ab") as file:
            file.write(f"{line.model_dump_json()}\n".encode())

    def read_told(self) -> list[Told]:
        """The alerts that were sent or given up, oldest first."""
        if not self.told_file.is_file():
            return []
        told = []
        for line in self.told_file.read_bytes().splitlines():
            try:
                told.append(Told.model_validate_json(line))
            except ValidationError:
                continue  # torn by a crash
        return told

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
        lines = text.removesuffix("\n").split("\n")[-tail_lines:]
        return "\n".join(_NOT_TEXT.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines)

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
        number = 1 + max((part.number for part in self.parts(table)), default=0)
        path = self.output / f"{table}-{number:04d}.parquet"
        replace_file(path, lambda file: pq.write_table(rows, file, compression="zstd"))

    def parts(self, table: str | None = None) -> list[PartFile]:
        """Emitted parts, of one table or of all, in order."""
        matches = [_PART_NAME.fullmatch(path.name) for path in self.output.iterdir()] if self.output.is_dir() else []
        found = [PartFile(m[0], m[1], self.output / m[0]) for m in matches if m and table in (None, m[1])]
        return sorted(found, key=lambda part: (part.target, part.number))

    def discard_unlisted_parts(self) -> None:
        """Remove parts that no manifest names: what a broken-off attempt left behind."""
        manifest = self.read_manifest()
        listed = {part["part"] for part in manifest["parts"]} if manifest else set()
        for part in self.parts():
            if part.part not in listed:
                part.path.unlink()

    def discard_unfinished_files(self) -> None:
        """Remove what `replace_file` was writing when a worker died. Hold `queue_lock` and the worker's."""
        for path in (*self.path.glob(".*.json.*"), *self.output.rglob(".*"), *self.checkpoints.rglob(".*")):
            path.unlink(missing_ok=True)

    def write_manifest(self, state: RunState, ended_at: datetime) -> None:
        """Hand over all parts emitted so far."""
        import pyarrow.parquet as pq

        parts = []
        for part in self.parts():
            with part.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            rows = pq.read_metadata(part.path).num_rows
            parts.append(ManifestPart(part=part.part, target=part.target, rows=rows, sha256=sha256))
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            run_id=self.run_id,
            attempt=self.read_state_file().attempt,
            state=state,
            ended_at=ended_at,
            parts=parts,
        )
        replace_text(self.manifest_file, manifest.model_dump_json(indent=1))

    def read_manifest(self) -> dict[str, Any] | None:
        """{schema_version, run_id, attempt, state, ended_at, parts: [{part, target, rows, sha256}]}; None: not yet.

        Raises `StorageError` if it is damaged or of a newer MetaMoE.
        """
        if not self.manifest_file.exists():
            return None
        manifest = _read(Manifest, self.manifest_file)
        if manifest is None or manifest.schema_version > SCHEMA_VERSION:
            what = "is damaged" if manifest is None else "was written by a newer MetaMoE"
            raise StorageError(
                f"{self.manifest_file} {what}; bring a good copy back, or move this folder out of runs/."
            )
        return manifest.model_dump(mode="json")


def make_run_id(stage: str, now: datetime) -> str:
    """An id that sorts by time and is a safe folder name, e.g. 20261121T034501.123456-train-ab12."""
    return f"{now:%Y%m%dT%H%M%S.%f}-{re.sub(r'[^a-z0-9-]', '-', stage)[:30]}-{secrets.token_hex(2)}"


def create_run(
    workspace: Workspace,
    stage: str,
    name: str,
    config: StageConfig | dict[str, Any],
    by: str,
    inputs: "Mapping[str, pd.DataFrame] | None",
    run_id: str | None = None,
    shard: Shard | None = None,
    after: Sequence[str] = (),
) -> RunFolder:
    """A new queued run, whole or not at all. It is in nobody's queue yet: submit it, or run it in place.

    `inputs` None: they can be read when the runs of `after` have finished.
    """
    now = utc_now()
    run_id = run_id or make_run_id(stage, now) + (name_shard(shard) if shard else "")
    values = config.model_dump(mode="json") if isinstance(config, StageConfig) else config
    spec = RunSpec(
        run_id=run_id, stage=stage, name=name, config=values, by=by, created_at=now, cwd=str(Path.cwd()), shard=shard,
        after=list(after),
    )  # fmt: skip
    workspace.runs.mkdir(parents=True, exist_ok=True)
    hidden = RunFolder(workspace.runs / f".new-{run_id}")
    try:
        for folder in (hidden.output, hidden.checkpoints):
            folder.mkdir(parents=True)
        if inputs is not None:
            hidden.write_inputs(inputs)
        replace_text(hidden.path / "spec.json", spec.model_dump_json(indent=1))
        hidden.write_state(StateFile(state="queued"))
        hidden.path.rename(workspace.runs / run_id)
    except BaseException:
        shutil.rmtree(hidden.path, ignore_errors=True)
        raise
    sync_folder(workspace.runs)
    return RunFolder(workspace.runs / run_id)


def create_shards(
    workspace: Workspace,
    stage: str,
    name: str,
    config: StageConfig | dict[str, Any],
    by: str,
    inputs: "Sequence[Mapping[str, pd.DataFrame]]",
) -> list[RunFolder]:
    """New queued runs that share a stage's work, one for each of `inputs`: all of them or none.

    Their ids are equal up to the end: ….1of3, ….2of3, ….3of3.
    """
    first, runs = make_run_id(stage, utc_now()), list[RunFolder]()
    try:
        for index, own in enumerate(inputs, 1):
            shard = Shard(index=index, of=len(inputs))
            runs.append(create_run(workspace, stage, name, config, by, own, first + name_shard(shard), shard))
    except BaseException:
        for run in runs:
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    return runs


def list_runs(workspace: Workspace) -> list[RunFolder]:
    """All runs of a workspace, newest first."""
    if not workspace.runs.is_dir():
        return []
    folders = [path for path in workspace.runs.iterdir() if not path.name.startswith(".") and path.is_dir()]
    return [RunFolder(path) for path in sorted(folders, reverse=True)]


def name_shard(shard: Shard) -> str:
    """How the id of a shard ends."""
    return f".{shard.index}of{shard.of}"


def list_shards(run: RunFolder) -> list[RunFolder]:
    """All runs that were cut out of the same work, in order; the run alone where it does all of it."""
    shard = run.read_spec().shard
    if shard is None:
        return [run]
    first = run.run_id.removesuffix(name_shard(shard))
    ids = [first + name_shard(Shard(index=index, of=shard.of)) for index in range(1, shard.of + 1)]
    return [RunFolder(run.path.parent / run_id) for run_id in ids if (run.path.parent / run_id).is_dir()]


def queue_lock(workspace: Workspace) -> Path:
    """Held while a run of the workspace passes from queued to anything else, or back."""
    return workspace.runs / ".queue.lock"


def find_run(workspace: Workspace, run_id: str) -> RunFolder:
    """One run by its id; raises `NotFoundError`."""
    return RunFolder(workspace.run(run_id))


def match_runs(workspace: Workspace, part: str) -> list[RunFolder]:
    """The run whose id is, or holds, `part`; several where these are the shards of one work.

    Raises `NotFoundError` where no id does, `ConfigError` where others do, too.
    """
    there = list_runs(workspace)
    matches = [run for run in there if run.run_id == part] or [run for run in there if part and part in run.run_id]
    if not matches:
        raise NotFoundError(f"No run has {part!r} in its id in workspace {workspace.name}; `jobs` lists the runs.")
    if len(matches) == 1:
        return matches
    shards = list_shards(matches[0])
    if set(shards) == set(matches):
        return shards
    some = ", ".join(run.run_id for run in matches[:3])
    raise ConfigError(f"{part!r} is part of {len(matches)} run ids ({some} …); write more of the id.")


def reason_of_death(exit_code: int | None) -> str:
    """One sentence for a worker that ended without saying why; a negative exit code is a signal."""
    if exit_code is None:
        return "The worker is gone (killed, or the computer was restarted); resume the run or start it again."
    if exit_code == NO_ROOM:
        return "The disk is full, or a quota is used up; free some space, then resume the run."
    if exit_code < 0:
        why = ", most often because memory ran out" if exit_code == -9 else ""
        return f"The worker was killed (signal {-exit_code}){why}; resume the run or start it again."
    return f"The worker ended with exit status {exit_code} before it could say why; read the log, then start it again."


def utc_now() -> datetime:
    """Now, in UTC, without a time zone: what TIMESTAMP columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


def utc_at(seconds: float) -> datetime:
    """A time given in seconds since 1970, like `utc_now`."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _read(model: type[M], path: Path) -> M | None:
    """A small JSON file as its model; None where it is missing, half-written or of another shape."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _read_parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{path} is damaged ({error}); start the run anew.") from None


def _write_parquet(frame: "pd.DataFrame", file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file, compression="zstd")


def _may_live(state: StateFile) -> bool:
    """A process on another machine cannot be seen from here: its heartbeat tells, not we.

    A run on Slurm may go on without its process: the job is queued again. `jobs.slurm` tells when it is over.
    """
    return state.job is not None or (state.process is not None and state.process.is_alive() is not False)


def _eta_s(beat: Heartbeat) -> float | None:
    if beat.s_per_item is None:
        return None
    return max(0.0, beat.s_per_item * (beat.total - beat.done) - (time.time() - beat.progress_at))


def _idle_s(beat: Heartbeat, state: StateFile) -> float | None:
    started = state.started_at.replace(tzinfo=UTC).timestamp() if state.started_at else 0.0
    since = max(beat.progress_at, started)
    return max(0.0, time.time() - since) if since else None


def _time_in(run_id: str) -> datetime:
    """When a run was created, by its id: for a run whose spec.json is damaged."""
    try:
        return datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%S.%f")
    except ValueError:
        return datetime(1970, 1, 1)
