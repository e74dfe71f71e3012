"""The run folder: what lies in it, and what is read off it when things went wrong."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamoe_backend.config import NAME_PATTERN, TrainConfig
from metamoe_backend.errors import ConflictError, NotFoundError, StopRequested, StorageError
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.parts import arrow_schema
from metamoe_backend.jobs.process import ProcessIdentity
from metamoe_backend.jobs.records import StateFile
from metamoe_backend.jobs.run_folder import RunFolder, create_run, find_run, list_runs, make_run_id, utc_now
from metamoe_backend.rows import RUN_TABLES, columns
from metamoe_backend.workspace import Workspace


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return create_run(workspace, "train", "arithmetic", {"name": "arithmetic", "plan": "one"}, "ana", {})


def start(run: RunFolder) -> RunContext:
    context = RunContext(run)
    context.start("cpu")
    return context


def rejected(*lines: int) -> pd.DataFrame:
    return pd.DataFrame({"line": lines, "reason": "no answer", "text": "…"})


def end_a_process() -> ProcessIdentity:
    """The identity of a process that has ended."""
    code = "from metamoe_backend.jobs.process import *; print(ProcessIdentity.of_this_process().model_dump_json())"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True, text=True)
    return ProcessIdentity.model_validate_json(done.stdout)


# ---- creating -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)), min_size=2),
    st.sampled_from(["train", "meta-questions"]),
)
def test_run_ids_sort_by_time_and_are_safe_names(times: list[datetime], stage: str) -> None:
    ids = [make_run_id(stage, at) for at in sorted(set(times))]
    assert ids == sorted(ids)
    assert all(re.match(NAME_PATTERN, run_id) and f"-{stage}-" in run_id for run_id in ids)


def test_two_runs_of_one_moment_have_different_ids() -> None:
    assert len({make_run_id("train", datetime(2026, 11, 21)) for _ in range(20)}) > 15


def test_a_new_run_is_queued_and_keeps_what_was_asked(workspace: Workspace) -> None:
    frame = pd.DataFrame({"vector": [np.ones(3, np.float32)], "choices": [["a", "b"]], "gold": [None], "text": ["é"]})
    empty = pd.DataFrame(columns=["question_id", "prompt"])
    config = TrainConfig(name="arithmetic", plan="one", limit=7)
    run = create_run(workspace, "train", "arithmetic", config, "ana", {"questions": frame, "labels": empty})
    spec, status = run.read_spec(), run.read_state()
    assert (spec.stage, spec.name, spec.by, spec.cwd) == ("train", "arithmetic", "ana", str(Path.cwd()))
    assert run.parse_config(TrainConfig) == config
    assert (status.state, status.place, status.started_at, status.eta_s) == ("queued", None, None, None)
    inputs = run.read_inputs()
    assert list(inputs["labels"].columns) == ["question_id", "prompt"] and inputs["labels"].empty
    assert inputs["questions"]["choices"][0].tolist() == ["a", "b"]
    assert inputs["questions"]["vector"][0].tolist() == [1, 1, 1] and inputs["questions"]["text"][0] == "é"
    assert find_run(workspace, run.run_id) == run
    with pytest.raises(NotFoundError):
        find_run(workspace, "../outside")


def test_a_run_that_cannot_be_made_leaves_nothing(workspace: Workspace) -> None:
    unwritable = pd.DataFrame({"mixed": [1, "two", {3}]})
    with pytest.raises(Exception, match="mixed"):
        create_run(workspace, "train", "x", {}, "ana", {"good": rejected(1), "bad": unwritable})
    with pytest.raises(ValueError, match="file names"):
        create_run(workspace, "train", "x", {}, "ana", {"../outside": rejected(1)})
    assert list(workspace.runs.iterdir()) == [] and list_runs(workspace) == []


def test_runs_are_listed_newest_first(workspace: Workspace) -> None:
    made = [create_run(workspace, "embed", str(number), {}, "ana", {}) for number in range(3)]
    (workspace.runs / ".new-half").mkdir()
    assert list_runs(workspace) == sorted(made, key=lambda run: run.run_id, reverse=True)
    assert list_runs(Workspace(workspace.root / "nowhere")) == []


# ---- emitting -----------------------------------------------------------------------------------------------------


def test_parts_have_the_columns_and_types_of_their_table(run: RunFolder) -> None:
    context = start(run)
    context.emit(
        "prediction",
        pd.DataFrame(
            {
                "choice": [1.0, np.nan],
                "logliks": [np.array([-1.5, -0.5]), None],
                "system": "base", "question_id": ["a", "b"], "regime": "choices", "n_shot": 0, "output": ["x", "y"],
                "correct": [np.True_, np.False_], "score": [1, 0], "prompt_hash": "p", "system_hash": "s",
                "base_hash": "b", "dtype": "float32",
            }
        ),
    )  # fmt: skip
    [part] = run.parts("prediction")
    table = pq.read_table(part.path)
    assert table.schema.equals(arrow_schema("prediction"))
    assert table.column_names == [column.name for column in columns("prediction")]
    assert table["run_id"].to_pylist() == [run.run_id] * 2
    assert table["choice"].to_pylist() == [1, None]
    assert table["logliks"].to_pylist() == [[-1.5, -0.5], None]


def test_columns_that_may_be_null_may_be_left_out(run: RunFolder) -> None:
    now = datetime(2026, 11, 21, 3, 45, 1, 123456)
    local = pd.Timestamp(now, tz=timezone(timedelta(0))).tz_convert("Asia/Shanghai")
    start(run).emit(
        "adapter",
        pd.DataFrame(
            {
                "adapter": ["a"], "base": "b", "rank": [8], "alpha": [16], "targets": [("q_proj",)], "parameters": [9],
                "sha256": "0", "source": "trained", "skills": [[]], "trained_on": [["t"]], "created_at": [local],
            }
        ),
    )  # fmt: skip
    row = pq.read_table(run.parts()[0].path).to_pylist()[0]
    assert row["plan"] is None and row["created_at"] == now and row["skills"] == [] and row["targets"] == ["q_proj"]


@pytest.mark.parametrize(
    ("table", "frame", "message"),
    [
        ("rejected_row", rejected(1).assign(colour="red"), "unexpected columns colour"),
        ("rejected_row", rejected(1).drop(columns="reason"), "column reason is missing"),
        ("rejected_row", rejected(1).assign(line=1.5), "rejected_row.line"),
        ("rejected_row", rejected(1, 2).assign(reason=["x", None]), "NULL in 1 of 2 rows"),
        ("rejected_row", rejected(1).assign(text=3), "rejected_row.text"),
        ("rejected_row", rejected(1).assign(text=pd.Series(["\ud800"], dtype=object)), "rejected_row.text"),
        ("rejected_row", rejected().drop(columns="reason"), "column reason is missing"),
        ("skill", pd.DataFrame(), "runs do not feed this table"),
    ],
)
def test_rows_that_do_not_fit_are_refused(run: RunFolder, table: str, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(run).emit(table, frame)
    assert run.parts() == []


def test_a_number_that_diverged_stays_a_number(run: RunFolder) -> None:
    run.emit("metric", pd.DataFrame({"step": [1], "name": ["loss"], "value": [math.nan]}))
    assert math.isnan(pq.read_table(run.parts()[0].path)["value"][0].as_py())


def test_every_table_of_runs_has_a_schema() -> None:
    assert all(len(arrow_schema(table)) == len(columns(table)) for table in RUN_TABLES)


def test_a_manifest_names_every_part_with_its_checksum(run: RunFolder) -> None:
    assert run.read_manifest() is None
    context = start(run)
    context.emit("rejected_row", rejected(1))
    context.emit("metric", pd.DataFrame({"step": [1], "name": ["loss"], "value": [0.5]}))
    context.emit("rejected_row", rejected(2, 3))
    context.emit("rejected_row", rejected())
    (run.output / ".rejected_row-0009.parquet.1.2").write_bytes(b"half a part")
    context.finish()
    manifest = run.read_manifest()
    assert manifest is not None and manifest["run_id"] == run.run_id and manifest["state"] == "finished"
    assert [(part["part"], part["target"], part["rows"]) for part in manifest["parts"]] == [
        ("metric-0001.parquet", "metric", 1),
        ("rejected_row-0001.parquet", "rejected_row", 1),
        ("rejected_row-0002.parquet", "rejected_row", 2),
    ]
    for part in manifest["parts"]:
        assert part["sha256"] == hashlib.sha256((run.output / part["part"]).read_bytes()).hexdigest()


def test_a_new_attempt_keeps_what_was_handed_over_and_nothing_else(run: RunFolder) -> None:
    first = start(run)
    first.emit("rejected_row", rejected(1))
    first.finish("stopped")
    run.write_state(run.read_state_file().model_copy(update={"state": "queued"}))
    second = start(run)
    second.emit("rejected_row", rejected(2))
    assert [part.part for part in run.parts()] == ["rejected_row-0001.parquet", "rejected_row-0002.parquet"]
    second.fail(RuntimeError("broken off"))
    run.write_state(run.read_state_file().model_copy(update={"state": "queued"}))
    third = start(run)
    assert [part.part for part in run.parts()] == ["rejected_row-0001.parquet"]
    third.emit("rejected_row", rejected(4))
    third.finish()
    manifest = run.read_manifest()
    assert manifest is not None and (manifest["attempt"], len(manifest["parts"])) == (3, 2)


NEWER = '{"schema_version": 99, "run_id": "r", "attempt": 1, "state": "stopped", "ended_at": "2026-11-21T03:45:01"'


@pytest.mark.parametrize(
    ("content", "message"), [(NEWER, r"manifest\.json is damaged"), (NEWER + ', "parts": []}', "by a newer MetaMoE")]
)
def test_a_manifest_of_no_use_is_named(run: RunFolder, content: str, message: str) -> None:
    run.manifest_file.write_text(content)
    with pytest.raises(StorageError, match=message):
        run.read_manifest()


# ---- progress, log, state -----------------------------------------------------------------------------------------


def test_progress_is_tidy_and_the_newest_metrics_are_at_hand(run: RunFolder) -> None:
    context = start(run)
    context.progress(1, 4, loss=2.0)
    context.progress(2, 4, loss=1.0, eval_loss=math.inf)
    context.progress(3, 4, loss=math.nan)
    frame = run.read_progress()
    assert list(frame.columns) == ["step", "total", "time", "name", "value"]
    assert [(row.step, row.name) for row in frame.itertuples(index=False)] == [
        (1, "loss"), (2, "loss"), (2, "eval_loss"), (3, "loss")
    ]  # fmt: skip
    assert frame["value"].tolist()[:3] == [2.0, 1.0, math.inf] and math.isnan(frame["value"].iloc[3])
    status = run.read_state()
    assert (status.state, status.done, status.total, status.device, status.pid) == ("running", 3, 4, "cpu", os.getpid())
    assert status.metrics["eval_loss"] == math.inf and math.isnan(status.metrics["loss"])
    assert status.eta_s is not None and status.responding
    context.finish()
    assert run.read_state().eta_s is None and run.read_state().ended_at is not None


def test_reports_without_news_are_written_rarely_but_the_last_one_is(run: RunFolder) -> None:
    context = start(run)
    for done in range(5000):
        context.progress(done, 10_000, reused=3.0)
    context.finish()
    assert run.progress_file.read_bytes().count(b"\n") < 500
    assert run.read_state().done == 4999
    assert run.read_progress()["step"].tolist()[-1] == 4999


def test_an_attempt_that_went_back_replaces_what_came_after(run: RunFolder) -> None:
    first = start(run)
    for step in range(1, 6):
        first.progress(step, 10, loss=float(step))
    first.fail(RuntimeError("power cut"))
    with run.progress_file.open("ab") as file:
        file.write(b'{"time": 17, "done": 6, "tot')  # torn
    run.write_state(run.read_state_file().model_copy(update={"state": "queued"}))
    second = start(run)
    second.progress(4, 10, loss=40.0)
    frame = run.read_progress()
    assert frame["step"].tolist() == [1, 2, 3, 4] and frame["value"].tolist() == [1.0, 2.0, 3.0, 40.0]


def test_progress_of_a_run_that_has_none_keeps_its_columns(run: RunFolder) -> None:
    frame = run.read_progress()
    assert frame.empty and frame["step"].dtype == "int64" and frame["value"].dtype == "float64"
    assert run.read_log() == ""


def test_the_log_is_read_as_plain_text(run: RunFolder) -> None:
    run.append_log("first\nline two \ud800")
    with run.log_file.open("ab") as file:
        file.write("  1%\r 50%\r100% \x1b[32mdone\x1b[0m\x07\n中文\n".encode() + b"\xff\n")
    assert run.read_log(3) == "100% done\n中文\n\ufffd"
    assert run.read_log().splitlines()[0].endswith("first") and len(run.read_log().splitlines()) == 5


def test_a_stop_is_raised_once_and_a_cancel_at_every_report(run: RunFolder) -> None:
    context = start(run)
    run.write_request(save=True)
    with pytest.raises(StopRequested) as stop:
        context.progress(1, 3)
    assert stop.value.save and run.read_state().stopping == "stop"
    context.progress(2, 3)  # saving may report on
    run.write_request(save=False)
    for _ in range(2):
        with pytest.raises(StopRequested) as stop:
            context.progress(3, 3)
        assert not stop.value.save and run.read_state().stopping == "cancel"
    context.finish()
    assert run.read_state().state == "cancelled" and run.read_manifest() is None


def test_a_run_is_taken_once(run: RunFolder) -> None:
    context = start(run)
    with pytest.raises(ConflictError, match="running"):
        start(run)
    context.finish()
    with pytest.raises(ConflictError, match="finished"):
        start(run)


def write_running(run: RunFolder, process: ProcessIdentity | None) -> None:
    run.write_state(StateFile(state="running", attempt=1, process=process, started_at=utc_now()))


def test_a_running_run_whose_process_is_gone_has_failed(run: RunFolder) -> None:
    write_running(run, end_a_process())
    status = run.read_state()
    assert status.state == "failed" and status.error is not None and "worker is gone" in status.error
    assert run.settle(-9).error == (
        "The worker was killed (signal 9), most often because memory ran out; resume the run or start it again."
    )
    write_running(run, None)
    assert run.read_state().state == "failed"


@pytest.mark.parametrize("change", [{"start": 1.0}, {"boot": "of yesterday"}])
def test_a_reused_pid_is_not_the_worker(run: RunFolder, change: dict[str, Any]) -> None:
    me = ProcessIdentity.of_this_process()
    write_running(run, me)
    assert run.read_state().state == "running"
    write_running(run, me.model_copy(update=change))
    assert run.read_state().state == "failed"


def test_a_process_of_another_machine_is_believed_until_its_heartbeat_is_old(run: RunFolder) -> None:
    write_running(run, ProcessIdentity.of_this_process().model_copy(update={"host": "gpu-node-7"}))
    run.heartbeat_file.write_text(f'{{"at": {time.time()}}}')
    assert (run.read_state().state, run.read_state().responding) == ("running", True)
    run.heartbeat_file.write_text(f'{{"at": {time.time() - 3600}}}')
    assert (run.read_state().state, run.read_state().responding) == ("running", False)


def test_a_live_process_with_an_old_heartbeat_does_not_respond_but_has_not_failed(run: RunFolder) -> None:
    write_running(run, ProcessIdentity.of_this_process())
    run.heartbeat_file.write_text(f'{{"at": {time.time() - 3600}}}')
    assert (run.read_state().state, run.read_state().responding) == ("running", False)


def test_a_worker_that_died_after_its_manifest_has_finished(run: RunFolder) -> None:
    context = start(run)
    context.emit("rejected_row", rejected(1))
    run.write_manifest("finished", utc_now())
    run.write_state(run.read_state_file().model_copy(update={"process": end_a_process()}))
    assert run.read_state().state == "finished"
    run.write_state(run.read_state_file().model_copy(update={"attempt": 2}))  # the manifest is an older attempt's
    assert run.read_state().state == "failed"


FILES = ["spec.json", "state.json", "control.json", "heartbeat.json", "progress.jsonl", "manifest.json", "log.txt"]
KEYS = ["state", "process", "at", "time", "metrics", "done", "save", "pid"]
SCALARS = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from(["running", "2026-01-01"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.data())
def test_reading_never_raises_whatever_lies_there(recorded_run: RunFolder, name: str, data: st.DataObject) -> None:
    path = recorded_run.path / name
    good = path.read_bytes()
    torn = st.integers(0, len(good)).map(lambda size: good[:size])
    changed = JSON.map(lambda value: json.dumps(value).encode())
    path.write_bytes(data.draw(torn | st.binary(max_size=60) | changed))
    try:
        status = recorded_run.read_state()
        recorded_run.read_progress()
        recorded_run.read_log()
    finally:
        path.write_bytes(good)
    assert status.run_id == recorded_run.run_id and status.created_at <= datetime.now(UTC).replace(tzinfo=None)
    if name == "state.json" and status.state == "failed":
        assert status.error


@pytest.fixture
def recorded_run(run: RunFolder) -> RunFolder:
    """A run with all its files, that says it is running by a process that lives."""
    context = start(run)
    context.progress(1, 2, loss=1.0)
    context.log("one")
    run.write_manifest("stopped", utc_now())
    run.write_request(save=True)
    context._ended.set()  # on a slow machine the next sign of life would change the file under the test
    return run


def test_missing_files_read_as_failed(run: RunFolder) -> None:
    (run.path / "spec.json").unlink()
    assert run.read_state().state == "failed" and run.read_state().created_at.year >= 2026
    with pytest.raises(StorageError, match=r"spec\.json"):
        run.read_spec()
    (run.path / "state.json").unlink()
    assert run.read_state().state == "failed"
