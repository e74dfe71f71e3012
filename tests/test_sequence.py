"""One adapter trained task after task: what each step reads, what it leaves, and runs that are cut short."""

import json
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch

from metamoe_backend.config import OptimSettings, SequenceConfig, parse_config
from metamoe_backend.errors import ConfigError, NotFoundError, StopRequested
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_task_names
from metamoe_backend.train import sequence
from metamoe_backend.workspace import Workspace
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def full(synthetic: Workspace):
    with Store.open(synthetic, "a test") as opened:
        yield opened


def make_config(base_folder: Path, **changes) -> SequenceConfig:
    optim = OptimSettings(steps=6, batch_size=4, learning_rate=0.01, max_tokens=64, save_every=2)
    settings = {"name": "seq", "order": TASKS, "base": str(base_folder), "device": "cpu", "optim": optim}
    return SequenceConfig(**settings | {"lora": {"rank": 2, "dropout": 0.1}} | changes)


def make_inputs() -> dict[str, pd.DataFrame]:
    rows = [
        {
            "question_id": f"{task}{i}", "task": task, "template": "Q: {prompt}\nA:", "prompt": f"{i} {'x' * (i % 5)}",
            "answer": task, "skill": None, "expert": None, "meta_question": None, "step": step, "replayed": False,
        }
        for step, task in enumerate(TASKS, start=1)
        for i in range(20)
    ]  # fmt: skip
    target = pd.DataFrame({"step": [1, 2, 3], "label": TASKS, "adapter": ["seq-1", "seq-2", "seq-3"]})
    return {"questions": pd.DataFrame(rows), "target": target}


def train(root: Path, config: SequenceConfig, act=lambda done: None) -> RecordingContext:
    context = RecordingContext(root, act=act)
    sequence.compute(make_inputs(), config, context)
    return context


def weights_of(root: Path) -> list[bytes]:
    return [(root / "adapters" / f"seq-{i}" / "adapter_model.safetensors").read_bytes() for i in (1, 2, 3)]


# ---- what each step reads --------------------------------------------------------------------------------------------


def test_every_step_reads_its_own_task_and_a_share_of_the_earlier_ones(full: Store) -> None:
    order = fetch_task_names(full)[:3]
    inputs = sequence.prepare(full, SequenceConfig(name="seq", order=order, replay=0.25, limit=40))
    questions = inputs["questions"]
    sizes = questions.groupby(["step", "task"]).size()
    own = {task: int(sizes[step, task]) for step, task in enumerate(order, start=1)}
    for step in (1, 2, 3):
        expected = {order[step - 1]: own[order[step - 1]]}
        expected |= {task: round(own[task] * 0.25) for task in order[: step - 1]}
        assert sizes[step].to_dict() == expected
    again = questions[questions["replayed"]]
    first = again[(again["step"] == 2) & (again["task"] == order[0])]["question_id"].tolist()
    assert first == again[(again["step"] == 3) & (again["task"] == order[0])]["question_id"].tolist()
    taught = questions[(questions["step"] == 1)]["question_id"]
    assert set(first) <= set(taught)
    assert inputs["target"]["adapter"].tolist() == ["seq-1", "seq-2", "seq-3"]
    without = sequence.prepare(full, SequenceConfig(name="seq", order=order))["questions"]
    assert not without["replayed"].any() and without["question_id"].is_unique


def test_experts_of_a_plan_in_order(full: Store) -> None:
    inputs = sequence.prepare(full, SequenceConfig(name="seq", plan="first", order=["logic", "arith"]))
    by_step = inputs["questions"].groupby("step")["expert"].unique()
    assert [list(names) for names in by_step] == [["logic"], ["arith"]]
    with pytest.raises(NotFoundError, match=r"order: 'nobody' is no expert of plan 'first' \(it has: arith"):
        sequence.prepare(full, SequenceConfig(name="seq", plan="first", order=["logic", "nobody"]))
    with pytest.raises(NotFoundError, match="Task 'nothing' does not exist"):
        sequence.prepare(full, SequenceConfig(name="seq", order=["nothing", "else"]))
    with pytest.raises(ConfigError, match="order: 'logic' has no questions in the split 'validation'"):
        sequence.prepare(full, SequenceConfig(name="seq", plan="first", order=["logic", "arith"], split="validation"))
    with pytest.raises(ConfigError, match="order: a name stands twice"):
        parse_config(SequenceConfig, {"name": "seq", "order": ["a", "a"]})


