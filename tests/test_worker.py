"""One worker at one run: a real process each time, that ends well, badly, or not by itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.jobs.supervisor import resume
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import SUPERVISOR_COMMAND, WORKER_COMMAND, wait_for

PROJECT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}


def make_run(workspace: Workspace, inputs: dict[str, pd.DataFrame] | None = None, **config: Any) -> RunFolder:
    return create_run(workspace, "count", "a test", config, "ana", inputs or {})


def start_worker(run: RunFolder, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*WORKER_COMMAND, str(run.path), *arguments], env=ENVIRONMENT, start_new_session=True)


def work(run: RunFolder, *arguments: str) -> int:
    return start_worker(run, *arguments).wait()


def start_waiting_worker(run: RunFolder) -> "subprocess.Popen[bytes]":
    """A worker that has counted and now waits."""
    process = start_worker(run)
    wait_for(lambda: run.read_state().done == 3)
    return process


def read_rows(run: RunFolder) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part.path) for part in run.parts()], ignore_index=True)


def test_a_run_that_goes_well(workspace: Workspace) -> None:
    run = make_run(workspace, {"questions": pd.DataFrame({"question_id": ["a", "b"]})}, then="print")
    assert work(run, "--device", "cpu") == 0
    status = run.read_state()
    assert (status.state, status.error, status.done, status.total, status.device) == ("finished", None, 3, 3, "cpu")
    assert status.started_at is not None and status.ended_at is not None and status.started_at <= status.ended_at
    manifest = run.read_manifest()
    assert manifest is not None and [part["rows"] for part in manifest["parts"]] == [1, 1, 1]
    assert read_rows(run)["line"].tolist() == [3, 4, 5]  # two rows of input, then counting
    assert set(read_rows(run)["run_id"]) == {run.run_id}
    assert run.read_progress()["value"].tolist() == [1, 1 / 2, 1 / 3]
    assert "printed by the stage" in run.read_log() and "printed by a program it started" in run.read_log()


def test_a_persons_mistake_is_one_sentence(workspace: Workspace) -> None:
    run = make_run(workspace, then="mistake")
    assert work(run) == 2
    status = run.read_state()
    assert (status.state, status.error) == ("failed", "Line 17 of questions.csv has no answer; fill it in.")
    assert "Traceback" not in run.read_log() and "Line 17" in run.read_log()
    assert run.read_manifest() is None


def test_a_bug_keeps_its_traceback_in_the_log(workspace: Workspace) -> None:
    run = make_run(workspace, then="bug")
    assert work(run) == 1
    assert run.read_state().state == "failed" and run.read_state().error == "KeyError: 'nobody thought of this'"
    assert "Traceback" in run.read_log() and "fake_jobs.py" in run.read_log()


@pytest.mark.parametrize(
    ("stage", "config", "sentence"),
    [("count", {"steps": "many"}, "steps: Input should be a valid integer"), ("stir", {}, "There is no stage 'stir'")],
)
def test_what_cannot_be_run_says_so(workspace: Workspace, stage: str, config: dict[str, Any], sentence: str) -> None:
    run = create_run(workspace, stage, "a test", config, "ana", {})
    assert work(run) == 2
    assert run.read_state().state == "failed" and sentence in (run.read_state().error or "")


def test_a_damaged_input_is_named(workspace: Workspace) -> None:
    run = make_run(workspace, {"questions": pd.DataFrame({"question_id": ["a"] * 100})})
    path = run.inputs / "questions.parquet"
    path.write_bytes(path.read_bytes()[:50])
    assert work(run) == 1
    assert f"{path} is damaged" in (run.read_state().error or "")


def test_a_killed_worker_reads_as_failed(workspace: Workspace) -> None:
    run = make_run(workspace, then="die")
    assert work(run) == -signal.SIGKILL
    status = run.read_state()
    assert status.state == "failed" and "worker is gone" in (status.error or "")
    assert status.ended_at is not None and run.read_manifest() is None


@pytest.mark.parametrize("obey", ["at once", "after saving"])
def test_stop_and_save_hands_over_what_there_is(workspace: Workspace, obey: str) -> None:
    run = make_run(workspace, until="never", obey=obey)
    process = start_waiting_worker(run)
    run.write_request(save=True)
    assert process.wait() == 0
    assert run.read_state().state == "stopped"
    assert (run.checkpoints / "saved").exists() == (obey == "after saving")
    manifest = run.read_manifest()
    assert manifest is not None and len(manifest["parts"]) == 3 and manifest["state"] == "stopped"


def test_sigterm_means_stop_and_save(workspace: Workspace) -> None:
    run = make_run(workspace, until="never", obey="after saving")
    process = start_waiting_worker(run)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert run.read_state().state == "stopped" and (run.checkpoints / "saved").exists()


def test_a_cancel_hands_over_nothing(workspace: Workspace) -> None:
    run = make_run(workspace, until="never", obey="after saving")
    process = start_waiting_worker(run)
    run.write_request(save=False)
    assert process.wait() == 0
    assert run.read_state().state == "cancelled"
    assert run.read_manifest() is None and not (run.checkpoints / "saved").exists()


def test_a_second_worker_leaves_a_run_alone(workspace: Workspace) -> None:
    run = make_run(workspace, until="never")
    process = start_waiting_worker(run)
    before = run.read_state_file()
    assert work(run) == 3
    assert run.read_state_file() == before and "Another process works on run" in run.read_log()
    run.write_request(save=True)
    assert process.wait() == 0
    assert work(run) == 3 and run.read_state().state == "stopped"


def test_a_killed_run_goes_on_in_its_own_folder(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor.SUPERVISOR_COMMAND", SUPERVISOR_COMMAND)
    run = make_run(workspace, until=str(tmp_path / "go"))
    process = start_waiting_worker(run)
    (run.checkpoints / "step-3").write_text("kept")
    process.kill()
    process.wait()
    assert len(run.parts()) == 3 and run.read_state().state == "failed"
    (tmp_path / "go").touch()
    resume(run)
    wait_for(lambda: run.read_state().state == "finished")
    assert len(run.parts()) == 3, "what the killed attempt emitted was not emitted twice"
    assert (run.checkpoints / "step-3").exists() and run.read_state_file().attempt == 2
    assert run.read_progress()["step"].tolist() == [1, 2, 3]


def test_the_real_worker_knows_the_stages(workspace: Workspace, tmp_path: Path) -> None:
    run = create_run(workspace, "ingest", "nothing", {"source": "no-such-file.csv"}, "ana", {})
    command = [sys.executable, "-P", "-m", "metamoe_backend.jobs.worker", str(run.path)]
    assert subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path).returncode == 2
    assert run.read_state().state == "failed" and "no-such-file.csv" in (run.read_state().error or "")
