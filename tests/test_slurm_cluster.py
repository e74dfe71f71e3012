"""Real jobs on a real Slurm (see `slurm_cluster`): waiting, cancelling, going on after whatever ends a job early."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metamoe_backend.jobs import slurm, supervisor
from metamoe_backend.jobs.run_folder import RunFolder, create_run, create_shards
from metamoe_backend.jobs.supervisor import cancel, poll, request_stop, resume, submit
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import WORKER_COMMAND, wait_for
from tests.slurm_cluster import Cluster, run_cluster
from tests.test_slurm import write_profile
from tests.tiny_models import make_tiny_base
from tests.two_processes import assert_same_adapter, find_members, make_config, make_run, start

pytestmark = pytest.mark.slurm
REAL_WORKER_COMMAND = supervisor.WORKER_COMMAND
PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    with run_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", running_cluster.environment["SLURM_CONF"])
    monkeypatch.setattr(supervisor, "WORKER_COMMAND", WORKER_COMMAND)
    monkeypatch.setattr(slurm, "ASK_EVERY_S", 0.5)
    monkeypatch.setattr(slurm, "AWAY_S", 1.0)
    write_profile(workspace, "gpu", "time_min = 30\ngpus = 1\nconstraint = 'fast'\nsetup = ['echo set up here']")
    yield running_cluster
    running_cluster.clear()


def submit_run(workspace: Workspace, profile: str = "gpu", **config: Any) -> RunFolder:
    run = create_run(workspace, "count", "a test", {"device": "auto", **config}, "ana", {})
    submit(workspace, run, profile)
    return run


def submit_waiting(workspace: Workspace, gate: Path, **config: Any) -> RunFolder:
    """A run that works until the file `gate` is there."""
    run = submit_run(workspace, until=str(gate), **config)
    wait_for(lambda: run.read_state().done == 3)
    return run


def state(run: RunFolder) -> str:
    return {status.run_id: status.state for status in poll(run.workspace)}[run.run_id]


def wait_until(run: RunFolder, wanted: str) -> None:
    wait_for(lambda: state(run) in (wanted, "failed"))
    assert state(run) == wanted, f"{run.read_state().error}\n{run.read_log()}"


def wait_for_attempt(run: RunFolder, attempt: int) -> None:
    wait_for(lambda: state(run) == "failed" or run.read_state_file().attempt == attempt)
    assert run.read_state_file().attempt == attempt, f"{run.read_state().error}\n{run.read_log()}"


def job(run: RunFolder) -> str | None:
    return run.read_state_file().job


def test_two_gpus_work_at_once_and_a_third_run_waits(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    runs = [submit_waiting(workspace, tmp_path / "go") for _ in range(2)]
    third = submit_run(workspace)
    wait_for(lambda: cluster.word(job(third)) == "PENDING")
    assert [state(run) for run in (*runs, third)] == ["running", "running", "queued"]
    (tmp_path / "go").touch()
    for run in (*runs, third):
        wait_until(run, "finished")
    import pandas as pd

    seen = [pd.read_parquet(run.parts()[0].path)["text"][0].split()[0] for run in runs]
    assert sorted(seen) == ["0", "1"] and {run.read_state().device for run in runs} == {"cuda:0"}
    assert "set up here" in third.read_log()


def test_a_waiting_and_a_running_run_are_cancelled(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    running = [submit_waiting(workspace, tmp_path / "never") for _ in range(2)]
    waiting = submit_run(workspace)
    cancel(waiting)
    assert state(waiting) == "cancelled"
    wait_for(lambda: cluster.word(job(waiting)) == "CANCELLED")
    cancel(running[0])
    wait_until(running[0], "cancelled")
    assert state(running[1]) == "running" and running[0].read_manifest() is None


def test_a_run_that_does_not_obey_a_cancel_is_killed(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(workspace, tmp_path / "never", obey="never")
    cancel(run)
    wait_until(run, "cancelled")
    assert cluster.word(job(run)) == "CANCELLED"


def test_stop_and_save_then_resume_as_another_job(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(workspace, tmp_path / "go", obey="after saving")
    first = job(run)
    request_stop(run)
    wait_until(run, "stopped")
    wait_for(lambda: cluster.word(first) == "COMPLETED")
    (tmp_path / "go").touch()
    resume(run)
    wait_until(run, "finished")
    assert job(run) != first and run.read_state_file().attempt == 2


def test_when_the_time_is_up_the_run_saves_and_goes_on(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    write_profile(workspace, "short", "time_min = 2\nsave_s = 30\ngpus = 1")
    run = submit_run(workspace, "short", until=str(tmp_path / "go"), obey="after saving")
    wait_for_attempt(run, 2)
    assert (run.checkpoints / "saved").exists() and len(run.parts()) >= 3
    (tmp_path / "go").touch()
    wait_until(run, "finished")
    assert cluster.ask("scontrol", "show", "job", str(job(run))).count("Restarts=1") == 1
    assert "what is done is saved" in run.read_log()


def test_a_preempted_run_saves_and_goes_on(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    write_profile(workspace, "urgent", "partition = 'high'\ntime_min = 30\ngpus = 2")
    run = submit_waiting(workspace, tmp_path / "go", obey="after saving")
    urgent = submit_run(workspace, "urgent", until=str(tmp_path / "urgent"))
    wait_until(urgent, "running")
    assert (run.checkpoints / "saved").exists()
    wait_until(run, "queued")
    (tmp_path / "urgent").touch()
    (tmp_path / "go").touch()
    wait_until(run, "finished")
    assert run.read_state_file().attempt == 2 and state(urgent) == "finished"


def test_shards_are_an_array_whose_tasks_end_and_go_on_by_themselves(
    cluster: Cluster, workspace: Workspace, tmp_path: Path
) -> None:
    config = {"device": "auto", "until": str(tmp_path / "go"), "obey": "after saving"}
    runs = create_shards(workspace, "count", "a test", config, "ana", [{}] * 2)
    supervisor.submit_shards(workspace, runs, "gpu")
    for run in runs:
        wait_for(lambda run=run: run.read_state().done == 3)
    array = str(job(runs[0])).partition("_")[0]
    assert [job(run) for run in runs] == [f"{array}_1", f"{array}_2"]
    assert [state(run) for run in runs] == ["running", "running"] and "set up here" in runs[1].read_log()
    os.kill(runs[0].read_state().pid or 0, signal.SIGTERM)  # as Slurm does to make room: it is queued again
    wait_for_attempt(runs[0], 2)
    os.kill(runs[1].read_state().pid or 0, signal.SIGKILL)
    wait_for(lambda: state(runs[1]) == "failed")
    (tmp_path / "go").touch()
    wait_until(runs[0], "finished")
    resume(runs[1])
    wait_until(runs[1], "finished")
    assert cluster.ask("scontrol", "show", "job", str(job(runs[0]))).count("Restarts=1") == 1
    assert [len(run.parts()) for run in runs] == [6, 3], "what the first handed over before it made room is kept"


def test_a_killed_worker_is_written_down_and_resumed(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(workspace, tmp_path / "go")
    os.kill(run.read_state().pid or 0, signal.SIGKILL)
    wait_for(lambda: state(run) == "failed")
    assert f"Slurm's job {job(run)} is over (failed)" in (run.read_state().error or "")
    (tmp_path / "go").touch()
    resume(run)
    wait_until(run, "finished")
    assert len(run.parts()) == 3


def test_a_job_that_was_lost_and_queued_again_goes_on(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(workspace, tmp_path / "go", obey="never")
    cluster.ask("scontrol", "requeue", str(job(run)))  # it does not obey: killed without a word, as by a lost node
    wait_until(run, "queued")
    (tmp_path / "go").touch()
    wait_until(run, "finished")
    assert run.read_state_file().attempt == 2 and len(run.parts()) == 3


def test_a_job_cancelled_behind_our_back_can_be_resumed(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(workspace, tmp_path / "go", obey="after saving")
    cluster.ask("scancel", str(job(run)))
    wait_for(lambda: state(run) == "failed")
    assert f"Slurm's job {job(run)} is over (cancelled)" in (run.read_state().error or "")
    assert (run.checkpoints / "saved").exists()
    (tmp_path / "go").touch()
    resume(run)
    wait_until(run, "finished")


def test_a_killed_controller_loses_nothing(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    running = [submit_waiting(workspace, tmp_path / "go") for _ in range(2)]
    waiting = submit_run(workspace)
    cluster.wait_until_saved(job(waiting))
    cluster.kill_controller()
    assert [state(run) for run in (*running, waiting)] == ["running", "running", "queued"]
    cluster.start_controller()
    assert [state(run) for run in (*running, waiting)] == ["running", "running", "queued"]
    (tmp_path / "go").touch()
    for run in (*running, waiting):
        wait_until(run, "finished")
        assert run.read_state_file().attempt == 1


def test_runs_outlive_the_dashboard_that_asked_for_them(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    """A process submits, looks on and is killed; another one finds its runs as they stand."""
    script = f"""
