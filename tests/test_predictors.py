"""The table of what goes with forgetting, and its rank correlations."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from metamoe_backend.evaluate.predictors import PREDICTORS, correlate_predictors, find_starts, tabulate_forgetting
from tests.test_outcomes import make_predictions

# base, one, two, later; tasks a (2 questions), b (2), c (4). later started from one.
CORRECT = np.array(
    [[0, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
)
NAMES = ["base", "one", "two", "later"]
OWN = {"one": ["a"], "two": ["b"], "later": ["b"]}
SIMILARITY = pd.DataFrame(
    [("one", "two", 0.2), ("later", "one", 0.6), ("two", "later", 0.4)], columns=["adapter", "other", "similarity"]
)


@pytest.fixture
def cells() -> pd.DataFrame:
    predictions = make_predictions(CORRECT, NAMES, ["a", "a", "b", "b", "c", "c", "c", "c"])
    predictions["prompt"] = predictions["task"].map({"a": "xx", "b": "xxxx", "c": "xxxxxx"})
    predictions["skill"] = predictions["question_id"].map({"q004": "S", "q005": "S", "q006": "T"})
    skills = {"one": ["S"], "two": ["T"], "later": ["S", "T"]}
    starts = {"one": "base", "two": "base", "later": "one"}
    return tabulate_forgetting(predictions, OWN, skills, starts, {"one": 1.0, "two": 3.0}, SIMILARITY)


def test_a_row_for_each_expert_and_task_it_did_not_learn(cells: pd.DataFrame) -> None:
    by_cell = cells.set_index(["expert", "task"])
    assert by_cell.index.tolist() == [
        ("one", "b"),
        ("one", "c"),
        ("two", "a"),
        ("two", "c"),
        ("later", "a"),
        ("later", "c"),
    ]
    one = by_cell.loc[("one", "c")]
    assert (one["n"], one["forgetting"], one["length"], one["norm"]) == (4, 0.25, 6, 1)
    assert one["shared_skill"] == pytest.approx(2 / 3), "of the questions whose skill is known"
    assert np.isnan(one["similarity"]), "nobody learned c"
    assert by_cell.loc[("one", "b"), "forgetting"] == 1
    assert by_cell.loc[("one", "b"), "similarity"] == pytest.approx((0.2 + 0.6) / 2), "two experts learned b"
    assert np.isnan(by_cell.loc[("one", "b"), "shared_skill"])
    assert by_cell.loc[("later", "c"), ["reference", "forgetting"]].tolist() == ["one", 0.25]
    assert np.isnan(by_cell.loc[("later", "a"), "norm"])


def test_an_expert_is_compared_with_what_it_started_from() -> None:
    made = [{"start_from": None}, {"start_from": "one"}, {"start_from": "gone"}]
    systems = pd.DataFrame({"system": ["one", "two", "three"], "settings": [json.dumps(each) for each in made]})
    assert find_starts(systems, ["one", "two", "three"]) == {"one": "base", "two": "one", "three": "base"}


def test_correlations_are_spearmans_with_n_and_interval() -> None:
    random = np.random.default_rng(1)
    cells = pd.DataFrame({name: random.integers(0, 6, 40).astype(float) for name in PREDICTORS})
    cells["forgetting"] = cells["length"] + random.normal(size=40)
    cells.loc[:4, "norm"] = np.nan
    found = correlate_predictors(cells).set_index("predictor")
    assert found["n"].to_dict() == {"shared_skill": 40, "norm": 35, "similarity": 40, "length": 40}
    for name in PREDICTORS:
        known = cells[[name, "forgetting"]].dropna()
        assert found.loc[name, "rho"] == pytest.approx(spearmanr(known[name], known["forgetting"]).statistic)
    assert ((found["low"] < found["rho"]) & (found["rho"] < found["high"])).all()
    assert found.loc["length", "low"] > 0.5
    pd.testing.assert_frame_equal(correlate_predictors(cells.iloc[::-1]).set_index("predictor"), found)


def test_too_few_cells_or_no_variation_give_no_correlation(cells: pd.DataFrame) -> None:
    found = correlate_predictors(cells.head(2)).set_index("predictor")
    assert found[["rho", "low", "high"]].isna().all(axis=None) and found.loc["length", "n"] == 2
    constant = correlate_predictors(cells.assign(norm=1.0)).set_index("predictor").loc["norm"]
    assert np.isnan(constant["rho"]) and constant["values"] == 1
