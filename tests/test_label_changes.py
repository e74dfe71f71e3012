"""After relabelling, what was trained on the older labels is told by how many questions its skills gained and lost."""

import pytest

from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record
from metamoe_backend.store.labellings import fetch_label_changes
from metamoe_backend.store.skills import fetch_skills, label_questions, merge_skills, rename_skill


def _changes(store: Store) -> dict[str, tuple[int, int]]:
    found = fetch_label_changes(store)
    return {row.name_: (row.gained, row.lost) for row in found.rename(columns={"name": "name_"}).itertuples()}


@pytest.fixture
def opened(synthetic):
    with Store.open(synthetic) as store:
        yield store


def _ids(store: Store, skill: str, split: str, source: str) -> list[str]:
    frame = store.frame(
        "SELECT question_id FROM labelling_item JOIN question USING (question_id) "
        "WHERE labelling = 'v1' AND skill = ? AND split = ? AND source = ? ORDER BY ALL",
        [skill, split, source],
    )
    return frame["question_id"].tolist()


def test_nothing_has_changed_right_after_training(opened):
    assert set(_changes(opened).values()) == {(0, 0)}
    assert set(_changes(opened)) == {"arith", "logic", "letters", "mixed", "moe"}


def test_relabelled_questions_count_for_both_experts_and_the_mixture(opened):
    skills = fetch_skills(opened).set_index("name")["skill_id"]
    moved = _ids(opened, "logic", "train", "suggestion")[:5]
    act = label_questions(opened, skills["arithmetic"], moved, "ben", "lasso")
    found = _changes(opened)
    assert (found["arith"], found["logic"], found["letters"]) == ((5, 0), (0, 5), (0, 0))
    assert found["mixed"] == (0, 0)  # it trains on all of them anyway
    assert found["moe"] == (5, 5)
    undo(opened, act, "ben")
    assert set(_changes(opened).values()) == {(0, 0)}


def test_test_questions_change_nothing(opened):
    skills = fetch_skills(opened).set_index("name")["skill_id"]
    label_questions(opened, skills["arithmetic"], _ids(opened, "logic", "test", "suggestion")[:5], "ben", "lasso")
    assert set(_changes(opened).values()) == {(0, 0)}


def test_labels_taken_back_are_lost(opened):
    labelled = _ids(opened, "logic", "train", "label")
    record(opened, "unlabel", "ana", {"question_ids": labelled})
    assert _changes(opened)["logic"] == (0, len(labelled)) and labelled


def test_a_new_name_is_no_change_and_a_merge_is_one(opened):
    skills = fetch_skills(opened).set_index("name")["skill_id"]
    rename_skill(opened, skills["logic"], "deduction", "ana")
    assert set(_changes(opened).values()) == {(0, 0)}
    merge_skills(opened, skills["logic"], skills["letters"], "ana")
    both = len(_ids(opened, "letters", "train", "suggestion") + _ids(opened, "letters", "train", "label"))
    assert _changes(opened)["logic"] == (both, 0)
