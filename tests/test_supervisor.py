"""The local queue: order, slots, stopping, and what survives the death of a worker or of the supervisor."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from metamoe_backend.errors import ConflictError, UnavailableError
from metamoe_backend.jobs import supervisor
from metamoe_backend.jobs.devices import Device, list_devices, worker_environment
from metamoe_backend.jobs.durable import try_lock
from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.jobs.records import StateFile
from metamoe_backend.jobs.run_folder import RunFolder, create_run, list_runs, utc_now
from metamoe_backend.jobs.supervisor import (
    Supervisor,
    cancel,
    find_slot,
    move_in_queue,
    poll,
    request_stop,
    resume,
    retry,
    submit,
)
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import SUPERVISOR_COMMAND, WORKER_COMMAND, find_processes, wait_for

CPU = Device("cpu", "two cores")


def make_run(workspace: Workspace, **config: Any) -> RunFolder:
    return create_run(workspace, "count", "a test", config, "ana", {})


def submit_run(workspace: Workspace, **config: Any) -> RunFolder:
    run = make_run(workspace, **config)
    submit(workspace, run)
    return run


def submit_waiting(workspace: Workspace, gate: Path, **config: Any) -> RunFolder:
    """A run that holds its slot until the file `gate` is there."""
    run = submit_run(workspace, until=str(gate), **config)
    wait_for(lambda: run.read_state().done == 3)
    return run


def state(run: RunFolder) -> str:
    return run.read_state().state


def wait_until(run: RunFolder, wanted: str) -> None:
    wait_for(lambda: state(run) not in ("queued", "running") or state(run) == wanted)
    assert state(run) == wanted, run.read_state().error


def wait_until_it_leaves(workspace: Workspace) -> None:
    wait_for(lambda: not find_processes(workspace, "supervisor"))


# ---- order and slots ----------------------------------------------------------------------------------------------


def test_runs_start_in_order_one_per_slot_and_the_supervisor_leaves(queue: Workspace, tmp_path: Path) -> None:
    first = submit_waiting(queue, tmp_path / "go")
    second, third = submit_run(queue), submit_run(queue)
    assert [state(run) for run in (first, second, third)] == ["running", "queued", "queued"]
    assert [(status.run_id, status.place) for status in poll(queue)] == [
        (third.run_id, 2), (second.run_id, 1), (first.run_id, 1)
    ]  # fmt: skip
    assert first.read_state().device == "cpu"
    (tmp_path / "go").touch()
    wait_until(third, "finished")
    ends = [run.read_state_file() for run in (first, second, third)]
    assert all(end.state == "finished" and end.exit_code in (0, None) for end in ends)
    assert ends[0].ended_at <= ends[1].started_at and ends[1].ended_at <= ends[2].started_at
    wait_until_it_leaves(queue)
    assert [run.read_state_file().exit_code for run in (first, second, third)] == [0, 0, 0]


def test_a_run_moved_forward_starts_first(queue: Workspace, tmp_path: Path) -> None:
    first = submit_waiting(queue, tmp_path / "go")
    waiting = [submit_run(queue) for _ in range(3)]
    move_in_queue(waiting[2], before=waiting[0])
    move_in_queue(waiting[0])
    order = sorted(waiting, key=lambda run: run.read_state().place or 0)
    assert order == [waiting[2], waiting[1], waiting[0]]
    with pytest.raises(ConflictError, match="queued"):
        move_in_queue(first, before=waiting[1])
    (tmp_path / "go").touch()
    wait_until(waiting[0], "finished")
    started = sorted(waiting, key=lambda run: run.read_state().started_at or utc_now())
    assert started == order


def test_a_run_in_place_is_left_alone(queue: Workspace) -> None:
    in_place = make_run(queue)
    wait_until(submit_run(queue), "finished")
    wait_until_it_leaves(queue)
    assert state(in_place) == "queued"
    poll(queue)
    assert not find_processes(queue), "what was not submitted needs no supervisor"
    submit(queue, in_place)
    submit(queue, in_place)
    wait_until(in_place, "finished")
    with pytest.raises(ConflictError, match="finished"):
        submit(queue, in_place)


def test_a_device_that_is_not_there_fails_with_a_sentence(queue: Workspace) -> None:
    run = submit_run(queue, device="cuda:97")
    wait_until(run, "failed")
    assert "Device cuda:97 does not exist here (there are: " in (run.read_state().error or "")


@pytest.mark.parametrize(
    ("wanted", "devices", "busy", "slot"),
    [
        ("auto", ["cpu"], set(), "cpu"),
        ("auto", ["cpu"], {"cpu"}, None),
        ("auto", ["cuda:0", "cuda:1", "cpu"], {"cuda:0"}, "cuda:1"),
        ("auto", ["cuda:0", "cpu"], {"cuda:0"}, None),
        ("cuda", ["cuda:0", "cuda:1", "cpu"], set(), "cuda:0"),
        ("cuda:1", ["cuda:0", "cuda:1", "cpu"], {"cuda:1"}, None),
        ("cpu", ["cuda:0", "cpu"], {"cuda:0"}, "cpu"),
    ],
)
def test_each_run_gets_the_slot_it_asks_for(wanted: str, devices: list[str], busy: set[str], slot: str | None) -> None:
    assert find_slot(wanted, 1, devices, busy) == slot


@pytest.mark.parametrize(("wanted", "devices"), [("cuda", ["cpu"]), ("cuda:1", ["cuda:0", "cpu"])])
def test_a_slot_that_will_never_come_is_an_error(wanted: str, devices: list[str]) -> None:
    with pytest.raises(UnavailableError, match=f"Device {wanted} does not exist here"):
        find_slot(wanted, 1, devices, set())


def test_two_gpus_work_at_once_and_each_worker_sees_its_own(workspace: Workspace) -> None:
    gpus = [Device("cuda:0", "a GPU", "GPU-aaaa"), Device("cuda:1", "a GPU", "GPU-bbbb")]
    runs = [make_run(workspace, device=device) for device in ("auto", "auto", "cuda:1", "cpu")]
    for place, run in enumerate(runs):
        run.write_state(StateFile(state="queued", place=place))
    working = Supervisor(workspace, [*gpus, CPU], WORKER_COMMAND)
    working.step()
    assert [device for _, _, device in working.children.values()] == ["cuda:0", "cuda:1", "cpu"]
    wait_for(lambda: not working.step())
    import pandas as pd

    texts = [pd.read_parquet(run.parts()[0].path)["text"][0] for run in runs]
    here = Path.cwd()
    assert texts == [f"GPU-aaaa cuda {here}", f"GPU-bbbb cuda {here}", f"GPU-bbbb cuda {here}", f" cpu {here}"]
    assert [run.read_state().device for run in runs] == ["cuda:0", "cuda:1", "cuda:1", "cpu"]


@pytest.mark.parametrize(("cores", "text"), [({0}, "1 core, "), ({0, 1}, "2 cores, ")])
def test_the_cpu_says_how_many_cores_it_has(monkeypatch: pytest.MonkeyPatch, cores: set[int], text: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert list_devices()[-1].description.startswith(text)


def test_the_cpu_is_always_a_device() -> None:
    devices = list_devices()
    assert devices[-1].name == "cpu" and "memory" in devices[-1].description
    assert worker_environment(devices[-1:]) == {"CUDA_VISIBLE_DEVICES": ""}
    assert [device.name for device in devices[:-1]] == [f"cuda:{index}" for index in range(len(devices) - 1)]


class FakeNvml:
    """Three GPUs of which one shares the CPU's memory, as NVIDIA's library tells it."""

    uuids = ("GPU-aaaa", "GPU-bbbb", "GPU-cccc")

    @staticmethod
    def by_index(index: int) -> int:
        if index >= 3:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    @classmethod
    def by_uuid(cls, uuid: str) -> int:
        if uuid not in cls.uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return cls.uuids.index(uuid)

    @staticmethod
    def memory(handle: int) -> SimpleNamespace:
        if handle == 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=80e9)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": FakeNvml.by_index,
        "nvmlDeviceGetHandleByUUID": FakeNvml.by_uuid,
        "nvmlDeviceGetName": lambda handle: f"GPU model {handle}",
        "nvmlDeviceGetUUID": lambda handle: FakeNvml.uuids[handle],
        "nvmlDeviceGetMemoryInfo": FakeNvml.memory,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("allowed", "uuids"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb", "GPU-cccc"]),
        ("2, 0", ["GPU-cccc", "GPU-aaaa"]),
        ("GPU-bbbb", ["GPU-bbbb"]),
        ("1,7,0", ["GPU-bbbb"]),
        ("-1", []),
        ("", []),
    ],
)
def test_the_gpus_are_those_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, uuids: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    *gpus, cpu = list_devices()
    assert [gpu.uuid for gpu in gpus] == uuids and cpu.name == "cpu"
    assert [gpu.name for gpu in gpus] == [f"cuda:{index}" for index in range(len(uuids))]
    described = {"GPU-aaaa": "GPU model 0, 80 GB memory", "GPU-cccc": "GPU model 2"}
    assert all(gpu.description == described.get(gpu.uuid, gpu.description) for gpu in gpus)
    assert [worker_environment([gpu])["CUDA_VISIBLE_DEVICES"] for gpu in gpus] == uuids


# ---- stopping -----------------------------------------------------------------------------------------------------


def test_stop_and_save_then_resume(queue: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(queue, tmp_path / "go", obey="after saving")
    request_stop(run)
    wait_until(run, "stopped")
    assert (run.checkpoints / "saved").exists() and run.read_manifest() is not None
    with pytest.raises(ConflictError, match="ended already"):
        request_stop(run)
    (tmp_path / "go").touch()
    resume(run)
    wait_until(run, "finished")
    assert run.read_state_file().attempt == 2 and run.read_request() is None
    with pytest.raises(ConflictError, match="only a stopped or failed run"):
        resume(run)


def test_a_queued_run_is_cancelled_at_once(queue: Workspace, tmp_path: Path) -> None:
    submit_waiting(queue, tmp_path / "go")
    run, stopped = submit_run(queue), submit_run(queue)
    cancel(run)
    request_stop(stopped)
    assert (state(run), state(stopped)) == ("cancelled", "cancelled")
    (tmp_path / "go").touch()
    wait_until_it_leaves(queue)
    assert run.read_state().started_at is None and not run.log_file.exists()


def test_a_worker_that_does_not_obey_a_cancel_is_killed(queue: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(queue, tmp_path / "never", obey="never")
    cancel(run)
    end = wait_for(lambda: (file := run.read_state_file()).state != "running" and file)
    assert (end.state, end.error, end.exit_code) == ("cancelled", None, -signal.SIGKILL)


def test_a_resumed_run_that_is_stopped_while_queued_can_still_be_resumed(queue: Workspace, tmp_path: Path) -> None:
    submit_waiting(queue, tmp_path / "go")
    run = make_run(queue)
    run.write_state(StateFile(state="stopped", attempt=1))
    resume(run)
    request_stop(run)
    assert state(run) == "stopped"


def test_a_silent_run_of_another_machine_can_be_given_up(workspace: Workspace) -> None:
    run = make_run(workspace)
    elsewhere = ProcessIdentity.of_this_process().model_copy(update={"host": "gpu-node-7"})
    run.write_state(StateFile(state="running", attempt=1, process=elsewhere))
    run.heartbeat_file.write_text('{"at": 1}')
    cancel(run)
    assert state(run) == "cancelled"


def test_retry_makes_a_new_run_of_the_same_spec(queue: Workspace) -> None:
    run = submit_run(queue, steps=2, then="mistake")
    wait_until(run, "failed")
    again = retry(run)
    wait_until(again, "failed")
    assert again.run_id > run.run_id and again.read_spec().config == run.read_spec().config
    assert len(list_runs(queue)) == 2


# ---- what dies ----------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_written_down_and_the_next_run_starts(queue: Workspace) -> None:
    run, after = submit_run(queue, then="die"), submit_run(queue)
    wait_until(after, "finished")
    end = run.read_state_file()
    assert (end.state, end.exit_code) == ("failed", -signal.SIGKILL)
    assert "killed (signal 9)" in (end.error or "") and "start it again" in (end.error or "")


def test_a_worker_that_cannot_start_fails_its_run(workspace: Workspace) -> None:
    run = make_run(workspace)
    run.write_state(StateFile(state="queued", place=1))
    working = Supervisor(workspace, [CPU], [sys.executable, "-c", "import no_such_module"])
    wait_for(lambda: not working.step())
    assert "could not start (exit status 1)" in (run.read_state().error or "")
    assert "no_such_module" in run.read_log()


def test_a_run_with_a_damaged_spec_does_not_hold_up_the_queue(queue: Workspace) -> None:
    run = make_run(queue)
    (run.path / "spec.json").write_text("{")
    submit(queue, run)
    after = submit_run(queue)
    wait_until(after, "finished")
    assert run.read_state_file().state == "failed" and "spec.json" in (run.read_state().error or "")


def test_workers_outlive_a_killed_supervisor_and_are_adopted(queue: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(queue, tmp_path / "go")
    pid = run.read_state().pid
    [killed] = find_processes(queue, "supervisor")
    killed.kill()
    killed.wait()
    waiting = submit_run(queue)
    [adopting] = wait_for(lambda: find_processes(queue, "supervisor"))
    assert adopting.pid != killed.pid
    assert (state(run), state(waiting), run.read_state().pid) == ("running", "queued", pid)
    (tmp_path / "go").touch()
    wait_until(waiting, "finished")
    first, second = run.read_state_file(), waiting.read_state_file()
    assert first.state == "finished" and first.attempt == 1, "it was not started twice"
    assert first.ended_at is not None and second.started_at is not None and first.ended_at <= second.started_at


def test_an_adopted_worker_can_die_and_be_cancelled(queue: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(queue, tmp_path / "never", obey="never")
    [killed] = find_processes(queue, "supervisor")
    killed.kill()
    killed.wait()
    cancel(run)
    wait_until(run, "cancelled")
    other = submit_waiting(queue, tmp_path / "never")
    for process in find_processes(queue, "supervisor"):
        process.kill()
        process.wait()
    os.kill(other.read_state().pid or 0, signal.SIGKILL)
    wait_until(other, "failed")
    assert "worker is gone" in (other.read_state().error or "")


def test_looking_at_the_runs_brings_a_killed_supervisor_back(queue: Workspace, tmp_path: Path) -> None:
    submit_waiting(queue, tmp_path / "go")
    waiting = submit_run(queue)
    for process in find_processes(queue, "supervisor"):
        process.kill()
        process.wait()
    (tmp_path / "go").touch()
    for _ in range(20):
        poll(queue)
    assert len(find_processes(queue, "supervisor")) == 1, "one is enough, even while it is starting"
    wait_for(lambda: poll(queue)[0].state == "finished")
    assert state(waiting) == "finished" and waiting.read_state_file().attempt == 1


def test_no_run_is_lost_when_the_supervisor_is_leaving(queue: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisors that leave the moment they have nothing to do, and runs handed in by several people at once."""
    hasty = "import tests.fake_jobs as f; f.supervisor.IDLE_S = 0; f.supervisor.POLL_S = 0.01; import sys; "
    hasty += "sys.exit(f.supervisor.main(sys.argv[2:], [sys.executable, '-c', 'import sys; sys.exit(1)']))"
    monkeypatch.setattr(supervisor, "SUPERVISOR_COMMAND", (sys.executable, "-c", hasty, "supervisor"))
    with ThreadPoolExecutor(4) as people:
        runs = list(people.map(lambda number: submit_run(queue, steps=number), range(1, 13)))
    wait_for(lambda: all(state(run) == "failed" for run in runs))
    wait_until_it_leaves(queue)
    assert {run.read_state_file().place for run in runs} != {None}


def test_a_supervisor_that_wants_to_leave_looks_once_more(queue: Workspace) -> None:
    lock = try_lock(queue.runs / ".supervisor.lock")
    assert lock is not None
    leaving = Supervisor(queue, [CPU], WORKER_COMMAND)
    assert not leaving.step()
    run = submit_run(queue)  # at this very moment; it sees a supervisor and starts none
    assert not leaving.leave(lock) and not lock.closed and not find_processes(queue)
    cancel(run)
    assert leaving.leave(lock)
    wait_until(submit_run(queue), "finished")  # from now on a new one is started


def test_one_supervisor_a_workspace(queue: Workspace) -> None:
    held = try_lock(queue.runs / ".supervisor.lock")
    assert held is not None and try_lock(queue.runs / ".supervisor.lock") is None
    run = submit_run(queue)
    assert not find_processes(queue), "whoever holds the lock will see the run"
    second = subprocess.run([*SUPERVISOR_COMMAND, str(queue.root)], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert second.returncode == 0 and state(run) == "queued"
    held.close()
    poll(queue)
    wait_until(run, "finished")
