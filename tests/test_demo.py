"""The recorded demo: small, safe, complete, and it opens by a rebuild."""

import json
from pathlib import Path

import pytest

from metamoe_backend import demo_recipe as recipe
from metamoe_backend.demo import DEMO_FOLDER, open_demo
from metamoe_backend.errors import ConflictError
from metamoe_backend.evaluate.forgetting import compute_differences_to_base
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_adapters
from metamoe_backend.store.results import fetch_predictions
from metamoe_backend.workspace import Workspace

MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return open_demo(Workspace(tmp_path_factory.mktemp("demo") / "demo"))


def test_it_is_small_and_holds_nothing_that_runs_code() -> None:
    files = [path for path in DEMO_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".parquet", ".safetensors", ".txt"}


def test_it_says_how_it_was_made() -> None:
    about = json.loads((DEMO_FOLDER / "demo.json").read_text(encoding="utf-8"))
    assert {"command", "recorded_at", "minutes", "seed", "versions", "figures"} <= set(about)
    assert about["minutes"] <= 40


def test_every_system_answered_every_held_out_question(demo: Workspace) -> None:
    with Store.open(demo) as store:
        answered = store.frame("SELECT system, count(DISTINCT question_id) AS n FROM prediction GROUP BY system")
        held_out = store.value("SELECT count(*) FROM question WHERE split = 'test'")
    assert set(answered["system"]) == set(recipe.SYSTEMS)
    assert set(answered["n"]) == {held_out}


def test_the_accuracies_written_down_are_those_of_the_answers(demo: Workspace) -> None:
    about = json.loads((DEMO_FOLDER / "demo.json").read_text(encoding="utf-8"))
    with Store.open(demo) as store:
        predictions = fetch_predictions(store)
    counted = predictions.groupby(["system", "task"])["correct"].sum().to_dict()
    assert {(row["system"], row["task"]): row["correct"] for row in about["figures"]["accuracy"]} == counted


def test_each_expert_clearly_beats_base_on_its_own_skill_and_one_clearly_lost_elsewhere(demo: Workspace) -> None:
    experts = [*recipe.EXPERTS, recipe.ALONE]
    with Store.open(demo) as store:
        predictions = fetch_predictions(store, ["base", *experts])
        skills = fetch_adapters(store, experts).set_index("adapter")["skills"]
    learned = {expert: [task for skill in skills[expert] for task in recipe.SKILLS[skill]] for expert in experts}
    differences = compute_differences_to_base(predictions).set_index(["system", "task"])
    for expert in experts:
        for task in learned[expert]:
            assert differences.loc[(expert, task), "low"] > 0, (expert, task)
    elsewhere = [key for key in differences.index if key[1] not in learned[key[0]]]
    assert (differences.loc[elsewhere, "high"] < 0).any()


def test_the_experts_did_not_see_held_out_questions(demo: Workspace) -> None:
    with Store.open(demo) as store:
        both = store.value(
            "SELECT count(*) FROM (SELECT task, prompt FROM question WHERE split = 'train' "
            "INTERSECT SELECT task, prompt FROM question WHERE split = 'test')"
        )
    assert both == 0


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match="not empty"):
        open_demo(Workspace(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"
