"""Two labellings compared, and the labels of an old one brought back."""

from datetime import datetime

import pandas as pd
import pytest

from metamoe_backend.errors import ConflictError, NotFoundError
from metamoe_backend.skills.comparison import compare_labellings, count_moves
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.labellings import fetch_labelling_items, restore_labelling
from metamoe_backend.store.skills import (
    create_skill,
    decide_label,
    fetch_question_labels,
    label_questions,
    merge_skills,
    rename_skill,
)
from tests.conftest import insert_questions, insert_rows


def _items(**skills: str) -> pd.DataFrame:
    return pd.DataFrame({"question_id": list(skills), "skill": list(skills.values())})


def _freeze(store: Store, name: str) -> None:
    items = fetch_question_labels(store)[["question_id", "skill", "source", "probability"]].assign(labelling=name)
    head = {
        "labelling": name, "labels": len(items), "suggestions": 0, "threshold": 2.0, "author": "ana",
        "created_at": datetime(2026, 11, 1),
    }  # fmt: skip
    insert_rows(store, "freeze", labelling=pd.DataFrame([head]), labelling_item=items)


def _skills(store: Store) -> dict[str, str]:
    return dict(fetch_question_labels(store)[["question_id", "skill"]].to_numpy())


def test_moved_gained_and_lost_questions_are_told_apart():
    found = compare_labellings(_items(a="x", b="x", c="y", d="y"), _items(a="x", b="y", c="y", e="y"))
    assert (found.both, found.gained, found.lost) == (3, 1, 1)
    assert found.moved[["question_id", "before", "after"]].to_numpy().tolist() == [["b", "x", "y"]]
    assert count_moves(found.moved).to_numpy().tolist() == [["x", "y", 1]]


def test_new_names_for_the_same_groups_leave_the_index_at_one():
    found = compare_labellings(_items(a="x", b="x", c="y"), _items(a="p", b="p", c="q"))
    assert found.ari == 1.0 and len(found.moved) == 3


def test_the_index_agrees_with_hubert_and_arabies_formula():
    first = _items(**{f"q{n}": "xxyyzz"[n] for n in range(6)})
    second = _items(**{f"q{n}": "xxxyyy"[n] for n in range(6)})
    # Pairs together in both: 2; in the first: 3; in the second: 6; of all: 15. (2 - 3*6/15) / ((3 + 6)/2 - 3*6/15)
    assert compare_labellings(first, second).ari == pytest.approx((2 - 1.2) / (4.5 - 1.2))


def test_labellings_without_a_question_in_common_have_no_index():
    assert pd.isna(compare_labellings(_items(a="x"), _items(b="x")).ari)


def test_items_stand_under_the_present_names_of_their_skills(store):
    ids = insert_questions(store, 2)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids[:1], "ana", "question")
    label_questions(store, dates, ids[1:], "ana", "question")
    _freeze(store, "v1")
    rename_skill(store, sums, "additions", "ana")
    assert fetch_labelling_items(store, "v1")["skill"].tolist() == ["additions", "dates"]
    merge_skills(store, sums, dates, "ana")
    assert fetch_labelling_items(store, "v1")["skill"].tolist() == ["dates", "dates"]
    assert fetch_labelling_items(store, None)["skill"].tolist() == ["dates", "dates"]
    with pytest.raises(NotFoundError, match="'v9' does not exist"):
        fetch_labelling_items(store, "v9")


def test_an_old_labelling_comes_back_and_that_can_be_taken_back(store):
    ids = insert_questions(store, 4)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids[:2], "ana", "question")
    label_questions(store, dates, ids[2:3], "ben", "question")
    _freeze(store, "v1")
    before = _skills(store)
    with pytest.raises(ConflictError, match="nothing to bring back"):
        restore_labelling(store, "v1", "cy")
    label_questions(store, dates, ids[:1], "ben", "question")
    label_questions(store, dates, ids[3:], "ben", "question")
    decide_label(store, dates, ids[1], "ana")
    rename_skill(store, sums, "additions", "ana")
    changed = _skills(store)
    act = restore_labelling(store, "v1", "cy")
    assert _skills(store) == {key: value.replace("sums", "additions") for key, value in before.items()}
    back = undo(store, act, "cy")
    assert _skills(store) == changed
    undo(store, back, "cy")
    assert _skills(store) == {key: value.replace("sums", "additions") for key, value in before.items()}
    label_questions(store, dates, ids[:1], "ben", "question")  # work goes on
    assert _skills(store)[ids[0]] == "dates"
