"""The verb jobs: what runs and how it is going, and stop, cancel, resume, retry, move. Needs no database, so it works
beside an open dashboard."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from metamoe_backend.errors import ConfigError, MetaMoEError, NotFoundError
from metamoe_backend.jobs.command_line import command_line
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, match_runs
from metamoe_backend.jobs.supervisor import cancel, move_in_queue, poll, request_stop, resume, retry
from metamoe_backend.launch import launch
from metamoe_backend.pipeline import STAGES
from metamoe_backend.verbs.common import Result, describe_wait, open_store, print_table, require_workspace, say
from metamoe_backend.workspace import Workspace

_NAMES = {"task": "task", "map": "map_id", "labelling": "labelling", "adapter": "adapter", "system": "system"}
"""Tables whose rows are known by a name, and the column it stands in."""
_SAID = {
    "stop": "asked to save and stop",
    "cancel": "cancelled",
    "resume": "queued again; it goes on where it stopped",
    "move": "moved",
}


def run_jobs(options: argparse.Namespace) -> Result:
    workspace = require_workspace(options)
    if options.before is not None and options.act != "move":
        raise ConfigError(f"jobs {options.act}: --before belongs to `jobs move`.")
    if options.act == "list":
        return _list(options, workspace)
    runs = [run for part in options.run for run in match_runs(workspace, part)]
    if not runs or (len(options.run) > 1 and options.act in ("show", "move")):
        raise ConfigError(f"jobs {options.act}: name one run; `jobs` lists them, and a part of its id is enough.")
    if options.act == "show":
        shown = [_show(options, run) for run in runs]
        return shown[0] if len(shown) == 1 else {"runs": shown}
    return _act(options, workspace, list(dict.fromkeys(runs)))


def _list(options: argparse.Namespace, workspace: Workspace) -> Result:
    if options.run:
        raise ConfigError(f"jobs list: it lists all runs; say `jobs show {options.run[0]}` for one.")
    if options.limit < 1:
        raise ConfigError("jobs: --limit must be above 0; leave it out for 20.")
    there = poll(workspace)
    statuses = [status for status in there if options.state in (None, status.state)]
    listed = statuses[: options.limit]
    if not options.json:
        by_id = {status.run_id: status for status in there}
        print_table(pd.DataFrame([_describe(status, by_id) for status in listed]))
        if len(listed) < len(statuses):
            say(f"{len(listed)} of {len(statuses)} runs; --limit shows more.")
    return {"runs": [_write_out(status) for status in listed], "n": len(statuses)}


def _describe(status: RunStatus, by_id: Mapping[str, RunStatus]) -> dict[str, str]:
    """A row for a person. `by_id`: all runs."""
    on_slurm = " · ".join(word for word in (status.profile, status.job) if word)
    state = f"{status.state} (not responding)" if not status.responding else status.state
    if status.stopping:
        state = {"stop": "stopping", "cancel": "cancelling"}[status.stopping]
    if status.state == "queued" and not status.prepared:
        state = describe_wait(status, by_id)
    return {
        "run": status.run_id,
        "state": state,
        "stage": status.stage or "?",
        "name": f"{status.name}, shard {status.shard.index} of {status.shard.of}" if status.shard else status.name,
        "where": on_slurm or status.device or "-",
        "progress": f"{status.done}/{status.total}" if status.total else "-",
        "left": _duration(status.eta_s) if status.state == "running" else "-",
        "by": status.by or "?",
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _write_out(status: RunStatus) -> Result:
    """A status as JSON takes it; times are UTC."""
    names = ("run_id", "stage", "name", "by", "state", "stopping", "responding", "device", "profile", "job", "place")
    numbers = {"done": status.done, "total": status.total, "eta_s": status.eta_s, "metrics": _finite(status.metrics)}
    times = {name: getattr(status, name) for name in ("created_at", "started_at", "ended_at")}
    return {
        **{name: getattr(status, name) for name in names},
        **numbers,
        **{name: None if at is None else at.isoformat() for name, at in times.items()},
        "error": status.error,
        "after": list(status.after),
        "prepared": status.prepared,
        "shard": None if status.shard is None else status.shard.model_dump(),
    }


def _finite(metrics: Any) -> dict[str, float | None]:
    return {name: value if abs(value) < float("inf") else None for name, value in metrics.items()}  # NaN: None, too


# ---- one run ----------------------------------------------------------------------------------------------------


def _show(options: argparse.Namespace, run: RunFolder) -> Result:
    by_id = {status.run_id: status for status in poll(run.workspace)}
    status = by_id[run.run_id]
    found: Result = {
        **_write_out(status),
        "settings": run.read_spec().config,
        "command": _find_command(run),
        "made": _find_made(run),
        "log": run.read_log(options.lines).splitlines() if options.lines else [],
    }
    if not options.json:
        _print_run(_describe(status, by_id), found)
    return found


def _find_command(run: RunFolder) -> str | None:
    """The command line that asks for the same; None where this MetaMoE does not know such settings."""
    try:
        return command_line(run) if run.read_spec().stage in STAGES else None
    except MetaMoEError:
        return None


def _find_made(run: RunFolder) -> Result:
    """Rows that a run handed over, by table, and the names of what it made."""
    manifest = run.read_manifest()
    rows: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for part in manifest["parts"] if manifest else []:
        table = part["target"]
        rows[table] = rows.get(table, 0) + int(part["rows"])
        if table in _NAMES:
            column = _NAMES[table]
            found = pd.read_parquet(run.output / part["part"], columns=[column])[column].tolist()
            names[table] = [*names.get(table, []), *found]
    return {"rows": rows, "names": names}


def _print_run(row: dict[str, str], found: Result) -> None:
    lines = [f"{name:<9} {value}" for name, value in row.items()]
    words = {"created_at": "asked for", "started_at": "began", "ended_at": "ended"}
    times = [f"{word} {found[key][:19]}" for key, word in words.items() if found[key]]
    lines.append(f"{'time':<9} {', '.join(times)} (UTC)")
    if found["error"]:
        lines.append(f"{'error':<9} {found['error']}")
    made = [f"{rows} rows of {table}" for table, rows in found["made"]["rows"].items()]
    made += [f"{table} {name}" for table, names in found["made"]["names"].items() for name in names]
    lines.append(f"{'made':<9} {', '.join(made) or 'nothing yet'}")
    lines += [f"{'metric':<9} {name} {value}" for name, value in found["metrics"].items()]
    lines += ["settings", *(f"  {name} = {value}" for name, value in found["settings"].items())]
    if found["command"]:
        lines += ["command", f"  {found['command']}"]
    if found["log"]:
        lines += ["log", *(f"  {line}" for line in found["log"])]
    print("\n".join(lines))


# ---- acting -----------------------------------------------------------------------------------------------------


def _act(options: argparse.Namespace, workspace: Workspace, runs: Sequence[RunFolder]) -> Result:
    """Do it to each run. One that cannot be helped (it has ended meanwhile …) does not keep the others from it."""
    done, refusals = [], []
    before = None if options.before is None else _match_one(workspace, options.before)
    for run in runs:
        try:
            changed = _act_on_one(options, run, before)
        except MetaMoEError as error:
            if len(runs) == 1:
                raise
            refusals.append(str(error))
            continue
        say(f"Run {run.run_id}: {_SAID.get(options.act, f'queued once more as {changed.run_id}')}.")
        done.append(changed)
    for refusal in refusals:
        print(f"metamoe: {refusal}", file=sys.stderr)
    if not done:
        raise ConfigError(f"jobs {options.act}: nothing was done; the reasons stand above.")
    return {"runs": [_write_out(run.read_state()) for run in done], "refused": refusals}


def _match_one(workspace: Workspace, part: str) -> RunFolder:
    runs = match_runs(workspace, part)
    if len(runs) > 1:
        raise ConfigError(f"{part!r} means {len(runs)} runs; name one of them.")
    return runs[0]


def _act_on_one(options: argparse.Namespace, run: RunFolder, before: RunFolder | None) -> RunFolder:
    """Returns the run that is queued, or that was told something."""
    match options.act:
        case "stop":
            request_stop(run)
        case "cancel":
            cancel(run)
        case "resume":
            resume(run)
        case "move":
            move_in_queue(run, before)
        case "retry":
            return _retry(options, run)
    return run


def _retry(options: argparse.Namespace, run: RunFolder) -> RunFolder:
    """From the same rows; a run that came without them (a recorded demo) reads the workspace as it is now."""
    spec = run.read_spec()
    if spec.stage not in STAGES:
        raise NotFoundError(f"There is no stage {spec.stage!r} (there are: {', '.join(STAGES)}).")
    if run.read_state().state in ("queued", "running"):
        raise ConfigError(f"Run {run.run_id} has not ended; stop or cancel it before it is run again.")
    if run.is_repeatable:
        return retry(run)
    with open_store(options) as store:
        return launch(store, spec.stage, spec.config, options.by)
