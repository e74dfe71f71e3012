"""The verb study: one comparison of everything, made, continued, stopped, written down."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from metamoe_backend.errors import BusyError, ConfigError, InputError, MetaMoEError
from metamoe_backend.verbs.common import Result, given, merge_settings, open_store, print_table, rows_of, say
from metamoe_backend.workspace import find_workspace

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store
    from metamoe_backend.study.progress import Look

POLL_S, SLOWEST_POLL_S = 2.0, 10.0
SHARE_OF_LOOKING = 0.05
"""Of the time a wait takes, where polls come fast enough: the runs need the processor more than who waits for them."""


def run_study(options: argparse.Namespace) -> Result:
    from metamoe_backend.study.advance import go_on, look_at, stop
    from metamoe_backend.study.studies import create_study, has_study, read_study

    values = merge_settings(given(options, "base", "device") | {"name": options.name}, options.set)
    values |= {"targets": options.target} if options.target else {}
    with open_store(options) as store:
        if not has_study(store.workspace, options.name):
            if options.stop or options.table:
                read_study(store.workspace, options.name)  # says that there is none
            if not options.target:
                raise ConfigError(f"Study {options.name!r} is new: say for which tasks, with --target TASK.")
            create_study(store, values, options.by)
        elif set(values) - {"name", "device"}:
            say(f"Study {options.name} exists already: it goes on as it was asked for; the new settings are left out.")
        if options.stop:
            look = stop(store, options.name)
        elif options.table or options.show:
            look = look_at(store, read_study(store.workspace, options.name))
        else:
            look = go_on(store, options.name, options.by)
    if (options.wait or options.minutes) and not (options.stop or options.table or options.show):
        look = _wait(options)
    say(describe(look))
    return _report(options)


def _wait(options: argparse.Namespace) -> "Look":
    """Let the study go on until it is done, or until its minutes are over; raises `MetaMoEError` where it cannot."""
    from metamoe_backend.study.advance import advance, stop
    from metamoe_backend.study.studies import read_study

    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    said, stopping, name = "", False, options.name
    while True:
        looked_at = time.monotonic()
        if end is not None and looked_at >= end and not stopping:
            stopping = True
            look = _with_store(options, lambda store: stop(store, name))
        else:
            look = _with_store(options, lambda store: advance(store, read_study(store.workspace, name), options.by))
        if (text := describe(look)) != said:
            said = text
            say(text)
        resting = read_study(find_workspace(options.workspace), name).paused
        if not look.active and (resting or all(status.state != "ready" for status in look.left)):
            break
        time.sleep(min(SLOWEST_POLL_S, max(POLL_S, (time.monotonic() - looked_at) / SHARE_OF_LOOKING)))
    failed = [status for status in look.left if status.state == "failed"]
    if failed:
        why = f"Step {failed[0].step.key} failed: {failed[0].error}"
        raise MetaMoEError(f"{why} The same command lets the study go on.")
    return look


def _with_store(options: argparse.Namespace, act: "Callable[[Store], Look]") -> "Look":
    """Do something with the workspace, which is free for others in between; wait while somebody holds it."""
    said = False
    while True:
        try:
            with open_store(options) as store:
                return act(store)
        except BusyError as error:
            if not said:
                say(f"Waiting: {error}")
                said = True
            time.sleep(POLL_S)


def describe(look: "Look") -> str:
    """How far a study is, in a line."""
    running = [status.step.key for status in look.active if status.state == "running"]
    parts = [f"{look.done} of {len(look.own)} runs finished"]
    if running:
        parts.append(f"running: {', '.join(running)}")
    if stopped := [status.step.key for status in look.left if status.state == "stopped"]:
        parts.append(f"stopped: {', '.join(stopped)}; the same command lets them go on")
    if look.left:
        parts.append(f"about {_minutes(look.left_s)} left" if look.left_s else "time left not known yet")
        if look.untold and look.left_s:
            parts.append(f"without {look.untold} of whose kind none has finished yet")
    return "; ".join(parts) + "."


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"


def _report(options: argparse.Namespace) -> Result:
    from metamoe_backend.study.advance import look_at
    from metamoe_backend.study.document import write_document
    from metamoe_backend.study.results import collect_results
    from metamoe_backend.study.studies import read_study

    with open_store(options) as store:
        study = read_study(store.workspace, options.name)
        look = look_at(store, study)
        results = collect_results(store, study, look)
    tables = {"compared": results.compared, "forgetting": results.forgetting, "ablations": results.ablations}
    if options.table:
        try:
            Path(options.table).write_text(write_document(study, look, results), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{options.table} cannot be written ({error.strerror}); choose another file.") from None
        say(f"Written to {options.table}.")
    if not options.json and not look.left:
        print_table(results.compared.drop(columns=["names"]).round(3))
    return {
        "study": options.name,
        "done": look.done,
        "runs": len(look.own),
        "left_s": round(look.left_s),
        "left_untold": look.untold,
        "paused": study.paused,
        "steps": [
            {"key": status.step.key, "state": status.state, "run_id": status.run_id, "same_as": status.same_as}
            for status in look.statuses
        ],
        "chosen": results.chosen,
        **{name: rows_of(table) for name, table in tables.items()},
    }
