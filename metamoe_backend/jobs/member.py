"""One of the processes that train together: `python -m metamoe_backend.jobs.member RUN_DIR KIND ADDRESS`.

`accelerate launch` starts it, `jobs.team` says what for. The first one speaks to the worker and writes to the run; the
others compute the same stage from the same inputs, silently, and take their share of the training.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING

from metamoe_backend.errors import MetaMoEError, StopRequested, UserError
from metamoe_backend.jobs.durable import room_needed
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.jobs.team import End, Report
from metamoe_backend.jobs.worker import compute
from metamoe_backend.pipeline import STAGES
from metamoe_backend.stage import Stage

if TYPE_CHECKING:
    import pandas as pd
    from torch.distributed import Store

JOIN_S = 300.0
"""By then all processes must have been started."""
WORK = timedelta(days=1)
"""How long one may wait for another within a step: the first one evaluates and saves meanwhile."""
_ENDED = "metamoe/ended"
"""Key of the store in which the first process says that it has ended: what the others meet then is no failure."""


class SilentContext:
    """`stage.Context` of a process that only helps: the first one speaks for all."""

    def __init__(self, run: RunFolder) -> None:
        spec = run.read_spec()
        self.run = run
        self.run_id, self.by, self.created_at = spec.run_id, spec.by, spec.created_at
        self.workspace_root: Path = run.workspace.root
        self.scratch: Path = run.checkpoints

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Nothing."""

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Nothing."""

    def log(self, message: str) -> None:
        """Nothing."""


class SpeakingContext(SilentContext):
    """That of the first process: rows and lines go to the run, progress to the worker, who knows when to stop."""

    def __init__(self, run: RunFolder, worker: Connection) -> None:
        super().__init__(run)
        self.worker = worker

    def progress(self, done: int, total: int, **metrics: float) -> None:
        """Raise what the worker answers."""
        self.worker.send(Report(int(done), int(total), {name: float(value) for name, value in metrics.items()}))
        answer = self.worker.recv()
        if answer is not None:
            raise answer

    def emit(self, table: str, frame: "pd.DataFrame") -> None:
        """Write rows of `table`; raises `ValueError` naming a column that does not fit."""
        self.run.emit(table, frame)

    def log(self, message: str) -> None:
        """One line for the run's log."""
        self.run.append_log(message)


def lead(run: RunFolder, kind: str, address: str, stages: Mapping[str, Stage]) -> int:
    """Be the first process; returns the exit status."""
    life, worker = Client(address), Client(address)
    ended = threading.Event()
    threading.Thread(target=_end_with, args=(life, ended), name="life", daemon=True).start()
    store = _join()
    error: MetaMoEError | None = None
    try:
        with room_needed(run.path):
            compute(run, stages, kind, SpeakingContext(run, worker))
    except MetaMoEError as raised:
        error = raised
    store.set(_ENDED, "yes")
    ended.set()
    worker.send(End(error))
    return 0


def follow(run: RunFolder, kind: str, stages: Mapping[str, Stage]) -> int:
    """Be one of the others until the training ends; returns the exit status."""
    store = _join()
    try:
        compute(run, stages, kind, SilentContext(run))
    except StopRequested:
        return 0
    except Exception as error:
        if store.check([_ENDED]):  # the first process has ended, and says why
            return 0
        if not isinstance(error, UserError):
            raise
        print(error, file=sys.stderr)
        return 2
    return 0


def _end_with(worker: Connection, ended: threading.Event) -> None:
    """A worker that is gone may have been started again: whoever still works for it must not touch the run."""
    with suppress(EOFError, OSError):
        worker.recv()
    if not ended.is_set():
        os._exit(1)


def _join() -> "Store":
    """Meet the other processes where accelerate's launcher says."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, processes = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=WORK)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        del os.environ[name]  # from here on, `train.team` shares the work: the Trainer is to do nothing of the kind
    return store


def main(arguments: Sequence[str], stages: Mapping[str, Stage] = STAGES) -> int:
    """Work on the run the arguments name."""
    folder, kind, address = arguments
    for kindly in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(kindly, signal.SIG_IGN)  # the worker is asked to stop, and says when
    if kind == "cuda":
        there = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = int(os.environ["LOCAL_RANK"])
        os.environ["CUDA_VISIBLE_DEVICES"] = there.split(",")[number] if there else str(number)
    run = RunFolder(Path(folder))
    return lead(run, kind, address, stages) if os.environ["RANK"] == "0" else follow(run, kind, stages)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
