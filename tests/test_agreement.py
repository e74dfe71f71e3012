"""Agreement coefficients against published numbers; conflicts and how a decision ends them; many people at once."""

import threading

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from metamoe_backend.skills.agreement import (
    alpha_of_patterns,
    compare_people,
    compute_alpha,
    compute_kappa,
    count_votes,
    kappa_of_tables,
)
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import (
    create_skill,
    decide_label,
    fetch_conflicts,
    fetch_labels,
    fetch_question_labels,
    fetch_votes,
    label_questions,
)
from tests.conftest import insert_questions

FOUR_OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
"""Krippendorff (2011), Computing Krippendorff's alpha-reliability, section C: nominal alpha .743."""


def _votes(rows: list[str]) -> pd.DataFrame:
    found = [
        (f"q{question:03d}", f"person {author}", skill)
        for author, row in enumerate(rows)
        for question, skill in enumerate(row)
        if skill != "."
    ]
    return pd.DataFrame(found, columns=["question_id", "author", "skill"])


def test_alpha_is_the_published_one():
    found = compute_alpha(count_votes(_votes(FOUR_OBSERVERS)))
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.n == 11 and found.low < found.value < found.high <= 1


def test_kappa_is_the_published_one():
    # The example of two readers and 50 proposals (20 both yes, 5 and 10 split, 15 both no): kappa .40.
    one, other = "y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    found = compute_kappa(np.array(list(one)), np.array(list(other)))
    assert found.value == pytest.approx(0.4) and found.n == 50 and found.low < 0.4 < found.high


def test_the_draws_are_computed_as_the_libraries_compute_the_value():
    counts = count_votes(_votes(FOUR_OBSERVERS))
    counts = counts[counts.sum(axis=1) >= 2]
    assert alpha_of_patterns(counts, np.ones((1, len(counts))))[0] == pytest.approx(compute_alpha(counts).value)
    one, other = np.random.default_rng(0).integers(0, 4, (2, 200))
    table = np.zeros((1, 4, 4))
    np.add.at(table[0], (one, other), 1)
    assert kappa_of_tables(table)[0] == pytest.approx(cohen_kappa_score(one, other))


def test_the_interval_covers_the_true_kappa_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        one = rng.integers(0, 2, 200)
        other = np.where(rng.random(200) < 0.8, one, 1 - one)  # kappa .6
        found = compute_kappa(one, other, draws=400)
        covered += found.low <= 0.6 <= found.high
    assert 180 <= covered <= 198


def test_where_nothing_can_be_said_nothing_is():
    assert np.isnan(compute_kappa(np.array(["a"]), np.array(["a"])).value)
    assert np.isnan(compute_alpha(np.array([[2], [2]])).value) and compute_alpha(np.array([[1, 0]])).n == 0
    assert compare_people(_votes(["ab..", "..ab"])).empty


def test_people_are_compared_on_what_both_labelled():
    found = compare_people(_votes(["aabb.", "aaab.", "....a"]))
    assert found[["first", "second", "n", "same"]].to_numpy().tolist() == [["person 0", "person 1", 4, 0.75]]
    assert found["kappa"][0] == pytest.approx(0.5)


def test_a_decision_ends_a_conflict_and_leaves_the_votes(store):
    ids = insert_questions(store, 3)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids, "ana", "question")
    label_questions(store, dates, ids[:2], "ben", "question")
    label_questions(store, sums, ids[2:], "ben", "question")
    assert sorted(set(fetch_conflicts(store)["question_id"])) == ids[:2]
    votes = fetch_votes(store)
    act = decide_label(store, dates, ids[0], "ana", "it asks for a date")
    assert set(fetch_conflicts(store)["question_id"]) == {ids[1]}
    assert fetch_question_labels(store).set_index("question_id")["skill"][ids[0]] == "dates"
    pd.testing.assert_frame_equal(fetch_votes(store), votes)
    undo(store, act, "ana")
    assert sorted(set(fetch_conflicts(store)["question_id"])) == ids[:2]
    label_questions(store, sums, ids[:1], "ben", "question")  # ben changes his mind
    assert set(fetch_conflicts(store)["question_id"]) == {ids[1]}


def test_twenty_people_at_once_lose_nothing(workspace):
    with Store.open(workspace) as store:
        ids = insert_questions(store, 100)
        skills = [create_skill(store, name, "ana") for name in "abc"]
        failures: list[Exception] = []

        def work(number: int) -> None:
            try:
                for place, question_id in enumerate(ids):
                    label_questions(store, skills[(number + place) % 3], [question_id], f"person {number}", "question")
            except Exception as error:  # noqa: BLE001 - a thread's failure is told by the test
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        expected = {
            (question_id, f"person {number}", "abc"[(number + place) % 3])
            for number in range(20)
            for place, question_id in enumerate(ids)
        }
        found = fetch_labels(store)
        assert len(found) == 2_000 == len(expected)
        assert set(found[["question_id", "author", "skill"]].itertuples(index=False, name=None)) == expected
    workspace.database.unlink()
    with Store.open(workspace) as store:
        pd.testing.assert_frame_equal(fetch_labels(store), found)
