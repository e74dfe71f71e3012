"""Metrics of stored answers, by hand: options by log-likelihood per character, numbers only where they are marked."""

import json

import pandas as pd
import pytest

from metamoe_backend.cli import main
from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.answers import require_one_regime
from metamoe_backend.evaluate.forgetting import compute_accuracies, compute_differences_to_base
from metamoe_backend.evaluate.metrics import choose_metric, list_metrics
from metamoe_backend.evaluate.outcomes import compute_majority_vote, compute_outcomes
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_predictions
from metamoe_backend.workspace import Workspace

OPTIONS = ["ice", "a hot fire"]


def answer(system: str, question: str, logliks: list[float], gold: int | None = 1) -> dict:
    choice = logliks.index(max(logliks))
    return {
        "system": system, "question_id": question, "task": "facts", "regime": "choices", "n_shot": 0,
        "output": OPTIONS[choice], "choice": choice, "correct": choice == 1, "score": float(choice == 1),
        "logliks": logliks, "choices": OPTIONS, "gold": gold, "answer": OPTIONS[1],
    }  # fmt: skip


def write(system: str, question: str, output: str, correct: bool) -> dict:
    return {
        "system": system, "question_id": question, "task": "sums", "regime": "number, explained", "n_shot": 5,
        "output": output, "choice": None, "correct": correct, "score": float(correct), "logliks": None, "choices": None,
        "gold": None, "answer": "18",
    }  # fmt: skip


PREDICTIONS = pd.DataFrame(
    [
        answer("base", "q1", [-3.0, -9.0]),  # -1.0 and -0.9 a character: wrong, but right by length
        answer("base", "q2", [-3.0, -11.0], None),  # -1.0 and -1.1: wrong by both
        answer("arith", "q1", [-3.3, -3.0]),  # -1.1 and -0.3: right by both
        answer("arith", "q2", [-0.3, -3.0]),  # -0.1 and -0.3: wrong by both
        write("base", "g1", "9 * 2 = 18", True),
        write("base", "g2", "#### 17\nand 18", True),
        write("arith", "g1", "#### 18.", True),
        write("arith", "g2", "#### $18", True),
    ]
).astype({"choice": "Int64"})


def test_options_count_by_log_likelihood_a_character():
    measured = choose_metric(PREDICTIONS, "acc_norm").set_index(["system", "question_id"])
    assert measured["choice"].to_dict() == {
        ("base", "q1"): 1, ("base", "q2"): 0, ("arith", "q1"): 1, ("arith", "q2"): 0,
    }  # fmt: skip
    assert measured["correct"].tolist() == [True, False, True, False]
    assert measured["output"].tolist() == ["a hot fire", "ice", "a hot fire", "ice"]
    assert set(measured["regime"]) == {"choices, acc_norm"} and set(measured["task"]) == {"facts"}


def test_characters_are_counted_not_bytes():
    rows = pd.DataFrame([answer("base", "q1", [-4.0, -5.0])]).assign(choices=[["火火火火", "ice is"]])
    assert choose_metric(rows, "acc_norm")["choice"].tolist() == [1]  # -1.0 and -0.83; by bytes -0.33 and -0.83


def test_numbers_count_only_where_they_are_marked():
    measured = choose_metric(PREDICTIONS, "strict").set_index(["system", "question_id"])
    assert measured["correct"].to_dict() == {
        ("base", "g1"): False, ("base", "g2"): False, ("arith", "g1"): True, ("arith", "g2"): False,
    }  # fmt: skip
    assert set(measured["regime"]) == {"number, explained, strict"}


def test_every_table_is_of_one_metric():
    assert list_metrics(PREDICTIONS) == ["acc_norm", "strict"]
    assert list_metrics(PREDICTIONS[PREDICTIONS["task"] == "sums"]) == ["strict"]
    by_length = choose_metric(PREDICTIONS, "acc_norm")
    with pytest.raises(ConfigError, match="'facts' was scored as choices 0-shot and choices, acc_norm 0-shot"):
        require_one_regime(pd.concat([PREDICTIONS, by_length]))
    with pytest.raises(NotFoundError, match="scored by number, which strict measures"):
        choose_metric(PREDICTIONS[PREDICTIONS["task"] == "facts"], "strict")


def test_outcomes_and_forgetting_are_of_the_chosen_metric():
    by_length = choose_metric(PREDICTIONS, "acc_norm")
    for predictions, base, mixed in ((PREDICTIONS, 0.0, 1), (by_length, 0.5, 0)):
        facts = predictions[predictions["task"] == "facts"]
        accuracy = compute_accuracies(facts).set_index("system")["accuracy"]
        assert accuracy.to_dict() == {"base": base, "arith": 0.5}
        assert compute_differences_to_base(facts)["difference"].tolist() == [0.5 - base]
        assert (compute_outcomes(facts, ["base", "arith"])["outcome"] == "mixed").sum() == mixed
    assert compute_majority_vote(by_length, ["base", "arith"]).tolist() == [True, False]


def test_verbs_take_a_metric_and_say_what_it_does_not_measure(synthetic: Workspace, capsys):
    assert main(["--workspace", str(synthetic.root), "forgetting", "--metric", "acc_norm", "--json"]) == 0
    told = capsys.readouterr()
    tables = json.loads(told.out.splitlines()[-1])
    assert {row["regime"] for row in tables["accuracy"]} == {"choices, acc_norm"}
    assert "acc_norm does not measure" in told.err
    with Store.open(synthetic, "a test") as store:
        measured = choose_metric(fetch_predictions(store, options=True), "acc_norm")
    expected = measured.groupby(["system", "task"])["correct"].agg(["sum", "size"])
    found = {(row["system"], row["task"]): (row["correct"], row["n"]) for row in tables["accuracy"]}
    assert found == {cell: (row["sum"], row["size"]) for cell, row in expected.iterrows()}
    assert main(["--workspace", str(synthetic.root), "outcomes", "--metric", "strict"]) == 2
    assert "No answer here was scored by number" in capsys.readouterr().err


def test_where_nothing_is_answered_nothing_is_measured(store: Store) -> None:
    assert list_metrics(fetch_predictions(store)) == []
