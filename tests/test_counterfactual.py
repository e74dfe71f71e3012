"""Stage "force": each answer of a forced mixture is the answer of that expert alone, and of the bare base model."""

import pandas as pd
import pytest

from metamoe_backend.config import EvaluateConfig, ForceConfig
from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.evaluate import counterfactual, stage
from metamoe_backend.evaluate.counterfactual import ROUTED
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_counterfactuals
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_rows
from tests.recording import RecordingContext
from tests.test_evaluate_stage import EXPERTS, insert_tasks, make_experts, make_mixture
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTIONS = ["colour-test-0", "colour-train-3", "sum-test-2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(make_tiny_base(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture
def store(workspace: Workspace, base: str, monkeypatch):
    from tests.fake_encoder import install

    encoder = install(monkeypatch)
    with Store.open(workspace, "a test") as opened:
        insert_tasks(opened)
        systems = pd.DataFrame([*make_experts(workspace, base), make_mixture(workspace, base, encoder.dim)])
        insert_rows(opened, "train", system=systems)
        yield opened


def force(store: Store, **settings) -> RecordingContext:
    config = ForceConfig(**{"system": "moe", "questions": QUESTIONS, "device": "cpu", "max_new_tokens": 4} | settings)
    context = RecordingContext(store.workspace.root, "run-2")
    counterfactual.compute(counterfactual.prepare(store, config), config, context)
    return context


def evaluate(store: Store, split: str) -> pd.DataFrame:
    config = EvaluateConfig(
        systems=["base", *EXPERTS, "moe"], tasks=["colour", "sum"], split=split, device="cpu", max_new_tokens=4
    )
    context = RecordingContext(store.workspace.root, f"run-{split}")
    stage.compute(stage.prepare(store, config), config, context)
    return context.rows("prediction")


def test_forced_answers_are_those_of_the_experts_alone(store: Store) -> None:
    context = force(store)
    found = context.rows("counterfactual").set_index(["expert", "question_id"])
    assert len(found) == (2 + len(EXPERTS)) * len(QUESTIONS) and found.index.is_unique
    assert context.reports[-1][:2] == (12, 12)
    alone = pd.concat([evaluate(store, "test"), evaluate(store, "train")]).set_index(["system", "question_id"])
    differing = 0
    for (expert, question), row in found.iterrows():
        expected = alone.loc[("moe" if expert == ROUTED else expert, question)]
        assert row["output"] == expected["output"] and row["correct"] == expected["correct"], (expert, question)
        assert row["regime"] == expected["regime"] and row["score"] == expected["score"]
        if expected["logliks"] is not None:
            assert row["logliks"] == pytest.approx(expected["logliks"], abs=1e-4)
        differing += row["output"] != alone.loc[("base", question), "output"]
    assert differing, "the experts change no answer: this test would show nothing"
    # "colour" goes to the first expert by the task router, and top_k is 1: routed equals forced there.
    assert found.loc[(ROUTED, "colour-test-0"), "logliks"] == pytest.approx(
        found.loc[(EXPERTS[0], "colour-test-0"), "logliks"], abs=1e-4
    )


def test_the_newest_answers_come_back_in_the_mixtures_order(store: Store) -> None:
    rows = force(store).rows("counterfactual").drop(columns="run_id")
    for _ in range(2):
        insert_rows(store, "force", counterfactual=rows.sample(frac=1, random_state=0))
    found = fetch_counterfactuals(store, "moe", QUESTIONS[:1])
    assert found["expert"].tolist() == [ROUTED, *EXPERTS, "base"] and found["run_id"].nunique() == 1
    assert found["run_id"].iloc[0] == store.value("SELECT max(run_id) FROM counterfactual")
    assert fetch_counterfactuals(store, "moe", ["none"]).empty


def test_what_cannot_be_forced_is_said(store: Store) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        force(store, questions=["nobody"])
    with pytest.raises(NotFoundError, match="none-such"):
        force(store, system="none-such")
    with pytest.raises(ConfigError, match="no router"):
        force(store, system=EXPERTS[0])
    with pytest.raises(InputError, match="Task 'program': .*no tests"):
        force(store, questions=["program-test-0"])
