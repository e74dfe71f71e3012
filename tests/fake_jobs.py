"""A stage that does nothing but behave: it counts, waits, obeys or not, fails, or is killed. Run as a script, this file
is the worker or the supervisor that knows this stage."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from metamoe_backend.config import Device, StageConfig
from metamoe_backend.errors import DivergedError, InputError, NotFoundError, StopRequested
from metamoe_backend.jobs import supervisor, webhook, worker
from metamoe_backend.stage import Context, Inputs, Stage
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

SCRIPT = Path(__file__).resolve()
WORKER_COMMAND = (sys.executable, str(SCRIPT), "worker")
SUPERVISOR_COMMAND = (sys.executable, str(SCRIPT), "supervisor")
ROWS_COMMAND = (sys.executable, str(SCRIPT), "rows")
PATIENCE_S = 900
"""A guard against a test that hangs for ever; no test expects anything to happen within a time."""


class CountConfig(StageConfig):
    steps: int = 3
    device: Device = "auto"
    until: str = ""
    """After counting, report on until this file exists."""
    then: Literal["end", "mistake", "bug", "die", "print", "diverge"] = "end"
    obey: Literal["at once", "after saving", "never"] = "at once"


def compute(inputs: Inputs, config: CountConfig, context: Context) -> None:
    try:
        _count(inputs, config, context)
    except StopRequested as stop:
        if config.obey == "at once" or not stop.save:
            raise
        (context.scratch / "saved").write_text("saved")
    if config.then == "mistake":
        raise InputError("Line 17 of questions.csv has no answer; fill it in.")
    if config.then == "diverge":
        raise DivergedError(f"The loss became NaN at step {config.steps}.")
    if config.then == "bug":
        raise KeyError("nobody thought of this")
    if config.then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.then == "print":
        print("printed by the stage")
        os.system("echo printed by a program it started")


def _count(inputs: Inputs, config: CountConfig, context: Context) -> None:
    import pandas as pd  # not at the top: the supervisor does without

    offset = sum(len(frame) for frame in inputs.values())
    for step in range(config.steps):
        text = os.environ.get("CUDA_VISIBLE_DEVICES", "unset") + f" {config.device} {Path.cwd()}"
        rows = pd.DataFrame({"line": [step + 1 + offset], "reason": ["counted"], "text": [text]})
        context.emit("rejected_row", rows)
        context.progress(step + 1, config.steps, loss=1 / (step + 1))
    while config.until and not Path(config.until).exists():
        time.sleep(0.02)
        try:
            context.progress(config.steps, config.steps)
        except StopRequested:
            if config.obey != "never":
                raise


def prepare_follow(store: "Store", config: CountConfig) -> Inputs:
    counted = store.frame("SELECT line FROM rejected_row")
    if counted.empty:
        raise NotFoundError("Nothing has been counted yet; run `count`.")
    return {"counted": counted}


STAGES = {
    "count": Stage("count", CountConfig, (), ("rejected_row",), lambda store, config: {}, compute),
    "follow": Stage("follow", CountConfig, ("rejected_row",), ("rejected_row",), prepare_follow, compute),
}
"""follow goes on counting from all the rows that others have made."""


def find_processes(workspace: Workspace, role: str = "") -> list[psutil.Process]:
    """The supervisors and workers of this very workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        ours = any(word.startswith(str(workspace.root.resolve())) for word in words)
        if ours and role in [*words, ""] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    """Look until the condition holds, and return it."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < give_up_at, "what the test waits for does not happen"
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    supervisor.IDLE_S, supervisor.CANCEL_GRACE_S, supervisor.POLL_S = 0.5, 1.0, 0.05
    supervisor.ROWS_EVERY_S = 0.2
    webhook.LOOK_S, webhook.RETRY_AFTER_S = 0.2, (0.0, 0.0)
    role, *arguments = sys.argv[1:]
    if role == "rows":
        from metamoe_backend import late_rows  # here: the others do without a database

        sys.exit(late_rows.main(arguments, STAGES))
    if role == "worker":
        sys.exit(worker.main(arguments, STAGES))
    sys.exit(supervisor.main(arguments, WORKER_COMMAND, ROWS_COMMAND))