import sys, time
from pathlib import Path
from metamoe_backend.jobs import supervisor
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import WORKER_COMMAND
supervisor.WORKER_COMMAND = WORKER_COMMAND
workspace = Workspace(Path({str(workspace.root)!r}))
for _ in range(3):
    run = create_run(workspace, "count", "a test", {{"until": {str(tmp_path / "go")!r}}}, "ana", {{}})
    supervisor.submit(workspace, run, "gpu")
while True:
    print([status.state for status in supervisor.poll(workspace)].count("running"), flush=True)
    time.sleep(0.2)
"""
    asking = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    assert any(line == "2\n" for line in asking.stdout)
    asking.kill()
    asking.wait()
    asking.stdout.close()
    statuses = poll(workspace)
    assert sorted(status.state for status in statuses) == ["queued", "running", "running"]
    (tmp_path / "go").touch()
    wait_for(lambda: [status.state for status in poll(workspace)] == ["finished"] * 3)


# ---- several nodes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def two_nodes(cluster: Cluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, for real stages, and a profile of both its nodes."""
    monkeypatch.setattr(supervisor, "WORKER_COMMAND", REAL_WORKER_COMMAND)
    write_profile(workspace, "pair", "partition = 'both'\nnodes = 2\ncpus = 1\ntime_min = 30")
    return cluster


