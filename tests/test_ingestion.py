"""What runs produced is taken in once, and again after a resume; a run that stands as known is not written."""

import pandas as pd
import pytest

from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_finished_runs, ingest_run
from metamoe_backend.workspace import Workspace


def attempt(run: RunFolder, value: float) -> RunContext:
    """One more attempt at a run, which has reported one metric."""
    context = RunContext(run)
    context.start()
    context.emit("metric", pd.DataFrame({"step": [int(value)], "name": ["loss"], "value": [value]}))
    return context


def make_queued_again(run: RunFolder) -> None:
    """What `supervisor.resume` writes, without anybody who starts the run."""
    run.write_state(run.read_state_file().model_copy(update={"state": "queued", "ended_at": None}))


def state_of(store: Store, run: RunFolder) -> str:
    return store.value("SELECT state FROM run WHERE run_id = ?", [run.run_id])


@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_a_run_that_went_on_after_a_stop_or_a_failure_is_taken_in_again(
    workspace: Workspace, store: Store, end: str
) -> None:
    run = create_run(workspace, "train", "arith", {}, "ana", {})
    first = attempt(run, 1.0)
    first.finish("stopped") if end == "stopped" else first.fail(RuntimeError("power cut"))
    assert ingest_finished_runs(store) == [run.run_id] and state_of(store, run) == end
    make_queued_again(run)
    assert ingest_finished_runs(store) == [] and state_of(store, run) == "queued"
    second = attempt(run, 2.0)
    assert ingest_finished_runs(store) == [] and state_of(store, run) == "running"
    second.finish("finished")
    assert ingest_finished_runs(store) == [run.run_id] and state_of(store, run) == "finished"
    steps = store.frame("SELECT step FROM metric WHERE run_id = ? ORDER BY step", [run.run_id])["step"].tolist()
    assert steps == ([1, 2] if end == "stopped" else [2]), "what a failed attempt emitted is not handed over"
    assert ingest_finished_runs(store) == []


def test_a_second_stop_that_nobody_saw_between_is_taken_in(workspace: Workspace, store: Store) -> None:
    run = create_run(workspace, "train", "arith", {}, "ana", {})
    attempt(run, 1.0).finish("stopped")
    ingest_finished_runs(store)
    make_queued_again(run)
    attempt(run, 2.0).finish("stopped")
    assert ingest_finished_runs(store) == [run.run_id]
    assert store.value("SELECT count(*) FROM metric") == 2


def make_system(name: str, sha256: str) -> pd.DataFrame:
    row = {
        "system": name, "kind": "expert", "base": "tiny", "path": f"adapters/{name}", "experts": [], "settings": "{}",
        "sha256": sha256, "created_at": pd.Timestamp("2026-11-21"),
    }  # fmt: skip
    return pd.DataFrame([row])


def test_a_resumed_run_replaces_its_own_system_and_nobody_elses(workspace: Workspace, store: Store) -> None:
    run, other = (create_run(workspace, "train", "arith", {}, "ana", {}) for _ in range(2))
    for each, sha256 in ((run, "early"), (other, "late")):
        context = attempt(each, 1.0)
        context.emit("system", make_system("arith", sha256))
        context.finish("stopped")
    ingest_finished_runs(store)
    assert store.frame("SELECT sha256 FROM system")["sha256"].tolist() == ["early"], "the first run's name is its own"
    for each, sha256 in ((run, "whole"), (other, "later")):
        make_queued_again(each)
        context = attempt(each, 2.0)
        context.emit("system", make_system("arith", sha256))
        context.finish("finished")
    assert set(ingest_finished_runs(store)) == {run.run_id, other.run_id}
    assert store.frame("SELECT sha256, run_id FROM system").to_numpy().tolist() == [["whole", run.run_id]]


def test_looking_again_writes_nothing_and_leaves_ended_runs_alone(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [create_run(workspace, "train", f"arith-{number}", {}, "ana", {}) for number in range(4)]
    for run, end in zip(runs, ("finished", "stopped", None, "cancelled"), strict=True):
        context = attempt(run, 1.0)
        if end:
            context.finish(end)
    assert len(ingest_finished_runs(store)) == 3
    version, read = store.version, []
    original = RunFolder.read_state
    monkeypatch.setattr(RunFolder, "read_state", lambda run: read.append(run.run_id) or original(run))
    assert ingest_finished_runs(store) == []
    assert store.version == version, "pages keep what they have read while a run goes on"
    assert read == [runs[1].run_id, runs[2].run_id], "finished and cancelled runs are not even opened"


def test_a_run_is_ingested_once_even_if_asked_twice(workspace: Workspace, store: Store) -> None:
    run = create_run(workspace, "train", "arith", {}, "ana", {})
    attempt(run, 1.0).finish("finished")
    assert [ingest_run(store, run), ingest_run(store, run)] == ["finished", "finished"]
    assert store.value("SELECT count(*) FROM metric") == 1
