"""The choice of experts: equal to a slow, obvious one over all subsets, and what it does at its edges."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.experts.selection import (
    choose_by_one_criterion,
    choose_experts,
    compute_stability,
    count_choices,
    list_prefixes,
    mark_choice,
    measure_candidates,
    rank_candidates,
    rank_subsets,
)

Values = dict[str, list[tuple[float, int, bool]]]


def make_shots(values: dict[str, list[list[tuple[float, int, bool]]]]) -> pd.DataFrame:
    """values: adapter to draws to shots (nll, tokens, correct)."""
    rows = [
        {"adapter": name, "draw": draw, "shot": shot, "nll": nll, "tokens": tokens, "correct": correct}
        for name, draws in values.items()
        for draw, shots in enumerate(draws)
        for shot, (nll, tokens, correct) in enumerate(shots)
    ]
    return pd.DataFrame(rows)


def make_pairs(names: list[str], cosine) -> pd.DataFrame:
    rows = [(one, two, cosine(one, two), abs(cosine(one, two)) / 2) for one, two in combinations(names, 2)]
    return pd.DataFrame(rows, columns=["adapter", "other", "similarity", "raw_similarity"])


def slow_ranks(values: list[float]) -> list[float]:
    """1 for the lowest; equal values share the mean of their places."""
    return [
        sum(place for place, other in enumerate(sorted(values), 1) if other == value) / values.count(value)
        for value in values
    ]


def slow_choice(shots: pd.DataFrame, pairs: pd.DataFrame, shortlist: int, experts: int) -> tuple[list[str], float]:
    """Algorithm 1 in plain loops: the chosen names and their total."""
    names = sorted(set(shots["adapter"]))
    perplexity, accuracy = {}, {}
    for name in names:
        sums, right, n = {}, 0, 0
        for row in shots[shots["adapter"] == name].to_dict("records"):
            sums[row["draw"]] = sums.get(row["draw"], 0.0) + np.exp(row["nll"] / row["tokens"])
            right, n = right + row["correct"], n + 1
        perplexity[name], accuracy[name] = sum(sums.values()) / len(sums), right / n
    by_perplexity = slow_ranks([perplexity[name] for name in names])
    by_accuracy = slow_ranks([-accuracy[name] for name in names])
    rank_sum = {name: p + a for name, p, a in zip(names, by_perplexity, by_accuracy, strict=True)}
    best = sorted(names, key=lambda name: (rank_sum[name], perplexity[name], name))[:shortlist]
    cosine = {frozenset((row.adapter, row.other)): row.similarity for row in pairs.itertuples()}
    subsets = list(combinations(best, experts))
    omegas = [np.mean([cosine[frozenset(pair)] for pair in combinations(subset, 2)] or [1.0]) for subset in subsets]
    by_diversity = slow_ranks([round(value, 12) for value in omegas])
    totals = [sum(rank_sum[name] for name in subset) + rank for subset, rank in zip(subsets, by_diversity, strict=True)]
    order = sorted(
        range(len(subsets)), key=lambda i: (totals[i], sum(perplexity[name] for name in subsets[i]), i)
    )  # fmt: skip
    return list(subsets[order[0]]), totals[order[0]]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_choice_is_that_of_plain_loops_over_all_subsets(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 7), "candidates")
    names = [f"e{number}" for number in range(count)]
    draws, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    # Few different values, so that ties are common. Powers of two: sums do not depend on their order.
    shot = st.tuples(st.sampled_from([0.0, np.log(2), np.log(4)]), st.just(1), st.booleans())
    shots = make_shots({name: [[data.draw(shot) for _ in range(k)] for _ in range(draws)] for name in names})
    drawn = {pair: data.draw(st.sampled_from([-0.25, 0.0, 0.25, 0.5, 1.0])) for pair in combinations(names, 2)}
    pairs = make_pairs(names, lambda one, two: drawn[one, two])
    shortlist = data.draw(st.integers(1, count), "shortlist")
    experts = data.draw(st.integers(1, shortlist), "experts")
    ranking = rank_candidates(measure_candidates(shots))
    subsets = rank_subsets(ranking, pairs.sample(frac=1, random_state=0), shortlist, experts)
    chosen, total = slow_choice(shots, pairs, shortlist, experts)
    assert subsets["total"].iloc[0] == pytest.approx(total)
    assert subsets["experts"].iloc[0] == chosen == choose_experts(ranking, pairs, shortlist, experts)
    assert subsets["total"].is_monotonic_increasing


NAMES = ["a", "b", "c", "d"]
SHOTS = make_shots(
    {
        "a": [[(0.0, 2, True), (0.0, 2, True)], [(0.0, 1, True), (0.0, 1, True)]],
        "b": [[(1.0, 2, True), (2.0, 4, False)], [(0.5, 1, True), (0.5, 1, True)]],
        "c": [[(2.0, 2, True), (2.0, 2, False)], [(1.0, 1, False), (1.0, 1, False)]],
        "d": [[(4.0, 2, False), (4.0, 2, False)], [(2.0, 1, False), (2.0, 1, False)]],
    }
)
PAIRS = make_pairs(NAMES, lambda one, two: 0.8 if {one, two} <= {"a", "b"} else 0.1 if "d" in (one, two) else 0.4)


def test_perplexity_is_per_token_summed_over_shots_and_averaged_over_draws() -> None:
    measured = measure_candidates(SHOTS).set_index("adapter")
    assert measured["perplexity"].to_dict() == pytest.approx(
        {"a": 2, "b": 2 * np.exp(0.5), "c": 2 * np.exp(1), "d": 2 * np.exp(2)}
    )
    assert measured["accuracy"].to_dict() == {"a": 1.0, "b": 0.75, "c": 0.25, "d": 0.0}
    first = measure_candidates(SHOTS, k=1).set_index("adapter")
    assert first["perplexity"]["b"] == pytest.approx(np.exp(0.5)) and first["accuracy"]["c"] == 0.5
    assert measure_candidates(SHOTS, draw=0).set_index("adapter")["accuracy"]["b"] == 0.5


def test_equal_shares_of_right_answers_share_a_rank_however_they_lie_in_the_draws() -> None:
    right = {"a": ["001", "111", "111"], "b": ["011", "111", "101"]}  # 7 of 9 each
    shots = make_shots({name: [[(0.0, 1, mark == "1") for mark in draw] for draw in of] for name, of in right.items()})
    assert rank_candidates(measure_candidates(shots))["accuracy_rank"].tolist() == [1.5, 1.5]


def test_diversity_moves_the_choice_and_the_table_says_by_how_much() -> None:
    ranking = rank_candidates(measure_candidates(SHOTS))
    assert ranking["rank_sum"].tolist() == [2, 4, 6, 8]
    subsets = rank_subsets(ranking, PAIRS, 4, 2)
    found = {"".join(row.experts): row for row in subsets.itertuples()}
    assert len(found) == 6
    # a and b are the best two, but alike: 6 + 6. a and d: 10 + 2. The lower perplexity decides.
    assert (found["ab"].rank_sum, found["ab"].diversity_rank, found["ab"].total) == (6, 6, 12)
    assert (found["ad"].rank_sum, found["ad"].diversity_rank, found["ad"].total) == (10, 2, 12)
    assert found["ac"].total == 8 + 4.5 and found["ab"].omega == pytest.approx(1 / 0.8)
    assert subsets["experts"].iloc[0] == ["a", "b"] and subsets["experts"].iloc[1] == ["a", "d"]
    marked = mark_choice(ranking, ["a", "b"], 3)
    assert marked["shortlisted"].tolist() == [True, True, True, False]
    assert marked["chosen"].tolist() == [True, True, False, False]


def test_opposite_adapters_are_the_most_diverse_though_omega_has_no_number() -> None:
    ranking = rank_candidates(measure_candidates(SHOTS))
    pairs = make_pairs(NAMES, lambda one, two: -0.5 if {one, two} == {"c", "d"} else 0.0)
    subsets = rank_subsets(ranking, pairs, 4, 2)
    opposite = next(row for row in subsets.itertuples() if row.experts == ["c", "d"])
    assert opposite.diversity_rank == 1 and np.isnan(opposite.omega)
    assert set(subsets["diversity_rank"]) == {1, 4}  # the other five share the mean of 2 to 6


def test_one_criterion_alone() -> None:
    ranking = rank_candidates(measure_candidates(SHOTS))
    alone = choose_by_one_criterion(ranking, PAIRS, 2).set_index("criterion")["experts"]
    assert alone["accuracy"] == alone["perplexity"] == alone["accuracy and perplexity"] == ["a", "b"]
    assert alone["diversity"] == ["a", "d"]
    many = pd.DataFrame({"adapter": [f"e{n}" for n in range(60)], "rank_sum": 1.0, "perplexity": 1.0, "accuracy": 1.0})
    assert choose_by_one_criterion(many, PAIRS, 8)["experts"].iloc[3] is None


def test_a_missing_similarity_chooses_nothing() -> None:
    ranking = rank_candidates(measure_candidates(SHOTS))
    pairs = PAIRS.assign(raw_similarity=np.nan)
    assert choose_experts(ranking, pairs, 4, 2, "raw_similarity") == []
    assert choose_experts(ranking, pairs, 4, 2) == ["a", "b"]
    assert choose_experts(ranking, pairs.iloc[:0], 4, 1) == ["a"]  # one expert has no pairs
    assert choose_experts(ranking, PAIRS, 8, 5) == []


def test_stability_over_draws_and_over_k() -> None:
    stability = compute_stability(SHOTS, PAIRS, 4, 2, ["a", "b"])
    assert stability["k"].tolist() == [1, 1, 1, 2, 2, 2]
    assert stability["draw"].isna().tolist() == [True, False, False] * 2
    whole = stability[(stability["k"] == 2) & stability["draw"].isna()].iloc[0]
    assert whole["experts"] == ["a", "b"] and (whole["shared"], whole["of"]) == (2, 2)
    for row in stability[stability["draw"].notna()].itertuples():
        part = SHOTS[(SHOTS["draw"] == row.draw) & (SHOTS["shot"] < row.k)]
        assert row.experts == slow_choice(part, PAIRS, 4, 2)[0]
    counts = count_choices(stability, NAMES)
    assert counts.columns.tolist() == [1, 2] and np.allclose(counts.sum(), 2) and counts.loc["a"].eq(1).all()


def test_prefixes_end_with_k_itself() -> None:
    assert list_prefixes(1) == [1] and list_prefixes(5) == [1, 2, 5] and list_prefixes(7) == [1, 2, 5, 7]
    assert list_prefixes(50) == [1, 2, 5, 10, 20, 50]
