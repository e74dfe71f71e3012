"""What the routers did: layer x expert, skill x expert ("assigned vs routed"), load, entropy, collapse.

Frames are of one mixture: rows.Activation (or its means per task, skill, layer, site and expert, with the number of
questions behind each mean in the column questions) and rows.Route, joined with the question's task and skill. Every
mean counts each question once, however long it is, as in Rocket (arXiv 2408.15915) Fig. 7.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DOMINANT_LOAD = 0.9
UNUSED_LOAD = 0.1
"""An expert is unused below this part of an even load (1 / experts)."""


def compute_layer_use(activations: pd.DataFrame) -> pd.DataFrame:
    """The heatmap layer x expert: layer, expert, weight, share (means over questions and sites), n (questions)."""
    return _mean_over_questions(activations, ["layer", "expert"], ["weight", "share"])


def compute_skill_use(
    frame: pd.DataFrame, plan: pd.DataFrame, value: str = "share", group: str = "skill"
) -> pd.DataFrame:
    """Skill x expert, assigned against routed; questions without a skill are left out.

    frame: activations (value share or weight) or routes (value probability). plan: skill, expert. Columns: `group`,
    expert, routed (mean `value` of the expert on the skill's questions), lift (routed divided by the expert's mean
    over all these questions; NaN where that is 0), assigned (the plan gives the skill to this expert), n (questions).
    """
    known = frame[frame[group].notna()]
    use = _mean_over_questions(known, [group, "expert"], [value]).rename(columns={value: "routed"})
    overall = use["expert"].map(_mean_over_questions(known, ["expert"], [value]).set_index("expert")[value])
    use["lift"] = use["routed"] / overall.where(overall > 0)
    given = set(zip(plan["skill"], plan["expert"], strict=True))
    use["assigned"] = [pair in given for pair in zip(use[group], use["expert"], strict=True)]
    return use[[group, "expert", "routed", "lift", "assigned", "n"]]


def compute_load(frame: pd.DataFrame, value: str = "share") -> pd.DataFrame:
    """Load of each expert: expert, load (mean `value` over questions, layers and sites), n (questions)."""
    return _mean_over_questions(frame, ["expert"], [value]).rename(columns={value: "load"})


def compute_layer_entropy(activations: pd.DataFrame, value: str = "share") -> pd.DataFrame:
    """How evenly each layer uses the experts over all questions: layer, entropy (1 even, 0 one expert alone), n."""
    use = _mean_over_questions(activations, ["layer", "expert"], [value])
    loads = use.pivot(index="layer", columns="expert", values=value).fillna(0.0)
    questions = use.groupby("layer")["n"].max()
    return pd.DataFrame(
        {"layer": loads.index, "entropy": compute_entropy(loads.to_numpy()), "n": questions.reindex(loads.index).array}
    )


def compute_question_entropy(frame: pd.DataFrame, value: str = "share") -> pd.DataFrame:
    """How decided the routing of each question is: question_id, entropy (0 decided, 1 even).

    frame: rows.Activation (averaged over layers and sites first) or rows.Route with value probability.
    """
    use = frame.groupby(["question_id", "expert"], sort=False)[value].mean().unstack("expert").fillna(0.0)
    return pd.DataFrame({"question_id": use.index, "entropy": compute_entropy(use.to_numpy())})


def compute_entropy(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row of non-negative weights [n, E], scaled to sum 1 and divided by log E: 0 to 1.

    0 for a row of zeros and for a single expert.
    """
    total = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1.0)
    nats = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    return np.clip(nats / np.log(max(weights.shape[1], 2)), 0.0, 1.0)


def find_collapse(load: pd.DataFrame) -> pd.DataFrame:
    """Experts that carry nearly everything or nearly nothing, from `compute_load`: expert, load, problem.

    problem: dominant (at least 0.9 of the load where there are several experts) or unused (less than a tenth of an
    even load). Empty when the routing is healthy.
    """
    share = load["load"] / max(float(load["load"].sum()), np.finfo(float).tiny)
    several = len(load) > 1
    problem = np.select(
        [several & (share >= DOMINANT_LOAD), several & (share < UNUSED_LOAD / max(len(load), 1))],
        ["dominant", "unused"],
        "",
    )
    return load.assign(problem=problem)[problem != ""][["expert", "load", "problem"]].reset_index(drop=True)


def _mean_over_questions(frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Means of `values` per `keys`, each question once, and n, the number of questions behind each.

    Sites and layers hold the same questions, so n is the largest count at any one of them.
    """
    questions = frame["questions"] if "questions" in frame else pd.Series(1, index=frame.index)
    summed = frame[[*keys]].assign(questions=questions, **{value: frame[value] * questions for value in values})
    places = [column for column in ("layer", "site") if column in frame and column not in keys]
    counts = frame[[*keys, *places]].assign(n=questions).groupby([*keys, *places], sort=False)["n"].sum()
    result = summed.groupby(list(keys)).sum()
    result[list(values)] = result[list(values)].div(result["questions"], axis=0)
    result["n"] = counts.groupby(level=list(keys)).max()
    return result[[*values, "n"]].reset_index()
