"""Full disks, damaged files, borrowed pids and clocks that jump: a clear state, nothing corrupt, nobody killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from metamoe_backend.errors import ConflictError, DiskFullError, StorageError
from metamoe_backend.jobs import supervisor
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.devices import Device
from metamoe_backend.jobs.process import ProcessIdentity, start_time
from metamoe_backend.jobs.records import NO_ROOM, StateFile
from metamoe_backend.jobs.run_folder import RunFolder, create_run, list_runs, reason_of_death, utc_now
from metamoe_backend.jobs.supervisor import Supervisor, cancel, poll, request_stop, resume
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import create_skill, fetch_labels, label_questions
from metamoe_backend.train.checkpoints import require_room
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_questions, insert_rows
from tests.fake_jobs import WORKER_COMMAND, wait_for
from tests.faults import LONG, SEED, Job, Server, open_server, report

POINTS = {False: 4, True: 50}
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with open_server() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests play the supervisor themselves, step by step."""
    monkeypatch.setattr(supervisor, "_ensure_supervisor", lambda workspace: None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """Only so many bytes are left meanwhile."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(status.f_frsize, status.f_bavail * status.f_frsize - left))
    yield
    ballast.unlink()


def make_run(workspace: Workspace, **config: Any) -> RunFolder:
    run = create_run(workspace, "count", "count", config, "ana", {})
    run.write_state(StateFile(state="queued", place=1))
    return run


def make_supervisor(workspace: Workspace) -> Supervisor:
    return Supervisor(workspace, [Device("cpu", "the CPU")], WORKER_COMMAND)


def work(server: Server, run: RunFolder, file_bytes: int | None = None) -> int:
    return server.run(Job("count", [str(run.path)], str(run.path), file_bytes=file_bytes)).code


# ---- a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", LONG)
def test_a_run_on_a_full_disk_says_so_and_can_be_resumed(server: Server, small_disk: Path, long: bool) -> None:
    workspace = Workspace(small_disk / "workspace").create()
    draw, failed, unsaid = random.Random(SEED + 4), 0, 0
    for number in range(POINTS[long]):
        run = make_run(workspace, steps=30)
        # From nothing at all to what the run needs.
        with filled(small_disk, left=int(280_000 * (number + draw.random()) / POINTS[long])):
            code = work(server, run)
            status = run.read_state()
            if code == NO_ROOM:
                unsaid += 1
                assert "disk is full" in reason_of_death(code)
                assert status.state in ("queued", "failed")
            elif code:
                failed += 1
                assert (code, status.state, status.failure) == (2, "failed", "DiskFullError")
                assert "is full" in str(status.error) and "free some space" in str(status.error)
            else:
                assert status.state == "finished"
        if code:
            if run.read_state().state == "failed":
                resume(run)
            assert work(server, run) == 0, run.read_log()
        assert run.read_state().state == "finished"
        with Store.open(workspace, "a test") as store:
            lines = store.frame("SELECT line FROM rejected_row WHERE run_id = ?", [run.run_id])["line"].tolist()
        assert sorted(lines) == list(range(1, 31))
        shutil.rmtree(run.path)
    assert failed
    report("disk full, run", {"points": POINTS[long], "failed": failed, "unsaid": unsaid, "seed": SEED + 4})


def test_the_supervisor_waits_for_room_and_writes_the_end_down_then(small_disk: Path) -> None:
    workspace = Workspace(small_disk / "workspace").create()
    run = make_run(workspace, then="die")
    keeper = make_supervisor(workspace)
    assert keeper.step()
    process = keeper.children[run][0]
    process.wait()
    run.room_file.unlink()
    with filled(small_disk, left=0):
        with pytest.raises(DiskFullError):
            keeper.step()
        assert keeper._step_when_there_is_room()
        assert run.read_state().state == "failed", "readers know without being told"
    keeper.step()
    assert run.read_state_file().state == "failed" and "signal 9" in str(run.read_state_file().error)


@pytest.mark.parametrize("long", LONG)
def test_acts_on_a_full_disk_are_refused_whole(small_disk: Path, long: bool) -> None:
    """Refused while there is no room; what was acknowledged is there, and the open store goes on afterwards."""
    workspace = Workspace(small_disk / "workspace").create()
    draw, refused, acknowledged = random.Random(SEED + 5), 0, {}
    with Store.open(workspace, "a test") as store:
        ids = insert_questions(store, 20)
        skill = create_skill(store, "logic", "ana")
        for _ in range(POINTS[long]):
            with filled(small_disk, left=draw.choice([0, 4096, 8192, 20_000])):
                for question in ids:
                    try:
                        acknowledged[label_questions(store, skill, [question], "ana", "question")] = question
                    except DiskFullError as error:
                        refused += 1
                        assert "is full" in str(error)
            acknowledged[label_questions(store, skill, ids[:1], "ana", "question")] = ids[0]
    assert refused
    for _ in range(2):
        with Store.open(workspace, "a test") as store:
            rows = store.frame("SELECT event_id, question_id FROM label")
            assert dict(rows.itertuples(index=False, name=None)) == acknowledged and len(rows) == len(acknowledged)
        workspace.database.unlink()
    report("disk full, labels", {"points": POINTS[long], "refused": refused, "acknowledged": len(acknowledged)})


def test_a_file_that_may_not_grow_is_a_full_disk(server: Server, workspace: Workspace) -> None:
    """Where no disk can be mounted: the kernel refuses what is over the limit of a file's size."""
    run = make_run(workspace, steps=3)
    assert work(server, run, file_bytes=1500) == 2, run.read_log()  # a part is larger
    status = run.read_state()
    assert (status.state, status.failure) == ("failed", "DiskFullError") and "is full" in str(status.error)
    resume(run)
    assert work(server, run) == 0
    assert run.read_state().state == "finished"


def test_a_training_without_room_for_its_checkpoints_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    require_room(tmp_path, 200_000)
    with pytest.raises(DiskFullError, match="300,000 trained parameters need 11 MB.*has 10 MB left"):
        require_room(tmp_path, 300_000)


# ---- who is alive ------------------------------------------------------------------------------------------------


@contextmanager
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A healthy process that has nothing to do with the run."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    assert process.poll() is None, "a bystander was killed"
    process.kill()
    process.wait()


def write_running(run: RunFolder, process: ProcessIdentity, place: int | None = 1) -> None:
    run.write_state(StateFile(state="running", attempt=1, place=place, process=process, started_at=utc_now()))


@pytest.mark.parametrize("change", [{"start": 1.0}, {"boot": "of yesterday"}])
def test_who_got_the_pid_of_a_dead_worker_is_left_alone(workspace: Workspace, change: dict[str, Any]) -> None:
    run = make_run(workspace)
    with bystander() as process:
        start = start_time(process.pid)
        assert start is not None
        me = ProcessIdentity.of_this_process()
        write_running(run, me.model_copy(update={"pid": process.pid, "start": start}))
        assert run.read_state().state == "running", "this one is the worker"
        write_running(run, me.model_copy(update={"pid": process.pid, "start": start} | change))
        assert run.read_state().state == "failed"
        (run.path / "control.json").write_text(json.dumps({"save": False, "at": time.time() - DAY_S}))
        make_supervisor(workspace).step()
        assert run.read_state_file().state == "cancelled"


@pytest.mark.parametrize("place", [1, None])
def test_after_a_restart_of_the_computer_every_reader_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, place: int | None
) -> None:
    """state.json still says running, by a process of another boot; a look at the runs writes the end down."""
    run = make_run(workspace)
    write_running(run, ProcessIdentity.of_this_process().model_copy(update={"boot": "of yesterday"}), place)
    monkeypatch.setattr(supervisor, "_ensure_supervisor", lambda workspace: make_supervisor(workspace)._adopt(
        {run: run.read_state_file()}))  # fmt: skip
    [status] = poll(workspace, {})
    assert (status.state, status.lost) == ("failed", True)
    assert "the computer was restarted" in str(status.error) and "resume the run" in str(status.error)
    assert run.read_state_file().state == "failed", "so that other machines, which cannot see the process, know"
    assert not poll(workspace, {})[0].lost
    with Store.open(workspace, "a test") as store:
        assert store.value("SELECT state FROM run") == "failed"
    resume(run)
    assert run.read_state().state == "queued"


