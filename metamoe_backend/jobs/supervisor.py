"""The queue: one detached process per workspace starts runs as devices come free.

    submit -> queued -> (a slot is free) -> worker process -> finished | stopped | cancelled | failed
              (waits for other runs, then has its rows read: see `jobs.waiting`)

The run folders are the truth; the supervisor remembers nothing that it could not read off them again, except its
children's exit codes. It outlives the dashboard, and its workers outlive it: a new supervisor finds them by their
process identity and waits for their slots. It leaves when nothing is queued or running, and all alerts are sent; runs
that wait for a person to resume another one do not keep it.

No run is lost between a submit and a supervisor that is leaving: both happen under the queue's lock. A supervisor gives
its own lock back inside it, having seen an empty queue; whoever queues a run looks inside it whether one still stays,
and starts one if not, handing it the lock.

Runs with a profile go to Slurm instead (`jobs.slurm`), by the same verbs.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from metamoe_backend.errors import (
    ConfigError,
    ConflictError,
    DiskFullError,
    MetaMoEError,
    UnavailableError,
    UserError,
)
from metamoe_backend.jobs import slurm
from metamoe_backend.jobs.alerts import read_alert_settings
from metamoe_backend.jobs.devices import Device, list_devices, worker_environment
from metamoe_backend.jobs.durable import locked, room_needed, try_lock
from metamoe_backend.jobs.records import NO_ROOM, NOT_MINE, StateFile
from metamoe_backend.jobs.run_folder import (
    RunFolder,
    RunStatus,
    create_run,
    find_run,
    list_runs,
    queue_lock,
    reason_of_death,
    utc_now,
)
from metamoe_backend.jobs.waiting import find_obstacle, find_waits
from metamoe_backend.jobs.webhook import Webhook
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

POLL_S = 0.5
IDLE_S = 3.0
CANCEL_GRACE_S = 10.0
"""A cancelled worker that has not ended by itself after this long is killed."""
LOOK_EVERY_S = 2.0
"""Runs that wait are compared with all others so often."""
ROWS_EVERY_S = 5.0
"""Rows of runs that waited are asked for again after so long: the database may have been busy."""
_PROJECT = Path(__file__).resolve().parents[2]
# -P: the folder a person happens to stand in must not shadow any module.
SUPERVISOR_COMMAND = (sys.executable, "-P", "-m", "metamoe_backend.jobs.supervisor")
WORKER_COMMAND = (sys.executable, "-P", "-m", "metamoe_backend.jobs.worker")
ROWS_COMMAND = (sys.executable, "-P", "-m", "metamoe_backend.late_rows")
Seen = dict[str, tuple[int, RunStatus]]
"""Ended runs by id: when their state.json last changed (ns since 1970), and how they stand."""
_supervisors: list["subprocess.Popen[bytes]"] = []
"""Supervisors this process started, so that they leave no zombie behind."""


# ---- what pages and command line call ---------------------------------------------------------------------------


def submit(workspace: Workspace, run: RunFolder, profile: str | None = None) -> None:
    """Put a run at the end of the queue and see to it that somebody works on the queue; with a profile, Slurm does.

    One that waits for others is in the local queue until its rows have been read, whatever its profile. Submitting a
    queued run again changes nothing. Raises `ConflictError` for a run that has started or ended. A new run that Slurm
    does not take (see `slurm.submit`) leaves nothing behind.
    """
    with locked(queue_lock(workspace)):
        state = run.read_state_file()
        if state.state != "queued":
            raise ConflictError(f"Run {run.run_id} is {state.state}; only a new run can be submitted.")
        if profile is not None and run.is_prepared:
            try:
                slurm.submit(run, state.model_copy(update={"profile": profile}), WORKER_COMMAND)
            except UserError:
                shutil.rmtree(run.path)
                raise
            if _sends_alerts(workspace):
                _ensure_supervisor(workspace)
            return
        if state.place is None:
            _enqueue(workspace, run, state.model_copy(update={"profile": profile}))
        _ensure_supervisor(workspace)


def release(run: RunFolder, inputs: "Mapping[str, pd.DataFrame]") -> None:
    """Give a run that waited for others the rows it reads, and let the supervisor start it.

    One that was cancelled meanwhile stays so.
    """
    with locked(queue_lock(run.workspace)):
        state = run.read_state_file()
        if state.state != "queued" or run.is_prepared:
            return
        run.write_inputs(inputs)
        _ensure_supervisor(run.workspace)


def give_up_waiting(run: RunFolder, why: str) -> None:
    """A run that waited for others fails before it has begun; a person may mend what `why` says, and resume it."""
    with locked(queue_lock(run.workspace)):
        state = run.read_state_file()
        if state.state == "queued" and not run.is_prepared:
            run.write_state(state.model_copy(update={"state": "failed", "error": why, "ended_at": utc_now()}))


def submit_shards(workspace: Workspace, runs: Sequence[RunFolder], profile: str | None = None) -> None:
    """Put new runs that share a stage's work (`run_folder.create_shards`) at the end of the queue; see `submit`.

    Here each takes a device as one comes free. With a profile they are one array of Slurm's.
    """
    if profile is None:
        for run in runs:
            submit(workspace, run)
        return
    with locked(queue_lock(workspace)):
        try:
            slurm.submit_array(runs, profile, WORKER_COMMAND)
        except UserError:
            for run in runs:
                shutil.rmtree(run.path)
            raise
        if _sends_alerts(workspace):
            _ensure_supervisor(workspace)


def poll(workspace: Workspace, seen: Seen | None = None) -> list[RunStatus]:
    """How all runs stand, newest first. Starts a supervisor where work waits and none is there (it was killed).

    That a worker is gone is written down, for readers on other machines, which cannot see it: by the supervisor, or
    here for a run that was in nobody's queue.
    Who polls often hands in the same `seen` each time: it keeps the runs that have ended, and these are read again only
    when their state.json has changed (a resumed run).
    """
    statuses = _read_statuses(workspace, seen)
    if _need_supervisor(workspace, statuses):
        with locked(queue_lock(workspace)):
            _ensure_supervisor(workspace)
    for status in statuses:
        if status.lost and status.place is None:
            _write_end(find_run(workspace, status.run_id))
    return statuses


def _write_end(run: RunFolder) -> None:
    with locked(queue_lock(run.workspace)), suppress(DiskFullError):
        if run.read_state().lost:
            run.write_state(run.settle())
            run.room_file.unlink(missing_ok=True)


def _read_statuses(workspace: Workspace, seen: Seen | None) -> list[RunStatus]:
    statuses = [run.read_state() if seen is None else _read_unless_seen(run, seen) for run in list_runs(workspace)]
    changed = slurm.poll(workspace, statuses)
    return [find_run(workspace, each.run_id).read_state() if each.run_id in changed else each for each in statuses]


def _need_supervisor(workspace: Workspace, statuses: Sequence[RunStatus]) -> bool:
    """For runs of the local queue, and for those on Slurm where alerts are sent."""
    asleep = {run_id for run_id, wait in find_waits(statuses).items() if wait == "person"}
    active = [status for status in statuses if status.lost or status.state in ("queued", "running")]
    active = [status for status in active if status.run_id not in asleep]
    if any(status.place is not None for status in active):
        return True
    return any(status.job is not None for status in active) and _sends_alerts(workspace)


def _sends_alerts(workspace: Workspace) -> bool:
    try:
        return read_alert_settings(workspace).url is not None
    except ConfigError:
        return False


def _read_unless_seen(run: RunFolder, seen: Seen) -> RunStatus:
    try:
        changed_at = (run.path / "state.json").stat().st_mtime_ns
    except OSError:
        return run.read_state()
    kept = seen.get(run.run_id)
    if kept is not None and kept[0] == changed_at:
        return kept[1]
    status = run.read_state()
    if status.state not in ("queued", "running"):
        seen[run.run_id] = (changed_at, status)
    return status


def request_stop(run: RunFolder, save: bool = True) -> None:
    """Ask a run to save what it has and stop; a queued one does not start. Raises `ConflictError` if it has ended."""
    with locked(queue_lock(run.workspace)):
        state = run.settle()
        if state.state not in ("queued", "running"):
            raise ConflictError(f"Run {run.run_id} has ended already ({state.state}); there is nothing to stop.")
        works = state.state == "running" and not _is_out_of_reach(run)
        if works:
            run.write_request(save)
            if state.place is not None:
                _ensure_supervisor(run.workspace)  # it ends a worker that does not obey
        else:
            has_saved = save and state.attempt > 0  # an earlier attempt: the run can still be resumed
            run.write_state(
                state.model_copy(update={"state": "stopped" if has_saved else "cancelled", "ended_at": utc_now()})
            )
    if state.job is not None and not (works and save):
        slurm.cancel(state.job)


def cancel(run: RunFolder) -> None:
    """Give a run up: at once when queued, else as soon as its worker looks, and by force after a while."""
    request_stop(run, save=False)


def retry(run: RunFolder) -> RunFolder:
    """The same run once more, from the beginning, in a folder of its own."""
    spec = run.read_spec()
    inputs = run.read_inputs() if run.is_prepared else None
    again = create_run(
        run.workspace, spec.stage, spec.name, spec.config, spec.by, inputs, shard=spec.shard, after=spec.after
    )
    submit(run.workspace, again, run.read_state_file().profile)
    return again


def resume(run: RunFolder) -> None:
    """Let a stopped or failed run go on in its own folder, from its newest valid checkpoint."""
    with locked(queue_lock(run.workspace)):
        state = run.settle()
        if state.state not in ("stopped", "failed"):
            raise ConflictError(f"Run {run.run_id} is {state.state}; only a stopped or failed run can be resumed.")
        queued = StateFile(state="queued", attempt=state.attempt, profile=state.profile)
        if queued.profile is None or not run.is_prepared:
            run.clear_request()
            _enqueue(run.workspace, run, queued)
            _ensure_supervisor(run.workspace)
        else:
            slurm.submit(run, queued, WORKER_COMMAND)
            run.clear_request()  # the worker cannot begin before the lock is given back
            if _need_supervisor(run.workspace, [each.read_state() for each in list_runs(run.workspace)]):
                _ensure_supervisor(run.workspace)  # for alerts, and for runs that wait for this one


def move_in_queue(run: RunFolder, before: RunFolder | None = None) -> None:
    """Let a queued run start before another queued one, or (None) last.

    Raises `ConflictError` when one of them is not queued any more.
    """
    with locked(queue_lock(run.workspace)):
        states = _read_states(run.workspace)
        queued = {each.run_id: each for each in _queued(states)}
        if run.run_id not in queued or (before is not None and before.run_id not in queued):
            raise ConflictError("Only queued runs can be moved; one of the two has started or ended meanwhile.")
        if before is not None and before.run_id == run.run_id:
            return
        order = [run_id for run_id in queued if run_id != run.run_id]
        order.insert(len(order) if before is None else order.index(before.run_id), run.run_id)
        for run_id, held in zip(order, queued.values(), strict=True):
            moved = queued[run_id]
            moved.write_state(states[moved].model_copy(update={"place": states[held].place}))


def _read_states(workspace: Workspace) -> dict[RunFolder, StateFile]:
    return {run: run.read_state_file() for run in list_runs(workspace)}


def _queued(states: Mapping[RunFolder, StateFile]) -> list[RunFolder]:
    """Runs waiting in the queue, next one first. Runs without a place are somebody else's (in place, Slurm)."""
    waiting = [
        (state.place, run.run_id, run)
        for run, state in states.items()
        if state.state == "queued" and state.place is not None
    ]
    return [run for _, _, run in sorted(waiting, key=lambda each: each[:2])]


