"""Intervals cover what they should and agree with other ways of computing them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.evaluate.intervals import (
    adjust_holm,
    compare_pair,
    compute_mcnemar_p,
    compute_paired_difference,
    compute_wilson_interval,
)

counts = st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200).map(np.array)


@given(counts)
def test_wilson_contains_the_share_and_stays_within_0_and_1(count):
    correct, n = count
    low, high = compute_wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert high - low > 0


def test_wilson_equals_a_published_example():
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I: 81 of 263 and 15 of 148.
    low, high = compute_wilson_interval([81, 15], [263, 148])
    assert low == pytest.approx([0.2553, 0.0624], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605], abs=5e-5)


def test_wilson_of_nothing_says_nothing():
    assert compute_wilson_interval(0, 0) == (0.0, 1.0)


@given(counts)
def test_a_surer_interval_is_wider(count):
    narrow, wide = compute_wilson_interval(*count, confidence=0.8), compute_wilson_interval(*count, confidence=0.99)
    assert wide[0] <= narrow[0]
    assert narrow[1] <= wide[1]


@settings(max_examples=30)
@given(pairs)
def test_the_difference_lies_in_its_interval_and_turns_round_with_the_order(drawn):
    forth = compute_paired_difference(drawn[:, 0], drawn[:, 1])
    back = compute_paired_difference(drawn[:, 1], drawn[:, 0])
    assert forth.low <= forth.difference <= forth.high
    assert forth.difference == pytest.approx(-back.difference)
    assert forth.n == len(drawn)


def test_the_difference_is_seeded():
    scores, reference = np.arange(50) % 3 == 0, np.arange(50) % 2 == 0
    assert compute_paired_difference(scores, reference) == compute_paired_difference(scores, reference)
    assert compute_paired_difference(scores, reference, draws=99) != compute_paired_difference(
        scores, reference, draws=99, seed=1
    )


def test_drawing_counts_equals_drawing_pairs():
    rng = np.random.default_rng(3)
    scores, reference = rng.random(120).round(1), rng.random(120).round(1)
    drawn = rng.integers(0, 120, size=(20_000, 120))
    means = (scores - reference)[drawn].mean(axis=1)
    found = compute_paired_difference(scores, reference, draws=20_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.004)


def test_no_pairs_no_difference():
    found = compute_paired_difference([], [])
    assert found.n == 0
    assert np.isnan(found.difference)


@given(st.integers(0, 500), st.integers(0, 500))
def test_mcnemar_is_symmetric_and_a_probability(first, second):
    p = compute_mcnemar_p(first, second)
    assert 0 <= p <= 1
    assert p == pytest.approx(compute_mcnemar_p(second, first))


def test_mcnemar_counts_coin_tosses():
    assert compute_mcnemar_p(0, 0) == 1.0
    assert compute_mcnemar_p(5, 0) == pytest.approx(2 / 2**5)
    assert compute_mcnemar_p(6, 1) == pytest.approx(2 * (1 + 7) / 2**7)


@given(pairs)
def test_a_pair_adds_up(drawn):
    found = compare_pair(drawn[:, 0], drawn[:, 1])
    assert found["difference"] == pytest.approx((found["gained"] - found["lost"]) / found["n"])
    assert found["accuracy"] - found["reference_accuracy"] == pytest.approx(found["difference"])
    assert found["shown"] == (found["low"] > 0 or found["high"] < 0)


def test_holm_by_hand():
    # In order: .005 x 4, .01 x 3, .03 x 2, .04 x 1 (below the one before it, so that one's).
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert adjust_holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50).map(np.array), st.randoms(use_true_random=False))
def test_holm_lies_between_the_raw_and_the_bonferroni_value_in_any_order(p, random):
    adjusted = adjust_holm(p)
    assert (p <= adjusted).all() and (adjusted <= np.minimum(p * len(p), 1) + 1e-12).all()
    order = list(range(len(p)))
    random.shuffle(order)
    assert adjust_holm(p[order]).tolist() == adjusted[order].tolist()
