"""What goes with forgetting: a row for each expert and task it did not learn, and what ranks as the losses do.

A small table to look at, not a model: a handful of experts on a handful of tasks, whose cells share experts and tasks.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.evaluate.forgetting import compare_systems
from metamoe_backend.evaluate.intervals import CONFIDENCE

PREDICTORS = ("shared_skill", "norm", "similarity", "length")
"""shared_skill: share of the task's questions whose skill the expert was trained on. norm: size of its weight change
(Frobenius). similarity: cosine of its weight change and that of the expert who learned the task (the mean of several).
length: mean characters of the task's questions."""
DRAWS = 2_000
SMALL = 30
"""Below this many cells a correlation is a hint at most."""


def find_starts(systems: pd.DataFrame, evaluated: Sequence[str], base: str = "base") -> dict[str, str]:
    """What each system was before its own training: the adapter it started from where that was evaluated, else `base`.

    systems: rows.System.
    """
    begun = {str(row.system): json.loads(str(row.settings)).get("start_from") for row in systems.itertuples()}
    return {system: start if start in set(evaluated) else base for system, start in begun.items()}


def tabulate_forgetting(
    predictions: pd.DataFrame,
    own_tasks: Mapping[str, Sequence[str]],
    skills: Mapping[str, Sequence[str]],
    starts: Mapping[str, str],
    norms: Mapping[str, float],
    similarity: pd.DataFrame,
) -> pd.DataFrame:
    """One row an expert and an evaluated task it did not learn: expert, task, reference, n, forgetting, `PREDICTORS`.

    predictions: with task, skill and prompt. own_tasks, skills: what each expert was trained on. starts: what it is
    compared with (see `find_starts`). norms: of the weight changes. similarity: adapter, other, similarity, each pair
    once. forgetting: accuracy of the reference minus the expert's, positive where something was lost; what is not
    known of a cell is NaN.
    """
    pairs = [(expert, starts[expert]) for expert in own_tasks]
    cells = compare_systems(predictions, pairs).rename(columns={"system": "expert"})
    mine = [task in own_tasks[expert] for expert, task in zip(cells["expert"], cells["task"], strict=True)]
    cells = cells[~np.array(mine, dtype=bool)].reset_index(drop=True)
    questions = predictions.drop_duplicates("question_id")
    lengths = questions["prompt"].str.len().groupby(questions["task"]).mean()
    rows = list(zip(cells["expert"], cells["task"], strict=True))
    return pd.DataFrame(
        {
            "expert": cells["expert"],
            "task": cells["task"],
            "reference": cells["reference"],
            "n": cells["n"],
            "forgetting": -cells["difference"],
            "shared_skill": [_share_of_skills(questions, task, skills.get(expert, ())) for expert, task in rows],
            "norm": [norms.get(expert, np.nan) for expert, _ in rows],
            "similarity": [_similarity_to_owner(similarity, own_tasks, expert, task) for expert, task in rows],
            "length": cells["task"].map(lengths).astype(float),
        }
    )


def _share_of_skills(questions: pd.DataFrame, task: str, trained: Sequence[str]) -> float:
    known = questions.loc[(questions["task"] == task) & questions["skill"].notna(), "skill"]
    return float(known.isin(list(trained)).mean()) if len(known) else np.nan


def _similarity_to_owner(
    similarity: pd.DataFrame, own_tasks: Mapping[str, Sequence[str]], expert: str, task: str
) -> float:
    owners = {name for name, tasks in own_tasks.items() if task in tasks}
    either = (similarity["adapter"].eq(expert) & similarity["other"].isin(owners)) | (
        similarity["other"].eq(expert) & similarity["adapter"].isin(owners)
    )
    return float(similarity.loc[either, "similarity"].mean())


def correlate_predictors(cells: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of each predictor with forgetting: predictor, rho, low, high, n (cells), values.

    cells: see `tabulate_forgetting`. low, high: percentile bootstrap over cells (95 %), too narrow where cells share
    an expert or a task, as they do here. values: how many different values the predictor takes. rho and the interval
    are NaN with fewer than three cells or where nothing varies. Spearman, C. (1904), Am. J. Psychology 15, 72-101.
    """
    rows = []
    for predictor in PREDICTORS:
        known = cells[[predictor, "forgetting"]].dropna().sort_values([predictor, "forgetting"]).to_numpy(float)
        rho, low, high = _correlate(known[:, 0], known[:, 1], draws, seed)
        values = len(np.unique(known[:, 0]))
        rows.append({"predictor": predictor, "rho": rho, "low": low, "high": high, "n": len(known), "values": values})
    return pd.DataFrame(rows)


def _correlate(
    first: NDArray[np.float64], second: NDArray[np.float64], draws: int, seed: int
) -> tuple[float, float, float]:
    n = len(first)
    if n < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan, np.nan, np.nan
    rho = float(_rank_correlation(first[None], second[None])[0])
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n))
    found = _rank_correlation(first[drawn], second[drawn])
    low, high = np.nanquantile(found, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return rho, float(low), float(high)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho of each row of [draws, n]; NaN where a row does not vary."""
    from scipy.stats import rankdata

    one, two = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (first, second))
    scale = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return np.divide((one * two).sum(axis=1), scale, out=np.full(len(one), np.nan), where=scale > 0)
