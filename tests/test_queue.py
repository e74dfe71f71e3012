"""The queue asks for what teaches most: every cluster in turn, the least certain first, nothing twice."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.skills.queue import find_labelled_neighbours, order_queue


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
