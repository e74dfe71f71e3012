"""Reading the rows of runs that waited for others: `python -m metamoe_backend.late_rows WORKSPACE`.

DuckDB lets one process hold the database, so whoever holds it reads them: this program, which the queue's supervisor
starts, or the open dashboard, which the program leaves a note for. Other holders (a command) end by themselves, and the
supervisor asks again.
"""

import argparse
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from metamoe_backend.config import parse_config
from metamoe_backend.errors import BusyError, DiskFullError, NotFoundError, UserError
from metamoe_backend.jobs.durable import room_needed
from metamoe_backend.jobs.run_folder import RunFolder, find_run, list_runs
from metamoe_backend.jobs.supervisor import give_up_waiting, release
from metamoe_backend.jobs.waiting import find_waits
from metamoe_backend.pipeline import STAGES
from metamoe_backend.stage import Stage
from metamoe_backend.store.connection import THE_QUEUE, Store
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.workspace import Workspace

log = logging.getLogger(__name__)
LOOK_S = 2.0
"""Seconds between two looks of the dashboard for a note."""


def prepare_waiting(store: Store, stages: Mapping[str, Stage] = STAGES) -> list[RunFolder]:
    """Read the rows of every run whose others have finished, and let it start; returns these runs.

    One whose rows cannot be read (a plan is gone …) reads as failed, with the reason. A full disk fails none: they wait
    on, and the supervisor asks again.
    """
    try:
        with room_needed(store.workspace.runs):
            return _prepare_all(store, stages)
    except DiskFullError as error:
        log.warning("The rows of waiting runs are read later: %s", error)
        return []


def _prepare_all(store: Store, stages: Mapping[str, Stage]) -> list[RunFolder]:
    _note(store.workspace).unlink(missing_ok=True)
    statuses = [run.read_state() for run in list_runs(store.workspace)]
    ready = [find_run(store.workspace, run_id) for run_id, wait in find_waits(statuses).items() if wait == "rows"]
    if ready:
        ingest_finished_runs(store)
    for run in ready:
        try:
            with room_needed(run.path):
                _prepare(store, run, stages)
        except DiskFullError:
            raise
        except UserError as error:
            give_up_waiting(run, str(error))
        except Exception as error:  # noqa: BLE001 - kept in the run's state and log; other runs go on
            run.append_log(traceback.format_exc())
            give_up_waiting(run, f"{type(error).__name__}: {error}")
    return ready


def _prepare(store: Store, run: RunFolder, stages: Mapping[str, Stage]) -> None:
    spec = run.read_spec()
    if spec.stage not in stages:
        raise NotFoundError(f"There is no stage {spec.stage!r} (there are: {', '.join(stages)}).")
    stage = stages[spec.stage]
    release(run, stage.prepare(store, parse_config(stage.config, spec.config)))


def watch_for_notes(store: Store, stages: Mapping[str, Stage] = STAGES) -> threading.Thread:
    """Let a thread of this process read such rows whenever the supervisor wants them, until the store is closed."""

    def watch() -> None:
        while not store.closed:
            try:
                if _note(store.workspace).exists():
                    prepare_waiting(store, stages)
            except Exception:
                # Such as another run's damaged part, which the pages tell; the supervisor asks again.
                log.exception("The rows of waiting runs could not be read")
            time.sleep(LOOK_S)

    thread = threading.Thread(target=watch, name="rows of waiting runs", daemon=True)
    thread.start()
    return thread


def _note(workspace: Workspace) -> Path:
    """There while the supervisor wants rows that this holder of the database is to read."""
    return workspace.runs / ".rows-wanted"


def _read_or_ask(workspace: Workspace, stages: Mapping[str, Stage]) -> None:
    try:
        with Store.open(workspace, THE_QUEUE) as store:
            prepare_waiting(store, stages)
    except BusyError as error:
        if not _note(workspace).exists():  # else it was said before: the supervisor asks every few seconds
            print(error, flush=True)
        _note(workspace).touch()


def main(arguments: Sequence[str], stages: Mapping[str, Stage] = STAGES) -> int:
    """Read what waits, or leave a note for whoever holds the database."""
    parser = argparse.ArgumentParser(
        prog="python -m metamoe_backend.late_rows", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("workspace", type=Path)
    workspace = Workspace(parser.parse_args(arguments).workspace)
    try:
        with room_needed(workspace.runs):
            _read_or_ask(workspace, stages)
    except DiskFullError as error:
        print(error, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
