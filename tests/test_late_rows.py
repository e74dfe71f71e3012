"""Runs that wait for others: when they start, what they read, and what becomes of them when the others do not finish."""

import errno
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from metamoe_backend import late_rows
from metamoe_backend.config import EvaluateConfig
from metamoe_backend.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    DiskFullError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from metamoe_backend.jobs.alerts import AlertSettings, find_alerts
from metamoe_backend.jobs.devices import Device
from metamoe_backend.jobs.records import StateFile
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, create_run, list_runs, utc_now
from metamoe_backend.jobs.supervisor import (
    Supervisor,
    cancel,
    move_in_queue,
    poll,
    release,
    request_stop,
    resume,
    retry,
    submit,
)
from metamoe_backend.jobs.waiting import Wait, find_obstacle, find_waits
from metamoe_backend.launch import find_makers, launch
from metamoe_backend.store.connection import THE_QUEUE, Store
from metamoe_backend.verbs import common
from metamoe_backend.workspace import Workspace
from pages.shared.run_words import reason_text
from tests.conftest import insert_questions, insert_rows, insert_system
from tests.fake_jobs import STAGES, find_processes, wait_for


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody works on the queue."""
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)


def submit_count(workspace: Workspace, **config: Any) -> RunFolder:
    run = create_run(workspace, "count", "first", config, "ana", {})
    submit(workspace, run)
    return run


def submit_follow(workspace: Workspace, *others: RunFolder, **config: Any) -> RunFolder:
    after = [other.run_id for other in others]
    run = create_run(workspace, "follow", "second", config, "ana", None, after=after)
    submit(workspace, run)
    return run


def wait_until(run: RunFolder, wanted: str) -> None:
    wait_for(lambda: run.read_state().state not in ("queued", "running") or run.read_state().state == wanted)
    assert run.read_state().state == wanted, run.read_state().error


def wait_until_it_leaves(workspace: Workspace) -> None:
    wait_for(lambda: not find_processes(workspace, "supervisor"))


# ---- in the queue -------------------------------------------------------------------------------------------------


def test_a_run_starts_when_the_others_have_finished_and_reads_what_they_made(queue: Workspace, tmp_path: Path) -> None:
    first = submit_count(queue, until=str(tmp_path / "go"))
    second = submit_follow(queue, first)
    third = submit_follow(queue, second, first)
    wait_for(lambda: first.read_state().done == 3)
    assert [find_waits(poll(queue))[run.run_id] for run in (second, third)] == ["runs", "runs"]
    assert not second.is_prepared
    (tmp_path / "go").touch()
    for run in (first, second, third):
        wait_until(run, "finished")
    wait_until_it_leaves(queue)
    with Store.open(queue) as store:
        lines = store.frame("SELECT run_id, line FROM rejected_row ORDER BY run_id, line")
    counted = lines.groupby("run_id")["line"].agg(list)
    assert counted[second.run_id] == [4, 5, 6]  # three rows were there
    assert counted[third.run_id] == [7, 8, 9]  # six


def test_the_open_dashboard_reads_the_rows_where_it_holds_the_database(
    queue: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_rows, "LOOK_S", 0.05)
    with Store.open(queue, "the dashboard") as store:
        thread = late_rows.watch_for_notes(store, STAGES)
        first = submit_count(queue)
        second = submit_follow(queue, first)
        wait_until(second, "finished")
        assert store.value("SELECT count(*) FROM rejected_row WHERE run_id = ?", [first.run_id]) == 3
    thread.join()
    assert "held by the dashboard" in (queue.runs / ".supervisor.log").read_text()


def test_a_run_sleeps_while_another_has_failed_and_goes_on_when_that_is_resumed(
    queue: Workspace, tmp_path: Path
) -> None:
    first = submit_count(queue, until=str(tmp_path / "go"))
    second = submit_follow(queue, first)
    wait_for(lambda: first.read_state().done == 3)
    request_stop(first)
    wait_until(first, "stopped")
    wait_until_it_leaves(queue)
    poll(queue)
    assert find_waits(poll(queue)) == {second.run_id: "person"}
    assert not find_processes(queue, "supervisor")
    (alert,) = find_alerts(poll(queue), AlertSettings(), utc_now())
    assert (alert.run_id, alert.alert) == (second.run_id, "queue-blocked")
    assert alert.sentence == "It waits for first, which was stopped: resume that run, or cancel this one."
    (tmp_path / "go").touch()
    resume(first)
    wait_until(second, "finished")


def test_a_run_fails_when_another_was_cancelled(queue: Workspace, tmp_path: Path) -> None:
    first = submit_count(queue, until=str(tmp_path / "go"))
    second = submit_follow(queue, first)
    wait_for(lambda: first.read_state().done == 3)
    cancel(first)
    wait_until(second, "failed")
    assert second.read_state().error == (
        f"It waited for {first.run_id}, which was cancelled or is gone; start it anew."
    )


def test_a_waiting_run_is_cancelled_at_once_and_does_not_hold_others_up(queue: Workspace, tmp_path: Path) -> None:
    first = submit_count(queue, until=str(tmp_path / "go"))
    wait_for(lambda: first.read_state().done == 3)
    second, third = submit_follow(queue, first), submit_count(queue)
    move_in_queue(second, None)
    cancel(second)
    assert second.read_state().state == "cancelled"
    (tmp_path / "go").touch()
    wait_until(third, "finished")
    assert second.read_state().state == "cancelled"


def test_a_command_says_what_it_waits_for(queue: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = submit_count(queue, until=str(tmp_path / "go"))
    second = submit_follow(queue, first)
    wait_for(lambda: first.read_state().done == 3)
    command = threading.Thread(target=common.wait_for, args=(second,))
    command.start()
    assert wait_for(lambda: capsys.readouterr().err) == "follow second: waits for count first (running)\n"
    (tmp_path / "go").touch()
    command.join()
    assert second.read_state().state == "finished"


def test_rows_that_cannot_be_read_fail_the_run_with_the_reason(queue: Workspace) -> None:
    first = submit_count(queue, steps=0)
    second = submit_follow(queue, first)
    wait_until(second, "failed")
    assert second.read_state().error == "Nothing has been counted yet; run `count`."
    again = submit_count(queue)
    wait_until(again, "finished")
    resume(second)
    wait_until(second, "finished")


def test_whoever_opens_the_workspace_waits_while_the_queue_reads_rows(workspace: Workspace) -> None:
    queue = Store.open(workspace, THE_QUEUE)
    threading.Timer(0.3, queue.close).start()
    with Store.open(workspace, "the command line"):
        assert queue.closed
        with pytest.raises(BusyError, match="is held by the command line"):
            Store.open(workspace, THE_QUEUE)


def test_the_dashboard_goes_on_looking_after_a_failure(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(late_rows, "LOOK_S", 0.01)
    looks: list[int] = []

    def fail_once(*_: object) -> None:
        looks.append(1)
        (workspace.runs / ".rows-wanted").unlink()
        if len(looks) == 1:
            raise StorageError("A part is damaged.")

    monkeypatch.setattr(late_rows, "prepare_waiting", fail_once)
    with Store.open(workspace) as store:
        thread = late_rows.watch_for_notes(store)
        for n in (1, 2):
            (workspace.runs / ".rows-wanted").touch()
            wait_for(lambda n=n: len(looks) == n)
    thread.join()
    assert "A part is damaged." in caplog.text


def test_an_unexpected_error_is_kept_in_state_and_log(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object) -> Any:
        raise KeyError("nobody thought of this")

    broken = {"follow": replace(STAGES["follow"], prepare=prepare)}
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)
    run = submit_follow(workspace)
    with Store.open(workspace) as store:
        assert late_rows.prepare_waiting(store, broken) == [run]
    assert run.read_state().error == "KeyError: 'nobody thought of this'"
    assert "Traceback" in run.read_log()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("full", [DiskFullError("The disk is full."), OSError(errno.ENOSPC, "No space left on device")])
def test_a_full_disk_fails_no_waiting_run(workspace: Workspace, caplog: pytest.LogCaptureFixture, full: Any) -> None:
    there_is_room: list[bool] = []

    def prepare(*_: object) -> Any:
        if not there_is_room:
            raise full
        return {}

    stages = {"follow": replace(STAGES["follow"], prepare=prepare)}
    runs = [submit_follow(workspace), submit_follow(workspace)]
    with Store.open(workspace) as store:
        assert late_rows.prepare_waiting(store, stages) == []
        assert [run.read_state().state for run in runs] == ["queued", "queued"]
        (said,) = caplog.messages
        assert said.startswith("The rows of waiting runs are read later: The disk ")
        there_is_room.append(True)
        assert len(late_rows.prepare_waiting(store, stages)) == 2
    assert all(run.is_prepared for run in runs)


def test_a_full_disk_or_a_command_that_holds_the_database_is_said_in_one_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(workspace):
        for _ in range(3):
            assert late_rows.main([str(workspace.root)], STAGES) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "is held by the command line" in said
    assert late_rows.main([str(workspace.root)], STAGES) == 0
    assert capsys.readouterr().out == "" and not (workspace.runs / ".rows-wanted").exists()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "open", fail)
    assert late_rows.main([str(workspace.root)], STAGES) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "is full, or a quota is used up" in said


def test_a_waiting_run_is_run_again_as_a_waiting_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)
    first = create_run(workspace, "count", "first", {}, "ana", {})
    run = submit_follow(workspace, first)
    cancel(run)
    again = retry(run)
    assert again.read_spec().after == [first.run_id]
    assert again.read_state().prepared is False


def test_a_waiting_run_with_a_profile_goes_to_slurm_when_its_rows_are_there(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)
    handed = []

    def take(run: RunFolder, state: StateFile, _: object) -> None:
        handed.append(run)
        run.write_state(state.model_copy(update={"job": "7"}))

    monkeypatch.setattr("metamoe_backend.jobs.slurm.submit", take)
    supervisor = Supervisor(workspace, [Device("cpu", "CPU")], ("no", "worker"))
    first = create_run(workspace, "count", "first", {}, "ana", {})
    run = create_run(workspace, "follow", "second", {}, "ana", None, after=[first.run_id])
    submit(workspace, run, "gpu")
    assert supervisor.step()
    status = run.read_state()
    assert (status.place, status.profile, status.job, handed) == (1, "gpu", None, [])
    release(run, {})
    assert supervisor.step()
    assert not supervisor.step()
    status = run.read_state()
    assert (status.place, status.profile, status.job, handed) == (None, "gpu", "7", [run])


def test_what_slurm_does_not_take_reads_as_failed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)
    run = create_run(workspace, "follow", "second", {}, "ana", None)
    submit(workspace, run, "gone")
    release(run, {})
    Supervisor(workspace, [Device("cpu", "CPU")]).step()
    assert run.read_state().state == "failed"
    assert "gone" in (run.read_state().error or "")


def test_a_waiting_run_is_offered_to_slurm_again_while_slurm_is_away(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)
    monkeypatch.setattr("metamoe_backend.jobs.slurm.AWAY_S", 0.0)
    away = [True]

    def take(run: RunFolder, state: StateFile, _: object) -> None:
        if away:
            raise UnavailableError("Slurm does not answer.")
        run.write_state(state.model_copy(update={"job": "7"}))

    monkeypatch.setattr("metamoe_backend.jobs.slurm.submit", take)
    supervisor = Supervisor(workspace, [Device("cpu", "CPU")], ("no", "worker"))
    run = create_run(workspace, "follow", "second", {}, "ana", None)
    submit(workspace, run, "gpu")
    release(run, {})
    assert supervisor.step()
    status = run.read_state()
    assert (status.state, status.job, status.waits_for) == ("queued", None, "Slurm does not answer.")
    (alert,) = find_alerts([status], AlertSettings(), utc_now())
    assert (alert.alert, alert.sentence) == ("queue-blocked", "Slurm does not answer.")
    assert "Slurm does not answer." in (reason_text(status) or "")
    away.clear()
    assert supervisor.step()
    status = run.read_state()
    assert (status.state, status.job, status.place, status.waits_for) == ("queued", "7", None, None)


# ---- how they stand -----------------------------------------------------------------------------------------------


def make_status(run_id: str, state: Any, after: tuple[str, ...] = ()) -> RunStatus:
    return RunStatus(
        run_id, "count", run_id, "ana", datetime(2026, 11, 1), state, after=after, prepared=not after, place=1
    )


@pytest.mark.parametrize(
    ("state", "wait"),
    [("finished", "rows"), ("queued", "runs"), ("running", "runs"), ("stopped", "person"), ("failed", "person"),
     ("cancelled", "never")],
)  # fmt: skip
def test_what_a_run_waits_for(state: Any, wait: Wait) -> None:
    one, two = make_status("1", state), make_status("2", "queued", ("1",))
    assert find_waits([two, one]) == {"2": wait}
    obstacle = find_obstacle(two, {"1": one, "2": two})
    assert obstacle == (None if state == "finished" else ("1", one))


def test_the_worst_of_several_counts_and_passes_on() -> None:
    statuses = [
        make_status("1", "finished"), make_status("2", "failed"), make_status("3", "running"),
        make_status("4", "queued", ("1", "2", "3")), make_status("5", "queued", ("4",)),
        make_status("6", "queued", ("3", "gone")),
    ]  # fmt: skip
    assert find_waits(statuses[::-1]) == {"4": "person", "5": "person", "6": "never"}
    by_id = {status.run_id: status for status in statuses}
    assert find_obstacle(by_id["4"], by_id) == ("2", by_id["2"])
    assert find_obstacle(by_id["6"], by_id) == ("gone", None)
    both = make_status("7", "queued", ("3", "4"))
    assert find_obstacle(both, by_id | {"7": both}) == ("4", by_id["4"]), "the one that waits for a failed one"


# ---- launching ----------------------------------------------------------------------------------------------------


def launch_training(store: Store, name: str) -> RunFolder:
    return launch(store, "train", {"name": name, "tasks": ["toy"], "base": "a/base"}, "ana")


def launch_moe(store: Store, *experts: str, after: Sequence[str] = (), **values: Any) -> RunFolder:
    wanted = {"name": "moe", "tasks": ["toy"], "mode": "token", "top_k": 1, "base": "a/base", "experts": list(experts)}
    return launch(store, "moe", wanted | values, "ana", after=after)


@pytest.mark.usefixtures("quiet")
def test_a_mixture_waits_for_its_experts_and_an_evaluation_for_the_mixture(store: Store) -> None:
    insert_questions(store, 4)
    arith, words = launch_training(store, "arith"), launch_training(store, "words")
    moe = launch_moe(store, "words", "arith")
    assert sorted(moe.read_spec().after) == [arith.run_id, words.run_id]
    assert not moe.is_prepared
    evaluation = launch(store, "evaluate", {"systems": ["base", "moe"], "tasks": ["toy"]}, "ana")
    assert evaluation.read_spec().after == [moe.run_id]


@pytest.mark.usefixtures("quiet")
def test_what_nobody_makes_is_said_and_no_run_is_left(store: Store) -> None:
    insert_questions(store, 4)
    launch_training(store, "arith")
    for after in ([], [insert_rows(store, "ingest")], [launch_training(store, "other").run_id]):
        with pytest.raises(NotFoundError, match="Expert 'wrods' does not exist"):
            launch_moe(store, "arith", "wrods", after=after)
    with pytest.raises(NotFoundError, match="System 'mio' does not exist"):
        launch(store, "evaluate", {"systems": ["arith", "mio"], "tasks": ["toy"]}, "ana")
    with pytest.raises(NotFoundError, match="Data selection 'gone' does not exist"):
        launch(store, "train", {"name": "words", "data": "gone", "start_from": "arith"}, "ana")
    launch_training(store, "words")
    with pytest.raises(NotFoundError, match="Task 'tyo' does not exist"):
        launch_moe(store, "arith", "words", tasks=["tyo"])
    assert [run.read_spec().stage for run in list_runs(store.workspace)].count("moe") == 0


@pytest.mark.usefixtures("quiet")
def test_names_that_another_run_makes_are_waited_for_whoever_is_refused(store: Store) -> None:
    insert_questions(store, 4)
    arith = launch_training(store, "arith")
    config = EvaluateConfig(systems=["arith", "wrods"], tasks=["toy"])
    assert [maker.run_id for maker in find_makers(store, config)] == [arith.run_id]


@pytest.mark.usefixtures("quiet")
def test_a_run_that_gets_another_name_is_found_by_that(store: Store) -> None:
    insert_questions(store, 4)
    insert_system(store, "arith")
    second = launch_training(store, "arith")
    evaluation = launch(store, "evaluate", {"systems": ["arith", "arith-2"], "tasks": ["toy"]}, "ana")
    assert evaluation.read_spec().after == [second.run_id]
    third = launch(store, "train", {"name": "arith", "tasks": ["toy"], "base": "a/base"}, "ana", after=[second.run_id])
    again = launch(store, "evaluate", {"systems": ["arith-2"], "tasks": ["toy"]}, "ana")
    assert sorted(again.read_spec().after) == [second.run_id, third.run_id], "its own name is not known yet"
    with pytest.raises(NotFoundError, match="System 'arith-9' does not exist"):
        launch(store, "evaluate", {"systems": ["arith-9"], "tasks": ["toy"]}, "ana")


@pytest.mark.usefixtures("quiet")
def test_the_steps_of_a_sequence_are_waited_for(store: Store) -> None:
    insert_questions(store, 4)
    insert_questions(store, 4, "other")
    values = {"name": "path", "order": ["toy", "other"], "base": "a/base"}
    first = launch(store, "sequence", values, "ana")
    assert launch(store, "evaluate", {"systems": ["path-2"], "tasks": ["toy"]}, "ana").read_spec().after == [
        first.run_id
    ]
    with pytest.raises(NotFoundError, match="System 'path-3' does not exist"):
        launch(store, "evaluate", {"systems": ["path-3"], "tasks": ["toy"]}, "ana")
    cancel(first)
    training = launch_training(store, "arith")
    later = launch(store, "sequence", values, "ana", after=[training.run_id])
    assert launch(store, "evaluate", {"systems": ["path-2"], "tasks": ["toy"]}, "ana").read_spec().after == [
        later.run_id
    ]


@pytest.mark.usefixtures("quiet")
def test_a_profile_too_small_for_a_waiting_run_is_said_at_once(store: Store) -> None:
    insert_questions(store, 4)
    store.workspace.profiles.mkdir()
    (store.workspace.profiles / "small.toml").write_text("gpus = 1")
    launch_training(store, "arith")
    values = {"name": "moe", "tasks": ["toy"], "mode": "token", "top_k": 1, "base": "a/base", "experts": ["arith"]}
    with pytest.raises(ConfigError, match="Profile small has gpus = 1, but the run wants 2"):
        launch(store, "moe", values | {"device": "cuda", "processes": 2}, "ana", "small")
    assert "moe" not in [run.read_spec().stage for run in list_runs(store.workspace)]


@pytest.mark.usefixtures("quiet")
def test_a_run_waits_for_the_runs_a_person_names(store: Store) -> None:
    insert_questions(store, 4)
    training = launch_training(store, "arith")
    values = {"method": "template", "tasks": ["toy"]}
    run = launch(store, "meta-questions", values, "ana", after=[training.run_id])
    assert run.read_state().prepared is False
    done = insert_rows(store, "ingest")
    assert launch(store, "meta-questions", values, "ana", after=[done]).is_prepared
    with pytest.raises(ConfigError, match="shards is 2, but a run that waits"):
        launch(store, "meta-questions", values | {"shards": 2}, "ana", after=[training.run_id])
    cancel(training)
    with pytest.raises(ConflictError, match="was cancelled and will not finish"):
        launch(store, "meta-questions", values, "ana", after=[training.run_id])
