"""What a training run reads from the store: whose questions, how many, and under which name."""

import pandas as pd
import pytest

from metamoe_backend.config import ImportAdapterConfig, MoeConfig, TrainConfig, parse_config
from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError
from metamoe_backend.experts import bank
from metamoe_backend.store.connection import Store
from metamoe_backend.store.data_selections import fetch_data_selections
from metamoe_backend.store.experts import fetch_adapters, fetch_plans, fetch_training_questions
from metamoe_backend.store.questions import fetch_questions, fetch_task_names
from metamoe_backend.train import expert, moe, sources
from metamoe_backend.workspace import Workspace


@pytest.fixture
def full(synthetic: Workspace):
    with Store.open(synthetic, "a test") as opened:
        yield opened


@pytest.fixture
def plan(full: Store) -> str:
    return fetch_plans(full)["plan"].iloc[0]


def test_an_expert_gets_the_questions_of_its_skills(full: Store, plan: str) -> None:
    inputs = expert.prepare(full, TrainConfig(name="arith", plan=plan))
    every = fetch_training_questions(full, plan, "train")
    assert set(inputs["questions"]["question_id"]) == set(every.loc[every["expert"] == "arith", "question_id"])
    assert list(inputs["questions"].columns) == sources.COLUMNS
    assert inputs["target"]["adapter"].tolist() == ["arith-2"], "the bank has an 'arith' already"


def test_mixed_gets_every_expert_but_base_within_the_limit(full: Store, plan: str) -> None:
    inputs = expert.prepare(full, TrainConfig(kind="mixed", name="together", plan=plan, limit=30))
    assert inputs["target"]["adapter"].tolist() == ["together"]
    assert inputs["questions"]["expert"].value_counts().to_dict() == {"arith": 10, "logic": 10, "letters": 10}
    again = expert.prepare(full, TrainConfig(kind="mixed", name="together", plan=plan, limit=30))
    pd.testing.assert_frame_equal(inputs["questions"], again["questions"])


def test_halves_of_the_questions_and_an_adapter_to_start_from(full: Store, plan: str) -> None:
    shape = fetch_adapters(full, ["arith"]).iloc[0]
    own = {"rank": int(shape["rank"]), "alpha": float(shape["alpha"]), "targets": list(shape["targets"])}
    settings = {"name": "arith", "plan": plan, "base": shape["base"], "start_from": "arith", "lora": own}
    first = expert.prepare(full, TrainConfig(**settings, part_to=0.5))
    second = expert.prepare(full, TrainConfig(**settings, part_from=0.5))
    assert first["start"]["adapter"].tolist() == ["arith"]
    ids = [*first["questions"]["question_id"], *second["questions"]["question_id"]]
    assert sorted(ids) == sorted(expert.prepare(full, TrainConfig(name="arith", plan=plan))["questions"]["question_id"])
    with pytest.raises(ConfigError, match=r"adapter 'arith' has base .* set base and lora to the same"):
        expert.prepare(full, TrainConfig(**settings | {"lora": own | {"rank": 3}}))
    with pytest.raises(NotFoundError, match="Expert 'none' does not exist"):
        expert.prepare(full, TrainConfig(**settings | {"start_from": "none"}))
    with pytest.raises(ConfigError, match="No question lies between the shares"):
        expert.prepare(full, TrainConfig(name="arith", plan=plan, part_from=0.5, part_to=0.5001))


def test_names_that_lead_nowhere(full: Store, plan: str) -> None:
    with pytest.raises(NotFoundError, match=r"'algebra' is not in plan .*it has: arith, letters, logic"):
        expert.prepare(full, TrainConfig(name="algebra", plan=plan))
    with pytest.raises(NotFoundError, match="Plan 'none' does not exist"):
        expert.prepare(full, TrainConfig(name="arith", plan="none"))
    for kind in ("expert", "mixed"):
        with pytest.raises(ConfigError, match="'base' means no adapter"):
            expert.prepare(full, TrainConfig(kind=kind, name="base", plan=plan))
    with pytest.raises(ConfigError, match="no questions for expert 'arith' in the split 'validation'"):
        expert.prepare(full, TrainConfig(name="arith", plan=plan, split="validation"))


