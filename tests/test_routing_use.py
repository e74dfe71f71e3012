"""Router figures: what each layer, skill and expert got, from raw rows or from their means."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metamoe_backend.evaluate.routing import (
    compute_entropy,
    compute_layer_entropy,
    compute_layer_use,
    compute_load,
    compute_question_entropy,
    compute_skill_use,
    find_collapse,
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
    entropy = compute_question_entropy(routes, "probability").set_index("question_id")["entropy"]
    assert entropy.to_dict() == pytest.approx({"q1": 0.0, "q3": 1.0})
    assert compute_load(routes, "probability")["load"].tolist() == pytest.approx([0.75, 0.25])


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
    assert find_collapse(load)[["expert", "problem"]].to_numpy().tolist() == [["a", "dominant"], ["c", "unused"]]
    # Questions answered by the base model lower every load: what counts is the split between the experts.
    assert find_collapse(load.assign(load=load["load"] / 4))["problem"].tolist() == ["dominant", "unused"]
    assert find_collapse(load.assign(load=[0.4, 0.3, 0.3])).empty
    assert find_collapse(load.head(1)).empty
