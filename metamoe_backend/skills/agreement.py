"""How far people agree on the skills of questions: Cohen's kappa of two, Krippendorff's alpha of any number.

Both are 1 where all agree and 0 where they agree as often as chance would have it. Intervals are percentile bootstrap
intervals over questions (Efron & Tibshirani 1993, chapter 13).
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

CONFIDENCE = 0.95
DRAWS = 2_000


class Agreement(NamedTuple):
    """A coefficient with its interval; n questions that at least two people labelled. NaN where it is not defined."""

    value: float
    low: float
    high: float
    n: int


def compute_kappa(first: np.ndarray, second: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Agreement:
    """Cohen's kappa of two people's skills [n] of the same questions.

    Cohen (1960), A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20, 37-46.
    """
    from sklearn.metrics import cohen_kappa_score

    n = len(first)
    skills, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    k = len(skills)
    if n == 0 or k < 2:
        return Agreement(np.nan, np.nan, np.nan, n)
    table = np.bincount(codes[:n] * k + codes[n:], minlength=k * k)
    drawn = np.random.default_rng(seed).multinomial(n, table / n, size=draws).reshape(draws, k, k)
    return Agreement(float(cohen_kappa_score(first, second)), *_interval(kappa_of_tables(drawn)), n)


def kappa_of_tables(tables: np.ndarray) -> np.ndarray:
    """Kappa [draws] of contingency tables [draws, k, k]; NaN where chance alone makes everyone agree."""
    n = tables.sum(axis=(1, 2))
    observed = np.einsum("dii->d", tables) / n
    expected = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def compute_alpha(counts: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Agreement:
    """Krippendorff's alpha (nominal) from counts [questions, skills]: how many people gave a question a skill.

    Krippendorff (2011), Computing Krippendorff's alpha-reliability. Questions with fewer than two labels do not count.
    """
    import krippendorff

    counts = counts[counts.sum(axis=1) >= 2]
    n = len(counts)
    if n == 0 or (counts.sum(axis=0) > 0).sum() < 2:
        return Agreement(np.nan, np.nan, np.nan, n)
    value = float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
    patterns, times = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, times / n, size=draws)
    return Agreement(value, *_interval(alpha_of_patterns(patterns, drawn)), n)


def alpha_of_patterns(patterns: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Alpha [draws] of samples in which row i of patterns [p, skills] occurs times[:, i] times; times: [draws, p].

    One minus the pairs that differ within questions over those that would differ by chance; NaN without a difference.
    """
    people = patterns.sum(axis=1)
    differing = (people**2 - (patterns**2).sum(axis=1)) / (people - 1)
    labels, skills = times @ people, times @ patterns
    chance = (labels**2 - (skills**2).sum(axis=1)) / (labels - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, 1 - (times @ differing) / chance, np.nan)


def count_votes(votes: pd.DataFrame) -> np.ndarray:
    """Counts [questions, skills] of `compute_alpha`. votes: question_id, author, skill, a row a question and person."""
    return pd.crosstab(votes["question_id"], votes["skill"]).to_numpy()


def compare_people(votes: pd.DataFrame) -> pd.DataFrame:
    """Each two people with questions in common: first, second, n, same (share of equal skills), kappa, low, high.

    votes: question_id, author, skill, one row a question and person.
    """
    by_author = {author: rows.set_index("question_id")["skill"] for author, rows in votes.groupby("author")}
    rows = []
    for first, second in combinations(sorted(by_author), 2):
        both = pd.concat([by_author[first], by_author[second]], axis=1, join="inner", keys=["one", "other"])
        if len(both):
            one, other = both["one"].to_numpy(str), both["other"].to_numpy(str)
            found = compute_kappa(one, other)
            rows.append((first, second, found.n, float((one == other).mean()), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["first", "second", "n", "same", "kappa", "low", "high"])


def _interval(values: np.ndarray) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return np.nan, np.nan
    low, high = np.quantile(defined, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
