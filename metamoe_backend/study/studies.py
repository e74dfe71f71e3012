"""What a study compares: studies/NAME.json, written once it is asked for.

Like a run's spec.json it is a request, not an act that a table is made of: nothing of it is in the database, so that a
rebuild has nothing to lose. Whatever could change while the study goes on is settled when it is made: above all the
bank, for what the study trains stands in the bank, too. Only `paused` changes later.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from metamoe_backend.config import NAME_PATTERN, StudyConfig, parse_config
from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError, StorageError
from metamoe_backend.jobs.durable import replace_text
from metamoe_backend.jobs.run_folder import utc_now
from metamoe_backend.launch import with_absolute_path
from metamoe_backend.study.recipe import Facts, list_candidates
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store


class Study(BaseModel):
    """One file of studies/."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: StudyConfig
    by: str
    created_at: datetime
    paused: bool = False
    """A person stopped it: nothing is started until somebody lets it go on."""


def list_studies(workspace: Workspace) -> list[Study]:
    """All studies, newest first; raises `StorageError` for a damaged file."""
    names = [path.stem for path in workspace.studies.glob("*.json")] if workspace.studies.is_dir() else []
    found = [read_study(workspace, name) for name in names]
    return sorted(found, key=lambda study: study.created_at, reverse=True)


def has_study(workspace: Workspace, name: str) -> bool:
    """Whether a study of this name was asked for."""
    return re.match(NAME_PATTERN, name) is not None and _path(workspace, name).is_file()


def read_study(workspace: Workspace, name: str) -> Study:
    """One study by name; raises `NotFoundError`, or `StorageError` where its file is damaged."""
    if not has_study(workspace, name):
        there = sorted(path.stem for path in workspace.studies.glob("*.json")) if workspace.studies.is_dir() else []
        known = ", ".join(there) or "none; make one with `study NAME --target TASK`"
        raise NotFoundError(f"Study {name!r} does not exist (there are: {known}).")
    path = _path(workspace, name)
    try:
        return Study.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StorageError(f"{path} is damaged ({where}: {first['msg']}); mend it, or move it away.") from None


def create_study(store: "Store", values: dict[str, Any], by: str) -> Study:
    """Check the settings against the workspace, settle what they leave open, and write the file.

    Raises `ConflictError` where the name is taken, `ConfigError` and `NotFoundError` where the study could not be
    carried out: a target without train or test questions, too few experts, a plan that leaves some out.
    """
    config = parse_config(StudyConfig, with_absolute_path(values, "base"))
    if has_study(store.workspace, config.name):
        raise ConflictError(f"Study {config.name!r} exists already; let it go on, or choose another name.")
    study = Study(config=settle(store, config), by=by, created_at=utc_now())
    store.workspace.studies.mkdir(exist_ok=True)
    _write(store.workspace, study)
    return study


def set_paused(workspace: Workspace, name: str, paused: bool) -> Study:
    """Note that a study is to rest, or to go on."""
    study = read_study(workspace, name)
    if study.paused != paused:
        study = study.model_copy(update={"paused": paused})
        _write(workspace, study)
    return study


def fetch_facts(store: "Store", config: StudyConfig) -> Facts:
    """What the recipe must know; raises `NotFoundError` for an adapter or a task that is gone."""
    from metamoe_backend.store.experts import fetch_adapters
    from metamoe_backend.store.questions import fetch_tasks, require_tasks

    require_tasks(store, [*config.targets, *config.pool_tasks])
    tasks = fetch_tasks(store).set_index("task")
    adapters = fetch_adapters(store, config.bank).set_index("adapter")[["rank", "alpha", "targets", "trained_on"]]
    return Facts(
        train={str(task): int(n) for task, n in tasks["train"].items()},
        test={str(task): int(n) for task, n in tasks["test"].items()},
        adapters={
            str(name): row | {"trained_on": list(row["trained_on"])} for name, row in adapters.to_dict("index").items()
        },
    )