def train(workspace: Workspace, base_folder: Path, profile: str | None, **optim: Any) -> RunFolder:
    """A training by two processes on a cluster, or the same by one process in place, which is over."""
    config = make_config(base_folder, "alone" if profile is None else "pair", 1 if profile is None else 2, **optim)
    run = make_run(workspace, config)
    if profile is None:
        assert start(run).wait() == 0, run.read_log()
    else:
        submit(workspace, run, profile)
    return run


def test_two_nodes_train_the_adapter_of_one_process(
    two_nodes: Cluster, workspace: Workspace, base_folder: Path
) -> None:
    train(workspace, base_folder, None)
    run = train(workspace, base_folder, "pair")
    wait_until(run, "finished")
    assert_same_adapter(workspace, "pair", "alone")
    host = socket.gethostname().partition(".")[0]
    log = run.read_log()
    assert 'srun accelerate launch --multi_gpu --num_machines 2 --num_processes 2 --machine_rank "$SLURM_NODEID"' in log
    assert f"--main_process_ip {host} --main_process_port" in log and "Traceback" not in log
    for node in (host, f"{host}-2"):
        assert f"launch task StepId={job(run)}.0" in (two_nodes.folder / f"slurmd-{node}.log").read_text()


def test_two_nodes_make_room_and_go_on_and_publish_once(
    two_nodes: Cluster, workspace: Workspace, base_folder: Path
) -> None:
    run = train(workspace, base_folder, "pair", steps=100_000, save_every=50)
    wait_until_trained(run, attempt=1)
    two_nodes.ask("scancel", "--batch", "--signal=USR2", str(job(run)))  # as --signal=B:USR2 does when the time is up
    wait_until_trained(run, attempt=2)
    assert "what is done is saved" in run.read_log()
    two_nodes.ask("scancel", "--full", "--signal=TERM", str(job(run)))  # to all on all nodes: srun ends them at once
    wait_until_trained(run, attempt=3)
    assert "Slurm has ended the processes on all nodes" in run.read_log()
    request_stop(run)
    wait_until(run, "stopped")
    assert run.read_log().count("Going on from checkpoint-") == 2
    assert [path.name for path in workspace.adapters.iterdir()] == ["pair"]


def wait_until_trained(run: RunFolder, attempt: int) -> None:
    """Until that attempt has saved a checkpoint of its own, or found one, and trained on."""
    wait_for_attempt(run, attempt)
    wait_for(lambda: state(run) == "failed" or (run.read_state().done or 0) > 50)
    assert state(run) == "running", f"{run.read_state().error}\n{run.read_log()}"


def test_a_killed_process_on_the_other_node_ends_the_run_in_a_sentence(
    two_nodes: Cluster, workspace: Workspace, base_folder: Path
) -> None:
    run = train(workspace, base_folder, "pair", steps=100_000)
    wait_for(lambda: state(run) == "failed" or (run.read_state().done or 0) >= 3)
    assert state(run) == "running", run.read_log()
    members = find_members(run)
    members[1].kill()
    wait_for(lambda: state(run) == "failed")
    assert (run.read_state().error or "").startswith("One of 2 processes ended before its time; read the log")
    wait_for(lambda: not any(member.is_running() for member in members))