@pytest.mark.parametrize("off_s", [-1e9, -DAY_S, 60.0, DAY_S, 1e9])
def test_a_clock_that_jumps_ends_no_healthy_run(workspace: Workspace, tmp_path: Path, off_s: float) -> None:
    """Signs of life, starts and files lie in the future, or far in the past."""
    run = make_run(workspace)
    with bystander() as process:
        start = start_time(process.pid)
        assert start is not None
        write_running(run, ProcessIdentity.of_this_process().model_copy(update={"pid": process.pid, "start": start}))
        then = time.time() + off_s
        run.heartbeat_file.write_text(json.dumps({"at": then, "progress_at": then}))
        for path in run.path.iterdir():
            os.utime(path, (then, then))
        keeper = make_supervisor(workspace)
        for _ in range(2):
            assert keeper.step()
        assert run.read_state().state == "running"
        with pytest.raises(ConflictError, match="running"):
            resume(run)
        with pytest.raises(ConflictError):
            RunContext(run).start()
    assert run.read_state().state == "failed"
    assert (run.read_state().ended_at or utc_now()) <= utc_now()


def test_a_cancel_asked_for_before_the_clock_was_set_back_is_obeyed(workspace: Workspace, tmp_path: Path) -> None:
    run = make_run(workspace, until=str(tmp_path / "never"), obey="never")
    keeper = make_supervisor(workspace)
    keeper.step()
    wait_for(lambda: run.read_state().state == "running")
    (run.path / "control.json").write_text(json.dumps({"save": False, "at": time.time() + DAY_S}))
    keeper.step()
    assert keeper.children[run][0].wait() == -signal.SIGKILL
    keeper.step()
    assert run.read_state_file().state == "cancelled"