# ---- what it leaves --------------------------------------------------------------------------------------------------


def test_every_step_is_a_system_that_says_which_step_it_is(tmp_path: Path, base_folder: Path) -> None:
    context = train(tmp_path, make_config(base_folder))
    systems = context.rows("system")
    assert systems["system"].tolist() == ["seq-1", "seq-2", "seq-3"] and set(systems["kind"]) == {"baseline"}
    said = [json.loads(text) for text in systems["settings"]]
    assert [(each["step"], each["step_label"], each["step_tasks"]) for each in said] == [
        (1, "red", ["red"]), (2, "green", ["green"]), (3, "blue", ["blue"]),
    ]  # fmt: skip
    metrics = context.rows("metric")
    assert metrics.loc[metrics["name"] == "loss", "step"].tolist() == list(range(1, 19))
    assert [done for done, _, values in context.reports if values] == list(range(1, 19))
    assert {total for _, total, _ in context.reports} == {18}
    assert not list((tmp_path / "runs").rglob("checkpoint-*")), "checkpoints of published steps are no longer needed"
    first, last = (read_adapter(tmp_path / "adapters" / name) for name in ("seq-1", "seq-3"))
    assert all(not torch.equal(first.b[module], last.b[module]) for module in first.b)


def test_two_runs_give_equal_bytes(tmp_path: Path, base_folder: Path) -> None:
    train(tmp_path / "a", make_config(base_folder))
    train(tmp_path / "b", make_config(base_folder))
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


@pytest.mark.parametrize("at", [3, 9, 15])
def test_a_killed_sequence_goes_on_to_the_same_bytes(tmp_path: Path, base_folder: Path, at: int) -> None:
    config = make_config(base_folder, lora={"rank": 2, "dropout": 0.1, "save_dtype": "bfloat16"})
    whole = train(tmp_path / "whole", config)

    def kill(done: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, kill)
    resumed = train(tmp_path / "cut", config)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert resumed.rows("system")["system"].tolist() == ["seq-1", "seq-2", "seq-3"]
    assert resumed.reports[0][0] == at - 1, "what a checkpoint holds is not trained again"
    losses = [context.rows("metric").query("name == 'loss'").reset_index(drop=True) for context in (whole, resumed)]
    pd.testing.assert_frame_equal(*losses)


def test_a_stop_keeps_the_steps_that_are_done_and_hands_each_over_once(tmp_path: Path, base_folder: Path) -> None:
    workspace = Workspace(tmp_path / "ws").create()
    config = make_config(base_folder)
    run = create_run(workspace, "sequence", "seq", config.model_dump(mode="json"), "ana", make_inputs())

    def work(stop_at: int | None) -> RunContext:
        context = RunContext(run)
        context.start()
        report = context.progress

        def progress(done: int, total: int, **metrics: float) -> None:
            report(done, total, **metrics)
            if done == stop_at:
                context.stop_asked = StopRequested(save=True)
                raise context.stop_asked

        context.progress = progress  # type: ignore[method-assign]
        with suppress(StopRequested):
            sequence.compute(run.read_inputs(), config, context)
        context.finish()
        return context

    work(stop_at=9)
    assert run.read_state().state == "stopped"
    assert list_emitted(run, "system") == ["seq-1"]
    run.write_state(run.read_state_file().model_copy(update={"state": "queued"}))
    work(stop_at=None)
    assert list_emitted(run, "system") == ["seq-1", "seq-2", "seq-3"]
    losses = pd.concat([pd.read_parquet(part.path) for part in run.parts("metric")]).query("name == 'loss'")
    assert sorted(losses["step"]) == list(range(1, 19))


def list_emitted(run: RunFolder, table: str) -> list[str]:
    return [name for part in run.parts(table) for name in pd.read_parquet(part.path)["system"]]
