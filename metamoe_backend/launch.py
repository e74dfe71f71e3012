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
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.jobs.supervisor import submit
from metamoe_backend.pipeline import STAGES
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run

OnProgress = Callable[[int, int], None]


def run_now(
    store: Store, stage: str, values: dict[str, Any], by: str, on_progress: OnProgress | None = None
) -> RunFolder:
    """Run a stage in this process and take in its results.

    A mistake of the person (`UserError`) leaves no run and no row behind.
    """
    run = _create(store, stage, values, by)
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
    """
    if profile is not None:
        read_profile(store.workspace, profile)  # before anything is prepared
    run = _create(store, stage, with_absolute_path(values, "source"), by)
    submit(store.workspace, run, profile)
    return run


def _create(store: Store, stage: str, values: dict[str, Any], by: str) -> RunFolder:
    if stage not in STAGES:
        raise NotFoundError(f"There is no stage {stage!r} (there are: {', '.join(STAGES)}).")
    values = with_absolute_path(with_absolute_path(values, "base"), "pool")
    config: StageConfig = parse_config(STAGES[stage].config, values)
    inputs = STAGES[stage].prepare(store, config)
    return create_run(store.workspace, stage, run_name(stage, config), config.model_dump(mode="json"), by, inputs)


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
