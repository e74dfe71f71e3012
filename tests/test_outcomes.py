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
    count_intersections,
    count_outcomes,
    count_solvers,
    find_complete,
    find_regret,
    find_solved_by,
    summarise_regret,
    tabulate_part,
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


def test_the_majority_needs_equal_answers_and_a_tie_goes_to_the_first_in_the_alphabet():
    predictions = make_predictions(np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]]), EXPERTS)
    votes = compute_majority_vote(predictions, EXPERTS)
    # q001: three different answers, arith's (wrong) counts; q002: the same, and arith is right.
    assert votes.tolist() == [True, False, True]
    assert compute_majority_vote(predictions, EXPERTS[::-1]).tolist() == votes.tolist()
    predictions.loc[predictions["question_id"].eq("q001") & predictions["system"].eq("logic"), "output"] = "no,  ARITH"
    assert compute_majority_vote(predictions, EXPERTS).tolist() == [True, False, True]
    predictions.loc[predictions["question_id"].eq("q002") & predictions["system"].eq("logic"), "output"] = "no, letters"
    assert compute_majority_vote(predictions, EXPERTS).tolist() == [True, False, False]


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
    assert find_complete(partly, EXPERTS, [*EXPERTS, "moe", "gone"]) == EXPERTS


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


# Five questions; arith, logic, letters, moe.
SMALL = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]])
SYSTEMS = [*EXPERTS, "moe"]


def test_how_many_experts_solve_each_question_of_a_task():
    outcomes = compute_outcomes(make_predictions(SMALL, SYSTEMS, ["a", "a", "a", "b", "b"]), EXPERTS)
    counts = count_solvers(outcomes).set_index(["task", "correct_experts"])
    assert counts.loc["a", "questions"].tolist() == [1, 1, 0, 1]
    assert counts.loc["b", "questions"].tolist() == [0, 1, 1, 0]
    assert counts.loc[ALL_TASKS, "questions"].tolist() == [1, 2, 1, 1]
    assert counts.loc[("b", 2), ["n", "share"]].tolist() == [2, 0.5]
    assert count_solvers(outcomes.head(0)).empty


def test_each_question_counts_under_exactly_those_who_solve_it():
    solved = compute_answer_table(make_predictions(SMALL, SYSTEMS), EXPERTS)
    found = count_intersections(solved)
    assert list(zip(found["solvers"], found["questions"], strict=True)) == [
        (["arith"], 2), ([], 1), (["letters", "logic"], 1), (["arith", "letters", "logic"], 1),
    ]  # fmt: skip
    assert found["n"].unique().tolist() == [5]
    assert find_solved_by(solved, ["arith"]) == ["q001", "q004"]
    assert find_solved_by(solved, []) == ["q002"]
    assert find_solved_by(solved, ["logic"]) == []


def test_the_mixed_part_by_hand():
    predictions = make_predictions(SMALL, SYSTEMS).assign(skill=None)
    predictions.loc[predictions["question_id"].isin(["q001", "q003"]), "skill"] = "sums"
    assert tabulate_part(predictions, EXPERTS, ["moe"]).index.get_level_values(1).tolist() == ["q001", "q003", "q004"]
    rates = compute_error_rates(predictions, EXPERTS, ["moe"]).set_index(["task", "system"])["errors"]
    assert rates[ALL_TASKS].to_dict() == {
        # q001 and q004: three different answers, so the majority is arith's; q003: the two right ones agree.
        "arith": 1, "logic": 2, "letters": 2, "moe": 2, BEST_SINGLE: 1, MAJORITY: 0, ORACLE: 0,
    }  # fmt: skip
    by_skill = compute_error_rates(predictions, EXPERTS, ["moe"], group="skill").set_index(["skill", "system"])
    assert by_skill.loc[("sums", "moe"), ["errors", "n"]].tolist() == [1, 2]
    assert by_skill.loc[("no skill", "moe"), ["errors", "n"]].tolist() == [1, 1]
    counts = count_outcomes(compute_outcomes(predictions, EXPERTS), "skill").set_index(["skill", "outcome"])
    assert counts.loc["sums", "questions"].to_dict() == {"all-correct": 0, "mixed": 2, "all-incorrect": 0}
    compared = compare_with_best_expert(predictions, EXPERTS, "moe", group="skill").set_index("skill")
    assert compared.loc["no skill", ["n", "expert", "only_expert"]].tolist() == [1, "arith", 1]
    with pytest.raises(ConfigError, match="no column 'colour'"):
        compute_error_rates(predictions, EXPERTS, group="colour")


