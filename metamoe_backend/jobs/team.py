"""The other processes of a training: `python -m metamoe_backend.jobs.team RUN_DIR RANK PROCESSES MEETING DEVICE`.

The worker is the first process. Each other one computes the same stage from the same inputs, silently, takes its share
of the training (`train.team`), and ends with it. One that dies ends the run; the worker ends those that are left.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from metamoe_backend.errors import StopRequested, UnavailableError, UserError
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.jobs.supervisor import make_environment
from metamoe_backend.pipeline import STAGES
from metamoe_backend.stage import Stage

if TYPE_CHECKING:
    import pandas as pd

COMMAND = (sys.executable, "-P", "-m", "metamoe_backend.jobs.team")
JOIN_S = 300.0
"""By then all processes must have been started."""
WORK = timedelta(days=1)
"""How long one may wait for another within a step: the first one evaluates and saves meanwhile."""
NOTICE_S = 10.0
"""A process whose connections are gone has ended by then."""


class SilentContext:
    """`stage.Context` of a process that only helps: the first one speaks for all."""

    def __init__(self, run: RunFolder) -> None:
        spec = run.read_spec()
        self.run_id, self.by, self.created_at = spec.run_id, spec.by, spec.created_at
        self.workspace_root: Path = run.workspace.root
        self.scratch: Path = run.checkpoints

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Nothing."""

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Nothing."""

    def log(self, message: str) -> None:
        """Nothing."""


@contextmanager
def open_team(
    run: RunFolder, processes: int, device: str | None, command: Sequence[str] = COMMAND
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Be the first of `processes` that work on `run`; yields the others, which have ended afterwards.

    `device` is what the queue gave: cpu, or as many GPUs, separated by commas, as there are processes. Raises
    `UnavailableError` when another process ended before its time.
    """
    if processes == 1:
        yield []
        return
    from torch import distributed

    kind = (device or "cpu").partition(":")[0]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if kind == "cuda" else [""] * processes
    cores = len(os.sched_getaffinity(0)) // processes if kind == "cpu" else None
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[0]
    _limit_threads(cores)
    threads = f"the CPU with {max(1, cores or 1)} threads"
    places = [f"{rank} on {f'GPU {gpu}' if gpu else threads}" for rank, gpu in enumerate(seen)]
    run.append_log(f"{processes} processes train together, joined by gloo: {'; '.join(places)}.")
    with TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        others = [
            subprocess.Popen(
                [*command, str(run.path), str(rank), str(processes), meeting, kind],
                env=make_environment() | {"CUDA_VISIBLE_DEVICES": seen[rank]},
                stdin=subprocess.DEVNULL,
            )
            for rank in range(1, processes)
        ]
        try:
            _join(meeting, 0, processes)
            yield others
        except RuntimeError:  # gloo's word for a process that is gone
            ended = [(rank, code) for rank, code in enumerate(map(_wait, others), 2) if code]
            if not ended:
                raise
            rank, code = ended[0]
            raise UnavailableError(
                f"Process {rank} of {processes} ended before its time (exit status {code}); read the log, then resume "
                "the run: it goes on from its last checkpoint."
            ) from None
        finally:
            for process in others:
                process.kill()
                process.wait()
            if distributed.is_initialized():
                distributed.destroy_process_group()


def _wait(process: "subprocess.Popen[bytes]") -> int | None:
    """Exit status of a process that is about to end, None for one that works on."""
    try:
        return process.wait(NOTICE_S)
    except subprocess.TimeoutExpired:
        return None


def _join(meeting: str, rank: int, processes: int) -> None:
    from torch import distributed

    store = distributed.FileStore(meeting, processes)
    store.set_timeout(timedelta(seconds=JOIN_S))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=WORK)


def _limit_threads(cores: int | None) -> None:
    import torch

    if cores is not None:
        torch.set_num_threads(max(1, cores))


def help_with(run: RunFolder, rank: int, processes: int, meeting: str, kind: str, stages: Mapping[str, Stage]) -> int:
    """Be one of the other processes until the training ends; returns the exit status."""
    for kindly in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kindly, signal.SIG_IGN)  # the first process is asked to stop, and says when
    stage = stages[run.read_spec().stage]
    config: Any = run.parse_config(stage.config)
    _limit_threads(len(os.sched_getaffinity(0)) // processes if kind == "cpu" else None)
    _join(meeting, rank, processes)
    try:
        stage.compute(run.read_inputs(), config.model_copy(update={"device": kind}), SilentContext(run))
    except StopRequested:
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str], stages: Mapping[str, Stage] = STAGES) -> int:
    """Help with the run the arguments name."""
    folder, rank, processes, meeting, kind = arguments
    return help_with(RunFolder(Path(folder)), int(rank), int(processes), meeting, kind, stages)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
