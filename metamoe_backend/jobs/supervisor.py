"""The local queue: one detached process per workspace starts runs as devices come free.

    submit -> queued -> (a slot is free) -> worker process -> finished | stopped | cancelled | failed

The run folders are the truth; the supervisor remembers nothing that it could not read off them again. It outlives the
dashboard, and its workers outlive it: a new supervisor finds them by their process identity and waits for their slots.
It ends when nothing is queued or running. Whoever submits starts one; a second one waits briefly for the lock, so that
a run submitted while the first is leaving is not lost, and goes when the first stays.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from metamoe_backend.errors import ConflictError
from metamoe_backend.jobs.devices import list_devices
from metamoe_backend.jobs.durable import locked, try_lock
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, create_run, list_runs
from metamoe_backend.workspace import Workspace

POLL_S = 0.3
IDLE_S = 3.0
LOCK_WAIT_S = 8.0
CANCEL_GRACE_S = 10.0
"""A cancelled worker that has not ended by itself after this long is killed."""
_PROJECT = Path(__file__).resolve().parents[2]


# ---- what pages and command line call ---------------------------------------------------------------------------


def submit(workspace: Workspace, run: RunFolder) -> None:
    """Put a run at the end of the queue and see to it that somebody works on the queue."""
    with locked(_queue_lock(workspace)):
        places = [state.place for state in _states(workspace) if state.place is not None]
        run.write_state(
            run.read_state_file().model_copy(update={"state": "queued", "place": max(places, default=0) + 1})
        )
    ensure_supervisor(workspace)


def poll(workspace: Workspace) -> list[RunStatus]:
    """How all runs stand, newest first."""
    return [run.read_state() for run in list_runs(workspace)]


def request_stop(run: RunFolder) -> None:
    """Ask a run to save what it has and stop. A queued run is cancelled: it has nothing to save."""
    _request(run, save=True)


def cancel(run: RunFolder) -> None:
    """Give a run up: at once when queued, else as soon as its worker looks, and by force after a while."""
    _request(run, save=False)


def retry(run: RunFolder) -> RunFolder:
    """The same run once more, from the beginning, in a folder of its own."""
    spec = run.read_spec()
    again = create_run(run.workspace, spec.stage, spec.name, spec.config, spec.by, run.read_inputs())
    submit(run.workspace, again)
    return again


def resume(run: RunFolder) -> None:
    """Let a stopped or failed run go on in its own folder, from its newest valid checkpoint."""
    status = run.read_state()
    if status.state not in ("stopped", "failed"):
        raise ConflictError(f"Run {run.run_id} is {status.state}; only a stopped or failed run can be resumed.")
    run.clear_request()
    submit(run.workspace, run)


def move_in_queue(run: RunFolder, before: RunFolder) -> None:
    """Let a queued run start before another queued one; raises `ConflictError` when one of them is not queued."""
    with locked(_queue_lock(run.workspace)):
        queued = list(_queued(run.workspace))
        ids = [each.run_id for each in queued]
        if run.run_id not in ids or before.run_id not in ids:
            raise ConflictError("Only queued runs can be moved; one of the two has started or ended meanwhile.")
        order = [each for each in queued if each.run_id != run.run_id]
        order.insert([each.run_id for each in order].index(before.run_id), run)
        places = sorted(each.read_state_file().place or 0 for each in queued)
        for each, place in zip(order, places, strict=True):
            each.write_state(each.read_state_file().model_copy(update={"place": place}))


def ensure_supervisor(workspace: Workspace) -> None:
    """Start a supervisor for this workspace; it leaves by itself when another one stays."""
    with open(workspace.runs / ".supervisor.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "metamoe_backend.jobs.supervisor", str(workspace.root.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=_PROJECT,
            start_new_session=True,
        )


def _request(run: RunFolder, save: bool) -> None:
    with locked(_queue_lock(run.workspace)):
        state = run.read_state_file()
        if state.state == "queued":
            run.write_state(state.model_copy(update={"state": "cancelled"}))
            return
    if run.read_state().state != "running":
        raise ConflictError(f"Run {run.run_id} has ended already; there is nothing to stop.")
    run.write_request(save)


def _queue_lock(workspace: Workspace) -> Path:
    return workspace.runs / ".queue.lock"


def _states(workspace: Workspace) -> Iterator:
    return (run.read_state_file() for run in list_runs(workspace))


def _queued(workspace: Workspace) -> Iterator[RunFolder]:
    """Runs waiting in the queue, next one first. Runs without a place are somebody else's (inline, Slurm)."""
    waiting = [
        (state.place, run)
        for run in list_runs(workspace)
        if (state := run.read_state_file()).state == "queued" and state.place is not None
    ]
    return (run for _, run in sorted(waiting, key=lambda pair: pair[0]))