ROUTING = pd.DataFrame(
    [
        ("q003", "arith", 0.7, 0.2), ("q003", "logic", 0.2, 0.5), ("q003", "letters", 0.1, 0.3),
        ("q004", "arith", 0.1, np.nan), ("q004", "logic", 0.9, np.nan),
    ],
    columns=["question_id", "expert", "probability", "weight"],
)  # fmt: skip


def test_regret_says_who_was_right_and_what_the_routers_gave_them():
    predictions = make_predictions(SMALL, SYSTEMS)
    regret = find_regret(predictions, EXPERTS, "moe", ROUTING).set_index("question_id")
    assert regret["right"].to_dict() == {"q003": ["letters", "logic"], "q004": ["arith"]}
    first, second = regret.loc["q003"], regret.loc["q004"]
    assert (first["probability"], first["weight"]) == (pytest.approx(0.3), pytest.approx(0.8))
    assert (first["by_question"], first["by_token"], first["fault"]) == ("arith", "logic", "mixing")
    assert second["probability"] == 0.1 and np.isnan(second["weight"])
    assert (second["by_question"], second["by_token"], second["fault"]) == ("logic", None, "routing")
    table = summarise_regret(regret.reset_index(), ROUTING, EXPERTS).set_index("expert")
    assert table["questions"].to_dict() == {"arith": 1, "letters": 1, "logic": 1}
    assert table["alone"].to_dict() == {"arith": 1, "letters": 0, "logic": 0}
    assert table.loc["logic", ["probability", "weight"]].tolist() == [0.2, 0.5]
    without = find_regret(predictions, EXPERTS, "moe", ROUTING[ROUTING["expert"] != "arith"])
    assert without["fault"].tolist() == ["mixing", "absent"], "a mixture without arith cannot give it anything"
    unknown = find_regret(predictions, EXPERTS, "moe", ROUTING.head(0))
    assert unknown["fault"].tolist() == ["unknown", "unknown"] and unknown["weight"].isna().all()


def test_without_regret_there_is_an_empty_table():
    predictions = make_predictions(SMALL[:1], SYSTEMS)
    regret = find_regret(predictions, EXPERTS, "moe", ROUTING)
    assert regret.empty
    assert summarise_regret(regret, ROUTING, EXPERTS)["questions"].tolist() == [0, 0, 0]


def _measure(predictions: pd.DataFrame, experts: list[str]) -> dict[str, pd.DataFrame]:
    outcomes = compute_outcomes(predictions, experts)
    solved = compute_answer_table(predictions, experts)
    regret = find_regret(predictions, experts, "moe", ROUTING)
    return {
        "outcomes": count_outcomes(outcomes),
        "skills": count_outcomes(outcomes, "skill"),
        "solvers": count_solvers(outcomes),
        "intersections": count_intersections(solved),
        "errors": compute_error_rates(predictions, experts, ["moe"]).sort_values(["task", "system"], ignore_index=True),
        "best": compare_with_best_expert(predictions, experts, "moe"),
        "regret": regret,
        "regret by expert": summarise_regret(regret, ROUTING, experts),
    }


@settings(max_examples=25)
@given(matrices, st.randoms(use_true_random=False), st.permutations(EXPERTS), st.data())
def test_the_order_of_questions_and_systems_changes_no_number(correct, random, experts, data):
    names = st.lists(st.sampled_from(["a", "b"]), min_size=len(correct), max_size=len(correct))
    predictions = make_predictions(correct, SYSTEMS, data.draw(names))
    predictions["skill"] = predictions["task"].map({"a": "sums"})
    rows = list(range(len(predictions)))
    random.shuffle(rows)
    before, after = _measure(predictions, EXPERTS), _measure(predictions.iloc[rows], experts)
    for name, frame in before.items():
        pd.testing.assert_frame_equal(frame, after[name], obj=name)


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
