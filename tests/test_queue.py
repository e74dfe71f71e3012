"""The queue asks for what teaches most: every group in turn, then what is in doubt, nothing twice."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.config import NextConfig
from metamoe_backend.embed import hash_text
from metamoe_backend.errors import NotFoundError
from metamoe_backend.skills import queue
from metamoe_backend.skills.features import Features, find_neighbours, make_features
from metamoe_backend.skills.queue import (
    NEAR_DUPLICATE,
    choose_next,
    find_labelled_neighbours,
    find_next,
    order_queue,
    read_candidates,
)
from metamoe_backend.store.skills import create_skill, label_questions
from tests.conftest import insert_questions, insert_rows
from tests.fake_encoder import FakeEncoder


def make_questions(rows: list[tuple[int, float, bool, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["cluster", "strength", "labelled", "margin"])
    return frame.assign(question_id=[f"q{number:02d}" for number in range(len(frame))])


def test_each_cluster_in_turn_the_most_typical_first() -> None:
    nan = np.nan
    rows = [
        (0, 0.2, False, nan),
        (0, 0.9, False, nan),
        (1, 0.5, False, nan),
        (1, 1.0, True, nan),
        (-1, 0.0, False, nan),
    ]
    assert order_queue(make_questions(rows)) == ["q01", "q02", "q00", "q04"]


def test_least_certain_suggestion_first_and_what_has_none_before_it() -> None:
    rows = [(0, 1, False, 0.9), (0, 1, False, 0.1), (1, 1, False, 0.05), (1, 1, False, 0.5), (2, 1, False, np.nan)]
    assert order_queue(make_questions(rows)) == ["q04", "q02", "q01", "q03", "q00"]


row = st.tuples(st.integers(-1, 4), st.floats(0, 1), st.booleans(), st.one_of(st.just(float("nan")), st.floats(0, 1)))


@given(st.lists(row, max_size=60))
def test_all_unlabelled_once_and_no_cluster_waits(rows: list[tuple[int, float, bool, float]]) -> None:
    questions = make_questions(rows)
    order = order_queue(questions)
    waiting = questions[~questions["labelled"].astype(bool)]
    assert sorted(order) == sorted(waiting["question_id"])
    clusters = waiting.loc[waiting["cluster"] >= 0, "cluster"].nunique()
    cluster_of = questions.set_index("question_id")["cluster"]
    assert cluster_of.reindex(order[:clusters]).nunique() == clusters


def test_neighbours_are_the_nearest_that_have_a_label() -> None:
    angles = [0.0, 0.1, 0.5, 1.5, 0.05]
    vectors = pd.DataFrame(
        {"question_id": list("abcde"), "vector": [np.array([np.cos(a), np.sin(a)], "float32") for a in angles]}
    )
    labels = pd.DataFrame({"question_id": ["a", "b", "c", "d"], "skill": ["own", "logic", "arith", "words"]})
    near = find_labelled_neighbours(vectors, "a", labels, 2)
    assert near["question_id"].tolist() == ["b", "c"]
    assert near["skill"].tolist() == ["logic", "arith"]
    assert np.allclose(near["similarity"], np.cos([0.1, 0.5]), atol=1e-6)
    assert find_labelled_neighbours(vectors, "unknown", labels).empty
    assert find_labelled_neighbours(vectors, "a", labels.iloc[:0]).empty


# ---- what teaches most ------------------------------------------------------------------------------------------


def make_features_of(directions: np.ndarray, seed: int = 0) -> Features:
    """Features of questions without words, from any vectors [n, dim]."""
    return make_features(directions / np.linalg.norm(directions, axis=1, keepdims=True), [""] * len(directions), seed)


@pytest.fixture(scope="module")
def lopsided() -> tuple[Features, np.ndarray]:
    """Six skills of very different sizes, each a loose group, and the true class of each question."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(6), [120, 80, 40, 20, 12, 8])
    centres = rng.normal(size=(6, 32))
    return make_features_of(centres[classes] + 0.45 * rng.normal(size=(len(classes), 32))), classes


def test_every_skill_is_found_with_few_labels(lopsided):
    features, classes = lopsided
    chosen = choose_next(features, np.full(len(classes), -1), 12, 0)
    assert set(classes[chosen]) == set(range(6))
    drawn = [len(set(np.random.default_rng(seed).permutation(classes)[:12])) for seed in range(20)]
    assert np.mean(drawn) < 5


