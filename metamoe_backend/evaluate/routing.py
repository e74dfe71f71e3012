"""What the routers did: layer x expert, skill x expert ("assigned vs routed"), load, entropy, co-activation, collapse,
and how far the task-level router, the token-level router and the researcher's skills agree.

Frames are of one mixture: rows.Activation (or its means per task, skill, layer, site and expert, with the number of
questions behind each mean in the column questions) and rows.Route, joined with the question's task and skill. Every
mean counts each question once, however long it is, as in Rocket (arXiv 2408.15915) Fig. 7.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.skills.agreement import compare_people

DOMINANT_LOAD = 0.9
"""An expert is dominant from this part of all experts' load on: the routing has collapsed onto it."""
UNUSED_LOAD = 0.1
"""An expert is unused below this part of an even load (1 / experts); dead with a load of 0."""
RATERS = ("label", "by_question", "by_token")
"""Who says which expert a question belongs to: the plan for its skill, the task-level and the token-level router."""


def compute_layer_use(activations: pd.DataFrame) -> pd.DataFrame:
    """The heatmap layer x expert: layer, expert, weight, share, chosen (means over questions and sites), n (questions).

    chosen is the top-k share: of how many tokens the expert was among the chosen; NaN in older recordings.
    """
    use = _mean_over_questions(activations, ["layer", "expert"], ["weight", "share"])
    if "chosen" not in activations or activations["chosen"].isna().any():
        return use.assign(chosen=np.nan)
    return use.assign(chosen=_mean_over_questions(activations, ["layer", "expert"], ["chosen"])["chosen"])


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
    overall = overall.astype(float)  # without any question with a skill it would be text
    use["lift"] = use["routed"] / overall.where(overall > 0)
    given = set(zip(plan["skill"], plan["expert"], strict=True))
    use["assigned"] = [pair in given for pair in zip(use[group], use["expert"], strict=True)]
    return use[[group, "expert", "routed", "lift", "assigned", "n"]]


def compute_load(frame: pd.DataFrame, value: str = "share") -> pd.DataFrame:
    """Load of each expert: expert, load (mean `value` over questions, layers and sites), n (questions)."""
    return _mean_over_questions(frame, ["expert"], [value]).rename(columns={value: "load"})


def compute_layer_entropy(activations: pd.DataFrame, value: str = "share") -> pd.DataFrame:
    """How evenly each layer uses the experts over all questions: layer, entropy (1 even, 0 one alone), nats, n."""
    use = _mean_over_questions(activations, ["layer", "expert"], [value])
    loads = use.pivot(index="layer", columns="expert", values=value).fillna(0.0)
    questions = use.groupby("layer")["n"].max()
    return pd.DataFrame(
        {
            "layer": loads.index,
            "entropy": compute_entropy(loads.to_numpy()),
            "nats": compute_nats(loads.to_numpy()),
            "n": questions.reindex(loads.index).array,
        }
    )


def compute_entropy(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row of non-negative weights [n, E], scaled to sum 1 and divided by log E: 0 to 1.

    0 for a row of zeros and for a single expert.
    """
    return np.clip(compute_nats(weights) / np.log(max(weights.shape[1], 2)), 0.0, 1.0)


def compute_nats(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in nats of each row of non-negative weights [n, E], scaled to sum 1: 0 to log E; 0 for a row of zeros."""
    total = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1.0)
    return np.maximum(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1), 0.0)


def compute_token_entropy(patterns: pd.DataFrame, experts: int) -> dict[str, float]:
    """How decided the gate of one token is, on average: nats (mean entropy), entropy (divided by log E), gates (n).

    patterns: see `store.results.fetch_gate_patterns`. NaN where there is no gate.
    """
    gates = int(patterns["gates"].sum())
    nats = float((patterns["entropy"] * patterns["gates"]).sum() / gates) if gates else float("nan")
    return {"nats": nats, "entropy": nats / float(np.log(max(experts, 2))), "gates": gates}


