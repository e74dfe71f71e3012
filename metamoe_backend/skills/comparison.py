"""Two labellings side by side: which questions moved from one skill to another, and how alike the groupings are."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one labelling to another."""

    both: int
    """Questions that have a skill in both."""
    moved: pd.DataFrame
    """Of those, the ones whose skill differs: the columns of the second labelling, with before and after."""
    gained: int
    """Questions that only the second labelling has."""
    lost: int
    """Questions that only the first labelling has."""
    ari: float
    """Adjusted Rand index over the questions in both: 1 same groups, whatever their names; 0 chance; NaN none."""


def compare_labellings(first: pd.DataFrame, second: pd.DataFrame) -> Comparison:
    """first, second: question_id, skill, one row a question; further columns are kept.

    The index is Hubert and Arabie's (1985), Comparing partitions, Journal of Classification 2, 193-218.
    """
    before = first[["question_id", "skill"]].rename(columns={"skill": "before"})
    both = second.rename(columns={"skill": "after"}).merge(before, on="question_id")
    return Comparison(
        both=len(both),
        moved=both[both["before"] != both["after"]].reset_index(drop=True),
        gained=len(second) - len(both),
        lost=len(first) - len(both),
        ari=_compute_ari(both["before"], both["after"]),
    )


def _compute_ari(before: pd.Series, after: pd.Series) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(before, after)) if len(before) else float("nan")


def count_moves(moved: pd.DataFrame) -> pd.DataFrame:
    """Moved questions by where from and where to: before, after, questions; most first."""
    moves = moved.groupby(["before", "after"]).size().reset_index(name="questions")
    return moves.sort_values(["questions", "before", "after"], ascending=[False, True, True], ignore_index=True)
