"""Which experts of the bank suit a task: accuracy and reasoning perplexity on K shots, then diversity. Pure functions.

K-shot guided expert selection of arXiv 2408.15915, section 3.2 and Algorithm 1 (METHODS section 1). With R_P the rank
by perplexity (lowest first) and R_A the rank by accuracy (highest first) over all candidates, the M candidates of least
R_P + R_A are the shortlist. Each N-subset of it has Omega = 1 / mean cosine of its pairs and R_D, its rank by Omega
(highest first) among all subsets. The subset of least sum(R_P + R_A) + R_D is chosen: a rank sum, no weights.

Equal values share the mean of their ranks. Where rank sums are equal, the lower perplexity decides, then the name.

Tables: shots is rows.CandidateShot, pairs is rows.CandidatePair (each pair once), both without the run.
"""

from collections.abc import Sequence
from itertools import combinations, islice
from math import comb
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.config import MOST_SUBSETS

Diversity = Literal["similarity", "raw_similarity"]
"""The column of pairs that diversity is read from: cosine of B A, or the published code's |cos| of A and B."""
CRITERIA = ("accuracy", "perplexity", "accuracy and perplexity", "diversity")
_PREFIXES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def measure_candidates(shots: pd.DataFrame, k: int | None = None, draw: int | None = None) -> pd.DataFrame:
    """adapter, perplexity, accuracy; in order of name.

    perplexity: exp(nll / tokens) of each shot, summed over the K shots, mean over the draws. accuracy: share of right
    answers. k: only the first k shots of each draw; draw: only this draw.
    """
    kept = shots if k is None else shots[shots["shot"] < k]
    kept = kept if draw is None else kept[kept["draw"] == draw]
    each = kept.assign(perplexity=np.exp(kept["nll"] / kept["tokens"]))
    draws = each.groupby(["adapter", "draw"])["perplexity"].sum()
    # Not the mean of the draws' shares: its rounding would tell 7 of 9 from 7 of 9, which share a rank.
    found = {"perplexity": draws.groupby("adapter").mean(), "accuracy": each.groupby("adapter")["correct"].mean()}
    return pd.DataFrame(found).reset_index()


def rank_candidates(measured: pd.DataFrame) -> pd.DataFrame:
    """Adds perplexity_rank, accuracy_rank and rank_sum to `measure_candidates`' table; best first."""
    ranked = measured.assign(
        perplexity_rank=measured["perplexity"].rank(method="average"),
        accuracy_rank=measured["accuracy"].rank(method="average", ascending=False),
    )
    ranked["rank_sum"] = ranked["perplexity_rank"] + ranked["accuracy_rank"]
    return ranked.sort_values(["rank_sum", "perplexity", "adapter"], ignore_index=True)


def rank_subsets(
    ranking: pd.DataFrame, pairs: pd.DataFrame, shortlist: int, experts: int, diversity: Diversity = "similarity"
) -> pd.DataFrame:
    """Every subset of `experts` candidates of the `shortlist` best, best first.

    Columns: experts (names, best first), rank_sum (of its members), similarity (mean cosine of its pairs, 0 for a
    single expert), omega (1 / similarity; NaN where that is not above 0), diversity_rank, total. Subsets are ranked by
    similarity, lowest first: the order of Omega where that is positive, and defined at and below 0, too. `ranking` is
    `rank_candidates`' table. The table is empty where a similarity is missing (NaN) or there are too few candidates.
    """
    best = ranking.head(shortlist)
    members = _list_subsets(len(best), experts)
    mean = _compute_subset_means(best["adapter"].tolist(), pairs, members, diversity)
    if not len(members) or np.isnan(mean).any():
        members, mean = members[:0], mean[:0]
    names, sums = best["adapter"].to_numpy(dtype=object), best["rank_sum"].to_numpy()
    found = pd.DataFrame(
        {
            "experts": [names[rows].tolist() for rows in members],
            "rank_sum": sums[members].sum(axis=1),
            "similarity": mean,
            "omega": np.divide(1.0, mean, out=np.full(len(mean), np.nan), where=mean > 0),
        }
    )
    # Rounded, so that what is equal but for the order of a sum is equal.
    found["diversity_rank"] = found["similarity"].round(12).rank(method="average")
    found["total"] = found["rank_sum"] + found["diversity_rank"]
    perplexity = best["perplexity"].to_numpy()[members].sum(axis=1)
    order = np.lexsort([np.arange(len(found)), perplexity, found["total"].to_numpy()])
    return found.iloc[order].reset_index(drop=True)


