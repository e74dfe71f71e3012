"""Router figures: what each layer, skill and expert got, from raw rows or from their means."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metamoe_backend.evaluate.routing import (
    compute_agreement,
    compute_coactivation,
    compute_confusion,
    compute_entropy,
    compute_layer_entropy,
    compute_layer_use,
    compute_load,
    compute_nats,
    compute_skill_use,
    compute_token_entropy,
    compute_votes,
    find_collapse,
    find_collapsed_layers,
)

PLAN = pd.DataFrame({"skill": ["arithmetic", "logic"], "expert": ["arith", "logic"]})
SKILLS = {"q1": "arithmetic", "q2": "arithmetic", "q3": "logic", "q4": None}


def make_activations() -> pd.DataFrame:
    """Layer 0 sends everything to its own expert, layer 1 is even; two sites each."""
    rows = []
    for question, skill in SKILLS.items():
        for layer in (0, 1):
            for site in ("self_attn", "mlp"):
                own = 0.0 if skill == "logic" else 1.0
                shares = (own, 1 - own) if layer == 0 else (0.5, 0.5)
                for expert, share in zip(("arith", "logic"), shares, strict=True):
                    rows.append(
                        {"question_id": question, "skill": skill, "task": "toy", "layer": layer, "site": site,
                         "expert": expert, "weight": share, "share": share, "tokens": 9}
                    )  # fmt: skip
    return pd.DataFrame(rows)


def take_means(activations: pd.DataFrame) -> pd.DataFrame:
    """As the store hands them out: means over questions."""
    keys = ["task", "skill", "layer", "site", "expert"]
    grouped = activations.groupby(keys, dropna=False)
    means = grouped.agg(weight=("weight", "mean"), share=("share", "mean"), questions=("question_id", "nunique"))
    return means.reset_index()


@pytest.mark.parametrize("shape", [lambda frame: frame, take_means])
def test_layers_skills_and_load_agree_for_rows_and_for_means(shape):
    frame = shape(make_activations())
    layers = compute_layer_use(frame).set_index(["layer", "expert"])
    assert layers["share"].to_dict() == pytest.approx(
        {(0, "arith"): 0.75, (0, "logic"): 0.25, (1, "arith"): 0.5, (1, "logic"): 0.5}
    )
    assert layers["n"].unique().tolist() == [4]

    skills = compute_skill_use(frame, PLAN).set_index(["skill", "expert"])
    assert skills.loc[("arithmetic", "arith"), ["routed", "n"]].tolist() == pytest.approx([0.75, 2])
    assert skills.loc[("logic", "logic"), ["routed", "n"]].tolist() == pytest.approx([0.75, 1])
    # Over the three questions with a skill, arith carries (0.75 + 0.75 + 0.25) / 3.
    assert skills.loc[("arithmetic", "arith"), "lift"] == pytest.approx(0.75 / (1.75 / 3))
    assert skills["assigned"].to_dict() == {
        ("arithmetic", "arith"): True, ("arithmetic", "logic"): False,
        ("logic", "arith"): False, ("logic", "logic"): True,
    }  # fmt: skip

    load = compute_load(frame).set_index("expert")
    assert load["load"].to_dict() == pytest.approx({"arith": 0.625, "logic": 0.375})
    assert load["n"].unique().tolist() == [4]

    entropy = compute_layer_entropy(frame).set_index("layer")
    assert entropy["entropy"].tolist() == pytest.approx([0.811278, 1.0], abs=1e-6)
    assert entropy["n"].tolist() == [4, 4]


def test_routes_take_the_same_functions():
    routes = pd.DataFrame(
        {
            "question_id": ["q1", "q1", "q3", "q3"],
            "skill": ["arithmetic", "arithmetic", "logic", "logic"],
            "expert": ["arith", "base", "arith", "base"],
            "probability": [1.0, 0.0, 0.5, 0.5],
        }
    )
    skills = compute_skill_use(routes, PLAN, "probability").set_index(["skill", "expert"])
    assert skills.loc[("arithmetic", "arith"), "lift"] == pytest.approx(1 / 0.75)
    assert compute_load(routes, "probability")["load"].tolist() == pytest.approx([0.75, 0.25])


def test_without_any_skill_there_is_nothing_to_show():
    assert compute_skill_use(make_activations().assign(skill=pd.Series(dtype=str)), PLAN).empty


def test_the_lift_of_an_expert_never_used_is_unknown():
    routes = pd.DataFrame({"skill": ["logic"], "expert": ["arith"], "question_id": ["q3"], "probability": [0.0]})
    assert compute_skill_use(routes, PLAN, "probability")["lift"].isna().all()


@given(st.integers(1, 8).flatmap(lambda n: arrays(float, (5, n), elements=st.floats(0, 1))))
def test_entropy_lies_between_0_and_1(weights):
    found = compute_entropy(weights)
    assert ((found >= 0) & (found <= 1)).all()
    assert compute_entropy(np.ones((1, weights.shape[1]))) == pytest.approx(1.0 if weights.shape[1] > 1 else 0.0)


def test_collapse_names_who_carries_everything_and_who_nothing():
    load = pd.DataFrame({"expert": ["a", "b", "c"], "load": [0.95, 0.05, 0.0]})
    assert find_collapse(load)[["expert", "problem"]].to_numpy().tolist() == [["a", "dominant"], ["c", "dead"]]
    # Questions answered by the base model lower every load: what counts is the split between the experts.
    assert find_collapse(load.assign(load=load["load"] / 4))["problem"].tolist() == ["dominant", "dead"]
    assert find_collapse(load.assign(load=[0.4, 0.3, 0.3])).empty
    assert find_collapse(load.head(1)).empty
    assert find_collapse(load.assign(load=[0.5, 0.49, 0.01]))["problem"].tolist() == ["unused"]


def test_a_dead_expert_and_a_layer_of_one_expert_are_found():
    load = pd.DataFrame({"expert": ["a", "b", "c"], "load": [0.6, 0.4, 0.0]})
    assert find_collapse(load)[["expert", "problem"]].to_numpy().tolist() == [["c", "dead"]]
    layers = compute_layer_use(make_activations().query("skill != 'logic'"))
    assert find_collapsed_layers(layers)[["layer", "expert", "load"]].to_numpy().tolist() == [[0, "arith", 1.0]]
    assert find_collapsed_layers(compute_layer_use(make_activations())).empty


def test_the_top_k_share_is_there_only_where_every_recording_has_it():
    frame = make_activations()
    assert compute_layer_use(frame)["chosen"].isna().all()
    known = compute_layer_use(frame.assign(chosen=2 * frame["share"]))
    assert known["chosen"].to_numpy() == pytest.approx(2 * known["share"].to_numpy())
    assert compute_layer_use(frame.assign(chosen=[np.nan, *[1.0] * (len(frame) - 1)]))["chosen"].isna().all()


PATTERNS = pd.DataFrame({"experts": [["a", "b"], ["a", "c"], ["c"]], "gates": [6, 2, 2], "entropy": [0.5, 0.6, 0.0]})


def test_co_activation_equals_counting_gate_by_gate():
    pairs = compute_coactivation(PATTERNS, ["a", "b", "c", "d"]).set_index(["expert", "other"])
    gates = [set(row.experts) for row in PATTERNS.itertuples() for _ in range(row.gates)]
    for one in "abcd":
        for other in "abcd":
            both = sum({one, other} <= gate for gate in gates) / len(gates)
            each = [sum(name in gate for gate in gates) / len(gates) for name in (one, other)]
            assert pairs.loc[(one, other), "together"] == pytest.approx(both)
            lift = both / (each[0] * each[1]) if each[0] * each[1] else np.nan
            assert pairs.loc[(one, other), "lift"] == pytest.approx(lift, nan_ok=True)
    assert pairs["gates"].unique().tolist() == [10]


def test_the_even_lift_is_that_of_all_pairs_equally_often():
    names = ["a", "b", "c", "d"]
    sets = [[one, other] for place, one in enumerate(names) for other in names[place + 1 :]]
    pairs = compute_coactivation(pd.DataFrame({"experts": sets, "gates": 5, "entropy": 0.6}), names)
    apart = pairs[pairs["expert"] != pairs["other"]]
    assert apart["lift"].to_numpy() == pytest.approx(apart["even"].to_numpy()) and apart["even"].iloc[0] < 1


def test_entropy_is_told_in_nats_and_of_one_token():
    assert compute_nats(np.array([[1.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])) == pytest.approx(
        [np.log(2), 0, 0]
    )
    found = compute_token_entropy(PATTERNS, 4)
    assert found["nats"] == pytest.approx((6 * 0.5 + 2 * 0.6) / 10) and found["gates"] == 10
    assert found["entropy"] == pytest.approx(found["nats"] / np.log(4))
    assert np.isnan(compute_token_entropy(PATTERNS.iloc[:0], 4)["nats"])


def test_routers_and_skills_are_compared_question_by_question():
    choices = pd.DataFrame(
        {
            "question_id": [f"q{number}" for number in range(6)], "task": "toy",
            "skill": ["arithmetic", "arithmetic", "logic", "logic", "other", None], "labelled": True,
            "by_question": ["arith", "arith", "logic", "arith", "logic", "logic"],
            "by_token": ["arith", "logic", "logic", "arith", "logic", "base"],
        }
    )  # fmt: skip
    votes = compute_votes(choices, PLAN)
    assert votes[votes["rater"] == "label"]["question_id"].tolist() == ["q0", "q1", "q2", "q3"]
    agreement = compute_agreement(votes).set_index(["first", "second"])
    assert agreement["n"].to_dict() == {
        ("label", "by_question"): 4,
        ("label", "by_token"): 4,
        ("by_question", "by_token"): 6,
    }
    assert agreement["same"].to_dict() == pytest.approx(
        {("label", "by_question"): 3 / 4, ("label", "by_token"): 2 / 4, ("by_question", "by_token"): 4 / 6}
    )
    # Label: 2 arith, 2 logic; task router: 3 arith, 1 logic: by chance they agree in 1/2, so kappa = (3/4 - 1/2) / (1/2).
    assert agreement.loc[("label", "by_question"), "kappa"] == pytest.approx(0.5)
    confusion = compute_confusion(votes, "label", "by_question").set_index(["label", "by_question"])["questions"]
    assert confusion.to_dict() == {("arith", "arith"): 2, ("logic", "arith"): 1, ("logic", "logic"): 1}
    alone = compute_votes(choices.assign(by_question=None), PLAN)
    assert set(alone["rater"]) == {"label", "by_token"} and len(compute_agreement(alone)) == 1
