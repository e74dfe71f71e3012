"""Verbs that make experts and mixtures: import, train, moe."""

import argparse

from metamoe_backend.config import parse_config
from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.launch import read_names, run_now
from metamoe_backend.pipeline import STAGES
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs.common import (
    Result,
    given,
    merge_settings,
    open_store,
    queue,
    rows_of,
    say,
    split_names,
    take_in,
    wait_for,
)


def run_import(options: argparse.Namespace) -> Result:
    values = given(options, "source", "name", "base", "trained_on")
    with open_store(options) as store:
        run_now(store, "import", values, options.by)
        row = store.frame("SELECT * FROM adapter WHERE adapter = ?", [options.name])
    return rows_of(row)[0]


def newest_plan(store: Store) -> str:
    plan = store.value("SELECT plan FROM plan ORDER BY made_at DESC LIMIT 1")
    if plan is None:
        raise NotFoundError("There is no plan yet; save one with `plan NAME --assign SKILL=EXPERT …`.")
    return plan


def run_train(options: argparse.Namespace) -> Result:
    if options.kind == "moe":
        return run_moe(options)
    if options.kind == "sequence":
        values = given(options, "name", "order", "plan", "replay", "base", "device", "limit")
        return _train(options, "sequence", values | {"optim": given(options, "steps", "seed")})
    values = given(options, "name", "plan", "tasks", "data", "base", "device", "limit") | {
        "kind": options.kind,
        "optim": {},
    }
    values["optim"] = given(options, "steps", "seed")
    return _train(options, "train", values)


def run_moe(options: argparse.Namespace) -> Result:
    values = given(options, "name", "plan", "tasks", "data", "base", "device", "limit", "mode", "top_k")
    experts = split_names(options.experts)
    optim = given(options, "steps", "seed")
    return _train(options, "moe", values | {"experts": experts} | ({"optim": optim} if optim else {}))


def _choose_source(store: Store, stage: str, values: Result) -> Result:
    """The newest plan, where the training learns from questions."""
    try:
        parse_config(STAGES[stage].config, values)
    except ConfigError:
        return {"plan": newest_plan(store)}  # what else is wrong is said when the run is made
    return {}


def _train(options: argparse.Namespace, stage: str, values: Result) -> Result:
    with open_store(options) as store:
        values = merge_settings(values, options.set)
        if stage != "sequence" and not any(values.get(source) for source in ("plan", "tasks", "data")):
            values |= _choose_source(store, stage, values)
        run = queue(store, stage, values, options)
    made, name = read_names(run), run.read_spec().name
    if stage != "sequence" and made not in ([], [name]):
        say(f"{name} is taken: what this run makes will be called {made[0]}.")
    if options.wait:
        wait_for(run)
        take_in(options)
    status = run.read_state()
    say(f"Run {run.run_id}: {status.state}.")
    return {"run_id": run.run_id, "state": status.state, "makes": made}
