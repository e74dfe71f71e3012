"""Outcomes add up, the oracle is never beaten by an expert, and unlike numbers are kept apart."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.answers import ALL_TASKS, compute_answer_table
from metamoe_backend.evaluate.outcomes import (
    BEST_SINGLE,
    MAJORITY,
    ORACLE,
    OUTCOMES,
    compare_with_best_expert,
    compute_error_rates,
    compute_majority_vote,
    compute_outcomes,
    count_outcomes,
)

EXPERTS = ["arith", "logic", "letters"]


def make_predictions(correct: np.ndarray, systems: list[str], tasks: list[str] | None = None) -> pd.DataFrame:
    """correct: [questions, systems]. Right answers read "right", wrong ones differ between systems."""
    tasks = tasks or ["toy"] * len(correct)
    rows = [
        {
            "system": system, "question_id": f"q{number:03d}", "task": tasks[number], "regime": "exact", "n_shot": 0,
            "correct": bool(value), "score": float(value), "output": "Right" if value else f"no, {system}",
        }
        for number, row in enumerate(correct)
        for system, value in zip(systems, row, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


matrices = st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=40).map(np.array)


@settings(max_examples=50)
@given(matrices, st.data())
def test_counts_add_up(correct, data):
    tasks = data.draw(st.lists(st.sampled_from(["a", "b"]), min_size=len(correct), max_size=len(correct)))
    outcomes = compute_outcomes(make_predictions(correct, [*EXPERTS, "moe"], tasks), EXPERTS)
    assert len(outcomes) == len(correct)
    counts = count_outcomes(outcomes)
    per_task = counts[counts["task"] != ALL_TASKS]
    assert per_task["questions"].sum() == len(correct)
    for outcome in OUTCOMES:
        pooled = counts[(counts["task"] == ALL_TASKS) & (counts["outcome"] == outcome)]["questions"].item()
        assert pooled == per_task.loc[per_task["outcome"] == outcome, "questions"].sum()
    assert counts.groupby("task")["share"].sum().to_numpy() == pytest.approx(1.0)


@settings(max_examples=50)
@given(matrices, st.sampled_from(["mixed", None]))
def test_the_oracle_is_never_beaten_by_an_expert(correct, part):
    rates = compute_error_rates(make_predictions(correct, [*EXPERTS, "moe"]), EXPERTS, ["moe"], part)
    errors = rates[rates["task"] == ALL_TASKS].set_index("system")["errors"]
    assert (errors[ORACLE] <= errors[[*EXPERTS, BEST_SINGLE, MAJORITY]]).all()
    assert errors[BEST_SINGLE] == errors[EXPERTS].min()
    if part == "mixed":
        assert errors[ORACLE] == 0
    some = rates[rates["n"] > 0]
    assert ((some["low"] <= some["error_rate"]) & (some["error_rate"] <= some["high"])).all()
    for _, cells in some.groupby("task"):
        oracle_rate = cells.loc[cells["system"] == ORACLE, "error_rate"].item()
        assert (cells["regret"] + oracle_rate).to_numpy() == pytest.approx(cells["error_rate"].to_numpy())


def test_outcomes_of_four_questions():
    correct = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]])
    outcomes = compute_outcomes(make_predictions(correct, EXPERTS), EXPERTS)
    assert outcomes["outcome"].tolist() == ["all-correct", "mixed", "all-incorrect", "mixed"]
    assert outcomes["correct_experts"].tolist() == [3, 1, 0, 2]


def test_the_majority_needs_equal_answers_and_a_tie_goes_to_the_first():
    predictions = make_predictions(np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]]), EXPERTS)
    votes = compute_majority_vote(predictions, EXPERTS)
    # q001: three different answers, the first expert's (wrong) counts; q002: the same, and the first is right.
    assert votes.tolist() == [True, False, True]
    predictions.loc[predictions["question_id"].eq("q001") & predictions["system"].eq("logic"), "output"] = "no,  ARITH"
    assert compute_majority_vote(predictions, ["letters", "arith", "logic"]).tolist() == [True, False, False]


def test_the_answer_sentence_has_its_numbers():
    correct = np.array([[1, 0, 0, 1]] * 30 + [[0, 1, 0, 1]] * 20 + [[0, 1, 0, 0]] * 5 + [[1, 1, 1, 0]] * 9)
    found = compare_with_best_expert(make_predictions(correct, [*EXPERTS, "moe"]), EXPERTS, "moe")
    row = found[found["task"] == ALL_TASKS].iloc[0]
    assert (row["n"], row["expert"], row["only_system"], row["only_expert"]) == (55, "arith", 20, 0)
    assert row["accuracy"] == pytest.approx(50 / 55)
    assert row["expert_accuracy"] == pytest.approx(30 / 55)
    assert row["difference"] == pytest.approx(20 / 55)
    assert row["low"] < row["difference"] < row["high"]
    assert bool(row["shown"])
    assert row["p"] == pytest.approx(2 / 2**20)
    assert row["regimes"] == "exact"


def test_only_questions_that_all_answered_count():
    predictions = make_predictions(np.array([[1, 0, 0, 1], [0, 1, 0, 1]]), [*EXPERTS, "moe"])
    partly = predictions.drop(predictions.index[-1])
    rates = compute_error_rates(partly, EXPERTS, ["moe"])
    assert rates["n"].unique().tolist() == [1]
    assert compute_error_rates(partly, EXPERTS)["n"].unique().tolist() == [2]


def test_mixed_regimes_and_double_answers_are_refused():
    predictions = make_predictions(np.array([[1, 0, 0]]), EXPERTS)
    shots = predictions.assign(n_shot=[0, 0, 5])
    with pytest.raises(ConfigError, match="0-shot and exact 5-shot"):
        compute_outcomes(shots, EXPERTS)
    with pytest.raises(ConfigError, match="more than once"):
        compute_outcomes(pd.concat([predictions, predictions]), EXPERTS)
    with pytest.raises(NotFoundError, match="'nobody'"):
        compute_outcomes(predictions, ["arith", "nobody"])
    with pytest.raises(ConfigError, match="at least two"):
        compute_outcomes(predictions, ["arith"])


def test_no_questions_no_crash():
    predictions = make_predictions(np.array([[1, 1, 1, 1]]), [*EXPERTS, "moe"])  # nothing is mixed
    rates = compute_error_rates(predictions, EXPERTS, ["moe"])
    assert (rates["n"] == 0).all()
    assert np.isnan(compare_with_best_expert(predictions, EXPERTS, "moe")["difference"]).all()
    assert count_outcomes(compute_outcomes(predictions, EXPERTS).head(0)).empty


def test_a_hundred_thousand_predictions_make_one_table():
    predictions = pd.DataFrame(
        {
            "system": np.repeat([f"s{number}" for number in range(10)], 10_000),
            "question_id": [f"q{number}" for number in range(10_000)] * 10,
            "task": "toy", "regime": "choices", "n_shot": 0,
            "correct": np.random.default_rng(0).random(100_000) < 0.5,
        }
    )  # fmt: skip
    table = compute_answer_table(predictions)
    assert table.shape == (10_000, 10)
    assert table.to_numpy().sum() == predictions["correct"].sum()