def choose_experts(
    ranking: pd.DataFrame, pairs: pd.DataFrame, shortlist: int, experts: int, diversity: Diversity = "similarity"
) -> list[str]:
    """Names of the chosen experts, best first; empty where `rank_subsets` is."""
    subsets = rank_subsets(ranking, pairs, shortlist, experts, diversity)
    return list(subsets["experts"].iloc[0]) if len(subsets) else []


def mark_choice(ranking: pd.DataFrame, chosen: Sequence[str], shortlist: int) -> pd.DataFrame:
    """The ranking with two more columns: shortlisted and chosen."""
    return ranking.assign(shortlisted=np.arange(len(ranking)) < shortlist, chosen=ranking["adapter"].isin(list(chosen)))


def choose_by_one_criterion(ranking: pd.DataFrame, pairs: pd.DataFrame, experts: int) -> pd.DataFrame:
    """What each criterion alone would have chosen among all candidates: criterion, experts.

    Equal ones are told apart by the lower perplexity, then by name. experts is None for diversity where there are more
    than `MOST_SUBSETS` subsets of all candidates, or a similarity is missing.
    """
    orders = {
        CRITERIA[0]: ranking.sort_values(["accuracy", "perplexity", "adapter"], ascending=[False, True, True]),
        CRITERIA[1]: ranking.sort_values(["perplexity", "adapter"]),
        CRITERIA[2]: ranking,
    }
    chosen: list[list[str] | None] = [order["adapter"].head(experts).tolist() for order in orders.values()]
    feasible = comb(len(ranking), experts) <= MOST_SUBSETS
    chosen.append(
        choose_experts(ranking.assign(rank_sum=0.0), pairs, len(ranking), experts) or None if feasible else None
    )
    return pd.DataFrame({"criterion": CRITERIA, "experts": chosen})


def list_prefixes(k: int) -> list[int]:
    """The K' at which a choice from K shots is looked at again: 1, 2, 5, 10 … up to K itself."""
    return [*(prefix for prefix in _PREFIXES if prefix < k), k]


def compute_stability(
    shots: pd.DataFrame, pairs: pd.DataFrame, shortlist: int, experts: int, chosen: Sequence[str]
) -> pd.DataFrame:
    """The choice from the first K' shots of each draw alone, and of all draws together.

    Columns: k, draw (<NA>: all draws averaged), experts, shared (how many of them are in `chosen`), of (N).
    """
    rows = []
    for k in list_prefixes(int(shots["shot"].max()) + 1):
        for draw in [None, *sorted(shots["draw"].unique())]:
            ranking = rank_candidates(measure_candidates(shots, k, draw))
            found = choose_experts(ranking, pairs, shortlist, experts)
            rows.append((k, draw, found, len(set(found) & set(chosen)), experts))
    frame = pd.DataFrame(rows, columns=["k", "draw", "experts", "shared", "of"])
    return frame.astype({"draw": "Int64"})


def count_choices(stability: pd.DataFrame, adapters: Sequence[str]) -> pd.DataFrame:
    """Share of the single draws in which each adapter (index) is chosen at each K' (columns), 0 to 1."""
    single = stability[stability["draw"].notna()]
    draws = single.groupby("k").size()
    counts = single.explode("experts").groupby(["experts", "k"]).size().unstack("k")
    return counts.reindex(index=list(adapters), columns=draws.index).fillna(0.0) / draws


def _list_subsets(candidates: int, experts: int) -> NDArray[np.int64]:
    """All subsets as rows of indices [subsets, experts], in lexical order."""
    found = list(islice(combinations(range(candidates), experts), MOST_SUBSETS + 1))
    return np.asarray(found, dtype=np.int64).reshape(len(found), experts)


def _compute_subset_means(
    names: Sequence[str], pairs: pd.DataFrame, members: NDArray[np.int64], diversity: Diversity
) -> NDArray[np.float64]:
    """Mean similarity over the pairs of each subset [subsets]; 0 for subsets of one."""
    place = {name: index for index, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for one, two, value in zip(pairs["adapter"], pairs["other"], pairs[diversity], strict=True):
        if one in place and two in place:
            matrix[place[one], place[two]] = matrix[place[two], place[one]] = np.nan if pd.isna(value) else value
    inside = list(combinations(range(members.shape[1]), 2))
    if not inside:
        return np.zeros(len(members))
    return np.mean([matrix[members[:, i], members[:, j]] for i, j in inside], axis=0)
