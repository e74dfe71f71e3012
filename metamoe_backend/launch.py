"""Starting a stage: here and now, as a job of its own, or as a job that waits for others."""

import shutil
from collections.abc import Callable, Collection, Sequence
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
    coming = _find_coming(store, config, after) if can_wait else {}
    after = list(dict.fromkeys([*after, *(status.run_id for makers in coming.values() for status in makers)]))
    if after:
        _check_what_waits(store, config, shards)
        _require_named(store, config, [name for name, makers in coming.items() if not makers])
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

    A name that no run is making is not waited for: `launch` refuses it.
    """
    coming = _find_coming(store, config)
    return list({status.run_id: status for makers in coming.values() for status in makers}.values())


def _find_coming(store: Store, config: StageConfig, after: Sequence[str] = ()) -> dict[str, list[RunStatus]]:
    """The names in `config` of what nobody has made yet, each with the runs that make it: under way, or of `after`."""
    from metamoe_backend.experts.bank import fetch_taken_names

    taken = fetch_taken_names(store)
    missing = [name for names in _list_named(config).values() for name in names if name not in taken]
    if not missing:
        return {}
    runs = {run: run.read_state() for run in list_runs(store.workspace)}
    finished = {run.run_id for run, status in runs.items() if status.state == "finished"}
    made = {
        run: _predict_names(run, status, taken)
        for run, status in runs.items()
        if status.state in ("queued", "running") or run.run_id in after
    }
    return {
        name: [runs[run] for run, names in made.items() if name in names] for name in missing if name not in finished
    }


def _list_named(config: StageConfig) -> dict[str, list[str]]:
    """The names in each setting that names systems, or a selection of data."""
    if getattr(config, "from_scratch", False):
        return {}  # its experts are fresh ones
    values = {field: getattr(config, field, None) for field in NAMING}
    listed = {field: value if isinstance(value, list) else [value] for field, value in values.items()}
    return {field: [name for name in names if isinstance(name, str)] for field, names in listed.items()}


def read_names(run: RunFolder) -> list[str]:
    """What a training will call the adapters or the mixture it makes; empty for others, and while it waits."""
    column = {"train": "adapter", "sequence": "adapter", "moe": "mixture"}.get(run.read_spec().stage)
    target = None if column is None else run.read_input("target")
    return [] if target is None else list(target[column])


def _predict_names(run: RunFolder, status: RunStatus, taken: Collection[str]) -> set[str]:
    """What others will name when they use what a run makes."""
    from metamoe_backend.experts.bank import find_free_name

    if status.stage == "select-data":
        return {status.run_id}
    if status.stage not in _MAKERS:
        return set()
    if names := read_names(run):
        return set(names)
    if status.stage == "sequence":
        return {f"{status.name}-{number}" for number, _ in enumerate(run.read_spec().config["order"], 1)}
    return {find_free_name(status.name, taken)}


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


def _require_named(store: Store, config: StageConfig, unmade: Sequence[str]) -> None:
    """Raise `NotFoundError` for the first of the names that no run is making, in the words of what it names."""
    from metamoe_backend.store.data_selections import require_data_selection
    from metamoe_backend.store.experts import fetch_adapters, fetch_systems

    for field, names in _list_named(config).items():
        for name in (each for each in names if each in unmade):
            if field == "data":
                require_data_selection(store, name)
            elif field in ("system", "systems"):
                fetch_systems(store, [name])
            else:
                fetch_adapters(store, [name])


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
