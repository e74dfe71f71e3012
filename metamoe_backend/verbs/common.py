"""What several verbs need: opening the workspace, reading settings, printing, waiting for a run."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from metamoe_backend.errors import BusyError, ConfigError, InputError, MetaMoEError, NotFoundError
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, list_shards, match_runs
from metamoe_backend.jobs.supervisor import poll
from metamoe_backend.jobs.waiting import find_obstacle
from metamoe_backend.launch import launch
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace, find_workspace

Result = dict[str, Any]


def say(text: str) -> None:
    """A line for a person, on standard error."""
    print(text, file=sys.stderr)


def open_store(options: argparse.Namespace) -> Store:
    """The workspace of `--workspace`, held by this command."""
    return Store.open(find_workspace(options.workspace), f"the command `{options.verb}`")


def require_workspace(options: argparse.Namespace) -> Workspace:
    """The workspace of `--workspace`, held by nobody; raises `NotFoundError` where there is none."""
    workspace = find_workspace(options.workspace)
    if not (workspace.database.exists() or workspace.events.is_dir()):
        raise NotFoundError(f"There is no workspace in {workspace.root}; name its folder with --workspace.")
    return workspace


def given(options: argparse.Namespace, *names: str) -> Result:
    """The options a person did give; the rest keep their defaults in config.py."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value not in (None, [])}


def parse_pairs(pairs: Sequence[str], what: str) -> Result:
    """KEY=VALUE texts as a dict; values are JSON where they parse as JSON (numbers, lists, true), else text."""
    found: Result = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{what} {pair!r}: write KEY=VALUE.")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def merge_settings(values: Result, settings: Sequence[str]) -> Result:
    """`values` with the dotted KEY=VALUE settings put in (optim.learning_rate=1e-3)."""
    merged = json.loads(json.dumps(values))
    for key, value in parse_pairs(settings, "--set").items():
        place = merged
        *path, last = key.split(".")
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return merged


def show_progress(done: int, total: int) -> None:
    """Where a person looks on: how far it is, in one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def write_csv(path: str, frame: pd.DataFrame) -> None:
    """Write a table; raises `InputError` when the file cannot be written."""
    try:
        frame.to_csv(path, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another file.") from None


def print_table(frame: pd.DataFrame) -> None:
    """A table for a person, on standard output."""
    print(frame.to_string(index=False) if len(frame) else "(no rows)")


def rows_of(frame: pd.DataFrame) -> list[Result]:
    """Rows as JSON-ready dicts: NaN and NaT become null."""
    return json.loads(frame.to_json(orient="records", date_format="iso", default_handler=str))


def count_emitted(run: RunFolder, table: str) -> int:
    """Rows of a table that a run and its other shards handed over."""
    manifests = [manifest for each in list_shards(run) if (manifest := each.read_manifest())]
    parts = [part for manifest in manifests for part in manifest["parts"]]
    return sum(int(part["rows"]) for part in parts if part["target"] == table)


def count_reused(run: RunFolder) -> int:
    """Rows that a run and its other shards found made already."""
    return int(sum(each.read_state().metrics.get("reused", 0) for each in list_shards(run)))


def wait_for(run: RunFolder) -> None:
    """Wait until a run and its other shards have ended, showing how far they are, or what the run waits for.

    Raises `MetaMoEError` with the reason when one failed. The workspace is not held meanwhile: the workers do not need
    the database, and a person may want it.
    """
    runs, shown = list_shards(run), ""
    while True:
        statuses = [each.read_state() for each in runs]
        active = [status for status in statuses if status.state in ("queued", "running")]
        if not active:
            break
        there: list[RunStatus] = []
        if any(status.state == "queued" or status.job is not None for status in active):
            there = poll(run.workspace)  # starts a supervisor where the last one was killed; asks Slurm
        if statuses[0].prepared:
            news = f"{sum(status.done for status in statuses)}/{sum(status.total for status in statuses)}"
        else:
            news = describe_wait(statuses[0], {status.run_id: status for status in there})
        if news not in (shown, "0/0"):
            shown = news
            left_s = [status.eta_s for status in active if status.eta_s is not None]
            eta = f", {max(left_s):.0f} s left" if left_s and len(left_s) == len(active) else ""
            shards = f", {len(active)} of {len(runs)} shards not done" if len(runs) > 1 else ""
            say(f"{run.read_spec().stage} {run.read_spec().name}: {news}{eta}{shards}")
        time.sleep(1.0)
    failed = [status for status in statuses if status.state == "failed"]
    if failed:
        others = f" {len(failed)} of {len(runs)} shards failed; `jobs resume RUN` lets one go on." if runs[1:] else ""
        raise MetaMoEError(f"Run {failed[0].run_id} failed: {failed[0].error}{others}")


def describe_wait(status: RunStatus, by_id: Mapping[str, RunStatus]) -> str:
    """What a run that waits for others waits for, in a few words. `by_id`: all runs."""
    obstacle = find_obstacle(status, by_id)
    if obstacle is None:
        return "waits for its rows"
    run_id, other = obstacle
    return f"waits for {run_id} (gone)" if other is None else f"waits for {other.stage} {other.name} ({other.state})"


def queue(store: Store, stage: str, values: Result, options: argparse.Namespace) -> RunFolder:
    """Launch a stage as --by, --on and --after say."""
    after = [run.run_id for part in options.after for run in match_runs(store.workspace, part)]
    return launch(store, stage, values, options.by, options.on, after)


def take_in(options: argparse.Namespace) -> None:
    """Opening the workspace takes in what ended meanwhile; whoever holds it by now does the same."""
    try:
        open_store(options).close()
    except BusyError as error:
        say(f"The results are taken in by the holder of the workspace. {error}")


def split_names(text: str) -> list[str]:
    """`A,B,…` as a list; empty names are left out."""
    return [name.strip() for name in text.split(",") if name.strip()]


def show_tables(options: argparse.Namespace, tables: dict[str, pd.DataFrame]) -> Result:
    """The tables as JSON-ready rows; without --json a person reads them, too."""
    if not options.json:
        for name, frame in tables.items():
            print(f"\n{name}")
            print_table(frame)
    return {name: rows_of(frame) for name, frame in tables.items()}