def compute_coactivation(patterns: pd.DataFrame, experts: Sequence[str]) -> pd.DataFrame:
    """How often two experts are chosen for the same token at the same layer, each pair in both orders.

    patterns: see `store.results.fetch_gate_patterns`. Columns: expert, other, together (share of gates that chose
    both; with other = expert: that chose it), lift (together over what it would be if both were chosen independently,
    each as often as it is; NaN for an expert never chosen), even (the lift if every set of as many experts were chosen
    equally often: below 1, since one choice takes the place of another), gates (n).
    """
    place = {expert: index for index, expert in enumerate(experts)}
    member = np.zeros((len(patterns), len(experts)))
    for row, chosen in enumerate(patterns["experts"]):
        member[row, [place[expert] for expert in chosen if expert in place]] = 1.0
    times = patterns["gates"].to_numpy(float)
    gates = times.sum()
    together = (member * times[:, None]).T @ member / max(gates, 1.0)
    alone = np.diag(together)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(np.outer(alone, alone) > 0, together / np.outer(alone, alone), np.nan)
    sizes, count = member.sum(axis=1), len(experts)
    mean = float((sizes * times).sum() / max(gates, 1.0)) / max(count, 1)
    pairs = float((sizes * (sizes - 1) * times).sum() / max(gates, 1.0)) / max(count * (count - 1), 1)
    even = pairs / mean**2 if mean else np.nan
    each = np.indices((count, count)).reshape(2, -1)
    names = np.asarray(experts, dtype=object)
    return pd.DataFrame(
        {
            "expert": names[each[0]],
            "other": names[each[1]],
            "together": together.reshape(-1),
            "lift": lift.reshape(-1),
            "even": even,
            "gates": int(gates),
        }
    )


def compute_votes(choices: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """Which expert each rater names for each question: question_id, task, rater (of RATERS), expert.

    choices: see `store.results.fetch_question_choices`. plan: skill, expert. A rater who says nothing has no row.
    """
    expert_of = dict(zip(plan["skill"], plan["expert"], strict=True))
    wide = choices.assign(label=choices["skill"].map(expert_of))
    long = wide.melt(["question_id", "task"], list(RATERS), var_name="rater", value_name="expert")
    return long[long["expert"].notna()].reset_index(drop=True)


def compute_agreement(votes: pd.DataFrame) -> pd.DataFrame:
    """Each two raters of `compute_votes`: first, second, n, same (share of equal experts), kappa, low, high.

    Cohen's kappa with its 95 % bootstrap interval over questions; NaN where both always name one and the same expert.
    """
    named = votes.rename(columns={"rater": "author", "expert": "skill"})
    found = compare_people(named)
    order = {rater: place for place, rater in enumerate(RATERS)}
    swap = found["first"].map(order) > found["second"].map(order)
    found.loc[swap, ["first", "second"]] = found.loc[swap, ["second", "first"]].to_numpy()
    return found.sort_values(["first", "second"], key=lambda names: names.map(order), ignore_index=True)


def compute_confusion(votes: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Questions by the experts that two raters name: `first`, `second` (the experts), questions."""
    both = votes[votes["rater"].isin([first, second])].pivot(index="question_id", columns="rater", values="expert")
    both = both.reindex(columns=[first, second]).dropna()
    return both.groupby([first, second]).size().rename("questions").reset_index()


def find_collapse(load: pd.DataFrame) -> pd.DataFrame:
    """Experts that carry nearly everything or nearly nothing, from `compute_load`: expert, load, problem.

    problem: dominant (at least 0.9 of the load where there are several experts), dead (a load of 0) or unused (less
    than a tenth of an even load). Empty when the routing is healthy.
    """
    share = load["load"] / max(float(load["load"].sum()), np.finfo(float).tiny)
    several = len(load) > 1
    problem = np.select(
        [
            several & (share >= DOMINANT_LOAD),
            several & (share <= 0),
            several & (share < UNUSED_LOAD / max(len(load), 1)),
        ],
        ["dominant", "dead", "unused"],
        "",
    )
    return load.assign(problem=problem)[problem != ""][["expert", "load", "problem"]].reset_index(drop=True)


def find_collapsed_layers(use: pd.DataFrame, value: str = "weight") -> pd.DataFrame:
    """Layers where one expert is dominant, from `compute_layer_use`: layer, expert, load (its share of the layer)."""
    share = use[value] / use.groupby("layer")[value].transform("sum").clip(lower=np.finfo(float).tiny)
    dominant = (share >= DOMINANT_LOAD) & (use["expert"].nunique() > 1)
    return use.assign(load=share)[dominant][["layer", "expert", "load"]].reset_index(drop=True)


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