def test_a_frozen_worker_is_neither_dead_nor_started_twice(workspace: Workspace, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run, waiting = make_run(workspace, until=str(gate)), make_run(workspace)
    keeper = make_supervisor(workspace)
    keeper.step()
    wait_for(lambda: run.read_state().done == 3)
    process = keeper.children[run][0]
    os.kill(process.pid, signal.SIGSTOP)
    run.heartbeat_file.write_text(json.dumps({"at": time.time() - 3600}))
    again = make_supervisor(workspace)  # the first one was killed
    assert again.step()
    assert (run.read_state().state, run.read_state().responding) == ("running", False)
    assert waiting.read_state().state == "queued", "the slot is taken"
    with pytest.raises(ConflictError):
        resume(run)
    os.kill(process.pid, signal.SIGCONT)
    gate.touch()
    assert process.wait() == 0
    assert run.read_state().state == "finished"


def test_a_worker_that_died_after_its_manifest_is_not_repeated(workspace: Workspace) -> None:
    """Slurm starts a job's worker again whatever it has done: rows would come twice."""
    run = make_run(workspace)
    context = RunContext(run)
    context.start()
    context.emit("rejected_row", pd.DataFrame({"line": [1], "reason": ["x"], "text": ["y"]}))
    run.write_manifest("finished", utc_now())
    context._ended.set()
    os.close(context._claim)  # type: ignore[arg-type]
    gone = ProcessIdentity.of_this_process().model_copy(update={"start": 1.0})
    run.write_state(run.read_state_file().model_copy(update={"process": gone, "job": "17"}))
    with pytest.raises(ConflictError, match="is finished"):
        RunContext(run).start()
    assert (run.read_state_file().state, run.read_state_file().attempt) == ("finished", 1)


def test_a_stop_asked_of_a_dead_run_is_refused_with_its_end(workspace: Workspace) -> None:
    run = make_run(workspace)
    write_running(run, ProcessIdentity.of_this_process().model_copy(update={"start": 1.0}))
    for ask in (request_stop, cancel):
        with pytest.raises(ConflictError, match="has ended already"):
            ask(run)


# ---- damaged files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", LONG)
def test_damaged_output_is_named_and_never_taken_in(workspace: Workspace, tmp_path: Path, long: bool) -> None:
    """Parts cut short or with a changed bit, manifests of every kind of damage: all rows or none, and a sentence."""
    with Store.open(workspace, "a test") as store:
        insert_questions(store, 5)
        context = RunContext(create_run(workspace, "count", "count", {}, "ana", {}))
        context.start()
        for line in range(3):
            context.emit("rejected_row", pd.DataFrame({"line": [line], "reason": ["x"], "text": ["y" * 50]}))
        context.finish("finished")
    draw, refused = random.Random(SEED + 6), 0
    for number in range(POINTS[long]):
        hurt = Workspace(Path(shutil.copytree(workspace.root, tmp_path / str(number))))
        run = list_runs(hurt)[0]
        path = draw.choice([run.manifest_file, *(part.path for part in run.parts())])
        content = bytearray(path.read_bytes())
        if draw.random() < 0.5:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        status = run.read_state()
        assert status.state == "finished"
        try:
            with Store.open(hurt, "a test") as store:
                rows = store.frame("SELECT line FROM rejected_row WHERE run_id = ?", [run.run_id])["line"]
        except StorageError as error:
            refused += 1
            assert run.run_id in str(error) and "move" in str(error)
            shutil.move(run.path, tmp_path / f"aside-{number}")
            with Store.open(hurt, "a test") as store:
                assert store.value("SELECT count(*) FROM question") == 5
                assert store.value("SELECT count(*) FROM rejected_row") == 0
        else:
            assert sorted(rows) == [0, 1, 2], "a bit that says nothing about rows"
        shutil.rmtree(hurt.root)
    assert refused
    report("damaged parts and manifests", {"points": POINTS[long], "refused": refused, "seed": SEED + 6})


def test_a_run_whose_manifest_is_damaged_fails_with_its_name(server: Server, workspace: Workspace) -> None:
    with Store.open(workspace, "a test") as store:
        insert_rows(store, "count", rejected_row=pd.DataFrame({"line": [1], "reason": ["x"], "text": ["y"]}))
    [run] = list_runs(workspace)
    run.write_state(StateFile(state="queued", attempt=1))
    run.manifest_file.write_text("{")
    assert work(server, run) == 2
    status = run.read_state()
    assert status.state == "failed" and "manifest.json is damaged" in str(status.error)
    with Store.open(workspace, "a test") as store:
        assert store.value("SELECT count(*) FROM rejected_row") == 1
        assert fetch_labels(store).empty
