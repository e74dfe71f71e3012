"""The stage from the store's rows to predictions, gates and routes; and what a stop, a kill or a repeat costs."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metamoe_backend.config import DEFAULT_BASE, EvaluateConfig
from metamoe_backend.errors import ConfigError, InputError, NotFoundError, StopRequested, StorageError
from metamoe_backend.evaluate import answering, stage
from metamoe_backend.evaluate.prompts import hash_prompt
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.models.adapters import hash_adapter
from metamoe_backend.models.mixtures import ExpertEntry, MixtureSpec, write_mixture
from metamoe_backend.models.routers import TaskRouter
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.store.results import fetch_activations, fetch_predictions, fetch_routes, fetch_token_activations
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_rows
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_adapter, make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

EXPERTS = ["colours", "sums"]
MADE_AT = datetime(2026, 11, 1)
PER_TASK = 7


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(make_tiny_base(tmp_path_factory.mktemp("models") / "base"))


@dataclass
class Prepared:
    """A workspace with two experts, a mixture and two tasks."""

    store: Store
    base: str

    @property
    def root(self) -> Path:
        return self.store.workspace.root

    def config(self, **settings) -> EvaluateConfig:
        values = {"systems": ["base", *EXPERTS, "moe"], "tasks": ["colour", "sum"], "device": "cpu"}
        return EvaluateConfig(**(values | {"max_new_tokens": 4, "token_sample": 2} | settings))

    def evaluate(self, act=lambda done: None, run_id: str = "run-1", **settings) -> RecordingContext:
        config = self.config(**settings)
        inputs = stage.prepare(self.store, config)
        context = RecordingContext(self.root, run_id, act)
        stage.compute(inputs, config, context)
        return context


@pytest.fixture
def prepared(workspace: Workspace, base: str, monkeypatch) -> Prepared:
    from tests.fake_encoder import install

    encoder = install(monkeypatch)
    with Store.open(workspace, "a test") as store:
        insert_tasks(store)
        systems = pd.DataFrame([*make_experts(workspace, base), make_mixture(workspace, base, encoder.dim)])
        insert_rows(store, "train", system=systems)
        yield Prepared(store, base)


def insert_tasks(store: Store) -> None:
    tasks = [
        {"task": "colour", "regime": "choices", "template": "Question: {prompt}\nAnswer:"},
        {"task": "sum", "regime": "number", "template": "{prompt} ="},
        {"task": "program", "regime": "code", "template": "{prompt}"},
    ]
    colours = ["red", "green", "dark blue"]
    questions = []
    for split in ("train", "test"):
        for number in range(PER_TASK):
            about = {"split": split, "position": number}
            gold = number % 3
            questions += [
                about | {"task": "colour", "prompt": f"Which colour is {split} thing {number}?", "choices": colours,
                         "answer": colours[gold], "gold": gold},
                about | {"task": "sum", "prompt": f"{number} + {split == 'test':d}", "choices": None,
                         "answer": str(number), "gold": None},
                about | {"task": "program", "prompt": "write", "choices": None, "answer": "x", "gold": None},
            ]  # fmt: skip
    for question in questions:
        question["question_id"] = f"{question['task']}-{question['split']}-{question['position']}"
    frame = pd.DataFrame(questions).astype({"gold": "Int64"})
    insert_rows(store, "ingest", task=pd.DataFrame(tasks).assign(source="a test", created_at=MADE_AT), question=frame)


def make_system(name: str, kind: str, base: str, path: str, sha256: str, experts: list[str]) -> dict:
    return {
        "system": name, "kind": kind, "base": base, "path": path, "experts": experts, "settings": "{}",
        "sha256": sha256, "created_at": MADE_AT,
    }  # fmt: skip


def make_experts(workspace: Workspace, base: str) -> list[dict]:
    rows = []
    for seed, name in enumerate(EXPERTS):
        folder = make_tiny_adapter(workspace.adapters / name, Path(base), seed=seed + 1)
        rows.append(make_system(name, "expert", base, f"adapters/{name}", hash_adapter(folder), []))
    return rows


def make_mixture(workspace: Workspace, base: str, dim: int) -> dict:
    """Two levels; the router sends "colour" texts to the first expert and "+" texts to the base model."""
    from tests.fake_encoder import FakeEncoder

    encoder = FakeEncoder(dim=dim)
    weight = np.stack([encoder.encode([text])[0] for text in ("which colour is thing", "one two", "0 + 1")]) * 20
    entries = [ExpertEntry(name=name, sha256=hash_adapter(workspace.adapters / name)) for name in EXPERTS]
    spec = MixtureSpec(
        base=base, experts=entries, mode="two-level", top_k=1, prior_strength=1.0, encoder="minilm", of="question"
    )
    generator = torch.Generator().manual_seed(0)
    gates = {f"model.layers.{layer}.mlp": torch.randn(2, 32, generator=generator) for layer in range(2)}
    router = TaskRouter([*EXPERTS, "base"], weight.astype(np.float32), np.zeros(3, np.float32))
    sha256 = write_mixture(workspace.mixtures / "moe", spec, gates, router)
    return make_system("moe", "moe", base, "mixtures/moe", sha256, EXPERTS)


def make_token_mixture(workspace: Workspace, base: str) -> dict:
    """Token gates alone, so that no encoder is needed."""
    entries = [ExpertEntry(name=name, sha256=hash_adapter(workspace.adapters / name)) for name in EXPERTS]
    generator = torch.Generator().manual_seed(0)
    gates = {f"model.layers.{layer}.mlp": torch.randn(2, 32, generator=generator) for layer in range(2)}
    spec = MixtureSpec(base=base, experts=entries, mode="token", top_k=1, prior_strength=1.0)
    sha256 = write_mixture(workspace.mixtures / "moe", spec, gates, None)
    return make_system("moe", "moe", base, "mixtures/moe", sha256, EXPERTS)


def test_every_system_answers_every_question(prepared: Prepared):
    context = prepared.evaluate()
    predictions = context.rows("prediction")
    assert len(predictions) == 4 * 2 * PER_TASK
    assert not predictions.duplicated(["system", "question_id"]).any()
    assert set(predictions["dtype"]) == {"float32"}
    assert predictions["base_hash"].nunique() == 1
    assert predictions.groupby("system")["system_hash"].nunique().eq(1).all()
    assert predictions["system_hash"].nunique() == 4

    chosen = predictions[predictions["regime"] == "choices"]
    colours = np.array(["red", "green", "dark blue"])
    logliks = np.stack(chosen["logliks"])
    assert logliks.shape == (4 * PER_TASK, 3)
    assert (logliks < 0).all()
    assert chosen["choice"].tolist() == logliks.argmax(axis=1).tolist()
    assert chosen["output"].tolist() == colours[logliks.argmax(axis=1)].tolist()
    gold = chosen["question_id"].str[-1].astype(int) % 3
    assert chosen["correct"].tolist() == (chosen["choice"] == gold).tolist()
    assert predictions.loc[predictions["regime"] == "number", "choice"].isna().all()


def test_what_was_recorded_comes_back_from_the_store(prepared: Prepared):
    config = prepared.config()
    inputs = stage.prepare(prepared.store, config)
    run = create_run(prepared.store.workspace, "evaluate", "all", config.model_dump(mode="json"), "ana", inputs)
    context = RunContext(run)
    context.start()
    stage.compute(run.read_inputs(), config, context)
    context.finish("finished")
    ingest_run(prepared.store, run)

    assert len(fetch_predictions(prepared.store)) == 4 * 2 * PER_TASK
    base = prepared.store.frame("SELECT * FROM system WHERE system = 'base'").iloc[0]
    assert (base["kind"], base["base"], len(base["sha256"])) == ("base", prepared.base, 64)
    shares = fetch_activations(prepared.store, "moe").groupby(["task", "layer", "site"])["share"].sum()
    assert shares["colour"].to_numpy() == pytest.approx(1.0)
    assert set(fetch_routes(prepared.store, "moe")["expert"]) == {*EXPERTS, "base"}
    # Everything was answered, so a second run has nothing to do.
    assert "prediction" not in prepared.evaluate(run_id="run-2").emitted


def test_activations_and_routes_of_a_mixture(prepared: Prepared):
    context = prepared.evaluate(systems=["moe"])
    routes = context.rows("route").pivot(index="question_id", columns="expert", values="probability")
    assert routes.sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert (routes.filter(like="colour-", axis=0)["colours"] > 0.5).all()
    to_base = routes.index[routes.idxmax(axis=1) == "base"]
    assert set(to_base) == {f"sum-test-{number}" for number in range(PER_TASK)}

    activation = context.rows("activation")
    assert len(activation) == 2 * PER_TASK * 2 * len(EXPERTS)
    assert set(activation["site"]) == {"mlp"}
    sums = activation.groupby(["question_id", "layer", "site"])[["weight", "share"]].sum()
    went_to_base = sums.index.get_level_values("question_id").isin(to_base)
    assert sums[went_to_base].to_numpy() == pytest.approx(0.0)
    assert sums[~went_to_base].to_numpy() == pytest.approx(1.0, abs=1e-4)
    # top_k is 1: one expert is chosen for each token, and the top-k share is the share of the chosen.
    assert activation["chosen"].to_numpy() == pytest.approx(activation["share"].to_numpy(), abs=1e-4)
    tokens = activation[activation["question_id"] == "sum-test-3"]["tokens"].unique().tolist()
    assert tokens == [len("3 + 1 =")]  # one token a byte

    strip = context.rows("token_activation")
    assert strip.groupby(strip["question_id"].str.split("-").str[0])["question_id"].nunique().to_dict() == {
        "colour": 2, "sum": 2,
    }  # fmt: skip
    one = strip[strip["question_id"] == strip["question_id"].iloc[0]]
    text = one[(one["layer"] == 0) & (one["expert"] == "sums")].sort_values("position")
    assert text["position"].tolist() == list(range(len(text)))
    assert "".join(text["token"]).startswith("Question: Which colour is test thing")
    # The strip's mean is the question's mean.
    expected = activation.merge(one.groupby(["question_id", "layer", "expert"])["weight"].mean().reset_index(),
                                on=["question_id", "layer", "expert"])  # fmt: skip
    assert expected["weight_x"].to_numpy() == pytest.approx(expected["weight_y"].to_numpy(), abs=1e-4)


def test_recording_gates_changes_no_answer(prepared: Prepared):
    with_gates = prepared.evaluate(systems=["moe"]).rows("prediction")
    without = prepared.evaluate(systems=["moe"], activations=False, run_id="run-2")
    assert set(without.emitted) == {"prediction"}
    pd.testing.assert_frame_equal(
        with_gates.drop(columns="run_id"), without.rows("prediction").drop(columns="run_id"), rtol=1e-4
    )


def test_a_question_routed_to_base_gets_the_base_models_answer(prepared: Prepared):
    predictions = prepared.evaluate(systems=["base", "moe"], tasks=["sum"]).rows("prediction")
    answers = predictions.pivot(index="question_id", columns="system", values="output")
    assert answers["moe"].tolist() == answers["base"].tolist()


def test_the_batch_budget_changes_no_answer(prepared: Prepared):
    large = prepared.evaluate(activations=False).rows("prediction")
    small = prepared.evaluate(activations=False, batch_tokens=64, run_id="run-2").rows("prediction")
    assert large["output"].tolist() == small["output"].tolist()
    flat = [np.concatenate(frame["logliks"].dropna().tolist()) for frame in (large, small)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-4)


def test_another_precision_is_another_evaluation(prepared: Prepared):
    first = prepared.evaluate(systems=["moe"], limit=3).rows("prediction")
    insert_rows(prepared.store, "evaluate", prediction=first.drop(columns="run_id"))
    second = prepared.evaluate(systems=["moe"], limit=3, dtype="bfloat16", run_id="run-2").rows("prediction")
    assert set(second["dtype"]) == {"bfloat16"}
    assert second["question_id"].tolist() == first["question_id"].tolist()
    flat = [np.concatenate(frame["logliks"].dropna().tolist()) for frame in (first, second)]
    assert flat[0] == pytest.approx(flat[1], rel=0.05)


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_run_goes_on_where_it_stood(prepared: Prepared, monkeypatch, end: str):
    monkeypatch.setattr(stage, "PART_QUESTIONS", 3)
    whole = prepared.evaluate(run_id="whole").rows("prediction")

    def leave(done: int, total: int) -> None:
        if done > 20:
            raise StopRequested(save=True) if end == "stopped" else KeyboardInterrupt

    config = prepared.config()
    inputs = stage.prepare(prepared.store, config)
    run = create_run(prepared.store.workspace, "evaluate", "all", config.model_dump(mode="json"), "ana", inputs)
    first = RunContext(run, on_progress=leave)
    first.start()
    with pytest.raises((KeyboardInterrupt, StopRequested)):
        stage.compute(run.read_inputs(), config, first)
    if end == "stopped":  # what was emitted is handed over
        first.finish("stopped")
        ingest_run(prepared.store, run)
    else:  # nothing is handed over, only scratch remains
        first.fail(RuntimeError("killed"))
    survived = {
        (row.system, row.question_id)
        for part in run.parts("prediction")
        for row in pd.read_parquet(part.path).itertuples()
    }
    assert 0 < len(survived) < len(whole)
    run.write_state(run.read_state_file().model_copy(update={"state": "queued"}))

    answered = []
    for name in ("answer_choices", "answer_freely"):
        original = getattr(answering, name)

        def spy(answerer, questions, *rest, original=original):
            answered.extend(questions["question_id"])
            return original(answerer, questions, *rest)

        monkeypatch.setattr(stage, name, spy)
    second = RunContext(run)
    second.start()
    stage.compute(run.read_inputs(), config, second)
    second.finish("finished")
    ingest_run(prepared.store, run)
    assert len(answered) == len(whole) - len(survived)
    rows = prepared.store.frame("SELECT * FROM prediction")
    assert len(rows) == len(whole)
    assert not rows.duplicated(["system", "question_id"]).any()
    activation = prepared.store.frame("SELECT * FROM activation")
    assert not activation.duplicated(["system", "question_id", "layer", "site", "expert"]).any()
    assert len(activation) == 2 * PER_TASK * 2 * len(EXPERTS)


def test_a_stop_is_obeyed_and_what_was_answered_is_kept(prepared: Prepared, monkeypatch):
    monkeypatch.setattr(stage, "PART_QUESTIONS", 3)
    config = prepared.config(systems=["base"], tasks=["sum"])
    inputs = stage.prepare(prepared.store, config)
    context = RecordingContext(prepared.root)

    def stop(done: int) -> None:
        if done >= 6:
            raise StopRequested(save=True)

    context.act = stop
    with pytest.raises(StopRequested):
        stage.compute(inputs, config, context)
    assert len(context.rows("prediction")) == 3
    rest = RecordingContext(prepared.root)
    stage.compute(inputs, config, rest)
    assert len(rest.rows("prediction")) == PER_TASK


def test_an_expert_deleted_while_a_mixture_names_it_is_named(prepared: Prepared):
    shutil.rmtree(prepared.root / "adapters" / "sums")
    with pytest.raises(StorageError, match="Expert sums of mixture moe is missing from .*put it back, or make"):
        prepared.evaluate(systems=["moe"])


def test_only_new_systems_and_questions_are_answered(prepared: Prepared):
    first = prepared.evaluate(systems=["base"], tasks=["sum"], limit=3)
    insert_rows(prepared.store, "evaluate", prediction=first.rows("prediction").drop(columns="run_id"))
    second = prepared.evaluate(systems=["base", "sums"], tasks=["sum"], run_id="run-2")
    counts = second.rows("prediction")["system"].value_counts()
    assert counts.to_dict() == {"base": PER_TASK - 3, "sums": PER_TASK}
    assert second.reports[-1][:2] == (2 * PER_TASK, 2 * PER_TASK)
    shown = prepared.evaluate(systems=["base"], tasks=["sum"], limit=3, n_shot=1, run_id="run-3")
    assert len(shown.rows("prediction")) == 3


def test_progress_counts_up_and_tells_the_speed(prepared: Prepared):
    reports = prepared.evaluate(systems=["base", "moe"]).reports
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert reports[-1][:2] == (4 * PER_TASK, 4 * PER_TASK)
    assert reports[-1][2]["questions_per_s"] > 0


def test_examples_stand_before_the_question(prepared: Prepared):
    inputs = stage.prepare(prepared.store, prepared.config(tasks=["sum"], n_shot=2))
    texts = inputs["questions"]["shown_text"]
    examples = {text.rpartition("\n\n")[0] for text in texts}
    assert len(examples) == 1  # the same for every question
    shown = examples.pop().split("\n\n")
    assert len(shown) == 2
    assert all(example in {f"{n} + 0 = {n}" for n in range(PER_TASK)} for example in shown)
    assert set(texts.str.rpartition("\n\n")[2]) == {f"{n} + 1 =" for n in range(PER_TASK)}
    assert inputs["questions"]["prompt_hash"].tolist() == [hash_prompt(text) for text in texts]
    again = stage.prepare(prepared.store, prepared.config(tasks=["sum"], n_shot=2))
    assert again["questions"]["shown_text"].tolist() == texts.tolist()


def test_a_question_is_never_its_own_example(prepared: Prepared):
    questions = stage.prepare(prepared.store, prepared.config(tasks=["sum"], n_shot=PER_TASK - 1, split="train"))[
        "questions"
    ]
    for text, prompt in zip(questions["shown_text"], questions["prompt"], strict=True):
        assert text.count(f"{prompt} =") == 1
        assert len(text.split("\n\n")) == PER_TASK


def test_missing_names_are_named(prepared: Prepared):
    def prepare(**settings):
        return stage.prepare(prepared.store, prepared.config(**settings))

    with pytest.raises(NotFoundError, match=r"'nobody' does not exist .*colours"):
        prepare(systems=["nobody"])
    with pytest.raises(NotFoundError, match=r"'poems' does not exist .*colour"):
        prepare(tasks=["poems"])
    with pytest.raises(NotFoundError, match="no questions of the split 'validation'"):
        prepare(split="validation")
    with pytest.raises(InputError, match="no tests in its metadata; ingest its task again"):
        prepare(tasks=["program"])
    with pytest.raises(ConfigError, match="only 7 train questions"):
        prepare(n_shot=8)


def test_base_means_the_other_systems_base(prepared: Prepared):
    def find_base(*systems):
        return stage.prepare(prepared.store, prepared.config(systems=list(systems)))["systems"].set_index("system")[
            "base"
        ]

    assert find_base("base", "moe")["base"] == prepared.base
    assert find_base("base")["base"] == prepared.base
    insert_rows(prepared.store, "train", system=pd.DataFrame([make_system("far", "expert", "other", "x", "0", [])]))
    with pytest.raises(ConfigError, match="'base' could be"):
        find_base("base")
    with pytest.raises(ConfigError, match="'base' could be"):
        find_base("base", "moe", "far")
    assert set(find_base("moe", "far")) == {prepared.base, "other"}


def test_base_alone_is_the_default_model(store: Store):
    insert_tasks(store)
    inputs = stage.prepare(store, EvaluateConfig(systems=["base"], tasks=["sum"]))
    assert inputs["systems"]["base"].tolist() == [DEFAULT_BASE]


def test_a_router_of_meta_questions_needs_them(prepared: Prepared):
    folder = prepared.store.workspace.mixtures / "moe" / "moe.json"
    text = json.dumps(json.loads(folder.read_text()) | {"of": "meta-question"})
    folder.write_text(text)
    prepared.store.cursor().execute(
        "UPDATE system SET sha256 = ? WHERE system = 'moe'", [hashlib.sha256(text.encode()).hexdigest()]
    )
    with pytest.raises(NotFoundError, match=r"7 questions .* have none"):
        prepared.evaluate(systems=["moe"], tasks=["sum"])


def test_answers_of_several_lines_end_at_an_empty_line():
    def find(*answers):
        return answering.find_stop_texts(pd.DataFrame({"regime": "exact", "answer": answers, "metadata": None}))

    assert find("1", "2\n") == ("\n",)
    assert find("1", "2\n3") == ("\n\n",)


def test_token_strips_come_back_in_order(prepared: Prepared):
    context = prepared.evaluate(systems=["moe"], tasks=["sum"])
    strip = context.rows("token_activation").drop(columns="run_id")
    insert_rows(prepared.store, "evaluate", token_activation=strip)
    name = strip["question_id"].iloc[0]
    found = fetch_token_activations(prepared.store, "moe", name)
    assert found["position"].is_monotonic_increasing
    assert len(found) == (strip["question_id"] == name).sum()
