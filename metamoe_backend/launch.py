"""Starting a stage: here and now, as a job of its own, or as a job that waits for others."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from metamoe_backend.config import DEFAULT_BASE, StageConfig, parse_config
from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError, UserError
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.profile import read_profile
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, create_run, create_shards, find_run, list_runs
from metamoe_backend.jobs.slurm import choose_device
from metamoe_backend.jobs.supervisor import submit, submit_shards
from metamoe_backend.pipeline import STAGES
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.store.runs import NAMING
from metamoe_backend.workspace import Workspace

OnProgress = Callable[[int, int], None]
_MAKERS = ("train", "sequence", "moe", "import", "select-data")
"""Stages whose results the settings of other runs name."""


def run_now(
    store: Store, stage: str, values: dict[str, Any], by: str, on_progress: OnProgress | None = None
) -> RunFolder:
    """Run a stage in this process and take in its results.

    A mistake of the person (`UserError`) leaves no run and no row behind.
    """
    (run,) = _create(store, stage, values, by)
    context = RunContext(run, on_progress=on_progress)
    context.start()
    try:
        STAGES[stage].compute(run.read_inputs(), run.parse_config(STAGES[stage].config), context)
        context.finish("finished")
    except UserError as error:
        context.fail(error)  # ends its signs of life and gives its lock back
        shutil.rmtree(run.path)
        raise
    except BaseException as error:
        context.fail(error)
        raise
    ingest_run(store, run)
    return run


def launch(
    store: Store, stage: str, values: dict[str, Any], by: str, profile: str | None = None, after: Sequence[str] = ()
) -> RunFolder:
    """Hand a stage to the local queue, or with a profile to Slurm, and return at once.

    The run goes on when this process ends. What Slurm does not take leaves no run behind (see `jobs.slurm.submit`).
    It waits for the runs `after` (ids), and where its settings name systems that runs under way are making, for these:
    it begins when they have finished, and its rows are read then (see `jobs.waiting`).
    With `shards` in the settings these are several runs, as many as the work can be cut into; returns the first of
    them (see `run_folder.list_shards`).
    """
    if profile is not None:
        read_profile(store.workspace, profile)  # before anything is prepared
    waits_for = _find_unfinished(store.workspace, after)
    values = with_absolute_path(values, "source")
    runs = _create(store, stage, values, by, can_wait=True, after=waits_for, profile=profile)
    if len(runs) == 1:
        submit(store.workspace, runs[0], profile)
    else:
        submit_shards(store.workspace, runs, profile)
    return runs[0]


def _create(
    store: Store,
    stage: str,
    values: dict[str, Any],
    by: str,
    can_wait: bool = False,
    after: Sequence[str] = (),
    profile: str | None = None,
) -> list[RunFolder]:
    """The runs of a stage; where it can wait, it may be cut into shards, too."""
    if stage not in STAGES:
        raise NotFoundError(f"There is no stage {stage!r} (there are: {', '.join(STAGES)}).")
    values = with_absolute_path(with_absolute_path(values, "base"), "pool")
    config: StageConfig = parse_config(STAGES[stage].config, values)
    name, settings = run_name(stage, config), config.model_dump(mode="json")
    cut_inputs, shards = STAGES[stage].cut, getattr(config, "shards", 1)
    makers = [status.run_id for status in find_makers(store, config)] if can_wait else []
    after = list(dict.fromkeys([*after, *makers]))
    if after:
        _check_what_waits(store, config, shards)
        if profile is not None:
            choose_device(settings, read_profile(store.workspace, profile), profile)  # not in the morning
        return [create_run(store.workspace, stage, name, settings, by, None, after=after)]
    try:
        inputs = STAGES[stage].prepare(store, config)
    except NotFoundError as error:
        raise NotFoundError(f"{error}{_name_what_is_made(store.workspace, stage)}") from None
    parts = cut_inputs(inputs, config, shards) if can_wait and cut_inputs is not None and shards > 1 else [inputs]
    if len(parts) == 1:
        return [create_run(store.workspace, stage, name, settings, by, parts[0])]
    return create_shards(store.workspace, stage, name, settings, by, parts)


def find_makers(store: Store, config: StageConfig) -> list[RunStatus]:
    """The runs under way that make the systems (or the selection of data) that `config` names and nobody has made yet.

    None where it names something that no run is making: what is missing is said then, not waited for.
    """
    from metamoe_backend.store.experts import fetch_systems

    named = _list_named(config)
    missing = set(named).difference(fetch_systems(store)["system"], ["base"]) if named else set()
    if not missing:
        return []
    statuses = [run.read_state() for run in list_runs(store.workspace)]
    missing -= {status.run_id for status in statuses if status.state == "finished"}
    coming = [status for status in statuses if status.state in ("queued", "running") and status.stage in _MAKERS]
    makers = [status for status in coming if any(_makes(status, name) for name in missing)]
    return makers if all(any(_makes(status, name) for status in makers) for name in missing) else []


def _list_named(config: StageConfig) -> list[str]:
    if getattr(config, "from_scratch", False):
        return []  # its experts are fresh ones
    values = [getattr(config, field, None) for field in NAMING]
    named = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return [name for name in dict.fromkeys(named) if isinstance(name, str)]


def _makes(status: RunStatus, name: str) -> bool:
    if status.stage == "select-data":
        return status.run_id == name
    step = status.stage == "sequence" and re.fullmatch(rf"{re.escape(status.name)}-\d+", name)
    return status.name == name or bool(step)


def _find_unfinished(workspace: Workspace, run_ids: Sequence[str]) -> list[str]:
    """Those that have not finished; raises `ConflictError` for one that never will."""
    statuses = [find_run(workspace, run_id).read_state() for run_id in run_ids]
    for status in statuses:
        if status.state == "cancelled":
            raise ConflictError(f"Run {status.run_id} was cancelled and will not finish; wait for another one.")
    return [status.run_id for status in statuses if status.state != "finished"]


def _check_what_waits(store: Store, config: StageConfig, shards: int) -> None:
    """What can be said of settings before the rows are there."""
    from metamoe_backend.store.experts import require_plan
    from metamoe_backend.store.questions import require_tasks

    if shards > 1:
        raise ConfigError(
            f"shards is {shards}, but a run that waits for others cannot be cut; let shards be 1, or wait with it."
        )
    plan, tasks = getattr(config, "plan", None), getattr(config, "tasks", None)
    if plan is not None:
        require_plan(store, plan)
    if tasks:
        require_tasks(store, tasks)


def _name_what_is_made(workspace: Workspace, stage: str) -> str:
    """Says so where runs that make what `stage` reads have not ended: what is missing may be on its way."""
    makers = {name for name, other in STAGES.items() if set(other.writes) & set(STAGES[stage].reads)}
    statuses = [run.read_state() for run in list_runs(workspace)]
    waiting = [each for each in statuses if each.state in ("queued", "running") and each.stage in makers]
    if not waiting:
        return ""
    return f" Or wait: {len(waiting)} of the runs that make such rows have not ended ({waiting[0].run_id} …)."


def with_absolute_path(values: dict[str, Any], field: str) -> dict[str, Any]:
    """A setting that names something on disk, so that it means the same wherever it is read later.

    A base model's name is kept with every adapter of it: two people in two folders must write the same.
    """
    name = values.get(field)
    if not isinstance(name, str) or name == DEFAULT_BASE or not Path(name).expanduser().exists():
        return values
    return {**values, field: str(Path(name).expanduser().resolve())}


def run_name(stage: str, config: StageConfig) -> str:
    """What a run is called in lists: the thing it makes, else what it works on."""
    for field in ("name", "system", "labelling", "task", "source", "encoder", "method"):
        value = getattr(config, field, None)
        if value:
            return str(value)
    systems = getattr(config, "systems", None)
    return shorten(", ".join(systems), 80, placeholder=" …") if systems else stage