def test_an_import_takes_no_name_away(full: Store) -> None:
    with pytest.raises(ConflictError, match="'arith' is taken"):
        bank.prepare(full, ImportAdapterConfig(source="x", name="arith"))
    with pytest.raises(ConfigError, match="'base' means no adapter"):
        bank.prepare(full, ImportAdapterConfig(source="x", name="base"))
    assert bank.prepare(full, ImportAdapterConfig(source="x", name="guest")) == {}


# ---- without a plan --------------------------------------------------------------------------------------------------


def test_an_expert_of_whole_tasks_needs_no_plan(full: Store) -> None:
    tasks = fetch_task_names(full)[:2]
    inputs = expert.prepare(full, TrainConfig(name="newcomer", tasks=tasks))
    questions = inputs["questions"]
    asked = fetch_questions(full, tasks=tasks, split="train")
    assert set(questions["question_id"]) == set(asked["question_id"]) and list(questions.columns) == sources.COLUMNS
    assert questions["skill"].isna().all() and questions["expert"].isna().all()
    assert inputs["target"]["adapter"].tolist() == ["newcomer"]
    few = expert.prepare(full, TrainConfig(name="newcomer", tasks=tasks, limit=6))["questions"]
    assert few["task"].value_counts().to_dict() == dict.fromkeys(tasks, 3), "a limit is shared evenly over the tasks"
    with pytest.raises(NotFoundError, match="Task 'none' does not exist"):
        expert.prepare(full, TrainConfig(name="newcomer", tasks=["none"]))
    with pytest.raises(ConfigError, match=f"Tasks {tasks[0]}: no questions in the split 'validation'; ingest some"):
        expert.prepare(full, TrainConfig(name="newcomer", tasks=tasks[:1], split="validation"))


def test_a_mixture_without_a_plan_teaches_its_gates_with_every_question(full: Store) -> None:
    tasks = fetch_task_names(full)[:2]
    settings = {"name": "duo", "experts": ["logic", "arith"], "mode": "token", "tasks": tasks}
    inputs = moe.prepare(full, MoeConfig(**settings))
    assert set(inputs["questions"]["task"]) == set(tasks) and inputs["questions"]["expert"].isna().all()
    with pytest.raises(ConfigError, match="mode two-level needs a plan"):
        parse_config(MoeConfig, settings | {"mode": "two-level"})


@pytest.mark.parametrize(("mode", "train"), [("uniform", "none"), ("uniform", "router"), ("arrow", "none")])
def test_where_nothing_learns_no_question_is_needed(full: Store, mode: str, train: str) -> None:
    settings = {"name": "duo", "experts": ["logic", "arith"], "mode": mode, "train": train}
    inputs = moe.prepare(full, parse_config(MoeConfig, settings))
    assert inputs["questions"].empty and list(inputs["questions"]) == sources.COLUMNS
    assert inputs["adapters"]["adapter"].tolist() == ["logic", "arith"]


@pytest.mark.parametrize(
    "changes", [{"mode": "token"}, {"mode": "uniform", "train": "router+experts"}, {"mode": "task", "train": "none"}]
)
def test_where_something_learns_a_source_is_needed(changes: dict) -> None:
    with pytest.raises(ConfigError, match="say where the questions come from"):
        parse_config(MoeConfig, {"name": "duo", "experts": ["a", "b"]} | changes)


def test_rows_of_a_data_selection(full: Store) -> None:
    made = fetch_data_selections(full).iloc[0]
    questions = expert.prepare(full, TrainConfig(name="newcomer", data=made["run_id"]))["questions"]
    rows = full.frame("SELECT prompt FROM selected_row WHERE decision IN ('shot', 'selected')")
    assert sorted(questions["prompt"]) == sorted(rows["prompt"]) and len(rows) == made["shot"] + made["selected"]
    assert questions["question_id"].is_unique and questions["task"].eq(made["task"]).all()
    assert questions["template"].str.contains("{prompt}", regex=False).all()
    with pytest.raises(NotFoundError, match="Data selection 'none' does not exist"):
        expert.prepare(full, TrainConfig(name="newcomer", data="none"))


@pytest.mark.parametrize("given", [{}, {"plan": "first", "tasks": ["a"]}, {"tasks": ["a"], "data": "run"}])
def test_exactly_one_source_is_named(given: dict) -> None:
    with pytest.raises(ConfigError, match="one of plan, tasks and data"):
        parse_config(TrainConfig, {"name": "newcomer"} | given)
