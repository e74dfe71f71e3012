"""The one entry point of a job, whoever starts it: `python -m metamoe_backend.jobs.worker RUN_DIR [--device DEVICE]`.

Loads what was asked for, computes, hands over. SIGTERM means stop and save; so does SIGUSR2, by which Slurm says that
the time is nearly up. Exit status: 0 ended as asked (finished, stopped, cancelled), 2 a person's mistake, 1 a bug,
3 not started because the run is not this worker's to start, 4 no room on the disk for writing down the end.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from metamoe_backend.errors import (
    ConflictError,
    DiskFullError,
    NotFoundError,
    StopRequested,
    StorageError,
    TeamBrokenError,
    UnavailableError,
    UserError,
)
from metamoe_backend.jobs import slurm
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.durable import room_needed
from metamoe_backend.jobs.records import NO_ROOM, NOT_MINE
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.jobs.team import work_together
from metamoe_backend.memory import is_out_of_memory, list_remedies, make_memory_error
from metamoe_backend.pipeline import STAGES
from metamoe_backend.stage import Context, Stage


def run(
    run_dir: Path,
    stages: Mapping[str, Stage] = STAGES,
    device: str | None = None,
    requeues: int | None = None,
    nodes: int = 1,
) -> int:
    """Work on one run until its end and return the exit status.

    `device` is the slot this process was given: cpu, or cuda:N with that GPU as the only one it can see (or several
    of them, separated by commas). With `requeues` this is a job of Slurm, on so many `nodes`: asked by it to end, the
    run saves and has its job queued again, at most so often.
    """
    folder = RunFolder(run_dir.resolve())
    context = RunContext(folder)
    try:
        context.start(device)
    except ConflictError as error:
        print(error, file=sys.stderr)
        return NOT_MINE
    except (StorageError, DiskFullError) as error:
        return _fail(context, error, 2)
    _stop_on_signals(context)
    may_go_on = requeues is not None and slurm.count_restarts() < requeues
    try:
        _work(folder, stages, device, nodes, context)
        if may_go_on and context.interrupted:
            _go_on_later(context)
        else:
            context.finish()
    except TeamBrokenError as error:
        if not (may_go_on and context.terminated.is_set()):
            return _fail(context, error, 2)
        _go_on_later(context)
    except UserError as error:
        return _fail(context, error, 2)
    except BaseException as error:  # noqa: BLE001 - the last line of defence: kept in the run's state and log
        return _fail(context, error, 1)
    return 0


def _fail(context: RunContext, error: BaseException, status: int) -> int:
    try:
        context.fail(error)
    except DiskFullError:
        return NO_ROOM  # whoever started this process writes it down when there is room
    return status


def _work(folder: RunFolder, stages: Mapping[str, Stage], device: str | None, nodes: int, context: RunContext) -> None:
    spec = folder.read_spec()
    context.log(f"{spec.stage} {spec.name}: started by {spec.by} on {device or 'this machine'}")
    try:
        with room_needed(folder.path):
            if spec.processes > 1:
                work_together(folder, spec.processes, nodes, device, context)
            else:
                compute(folder, stages, device, context)
    except StopRequested as stop:
        context.stop_asked = stop


def compute(folder: RunFolder, stages: Mapping[str, Stage], device: str | None, context: Context) -> None:
    """Compute the stage of a run in this process; raises what that raises, and what its settings lack."""
    spec = folder.read_spec()
    if spec.stage not in stages:
        raise NotFoundError(f"There is no stage {spec.stage!r} (there are: {', '.join(stages)}).")
    stage = stages[spec.stage]
    config: Any = folder.parse_config(stage.config)
    if device is not None and hasattr(config, "device"):
        config = config.model_copy(update={"device": device.partition(":")[0]})
    try:
        stage.compute(folder.read_inputs(), config, context)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise make_memory_error(device or "this machine", "", list_remedies(config)) from None


def _go_on_later(context: RunContext) -> None:
    if context.interrupted:
        context.log("Slurm asks for room: what is done is saved.")
        context.hand_back()
    else:
        context.log("Slurm has ended the processes on all nodes: the run goes on from its last checkpoint.")
        context.start_over()
    try:
        slurm.requeue()
    except UnavailableError as error:
        context.log(str(error))  # whoever asks about the job sees that it is over, and says so


def _stop_on_signals(context: RunContext) -> None:
    owner = os.getpid()

    def stop(signal_number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            context.terminated.set()
        else:  # a forked child (a data loader) has this handler, too, and must still die of the signal
            signal.signal(signal_number, signal.SIG_DFL)
            os.kill(os.getpid(), signal_number)

    for kindly in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(kindly, stop)


def main(arguments: Sequence[str], stages: Mapping[str, Stage] = STAGES) -> int:
    """Send all output to the run's log and work on the run the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m metamoe_backend.jobs.worker", description="Work on one run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--requeues", type=int)
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args(arguments)
    with RunFolder(options.run_dir).log_file.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return run(options.run_dir, stages, options.device, options.requeues, options.nodes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
