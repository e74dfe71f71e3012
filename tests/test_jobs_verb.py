"""The verb jobs: the Jobs page's twin, with real supervisors and workers of a stage that only counts."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from metamoe_backend.jobs import supervisor
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.pipeline import STAGES
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs import jobs
from metamoe_backend.workspace import Workspace
from tests import fake_jobs
from tests.conftest import insert_questions, insert_rows
from tests.test_cli import Said, say, say_json
from tests.test_supervisor import submit_run, submit_waiting, wait_until


def ask(workspace: Workspace, *words: object) -> Said:
    return say(workspace.root, "jobs", *words)


def ask_json(workspace: Workspace, *words: object) -> dict[str, Any]:
    return say_json(workspace.root, "jobs", *words)


def part(run: RunFolder) -> str:
    """The four letters at the end of an id: what a person types."""
    return run.run_id[-4:]


def test_runs_are_listed_newest_first(queue: Workspace, tmp_path: Path) -> None:
    ended = submit_run(queue)
    wait_until(ended, "finished")
    running = submit_waiting(queue, tmp_path / "go")
    waiting = [submit_run(queue) for _ in range(2)]
    found = ask_json(queue)
    assert [run["run_id"] for run in found["runs"]] == [run.run_id for run in (*waiting[::-1], running, ended)]
    assert [run["state"] for run in found["runs"]] == ["queued", "queued", "running", "finished"]
    assert found["n"] == 4
    assert (found["runs"][2]["done"], found["runs"][2]["device"], found["runs"][2]["by"]) == (3, "cpu", "ana")
    queued = ask_json(queue, "--state", "queued", "--limit", 1)
    assert ([run["run_id"] for run in queued["runs"]], queued["n"]) == ([waiting[1].run_id], 2)
    told = ask(queue, "list", "--limit", 3)
    assert told.code == 0 and told.err == "3 of 4 runs; --limit shows more.\n"
    head, *rows = told.out.splitlines()
    assert head.split() == ["run", "state", "stage", "name", "where", "progress", "left", "by"]
    assert len(rows) == 3 and rows[2].split()[:3] == [running.run_id, "running", "count"]
    assert "cpu" in rows[2] and "3/3" in rows[2]
    (tmp_path / "go").touch()


def test_no_runs_are_no_mistake(queue: Workspace) -> None:
    assert ask_json(queue) == {"runs": [], "n": 0}
    assert ask(queue).out == "(no rows)\n"


def test_the_database_is_not_needed(queue: Workspace) -> None:
    run = submit_run(queue)
    with Store.open(queue, "the dashboard"):
        wait_until(run, "finished")
        assert ask_json(queue)["n"] == 1 and ask_json(queue, "show", part(run))["state"] == "finished"


def test_a_run_is_shown_with_its_settings_log_and_reason(queue: Workspace) -> None:
    run = submit_run(queue, steps=2, then="mistake")
    wait_until(run, "failed")
    found = ask_json(queue, "show", part(run))
    assert found["error"] == "Line 17 of questions.csv has no answer; fill it in."
    assert found["settings"] == {"steps": 2, "then": "mistake"} and found["metrics"] == {"loss": 0.5}
    assert found["made"] == {"rows": {}, "names": {}} and found["log"][-1].endswith(found["error"])
    assert ask_json(queue, "show", part(run), "--lines", 1)["log"] == found["log"][-1:]
    told = ask(queue, "show", run.run_id).out
    assert f"error     {found['error']}\n" in told and "  then = mistake\n" in told and "made      nothing yet" in told


def test_what_a_run_made_is_named(workspace: Workspace) -> None:
    with Store.open(workspace, "a test") as store:
        insert_questions(store, 3, task="sums")
        run_id = next(iter(workspace.runs.glob("2*"))).name
    found = ask_json(workspace, "show", run_id)
    assert found["made"] == {"rows": {"question": 3, "task": 1}, "names": {"task": ["sums"]}}
    assert "made      3 rows of question, 1 rows of task, task sums\n" in ask(workspace, "show", run_id).out


def test_the_command_of_a_run_is_shown(workspace: Workspace) -> None:
    config = STAGES["embed"].config(encoder="e5").model_dump(mode="json")  # type: ignore[call-arg]
    run = create_run(workspace, "embed", "e5", config, "ana", {})
    command = ask_json(workspace, "show", part(run))["command"]
    assert command == f"python -m metamoe_backend --workspace {workspace.root} embed --encoder e5"
    strange = create_run(workspace, "embed", "e5", config | {"speed": 3}, "ana", {})
    assert ask_json(workspace, "show", part(strange))["command"] is None


def test_a_run_is_stopped_and_resumed(queue: Workspace, tmp_path: Path) -> None:
    run = submit_waiting(queue, tmp_path / "go", obey="after saving")
    assert ask_json(queue, "stop", part(run))["runs"][0]["run_id"] == run.run_id
    wait_until(run, "stopped")
    (tmp_path / "go").touch()
    assert ask_json(queue, "resume", part(run))["runs"][0]["state"] in ("queued", "running", "finished")
    wait_until(run, "finished")
    assert run.read_state_file().attempt == 2
    refused = ask(queue, "resume", part(run)).sentence
    assert refused == f"Run {run.run_id} is finished; only a stopped or failed run can be resumed."


def test_runs_are_cancelled_and_moved(queue: Workspace, tmp_path: Path) -> None:
    running = submit_waiting(queue, tmp_path / "go")
    first, second, third = (submit_run(queue) for _ in range(3))
    assert ask(queue, "move", part(third), "--before", part(first)).err == f"Run {third.run_id}: moved.\n"
    assert [run.read_state().place for run in (third, first, second)] == [1, 2, 3]
    ask_json(queue, "move", part(third))
    assert [run.read_state().place for run in (first, second, third)] == [1, 2, 3]
    assert "has started or ended" in ask(queue, "move", part(running)).sentence
    cancelled = ask_json(queue, "cancel", part(second), part(running))
    assert [run["run_id"] for run in cancelled["runs"]] == [second.run_id, running.run_id]
    wait_until(running, "cancelled")
    assert second.read_state().state == "cancelled"
    again = ask(queue, "cancel", part(second), part(first), "--json")
    assert [run["run_id"] for run in again.json["runs"]] == [first.run_id], (
        "one that has ended does not keep the others"
    )
    assert len(again.json["refused"]) == 1 and "has ended already (cancelled)" in again.err
    assert ask(queue, "cancel", part(second), part(first)).code == 2


def test_a_run_is_run_again_in_a_folder_of_its_own(queue: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STAGES", fake_jobs.STAGES)
    run = create_run(queue, "count", "a test", {"steps": 2}, "ana", {"rows": pd.DataFrame({"a": [1, 2]})})
    supervisor.submit(queue, run)
    wait_until(run, "finished")
    (again,) = ask_json(queue, "retry", part(run))["runs"]
    assert again["run_id"] != run.run_id and again["name"] == run.read_spec().name
    wait_until(RunFolder(queue.runs / again["run_id"]), "finished")
    assert ask(queue, "retry", part(run)).err.startswith(f"Run {run.run_id}: queued once more as 2")


def test_a_run_that_came_without_its_rows_reads_the_workspace(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[RunFolder] = []
    monkeypatch.setattr("metamoe_backend.launch.submit", lambda workspace, run, profile: started.append(run))
    with Store.open(workspace, "a test") as store:
        insert_questions(store, 3)
        run_id = insert_rows(store, "embed")
    (again,) = ask_json(workspace, "retry", run_id, "--by", "ben")["runs"]
    assert [run.run_id for run in started] == [again["run_id"]] and again["by"] == "ben"
    assert len(started[0].read_inputs()["texts"]) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show"], "jobs show: name one run; `jobs` lists them, and a part of its id is enough."),
        (["stop"], "jobs stop: name one run"),
        (["show", "nothing"], "No run has 'nothing' in its id in workspace workspace; `jobs` lists the runs."),
        (["show", "2"], "'2' is part of 2 run ids (2"),
        (["list", "2"], "jobs list: it lists all runs; say `jobs show 2` for one."),
        (["stop", "2", "--before", "3"], "jobs stop: --before belongs to `jobs move`."),
        (["--limit", "0"], "jobs: --limit must be above 0"),
        (["--state", "asleep"], "argument --state: invalid choice: 'asleep'"),
        (["pause", "2"], "argument act: invalid choice: 'pause'"),
        (["retry", "never"], "There is no stage 'never'"),
        (["retry", "embed"], "has not ended; stop or cancel it before it is run again."),
    ],
)
def test_mistakes_are_one_sentence(workspace: Workspace, words: list[str], sentence: str) -> None:
    create_run(workspace, "embed", "waits", {}, "ana", {})
    create_run(workspace, "never", "strange", {}, "ana", {})
    assert sentence in ask(workspace, *words).sentence


def test_a_folder_that_is_no_workspace_is_named(tmp_path: Path) -> None:
    assert say(tmp_path, "jobs").sentence == f"There is no workspace in {tmp_path}; name its folder with --workspace."
