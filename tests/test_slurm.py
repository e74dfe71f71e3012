"""Runs on Slurm, with scripts in its programs' place: what is asked for, what its answers mean for a run."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError, UnavailableError, UserError
from metamoe_backend.jobs import slurm, supervisor
from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.jobs.profile import list_profiles, read_profile
from metamoe_backend.jobs.records import StateFile
from metamoe_backend.jobs.run_folder import RunFolder, create_run, create_shards, list_runs
from metamoe_backend.jobs.supervisor import cancel, poll, request_stop, resume, retry, submit
from metamoe_backend.workspace import Workspace
from tests import fake_slurm
from tests.fake_jobs import WORKER_COMMAND, wait_for

ELSEWHERE = ProcessIdentity.of_this_process().model_copy(update={"host": "gpu-node-7"})


class Cluster:
    """What the scripts find and leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self, program: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(program)]

    def say(self, run: RunFolder, word: str | None) -> None:
        """Slurm's word for a run's job; None: it has forgotten it."""
        job = self.folder / str(run.read_state_file().job)
        job.unlink() if word is None else job.write_text(word)

    def script(self, run: RunFolder) -> str:
        return Path((self.folder / f"{run.read_state_file().job}.script").read_text()).read_text()

    def start(self, run: RunFolder, **environment: str) -> "subprocess.Popen[bytes]":
        """Run the batch script, as a node would."""
        self.say(run, "RUNNING")
        job = str(run.read_state_file().job)
        with run.log_file.open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", self.script(run)], env={**os.environ, "SLURM_JOB_ID": job, **environment},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def cluster(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder)}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(supervisor, "WORKER_COMMAND", WORKER_COMMAND)
    monkeypatch.setattr(slurm, "ASK_EVERY_S", 0.0)
    monkeypatch.setattr(slurm, "AWAY_S", 0.0)
    write_profile(workspace, "long", "time_min = 600")
    return Cluster(folder)


def write_profile(workspace: Workspace, name: str, text: str) -> None:
    workspace.profiles.mkdir(exist_ok=True)
    (workspace.profiles / f"{name}.toml").write_text(text)


def submit_run(workspace: Workspace, profile: str = "long", **config: Any) -> RunFolder:
    run = create_run(workspace, "count", "a test", config, "ana", {})
    submit(workspace, run, profile)
    return run


def pretend_running(run: RunFolder, heard_s_ago: float) -> None:
    """As a worker on another machine leaves its files."""
    update = {"state": "running", "attempt": 1, "process": ELSEWHERE}
    run.write_state(run.read_state_file().model_copy(update=update))
    run.heartbeat_file.write_text(f'{{"at": {time.time() - heard_s_ago}}}')


def state(run: RunFolder) -> str:
    return {status.run_id: status.state for status in poll(run.workspace)}[run.run_id]