# ---- the supervisor's own process -------------------------------------------------------------------------------


class Supervisor:
    """Workers by run, and the devices they hold."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.devices = [device.name for device in list_devices()]

    def work(self) -> None:
        """Until nothing has been queued or running for a while."""
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < IDLE_S:
            if self.step():
                idle_since = time.monotonic()
            time.sleep(POLL_S)

    def step(self) -> bool:
        """See to what has ended, start what can start; returns whether anything is queued or running."""
        busy = self._settle_running()
        waiting = False
        for run in _queued(self.workspace):
            if run.run_id in self.children:
                continue
            wanted = _wanted_device(run)
            if wanted != "auto" and wanted not in self.devices:
                there = ", ".join(self.devices)
                error = f"Device {wanted} does not exist on this machine (there are: {there}); choose another."
                run.write_state(run.read_state_file().model_copy(update={"state": "failed", "error": error}))
                continue
            waiting = True
            device = self._find_slot(run, busy)
            if device is not None:
                self._start(run, device)
                busy.add(device)
        return waiting or bool(busy) or bool(self.children)

    def _settle_running(self) -> set[str]:
        """Write down the end of workers that could not do so themselves; returns the devices still held."""
        busy: set[str] = set()
        for run in list_runs(self.workspace):
            state = run.read_state_file()
            child = self.children.get(run.run_id)
            exit_code = child.poll() if child is not None else None
            if state.place is None or (child is None and state.state != "running"):
                continue
            if child is not None and exit_code is None:
                busy.add(getattr(child, "device", "cpu"))
                self._enforce_cancel(run)
                continue
            if child is not None:
                del self.children[run.run_id]
            settled = run.settle(exit_code)
            if settled.state == "running":  # adopted from an earlier supervisor
                busy.add(settled.device or "cpu")
                self._enforce_cancel(run)
            elif settled != state:
                run.write_state(settled)
            elif state.state == "queued" and exit_code not in (None, 0, 3):
                message = f"The worker could not start (status {exit_code}); read the log, then start it again."
                run.write_state(state.model_copy(update={"state": "failed", "error": message, "exit_code": exit_code}))
        return busy

    def _enforce_cancel(self, run: RunFolder) -> None:
        request, state = run.read_request(), run.read_state_file()
        if request is None or request.save or time.time() - request.at < CANCEL_GRACE_S:
            return
        if state.process is not None and state.process.is_alive():
            os.kill(state.process.pid, 9)

    def _find_slot(self, run: RunFolder, busy: set[str]) -> str | None:
        wanted = _wanted_device(run)
        gpus = [name for name in self.devices if name != "cpu"]
        candidates = (gpus or ["cpu"]) if wanted == "auto" else [wanted]
        return next((name for name in candidates if name not in busy), None)

    def _start(self, run: RunFolder, device: str) -> None:
        command = [sys.executable, "-m", "metamoe_backend.jobs.worker", str(run.path), "--device", device]
        # Device numbers mean the same to NVIDIA's library and to torch only in PCI order.
        environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
        cwd = Path(run.read_spec().cwd)
        with run.log_file.open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd if cwd.is_dir() else _PROJECT,
                env=environment,
                start_new_session=True,
            )
        child.device = device  # type: ignore[attr-defined]
        self.children[run.run_id] = child


def _wanted_device(run: RunFolder) -> str:
    wanted = str(run.read_spec().config.get("device", "auto"))
    return "cuda:0" if wanted == "cuda" else wanted


def main() -> int:
    """Work on a workspace's queue, unless another supervisor does."""
    workspace = Workspace(Path(sys.argv[1]))
    deadline = time.monotonic() + LOCK_WAIT_S
    while (lock := try_lock(workspace.runs / ".supervisor.lock")) is None:
        if time.monotonic() > deadline:
            return 0
        time.sleep(POLL_S)
    with lock:
        Supervisor(workspace).work()
    return 0


if __name__ == "__main__":
    sys.exit(main())
