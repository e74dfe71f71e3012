"""Accuracy against base, own and other tasks, and the formulas of sequential training."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate import forgetting
from tests.test_outcomes import make_predictions

SYSTEMS = ["base", "arith", "mixed", "moe"]
# Tasks sum (5 questions) and facts (5): arith gains 4 on sum, loses 2 on facts.
CORRECT = np.array(
    [
        *([0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]),
        *([1, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]),
    ]
)
PREDICTIONS = make_predictions(CORRECT, SYSTEMS, ["sum"] * 5 + ["facts"] * 5)


def test_every_cell_has_its_n_and_interval():
    cells = forgetting.compute_accuracies(PREDICTIONS).set_index(["system", "task"])
    assert len(cells) == 8
    cell = cells.loc[("arith", "sum")]
    assert (cell["correct"], cell["n"], cell["accuracy"]) == (5, 5, 1.0)
    assert ((cells["low"] <= cells["accuracy"]) & (cells["accuracy"] <= cells["high"])).all()


def test_differences_to_base_count_what_was_gained_and_lost():
    cells = forgetting.compute_differences_to_base(PREDICTIONS).set_index(["system", "task"])
    assert set(cells.index.get_level_values("system")) == {"arith", "mixed", "moe"}
    gain, loss = cells.loc[("arith", "sum")], cells.loc[("arith", "facts")]
    assert (gain["difference"], gain["gained"], gain["lost"]) == (pytest.approx(0.8), 4, 0)
    assert (loss["difference"], loss["gained"], loss["lost"]) == (pytest.approx(-0.4), 0, 2)
    assert (cells["n"] == 5).all()


def test_cells_are_marked_after_correction_over_the_whole_matrix():
    correct = np.array([[0, 1, 0]] * 8 + [[1, 1, 0]] * 6 + [[0, 0, 0]] * 2)
    cells = forgetting.compute_differences_to_base(make_predictions(correct, ["base", "good", "bad"], ["t"] * 16))
    good, bad = cells.set_index("system").loc["good"], cells.set_index("system").loc["bad"]
    assert (good["p"], bad["p"]) == (pytest.approx(2 / 2**8), pytest.approx(2 / 2**6))
    assert (good["p_holm"], bad["p_holm"]) == (pytest.approx(4 / 2**8), pytest.approx(2 / 2**6))
    assert good["significant"] and bad["significant"] and cells["shown"].all()
    more = make_predictions(np.hstack([correct, correct[:, :1]]), ["base", "good", "bad", "same"], ["t"] * 16)
    third = forgetting.compute_differences_to_base(more).set_index("system")
    assert third["p_holm"].to_dict() == pytest.approx({"good": 6 / 2**8, "bad": 4 / 2**6, "same": 1.0})
    assert third["significant"].to_dict() == {"good": True, "bad": False, "same": False}


def test_the_questions_lost_and_gained_are_named():
    assert forgetting.find_changed(PREDICTIONS, "arith", "facts") == (["q005", "q006"], [])
    assert forgetting.find_changed(PREDICTIONS, "arith", "sum") == ([], ["q000", "q001", "q002", "q003"])


@settings(max_examples=25)
@given(st.permutations(range(len(PREDICTIONS))))
def test_the_order_of_questions_and_systems_changes_no_number(order):
    shuffled = PREDICTIONS.iloc[order]
    for compute in (forgetting.compute_accuracies, forgetting.compute_differences_to_base):
        frames = [compute(each).sort_values(["system", "task"], ignore_index=True) for each in (PREDICTIONS, shuffled)]
        pd.testing.assert_frame_equal(*frames)


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=len(PREDICTIONS), max_size=len(PREDICTIONS)))
def test_each_pair_is_compared_on_what_both_answered_whoever_else_is_there(kept):
    answered = PREDICTIONS[np.array(kept) | PREDICTIONS["question_id"].eq("q000")]
    pairs = [("arith", "base"), ("moe", "mixed"), ("moe", "base"), ("base", "base")]
    together = forgetting.compare_systems(answered, pairs)
    alone = [forgetting.compare_systems(answered[answered["system"].isin(pair)], [pair]) for pair in pairs]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))
    for row in together.itertuples():
        of = answered[answered["task"] == row.task].pivot(index="question_id", columns="system", values="correct")
        both = of[list({row.system, row.reference})].dropna().astype(bool)
        assert (row.n, row.accuracy) == (len(both), pytest.approx(both[row.system].mean()))
        assert row.lost == (both[row.reference] & ~both[row.system]).sum()


def test_other_systems_may_have_been_scored_in_another_way():
    other = PREDICTIONS.assign(regime=PREDICTIONS["system"].map({"moe": "choices", "mixed": "choices"}).fillna("exact"))
    pairs = [("arith", "base"), ("moe", "mixed")]
    pd.testing.assert_frame_equal(
        forgetting.compare_systems(other, pairs).drop(columns="regimes"),
        forgetting.compare_systems(PREDICTIONS, pairs).drop(columns="regimes"),
    )


def test_own_tasks_are_kept_apart_from_the_others():
    parts = forgetting.compute_own_and_other(PREDICTIONS, {"arith": ["sum"]}).set_index("part")
    assert parts.loc["own", "difference"] == pytest.approx(0.8)
    assert parts.loc["other", "difference"] == pytest.approx(-0.4)
    assert forgetting.compute_own_and_other(PREDICTIONS, {}).empty


def test_any_joined_column_can_group():
    skilled = PREDICTIONS.assign(skill=PREDICTIONS["task"].map({"sum": "arithmetic", "facts": "knowledge"}))
    cells = forgetting.compute_differences_to_base(skilled, group="skill")
    assert set(cells["skill"]) == {"arithmetic", "knowledge"}
    with pytest.raises(ConfigError, match="no column 'colour'"):
        forgetting.compute_differences_to_base(PREDICTIONS, group="colour")


def test_groups_without_a_name_are_left_out():
    partly = PREDICTIONS.assign(skill=PREDICTIONS["task"].map({"sum": "arithmetic"}))
    assert set(forgetting.compute_differences_to_base(partly, group="skill")["skill"]) == {"arithmetic"}


def test_mixed_regimes_are_refused():
    other = PREDICTIONS.assign(regime=np.where(PREDICTIONS["system"] == "base", "choices", "exact"))
    for compute in (forgetting.compute_accuracies, forgetting.compute_differences_to_base):
        with pytest.raises(ConfigError, match="choices 0-shot and exact 0-shot"):
            compute(other)


AFTER = np.array([[0.9, 0.3, 0.2], [0.95, 0.8, 0.4], [0.5, 0.6, 0.7]])


def test_the_formulas_on_a_worked_example():
    base, mixed = [0.1, 0.2, 0.3], [1.0, 0.9, 0.6]
    table = forgetting.summarise_sequence(AFTER, base, mixed).set_index("measure")["value"]
    assert table["ACC"] == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert table["BWT"] == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)
    assert table["FWT"] == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    assert table["F"] == pytest.approx(((0.95 - 0.5) + (0.8 - 0.6)) / 2)
    assert table["I"] == pytest.approx(((1.0 - 0.9) + (0.9 - 0.8) + (0.6 - 0.7)) / 3)


@given(st.integers(2, 6).flatmap(lambda n: arrays(float, (n, n), elements=st.floats(0, 1))))
def test_forgetting_is_at_least_what_backward_transfer_lost(after):
    assert forgetting.compute_forgetting(after) >= -forgetting.compute_backward_transfer(after) - 1e-12


def test_one_step_has_no_transfer_and_a_matrix_must_be_square():
    assert np.isnan(forgetting.compute_backward_transfer([[0.5]]))
    assert np.isnan(forgetting.compute_forgetting([[0.5]]))
    assert np.isnan(forgetting.compute_forward_transfer([[0.5]], [0.1]))
    with pytest.raises(ConfigError, match="as many steps as tasks"):
        forgetting.compute_average_accuracy(AFTER[:2])


def test_only_measures_with_their_inputs_are_listed_each_with_its_formula():
    table = forgetting.summarise_sequence(AFTER)
    assert table["measure"].tolist() == ["ACC", "BWT", "F"]
    assert table["formula"].tolist() == [forgetting.FORMULAS[measure] for measure in table["measure"]]


def test_a_matrix_needs_every_cell():
    cells = forgetting.compute_accuracies(PREDICTIONS)
    matrix = forgetting.pivot_accuracies(cells, ["base", "arith"], ["facts", "sum"])
    assert matrix == pytest.approx(np.array([[0.8, 0.2], [0.4, 1.0]]))
    with pytest.raises(NotFoundError, match="'poems'"):
        forgetting.pivot_accuracies(cells, ["base"], ["poems"])


def test_a_frame_without_rows_keeps_its_columns():
    assert forgetting.compare_systems(PREDICTIONS, []).columns[:3].tolist() == ["system", "reference", "task"]
    assert forgetting.compute_accuracies(PREDICTIONS.head(0)).empty
    assert isinstance(forgetting.compute_differences_to_base(PREDICTIONS.head(0)), pd.DataFrame)


# ---- sequences among the systems -------------------------------------------------------------------------------------


def make_steps(count: int, run_id: str = "run", order=("one", "two", "three")) -> pd.DataFrame:
    settings = [
        {"name": "seq", "replay": 0.1, "order": list(order), "step": i + 1, "step_label": order[i], "step_tasks": tasks}
        for i, tasks in zip(range(count), (["sum"], ["facts", "more"], ["last"]), strict=False)
    ]
    names = [f"seq-{i + 1}" for i in range(count)]
    return pd.DataFrame({"system": names, "run_id": run_id, "settings": [json.dumps(each) for each in settings]})


def test_a_sequence_is_found_by_the_settings_of_its_steps():
    alone = pd.DataFrame({"system": ["base", "arith"], "run_id": ["a", "b"], "settings": ["{}", '{"name": "x"}']})
    (found,) = forgetting.find_sequences(pd.concat([alone, make_steps(3).iloc[::-1]]))
    assert found.steps == ["seq-1", "seq-2", "seq-3"] and found.labels == ["one", "two", "three"]
    assert found.tasks == [["sum"], ["facts", "more"], ["last"]] and found.replay == 0.1
    assert forgetting.find_sequences(pd.concat([alone, make_steps(2)])) == [], "a sequence that was cut short"


def test_the_matrix_pools_the_tasks_of_a_step_and_gives_the_measures():
    correct = [  # questions x systems: base, seq-1, seq-2, seq-3, mixed
        *([0, 1, 0, 0, 1], [0, 1, 1, 0, 1]),  # sum
        *([1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 0, 1, 0, 1]),  # facts, more
        *([0, 0, 0, 1, 1],),  # last
    ]
    tasks = ["sum", "sum", "facts", "facts", "more", "more", "last"]
    systems = ["base", "seq-1", "seq-2", "seq-3", "mixed"]
    predictions = make_predictions(np.array(correct), systems, tasks)
    (sequence,) = forgetting.find_sequences(make_steps(3))
    cells = forgetting.compute_sequence_accuracies(predictions, sequence, ["base", "mixed"])
    matrix = forgetting.pivot_accuracies(cells, sequence.steps, sequence.labels)
    np.testing.assert_array_equal(matrix, [[1, 0.25, 0], [0.5, 1, 0], [0, 0.5, 1]])
    assert cells.set_index(["system", "task"]).loc[("seq-1", "two"), "n"] == 4
    measures = forgetting.summarise_training_sequence(cells, sequence, mixed="mixed").set_index("measure")["value"]
    assert measures["BWT"] == pytest.approx(((0 - 1) + (0.5 - 1)) / 2)
    assert measures["FWT"] == pytest.approx(((0.25 - 0.25) + (0 - 0)) / 2) and measures["I"] == 0
    without = forgetting.compute_sequence_accuracies(predictions, sequence)
    assert set(forgetting.summarise_training_sequence(without, sequence)["measure"]) == {"ACC", "BWT", "F"}
    with pytest.raises(NotFoundError, match="System 'seq-3' was not evaluated on last"):
        unseen = predictions[(predictions["system"] != "seq-3") | (predictions["task"] != "last")]
        forgetting.compute_sequence_accuracies(unseen, sequence)