def settle(store: "Store", config: StudyConfig) -> StudyConfig:
    """The settings with all that they leave open filled in and checked (see `create_study`)."""
    from metamoe_backend.store.experts import fetch_adapters, fetch_systems

    adapters, systems = fetch_adapters(store, config.bank or None), fetch_systems(store)
    if not config.bank:
        experts = systems.loc[systems["kind"] == "expert", "system"]
        adapters = adapters[(adapters["base"] == config.base) & adapters["adapter"].isin(experts)]
        made = tuple(f"{study.config.name}." for study in list_studies(store.workspace))
        adapters = adapters[[not name.startswith(made) for name in adapters["adapter"]]]
    elsewhere = adapters[adapters["base"] != config.base]
    if len(elsewhere):
        raise ConfigError(
            f"bank: adapter {elsewhere['adapter'].iloc[0]!r} stands on {elsewhere['base'].iloc[0]!r}, not on "
            f"{config.base!r}; leave it out, or choose its base model."
        )
    known = sorted({task for tasks in adapters["trained_on"] for task in tasks})
    settled = config.model_copy(
        update={
            "bank": config.bank or sorted(adapters["adapter"]),
            "pool_tasks": config.pool_tasks or known,
            "plan": _find_plan(store, config, adapters),
        }
    )
    facts = fetch_facts(store, settled)
    if settled.mixed_limit is None:
        rows = _count_bank_rows(adapters, systems, facts)
        settled = settled.model_copy(update={"mixed_limit": None if rows is None else rows * config.experts})
    _check(settled, facts)
    return settled


def _check(config: StudyConfig, facts: Facts) -> None:
    for task in config.targets:
        if facts.train[task] < config.k or facts.test[task] == 0:
            raise ConfigError(
                f"targets: task {task!r} has {facts.train[task]} train and {facts.test[task]} test questions; a study "
                f"needs at least k = {config.k} to train on and some to test on: lower k, or ingest more with --split."
            )
        if (there := len(list_candidates(config, facts, task))) < config.experts:
            raise ConfigError(
                f"experts is {config.experts}, but {there} adapters of the bank may be chosen for {task!r}; lower it, "
                "or train or import more on this base model."
            )
    if not config.pool_tasks or not any(facts.train[task] for task in config.pool_tasks):
        raise ConfigError("pool_tasks: nothing to select data from; name tasks with train questions.")


def _find_plan(store: "Store", config: StudyConfig, adapters: pd.DataFrame) -> str | None:
    """The plan that the two-level router learns from; None where none covers every adapter of the bank."""
    from metamoe_backend.store.experts import fetch_plan_entries, fetch_plans

    for plan in [config.plan] if config.plan else fetch_plans(store)["plan"]:
        entries = fetch_plan_entries(store, plan)
        entries = entries[entries["train"] > 0]
        skills, experts = set(entries["skill"]), set(entries["expert"])
        left_out = [
            row.adapter for row in adapters.itertuples() if row.adapter not in experts and not skills & set(row.skills)
        ]
        if not left_out:
            return str(plan)
        if config.plan:
            raise ConfigError(
                f"plan: {config.plan!r} has no train questions for adapter {left_out[0]!r}; name a plan over the whole "
                "bank, or a smaller bank."
            )
    return None


def _count_bank_rows(adapters: pd.DataFrame, systems: pd.DataFrame, facts: Facts) -> int | None:
    """Questions that an expert of the bank was trained on, on average over those of which it is known."""
    import json

    settings = {str(row.system): json.loads(str(row.settings)) for row in systems.itertuples()}
    counts = []
    for row in adapters.itertuples():
        there = sum(facts.train.get(task, 0) for task in row.trained_on)
        if there:
            counts.append(min(settings[str(row.adapter)].get("limit") or there, there))
    return round(sum(counts) / len(counts)) if counts else None


def _path(workspace: Workspace, name: str) -> Path:
    return workspace.studies / f"{name}.json"


def _write(workspace: Workspace, study: Study) -> None:
    replace_text(_path(workspace, study.config.name), study.model_dump_json(indent=1))
