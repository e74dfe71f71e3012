"""The JSON files of a run folder as bounded models: what does not fit reads as damaged, never as nonsense."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime

from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.rows import RunState

SCHEMA_VERSION = 1
"""Of manifest.json and the parts it names."""
NOT_MINE = 3
"""Exit status of a worker that found the run taken: another worker has it, or somebody cancelled it."""
NO_ROOM = 4
"""Exit status of a worker for whose end there was no room on the disk."""
Timestamp = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Seconds since 1970 (UTC)."""
Count = Annotated[int, Field(ge=0, lt=2**62)]


class Shard(BaseModel):
    """Which part of a stage's work a run does."""

    model_config = ConfigDict(frozen=True)

    index: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]


class RunSpec(BaseModel):
    """spec.json: what was asked for; written once."""

    run_id: str
    stage: str
    name: str
    config: dict[str, Any]
    by: str
    created_at: NaiveDatetime
    cwd: str
    """Where relative paths of the config start: the folder the person stood in."""
    shard: Shard | None = None
    """None: the run does all of it."""
    after: list[str] = []
    """Runs that must have finished before this one's rows can be read."""

    @property
    def processes(self) -> int:
        """How many compute it together."""
        return int(self.config.get("processes", 1))


class StateFile(BaseModel):
    """state.json. Read runs through `RunFolder.read_state`, which knows what a dead worker's file means."""

    state: RunState
    place: int | None = None
    """Place in the local queue, kept while it runs; None: the local supervisor leaves this run alone."""
    profile: str | None = None
    """How it starts on Slurm; None: on this machine."""
    job: str | None = None
    """Slurm's number for it."""
    attempt: int = 0
    device: str | None = None
    process: ProcessIdentity | None = None
    started_at: NaiveDatetime | None = None
    ended_at: NaiveDatetime | None = None
    error: str | None = None
    failure: str | None = None
    """Of which kind the error is: the name of its class; None where the worker could not say."""
    waits_for: str | None = None
    """Slurm's word for why its job has not started (Priority, Resources …), or why it refused a run that waited."""
    exit_code: int | None = None


class Heartbeat(BaseModel):
    """heartbeat.json: the newest figures of an attempt, renewed every few seconds while its process lives."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    at: Timestamp
    done: Count = 0
    total: Count = 0
    metrics: dict[str, float] = {}
    progress_at: Timestamp = 0.0
    s_per_item: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Seconds an item takes, at the present pace."""


class ProgressLine(BaseModel):
    """One line of progress.jsonl; one with `attempt` marks where an attempt begins."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    time: Timestamp
    attempt: int | None = None
    done: Count = 0
    total: Count = 0
    metrics: dict[str, float] = {}


class Request(BaseModel):
    """control.json: a person asked to stop and save, or (`save` false) to cancel."""

    save: bool
    at: Timestamp


class Told(BaseModel):
    """One line of alerts.jsonl: an alert that was sent, or why it could not be."""

    at: Timestamp
    alert: str
    problem: str | None = None


class ManifestPart(BaseModel):
    """One part that is handed over."""

    part: str
    target: str
    rows: int
    sha256: str


class Manifest(BaseModel):
    """manifest.json: what is handed over."""

    schema_version: int
    run_id: str
    attempt: int
    state: RunState
    ended_at: NaiveDatetime
    parts: list[ManifestPart]