def test_the_first_question_is_typical_of_the_largest_group(lopsided):
    features, classes = lopsided
    first = choose_next(features, np.full(len(classes), -1), 1, 0)[0]
    own = features.joined[classes == classes[first]]
    assert classes[first] in (0, 1)
    assert features.joined[first] @ own.mean(axis=0) > np.quantile(own @ own.mean(axis=0), 0.8)


def test_once_all_groups_are_known_doubt_decides():
    rng = np.random.default_rng(1)
    sides = np.repeat(np.eye(16)[:2], 60, axis=0) + 0.05 * rng.normal(size=(120, 16))
    between = np.eye(16)[0] + np.eye(16)[1] + 0.05 * rng.normal(size=(10, 16))
    labels = np.full(130, -1)
    labels[:8], labels[60:68] = 0, 1
    assert choose_next(make_features_of(np.vstack([sides, between])), labels, 1, 0)[0] >= 120


def test_near_duplicates_come_last(lopsided):
    features, _ = lopsided
    twice = make_features_of(np.repeat(features.joined[::5], 2, axis=0))
    labels = np.full(len(twice.joined), -1)
    labels[0] = 0
    half = len(labels) // 2
    chosen = choose_next(twice, labels, len(labels), 0)
    early = twice.joined[[0, *chosen[: half - 1]]]
    apart = early @ early.T - np.eye(half)
    assert apart.max() < NEAR_DUPLICATE
    assert sorted(chosen) == list(range(1, len(labels)))


@settings(max_examples=40)
@given(st.data())
def test_any_state_gives_free_questions_once_and_the_same_again(data):
    n = data.draw(st.integers(1, 40))
    seed = data.draw(st.integers(0, 5))
    vectors = np.random.default_rng(seed).normal(size=(n, 6)).round(data.draw(st.integers(0, 2))) + 0.01
    features = make_features_of(vectors, seed)
    labels = np.array(data.draw(st.lists(st.sampled_from([-1, -1, -1, 0, 1, 2]), min_size=n, max_size=n)))
    count = data.draw(st.integers(1, 50))
    chosen = choose_next(features, labels, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, int((labels < 0).sum()))
    assert (labels[chosen] < 0).all()
    assert chosen == choose_next(make_features_of(vectors, seed), labels, count, seed)


def test_neighbours_are_found_block_by_block(monkeypatch, lopsided):
    features, _ = lopsided
    whole = features.joined @ features.joined.T - 3 * np.eye(len(features.joined))
    monkeypatch.setattr("metamoe_backend.skills.features.BLOCK", 17)
    similarities, places = find_neighbours(features.joined, 4)
    assert np.array_equal(np.sort(places, axis=1), np.sort(np.argsort(-whole, axis=1)[:, :4], axis=1))
    assert np.allclose(np.sort(similarities, axis=1)[:, ::-1], -np.sort(-whole, axis=1)[:, :4], atol=1e-6)


def test_questions_in_the_store_come_up_before_and_after_the_first_label(store, monkeypatch):
    with pytest.raises(NotFoundError, match="no questions yet"):
        read_candidates(store, NextConfig())
    ids = insert_questions(store, 30)
    with pytest.raises(NotFoundError, match="embed --encoder minilm"):
        read_candidates(store, NextConfig())
    prompts = [f"What is {number} plus {number}?" for number in range(30)]
    frame = pd.DataFrame({"question_id": ids, "encoder": "minilm", "of": "question"})
    vectors = list(FakeEncoder().encode(prompts))
    insert_rows(store, "embed", embedding=frame.assign(text_hash=[*map(hash_text, prompts)], vector=vectors))
    known, features = read_candidates(store, NextConfig())
    first = find_next(store, known, features, 3, 0)
    assert len(first) == 3
    label_questions(store, create_skill(store, "sums", "ana"), first, "ana", "question")
    assert not set(find_next(store, known, features, 30, 0)) & set(first)
    monkeypatch.setattr(queue, "MOST_CANDIDATES", 10)
    fewer, _ = read_candidates(store, NextConfig())
    assert set(first) <= set(fewer) and len(fewer) == 13