def _enqueue(workspace: Workspace, run: RunFolder, state: StateFile) -> None:
    places = [each.place or 0 for each in _read_states(workspace).values() if each.state == "queued"]
    run.write_state(state.model_copy(update={"place": max(places, default=0) + 1}))


def _is_out_of_reach(run: RunFolder) -> bool:
    """A run of another machine that gives no sign of life: nobody there will read a request."""
    process = run.read_state_file().process
    return process is not None and process.is_alive() is None and not run.read_state().responding


def _ensure_supervisor(workspace: Workspace) -> None:
    """Start a supervisor unless one stays. Hold the queue's lock."""
    _supervisors[:] = [process for process in _supervisors if process.poll() is None]
    lock = try_lock(_supervisor_lock(workspace))
    if lock is None:
        return
    # The child inherits the lock, so that there is no moment in which nobody holds it and a second one is started.
    with lock, (workspace.runs / ".supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [*SUPERVISOR_COMMAND, str(workspace.root.resolve()), "--lock", str(lock.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            env=make_environment(),
            start_new_session=True,
        )
    _supervisors.append(process)


def _supervisor_lock(workspace: Workspace) -> Path:
    return workspace.runs / ".supervisor.lock"


def make_environment() -> dict[str, str]:
    """Ours, with this project importable wherever the process stands."""
    paths = [str(_PROJECT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


# ---- the supervisor's own process -------------------------------------------------------------------------------


class Supervisor:
    """Workers by run, and the devices they hold."""

    def __init__(
        self,
        workspace: Workspace,
        devices: Sequence[Device],
        worker_command: Sequence[str] = WORKER_COMMAND,
        rows_command: Sequence[str] = ROWS_COMMAND,
    ) -> None:
        self.workspace = workspace
        self.devices = {device.name: device for device in devices}
        self.worker_command = worker_command
        self.rows_command = rows_command
        self.children: dict[RunFolder, tuple[subprocess.Popen[bytes], StateFile, str]] = {}
        """Process, the state it was started from, and its device (or devices, separated by commas)."""
        self.webhook = Webhook(workspace)
        self._seen: Seen = {}
        self._reader: subprocess.Popen[bytes] | None = None
        """Reads the rows of runs that waited."""
        self._asked_at = self._looked_at = float("-inf")
        self._may_start = False
        self._refused_at: dict[RunFolder, float] = {}
        """When Slurm last did not take a run that had waited here."""

    def work(self, lock: BinaryIO) -> None:
        """Until nothing has been queued or running for a while; then gives `lock` back."""
        busy_at, watches = time.monotonic(), False
        while True:
            busy = self._step_when_there_is_room()
            idle = not (busy or watches) and time.monotonic() - busy_at >= IDLE_S
            if self.webhook.is_due() or idle:  # a last look before it leaves
                watches = self.watch()
            if busy or watches or self.webhook.is_busy:
                busy_at = time.monotonic()
            elif idle and self.leave(lock):
                return
            time.sleep(POLL_S)

    def _step_when_there_is_room(self) -> bool:
        """A full disk holds the queue up, and costs no run its end: what could not be written is tried again."""
        try:
            return self.step()
        except DiskFullError as error:
            _say(str(error))
            return True

    def step(self) -> bool:
        """See to what has ended, start what can start; returns whether anything is queued or running."""
        self._reap()
        with locked(queue_lock(self.workspace)):
            states = _read_states(self.workspace)
            busy = self._adopt(states).union(*(device.split(",") for _, _, device in self.children.values()))
            queued = [run for run in _queued(states) if run not in self.children]
            waiting = [run for run in queued if not run.is_prepared]
            queued = [run for run in queued if run not in waiting]
            for run in queued:
                try:
                    if states[run].profile is not None:  # it waited here for others
                        self._hand_over(run, states[run])
                        continue
                    device = find_slot(*_wanted_devices(run), list(self.devices), busy)
                    if device is not None:
                        self._start(run, device)
                        busy.update(device.split(","))
                except (MetaMoEError, OSError) as error:
                    self._end(run, run.read_state_file().model_copy(update={"state": "failed", "error": str(error)}))
        return self._see_to(waiting) or bool(queued or busy)

    def _hand_over(self, run: RunFolder, state: StateFile) -> None:
        """Give a run to Slurm; one that Slurm does not take now is offered again, and says meanwhile why it waits."""
        if time.monotonic() - self._refused_at.get(run, float("-inf")) < slurm.AWAY_S:
            return
        try:
            slurm.submit(run, state.model_copy(update={"place": None, "waits_for": None}), self.worker_command)
        except UnavailableError as error:
            self._refused_at[run] = time.monotonic()
            run.write_state(state.model_copy(update={"waits_for": str(error)}))

    def _see_to(self, waiting: Sequence[RunFolder]) -> bool:
        """Have the rows read of runs whose others have finished; returns whether any may start without a person."""
        if not waiting or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return bool(waiting) and self._may_start
        self._looked_at = time.monotonic()
        statuses = _read_statuses(self.workspace, self._seen)
        waits, by_id = find_waits(statuses), {status.run_id: status for status in statuses}
        for run in waiting:
            if waits.get(run.run_id) == "never":
                other = find_obstacle(by_id[run.run_id], by_id)
                which = "others" if other is None else other[0]
                give_up_waiting(run, f"It waited for {which}, which was cancelled or is gone; start it anew.")
        if "rows" in waits.values():
            self._ask_for_rows()
        self._may_start = any(waits.get(run.run_id) in ("rows", "runs") for run in waiting)
        return self._may_start

    def _ask_for_rows(self) -> None:
        if self._reader is not None and self._reader.poll() is None:
            return
        if time.monotonic() - self._asked_at < ROWS_EVERY_S:
            return
        self._asked_at = time.monotonic()
        log = self.workspace.runs / ".supervisor.log"
        try:
            with room_needed(log), log.open("ab") as out:
                self._reader = subprocess.Popen(
                    [*self.rows_command, str(self.workspace.root.resolve())],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=make_environment(), start_new_session=True,
                )  # fmt: skip
        except OSError as error:  # too many processes: asked again
            _say(f"The program that reads rows could not be started: {error}")

    def watch(self) -> bool:
        """Let the webhook see how runs stand; returns whether runs on Slurm are left, for which nobody else may ask."""
        try:
            if self.webhook.read_settings().url is None:
                return False
            statuses = _read_statuses(self.workspace, self._seen)
            self.webhook.look(statuses)
            return any(status.job is not None and status.state in ("queued", "running") for status in statuses)
        except Exception as error:  # noqa: BLE001 - the queue goes on, whatever is wrong with alerts
            print(f"{utc_now():%Y-%m-%d %H:%M:%S} alerts: {type(error).__name__}: {error}", flush=True)
            return False

    def leave(self, lock: BinaryIO) -> bool:
        """Give `lock` back unless something was queued meanwhile; whoever queues later starts a new supervisor."""
        with locked(queue_lock(self.workspace)):
            queued = _queued(_read_states(self.workspace))
            if any(run.is_prepared for run in queued):
                return False
            if queued and _need_supervisor(self.workspace, [run.read_state() for run in list_runs(self.workspace)]):
                return False
            lock.close()
            return True

    def _reap(self) -> None:
        """Write down the end of children that could not do so themselves."""
        for run, (process, started_from, _) in list(self.children.items()):
            exit_code = process.poll()
            if exit_code is None:
                self._enforce_cancel(run)
                continue
            with locked(queue_lock(self.workspace)):
                state = run.read_state_file()
                settled = run.settle(exit_code)
                unclaimed = state.state == "queued" and state.attempt == started_from.attempt
                if unclaimed and exit_code != NOT_MINE:
                    why = f"The worker could not start (exit status {exit_code}); read the log, then resume the run."
                    why = reason_of_death(exit_code) if exit_code == NO_ROOM else why
                    settled = state.model_copy(update={"state": "failed", "error": why})
                if settled.attempt == started_from.attempt + 1 and settled.state not in ("queued", "running"):
                    settled = settled.model_copy(update={"exit_code": exit_code})
                if settled != state:
                    self._end(run, settled)
            del self.children[run]

    def _adopt(self, states: Mapping[RunFolder, StateFile]) -> set[str]:
        """The devices held by workers of an earlier supervisor; the end of those that are gone is written down."""
        held = set()
        for run, state in states.items():
            if state.place is None or state.state != "running" or run in self.children:
                continue
            settled = run.settle()
            if settled.state != "running":
                self._end(run, settled)
            elif settled.process is not None and settled.process.is_alive():
                held.update((settled.device or "cpu").split(","))
                self._enforce_cancel(run)
        return held

    def _enforce_cancel(self, run: RunFolder) -> None:
        request, process = run.read_request(), run.read_state_file().process
        if request is None or request.save or 0 <= time.time() - request.at < CANCEL_GRACE_S:
            return
        if process is not None and process.is_alive():
            try:
                os.killpg(process.pid, signal.SIGKILL)  # with the data loaders and ranks it started
            except ProcessLookupError:
                os.kill(process.pid, signal.SIGKILL)  # started by hand, in somebody else's group

    def _start(self, run: RunFolder, device: str) -> None:
        cwd = Path(run.read_spec().cwd)
        with room_needed(run.log_file), run.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*self.worker_command, str(run.path.resolve()), "--device", device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd if cwd.is_dir() else run.path,
                env=make_environment() | worker_environment([self.devices[name] for name in device.split(",")]),
                start_new_session=True,
            )
        self.children[run] = (process, run.read_state_file(), device)

    def _end(self, run: RunFolder, state: StateFile) -> None:
        run.write_state(state.model_copy(update={"ended_at": state.ended_at or utc_now()}))
        run.room_file.unlink(missing_ok=True)
        _say(f"{run.run_id}: {state.state} {state.error or ''}")


def _say(text: str) -> None:
    with suppress(OSError):  # no room for the log
        print(f"{utc_now():%Y-%m-%d %H:%M:%S} {text}", flush=True)


def find_slot(wanted: str, processes: int, devices: Sequence[str], busy: set[str]) -> str | None:
    """The device a run gets now, or None: it waits. `auto` is any GPU, or the CPU of a machine without one.

    A run of several processes gets as many GPUs, separated by commas, or the CPU, which they share. Raises
    `UnavailableError` for a device that this machine does not have, and for more processes than GPUs or cores.
    """
    gpus = [name for name in devices if name != "cpu"]
    choices = {"auto": gpus or ["cpu"], "cuda": gpus}.get(wanted, [wanted])
    if not set(choices) & set(devices):
        raise UnavailableError(
            f"Device {wanted} does not exist here (there are: {', '.join(devices)}); choose another."
        )
    cores = len(os.sched_getaffinity(0))
    most, what = (cores, "core") if choices == ["cpu"] else (len(choices), "GPU")
    if processes > most:
        there = f"{most} {what}{'' if most == 1 else 's'}"
        raise UnavailableError(f"processes is {processes}, but device {wanted} has {there} here; lower processes.")
    needed = 1 if choices == ["cpu"] else processes
    free = [name for name in choices if name not in busy][:needed]
    return ",".join(free) if len(free) == needed else None


def _wanted_devices(run: RunFolder) -> tuple[str, int]:
    """Device and number of processes; a stage without a device setting does not need a GPU."""
    spec = run.read_spec()
    return str(spec.config.get("device", "cpu")), spec.processes


def main(
    arguments: Sequence[str],
    worker_command: Sequence[str] = WORKER_COMMAND,
    rows_command: Sequence[str] = ROWS_COMMAND,
) -> int:
    """Work on a workspace's queue, unless another supervisor does."""
    parser = argparse.ArgumentParser(prog="python -m metamoe_backend.jobs.supervisor", description="Work on a queue.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--lock", type=int, metavar="FD", help="the supervisor's lock, inherited from who started this")
    options = parser.parse_args(arguments)
    workspace = Workspace(options.workspace)
    inherited = None if options.lock is None else os.fdopen(options.lock, "ab")
    lock = inherited or try_lock(_supervisor_lock(workspace))
    if lock is not None:
        Supervisor(workspace, list_devices(), worker_command, rows_command).work(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