# ---- profiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partition = 'a b'", r"wrong.toml: partition: write one word without spaces"),
        ("time_min = 'long'", r"wrong.toml: time_min: .*integer.*\(found 'long'\)"),
        ("time_min = 3", r"wrong.toml: time_min: raise it, or lower save_s"),
        ("gpus = -1", r"wrong.toml: gpus: .*greater than or equal to 0 \(found '-1'\)"),
        ("tasks = 2", r"wrong.toml: tasks: Extra inputs are not permitted"),
        ("nodes = 0", r"wrong.toml: nodes: Input should be greater than or equal to 1"),
        ("account = ''", r"wrong.toml: account: write one word"),
        ("partition = gpu", r"wrong.toml is no TOML \(.*line 1.*\); mend it"),
    ],
)
def test_a_mistake_in_a_profile_is_one_sentence(workspace: Workspace, text: str, sentence: str) -> None:
    write_profile(workspace, "wrong", text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_profile(workspace, "wrong")
    assert "\n" not in str(caught.value)


def test_a_line_break_in_a_set_up_line_is_refused(workspace: Workspace) -> None:
    write_profile(workspace, "wrong", 'setup = ["module load cuda\\nrm x"]')
    with pytest.raises(ConfigError, match="setup.0: write each line of the shell as a text of its own"):
        read_profile(workspace, "wrong")


@pytest.mark.parametrize("name", ["none", "../profiles/long", ""])
def test_a_profile_that_is_not_there_is_named_with_those_that_are(workspace: Workspace, name: str) -> None:
    write_profile(workspace, "long", "")
    with pytest.raises(NotFoundError, match=r"There is no profile .* \(there are: long\); write .*/profiles/NAME.toml"):
        read_profile(workspace, name)
    assert list_profiles(workspace) == ["long"] and read_profile(workspace, "long").time_min == 60


# ---- submitting ---------------------------------------------------------------------------------------------------


def test_the_batch_script_asks_for_what_the_profile_says(workspace: Workspace, cluster: Cluster) -> None:
    write_profile(
        workspace, "big", 'partition="gpu"\ntime_min=90\ngpus=2\ncpus=8\nmemory_gb=64\nconstraint="a100|h100"\n'
        'account="moe"\nsetup=["module load cuda", "source ~/env.sh"]\nsave_s=300\nrequeues=5',
    )  # fmt: skip
    run = submit_run(workspace, "big", device="auto", processes=2)
    assert run.read_state_file() == StateFile(state="queued", profile="big", job="1")
    lines = cluster.script(run).splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    wanted = {
        "--partition=gpu", "--time=90", "--gpus-per-node=2", "--cpus-per-task=8", "--mem=64GB", "--account=moe",
        "--constraint='a100|h100'", "--signal=B:USR2@300", "--requeue", "--open-mode=append", "--nodes=1",
        f"--output={run.log_file}", f"--chdir={Path.cwd()}", f"--job-name=metamoe-{run.run_id}",
    }  # fmt: skip
    assert asked == wanted
    request = slurm.describe_request(slurm.read_profile(workspace, "big"), 2).splitlines()
    shown = {word.replace("a100|h100", "'a100|h100'") for word in shlex.split(request[0])[1:]}
    assert shown <= wanted and len(shown) == 10, "what a person is shown is what Slurm is asked for"
    assert request[1:3] == ["module load cuda", "source ~/env.sh"]
    launch = "accelerate launch --multi_gpu --num_machines 1 --num_processes 2 --machine_rank 0 --main_process_ip HOST"
    assert request[3].startswith(launch) and len(request) == 4
    assert "\n".join(request) in run.read_log()
    assert lines.index("module load cuda") + 1 == lines.index("source ~/env.sh")
    words = shlex.split(lines[-2] if lines[-1] == "" else lines[-1])
    assert words[-5:] == [str(run.path), "--device", "cuda:0,cuda:1", "--requeues", "5"] and words[0] == "exec"
    assert not any("pkl" in path.name for path in run.path.rglob("*")), "a command, no pickled function"


@pytest.mark.parametrize(
    ("gpus", "config", "device"),
    [
        (1, {}, "cpu"),
        (0, {"device": "auto"}, "cpu"),
        (2, {"device": "auto"}, "cuda:0"),
        (2, {"device": "cuda:1"}, "cuda:0"),
        (2, {"device": "cpu", "processes": 2}, "cpu"),
        (2, {"device": "auto", "processes": 3}, None),
        (0, {"device": "cuda"}, None),
    ],
)
def test_each_run_gets_the_devices_it_asks_for(gpus: int, config: dict[str, Any], device: str | None) -> None:
    profile = slurm.Profile(gpus=gpus)
    if device is not None:
        assert slurm.choose_device(config, profile, "big") == device
        return
    with pytest.raises(ConfigError, match=f"Profile big has gpus = {gpus}, but the run wants"):
        slurm.choose_device(config, profile, "big")


@pytest.mark.parametrize(
    ("gpus", "config", "expected"),
    [
        (0, {"device": "cpu", "processes": 4}, "cpu"),
        (2, {"device": "auto", "processes": 4}, "cuda:0,cuda:1"),
        (8, {"device": "cuda", "processes": 2}, "cuda:0"),
        (1, {"device": "auto", "processes": 4}, "Profile pair has gpus = 1 on each node, but the run wants 2; raise"),
        (
            2,
            {"device": "auto", "processes": 3},
            "Profile pair has nodes = 2, but the run has processes = 3, which cannot be",
        ),
        (
            2,
            {"device": "auto"},
            "Profile pair has nodes = 2, but the run has processes = 1, which cannot be spread over",
        ),
    ],
)
def test_nodes_share_the_processes_evenly(gpus: int, config: dict[str, Any], expected: str) -> None:
    profile = slurm.Profile(nodes=2, gpus=gpus)
    if not expected.startswith("Profile"):
        assert slurm.choose_device(config, profile, "pair") == expected
        return
    with pytest.raises(ConfigError, match=expected):
        slurm.choose_device(config, profile, "pair")


def test_several_nodes_are_asked_for_and_told_what_to_start(workspace: Workspace, cluster: Cluster) -> None:
    write_profile(workspace, "pair", "nodes = 2\ngpus = 2\ncpus = 8")
    run = submit_run(workspace, "pair", device="auto", processes=4)
    lines = cluster.script(run).splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=2"} <= set(lines)
    words = ["--device", "cuda:0,cuda:1", "--requeues", "20", "--nodes", "2"]
    assert shlex.split(next(line for line in lines if line.startswith("exec ")))[-6:] == words
    assert (
        'srun accelerate launch --multi_gpu --num_machines 2 --num_processes 4 --machine_rank "$SLURM_NODEID" '
        "--main_process_ip HOST --main_process_port PORT"
    ) in run.read_log()


def test_what_slurm_refuses_leaves_nothing_behind(workspace: Workspace, cluster: Cluster) -> None:
    (cluster.folder / "refuse").write_text("Batch job submission failed: Invalid account")
    with pytest.raises(UnavailableError, match="Slurm refuses .*Invalid account.*mend the profile"):
        submit_run(workspace)
    assert list_runs(workspace) == []


def test_without_slurm_one_sentence_says_so(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(workspace, "long", "")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="There is no Slurm on this computer") as caught:
        submit_run(workspace)
    assert isinstance(caught.value, UserError) and list_runs(workspace) == []


# ---- working ------------------------------------------------------------------------------------------------------


def test_the_batch_script_is_the_worker(workspace: Workspace, cluster: Cluster) -> None:
    write_profile(workspace, "talking", "setup = ['echo set up here']")
    run = submit_run(workspace, "talking", then="print")
    assert (state(run), run.read_state().profile) == ("queued", "talking")
    assert cluster.start(run).wait() == 0
    assert (state(run), run.read_state().device) == ("finished", "cpu")
    log = run.read_log()
    assert "set up here" in log and "printed by the stage" in log


@pytest.mark.parametrize("kindly", [signal.SIGUSR2, signal.SIGTERM])
def test_asked_to_make_room_it_saves_waits_and_goes_on(
    workspace: Workspace, cluster: Cluster, tmp_path: Path, kindly: signal.Signals
) -> None:
    run = submit_run(workspace, until=str(tmp_path / "go"), obey="after saving")
    process = cluster.start(run)
    wait_for(lambda: run.read_state().done == 3)
    process.send_signal(kindly)
    assert process.wait() == 0
    assert cluster.calls("scontrol") == ["scontrol requeue 1"]
    assert state(run) == "queued" and (run.checkpoints / "saved").exists() and len(run.parts()) == 3
    (tmp_path / "go").touch()
    assert cluster.start(run, SLURM_RESTART_COUNT="1").wait() == 0
    assert state(run) == "finished" and run.read_state_file().attempt == 2
    assert "what is done is saved" in run.read_log()


def test_what_was_restarted_often_enough_stays_stopped(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace, until="never", obey="after saving")
    process = cluster.start(run, SLURM_RESTART_COUNT="20")
    wait_for(lambda: run.read_state().done == 3)
    process.terminate()
    assert process.wait() == 0
    assert state(run) == "stopped" and not cluster.calls("scontrol")


def test_a_job_that_somebody_cancelled_is_not_queued_again(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace, until="never", obey="after saving")
    process = cluster.start(run)
    wait_for(lambda: run.read_state().done == 3)
    cluster.say(run, "COMPLETING")
    process.terminate()
    assert process.wait() == 0
    assert not cluster.calls("scontrol") and "Slurm is ending job 1 (completing)" in run.read_log()
    cluster.say(run, "CANCELLED")
    assert state(run) == "failed"


def test_what_slurm_does_not_queue_again_can_be_resumed(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace, until="never", obey="after saving")
    process = cluster.start(run)
    wait_for(lambda: run.read_state().done == 3)
    (cluster.folder / "away").touch()
    process.terminate()
    assert process.wait() == 0
    assert state(run) == "queued", "Slurm does not answer: nothing is known"
    (cluster.folder / "away").unlink()
    cluster.say(run, "COMPLETED")
    assert state(run) == "failed"
    assert (
        run.read_state().error
        == "Slurm's job 1 is over (completed), the run is not; read the log, then resume the run."
    )
    resume(run)
    assert (state(run), run.read_state().job, run.read_state().profile) == ("queued", "2", "long")


# ---- shards are one array -----------------------------------------------------------------------------------------


def submit_shards(workspace: Workspace, count: int, **config: Any) -> list[RunFolder]:
    runs = create_shards(workspace, "count", "a test", config, "ana", [{}] * count)
    supervisor.submit_shards(workspace, runs, "long")
    return runs


def start_task(cluster: Cluster, run: RunFolder, **environment: str) -> "subprocess.Popen[bytes]":
    """Run the array's batch script as one of its tasks, which has a number of its own beside."""
    array, _, task = str(run.read_state_file().job).partition("_")
    cluster.say(run, "RUNNING")
    script = Path((cluster.folder / f"{array}.script").read_text()).read_text()
    numbers = {"SLURM_JOB_ID": "97", "SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
    with run.log_file.open("ab") as log:
        return subprocess.Popen(["bash", "-c", script], env={**os.environ, **numbers, **environment}, stdout=log)


def test_shards_are_submitted_as_one_array(workspace: Workspace, cluster: Cluster) -> None:
    runs = submit_shards(workspace, 3)
    assert [run.read_state_file() for run in runs] == [
        StateFile(state="queued", profile="long", job=f"1_{task}") for task in (1, 2, 3)
    ]
    assert len(cluster.calls("sbatch")) == 1
    script = Path((cluster.folder / "1.script").read_text()).read_text()
    stem = str(runs[0].path).removesuffix("1of3")
    assert "#SBATCH --array=1-3\n" in script and f"#SBATCH --output={stem}%aof3/log.txt\n" in script
    for run in (runs[2], runs[0]):
        assert start_task(cluster, run).wait() == 0
        cluster.say(run, "COMPLETED")
    assert [state(run) for run in runs] == ["finished", "queued", "finished"]
    cluster.say(runs[1], "NODE_FAIL")
    assert [state(run) for run in runs] == ["finished", "failed", "finished"]
    resume(runs[1])
    assert (state(runs[1]), runs[1].read_state().job) == ("queued", "2"), "by itself"
    assert cluster.start(runs[1]).wait() == 0
    assert {state(run) for run in runs} == {"finished"}


def test_one_task_of_an_array_makes_room_and_goes_on(workspace: Workspace, cluster: Cluster, tmp_path: Path) -> None:
    runs = submit_shards(workspace, 2, until=str(tmp_path / "go"), obey="after saving")
    process = start_task(cluster, runs[1])
    wait_for(lambda: runs[1].read_state().done == 3)
    process.terminate()
    assert process.wait() == 0
    assert cluster.calls("scontrol") == ["scontrol requeue 1_2"] and state(runs[1]) == "queued"
    (tmp_path / "go").touch()
    assert start_task(cluster, runs[1], SLURM_RESTART_COUNT="1").wait() == 0
    cancel(runs[0])
    assert cluster.calls("scancel") == ["scancel 1_1"]
    assert [state(run) for run in runs] == ["cancelled", "finished"]


def test_an_array_that_slurm_refuses_leaves_nothing_behind(workspace: Workspace, cluster: Cluster) -> None:
    (cluster.folder / "refuse").write_text("Batch job submission failed: Invalid account")
    with pytest.raises(UnavailableError, match="Slurm refuses .*Invalid account"):
        submit_shards(workspace, 3)
    assert list_runs(workspace) == []


# ---- what Slurm's words mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard_s_ago", "word", "becomes"),
    [
        (1, "RUNNING", "running"),
        (1000, "RUNNING", "running"),
        (1000, "COMPLETING", "running"),
        (1, "NODE_FAIL", "running"),
        (1, None, "running"),
        (1000, "PENDING", "queued"),
        (1, "PENDING", "running"),
        (1000, "NODE_FAIL", "failed"),
        (1000, None, "failed"),
    ],
)
def test_a_run_elsewhere_is_judged_by_its_heartbeat_and_by_slurm(
    workspace: Workspace, cluster: Cluster, heard_s_ago: float, word: str | None, becomes: str
) -> None:
    run = submit_run(workspace)
    pretend_running(run, heard_s_ago)
    cluster.say(run, word)
    assert state(run) == becomes
    end = {"NODE_FAIL": "node fail", None: "forgotten"}.get(word)
    assert run.read_state().error == (
        None
        if becomes != "failed"
        else f"Slurm's job 1 is over ({end}), the run is not; read the log, then resume the run."
    )


def test_accounting_remembers_what_slurms_queue_has_forgotten(workspace: Workspace, cluster: Cluster) -> None:
    runs = [submit_run(workspace) for _ in range(2)]
    for run in runs:
        cluster.say(run, None)
    (cluster.folder / "accounting").write_text("1|CANCELLED by 1000\n")
    assert [state(run) for run in runs] == ["failed", "failed"]
    assert [(run.read_state().error or "").partition(",")[0] for run in runs] == [
        "Slurm's job 1 is over (cancelled)", "Slurm's job 2 is over (forgotten)"
    ]  # fmt: skip


def test_a_silent_run_is_not_dead_while_slurm_does_not_answer(workspace: Workspace, cluster: Cluster) -> None:
    run, waiting = submit_run(workspace), submit_run(workspace)
    pretend_running(run, 1000)
    (cluster.folder / "away").touch()
    assert (state(run), state(waiting)) == ("running", "queued")
    assert not run.read_state().responding


def test_a_run_killed_on_this_machine_is_left_to_slurm(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace, then="die")
    cluster.start(run).wait()
    assert state(run) == "running", "Slurm may queue it again"
    cluster.say(run, "PENDING")
    assert state(run) == "queued"
    cluster.start(run).wait()
    cluster.say(run, "FAILED")
    assert state(run) == "failed" and run.read_state_file().attempt == 2


def test_one_call_asks_about_all_and_seldom(
    workspace: Workspace, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "ASK_EVERY_S", 12.0)
    monkeypatch.setattr(slurm, "AWAY_S", 60.0)
    runs = [submit_run(workspace) for _ in range(3)]
    local = create_run(workspace, "count", "in place", {}, "ana", {})
    for _ in range(5):
        poll(workspace)
    assert cluster.calls("squeue") == ["squeue --noheader --array --states=all --format=%i|%T|%r --jobs=1,2,3"]
    old = time.time() - 13
    os.utime(workspace.runs / ".slurm-asked", (old, old))
    cancel(runs[1])
    poll(workspace)
    assert len(cluster.calls("squeue")) == 2 and cluster.calls("squeue")[1].endswith("--jobs=1,3")
    assert local.read_state().state == "queued"
    (cluster.folder / "away").touch()
    for _ in range(2):
        old -= 1
        os.utime(workspace.runs / ".slurm-asked", (old, old))
        poll(workspace)
        poll(workspace)
    assert len(cluster.calls("squeue")) == 4


# ---- stopping -----------------------------------------------------------------------------------------------------


def test_a_queued_run_leaves_slurms_queue(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace)
    cancel(run)
    assert state(run) == "cancelled" and cluster.calls("scancel") == ["scancel 1"]
    assert cluster.start(run).wait() == 3, "a job that starts all the same leaves the run alone"
    with pytest.raises(ConflictError, match="ended already"):
        cancel(run)


def test_a_job_slurm_has_forgotten_can_be_cancelled(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace)
    cluster.say(run, None)
    cancel(run)
    assert state(run) == "cancelled"


@pytest.mark.parametrize(("act", "end", "told"), [(cancel, "cancelled", 1), (request_stop, "stopped", 0)])
def test_a_running_run_obeys(
    workspace: Workspace, cluster: Cluster, act: Callable[[RunFolder], None], end: str, told: int
) -> None:
    run = submit_run(workspace, until="never", obey="after saving")
    process = cluster.start(run)
    wait_for(lambda: run.read_state().done == 3)
    act(run)
    assert process.wait() == 0
    assert state(run) == end and len(cluster.calls("scancel")) == told and not cluster.calls("scontrol")


def test_a_cancelled_run_that_was_killed_is_cancelled(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace)
    pretend_running(run, 1)
    cancel(run)
    assert state(run) == "running" and run.read_state().stopping == "cancel"
    pretend_running(run, 1000)
    assert state(run) == "cancelled"


def test_a_run_starts_again_where_it_was(workspace: Workspace, cluster: Cluster) -> None:
    run = submit_run(workspace)
    cancel(run)
    again = retry(run)
    assert again.read_state_file() == StateFile(state="queued", profile="long", job="2")
