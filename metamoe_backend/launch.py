"""Starting a stage: here and now, or as a job of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from metamoe_backend.config import DEFAULT_BASE, StageConfig, parse_config
from metamoe_backend.errors import NotFoundError, UserError
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.profile import read_profile
from metamoe_backend.jobs.run_folder import RunFolder, create_run, create_shards, list_runs
from metamoe_backend.jobs.supervisor import submit, submit_shards
from metamoe_backend.pipeline import STAGES
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.workspace import Workspace

OnProgress = Callable[[int, int], None]


def run_now(
    store: Store, stage: str, values: dict[str, Any], by: str, on_progress: OnProgress | None = None
) -> RunFolder:
    """Run a stage in this process and take in its results.

    A mistake of the person (`UserError`) leaves no run and no row behind.
    """
    (run,) = _create(store, stage, values, by, cut=False)
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


def launch(store: Store, stage: str, values: dict[str, Any], by: str, profile: str | None = None) -> RunFolder:
    """Hand a stage to the local queue, or with a profile to Slurm, and return at once.

    The run goes on when this process ends. What Slurm does not take leaves no run behind (see `jobs.slurm.submit`).
    With `shards` in the settings these are several runs, as many as the work can be cut into; returns the first of
    them (see `run_folder.list_shards`).
    """
    if profile is not None:
        read_profile(store.workspace, profile)  # before anything is prepared
    runs = _create(store, stage, with_absolute_path(values, "source"), by, cut=True)
    if len(runs) == 1:
        submit(store.workspace, runs[0], profile)
    else:
        submit_shards(store.workspace, runs, profile)
    return runs[0]


def _create(store: Store, stage: str, values: dict[str, Any], by: str, cut: bool) -> list[RunFolder]:
    if stage not in STAGES:
        raise NotFoundError(f"There is no stage {stage!r} (there are: {', '.join(STAGES)}).")
    values = with_absolute_path(with_absolute_path(values, "base"), "pool")
    config: StageConfig = parse_config(STAGES[stage].config, values)
    try:
        inputs = STAGES[stage].prepare(store, config)
    except NotFoundError as error:
        raise NotFoundError(f"{error}{_name_what_is_made(store.workspace, stage)}") from None
    cut_inputs, shards = STAGES[stage].cut, getattr(config, "shards", 1)
    parts = cut_inputs(inputs, config, shards) if cut and cut_inputs is not None and shards > 1 else [inputs]
    name, settings = run_name(stage, config), config.model_dump(mode="json")
    if len(parts) == 1:
        return [create_run(store.workspace, stage, name, settings, by, parts[0])]
    return create_shards(store.workspace, stage, name, settings, by, parts)


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
