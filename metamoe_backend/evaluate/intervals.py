"""How sure a number is: Wilson for one accuracy, paired bootstrap for a difference, exact McNemar for two systems.

Where many cells are tested at once, their p-values are corrected together (Holm).
"""

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
DRAWS = 10_000
_CELLS_AT_ONCE = 4_000_000
"""Bounds the memory of one block of bootstrap draws (32 MB of counts)."""


class Difference(NamedTuple):
    """Mean paired difference with its interval, all as shares (0.1 = ten points), and the number of pairs."""

    difference: float
    low: float
    high: float
    n: int


def compute_wilson_interval(
    correct: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score interval (low, high) of the share `correct` / `n`, element by element; (0, 1) where n is 0.

    Wilson, E. B. (1927): Probable inference, the law of succession, and statistical inference. JASA 22, 209-212.
    """
    hits, total = np.broadcast_arrays(np.asarray(correct, dtype=float), np.asarray(n, dtype=float))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    counted = np.maximum(total, 1.0)
    share = hits / counted
    centre = share + z * z / (2 * counted)
    spread = z * np.sqrt(share * (1 - share) / counted + z * z / (4 * counted * counted))
    scale = 1 + z * z / counted
    # The bounds touch the share at 0 and at 1 exactly; rounding must not push them past it.
    low = np.clip((centre - spread) / scale, 0.0, share)
    high = np.clip((centre + spread) / scale, share, 1.0)
    return np.where(total > 0, low, 0.0), np.where(total > 0, high, 1.0)


def compute_paired_difference(
    scores: ArrayLike,
    reference_scores: ArrayLike,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Mean of `scores` - `reference_scores` (same questions, same order) with a percentile bootstrap interval.

    Drawing n pairs with replacement draws the counts of the distinct differences from a multinomial distribution, so
    the draws are made on those few counts: exact, and as quick for a million questions as for a hundred. Without
    questions everything is NaN. Efron & Tibshirani (1993): An Introduction to the Bootstrap, chapter 13; paired on
    test items as in Koehn (2004), Statistical significance tests for machine translation evaluation.
    """
    differences = np.asarray(scores, dtype=float) - np.asarray(reference_scores, dtype=float)
    n = len(differences)
    if n == 0:
        return Difference(np.nan, np.nan, np.nan, 0)
    values, counts = np.unique(differences, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // len(values))
    means = np.concatenate(
        [
            generator.multinomial(n, counts / n, size=min(block, draws - start)) @ values / n
            for start in range(0, draws, block)
        ]
    )
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Difference(float(differences.mean()), float(low), float(high), n)


def compute_mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two systems are equally often right, from the questions only one of them solved.

    Binomial test of `only_first` out of the discordant questions against one half; 1 where there are none.
    McNemar (1947), Psychometrika 12, 153-157; the exact form as in Fagerland, Lydersen & Laake (2013), BMC Medical
    Research Methodology 13:91.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    from scipy.special import bdtr  # the binomial distribution function; scipy.stats takes a second to import

    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), discordant, 0.5)))


def adjust_holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for being tested together: calling those below 0.05 makes any false call at most 5 % likely.

    In rising order the k-th of m (from 0) is multiplied by m - k, never falls below the one before it, and stays at
    most 1. Holm, S. (1979): A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6, 65-70.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def compare_pair(solved: np.ndarray, reference_solved: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Two systems on the same questions (Boolean): accuracies, paired difference, discordant counts, p, shown.

    gained, lost: questions only the first, only the reference solved. shown: the interval leaves 0 out."""
    gained = int((solved & ~reference_solved).sum())
    lost = int((~solved & reference_solved).sum())
    paired = compute_paired_difference(solved, reference_solved, seed=seed)
    return {
        "n": paired.n,
        "accuracy": float(solved.mean()) if paired.n else np.nan,
        "reference_accuracy": float(reference_solved.mean()) if paired.n else np.nan,
        "difference": paired.difference,
        "low": paired.low,
        "high": paired.high,
        "gained": gained,
        "lost": lost,
        "p": compute_mcnemar_p(gained, lost),
        "shown": bool(paired.low > 0 or paired.high < 0),
    }
