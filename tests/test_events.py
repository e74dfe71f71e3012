"""What people do is kept for ever, applied once, and can be taken back by name."""

import json

import pytest

from metamoe_backend.errors import ConflictError, NotFoundError, StorageError, UserError
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record
from metamoe_backend.store.skills import (
    create_skill,
    fetch_labels,
    fetch_redoable,
    fetch_skills,
    fetch_undoable,
    label_questions,
    merge_skills,
    rename_skill,
    undo,
    unlabel_questions,
)
from tests.conftest import insert_questions


def test_the_log_survives_the_database(workspace):
    with Store.open(workspace) as store:
        ids = insert_questions(store, 3)
        skill = create_skill(store, "logic", "ana")
        label_questions(store, skill, ids, "ana", "lasso")
    workspace.database.unlink()
    with Store.open(workspace) as store:
        assert fetch_labels(store)["question_id"].tolist() == ids
        assert fetch_skills(store)["name"].tolist() == ["logic"]


def test_undo_brings_the_earlier_label_back_and_redo_the_later_one(store):
    ids = insert_questions(store, 2)
    first, second = create_skill(store, "logic", "ana"), create_skill(store, "algebra", "ana")
    label_questions(store, first, ids, "ana", "question")
    label_questions(store, second, ids[:1], "ana", "question")
    act = fetch_undoable(store, "ana")
    assert act is not None and act["description"] == "1 label 'algebra'"
    undo(store, act["event_id"], "ana")
    assert dict(fetch_labels(store)[["question_id", "skill"]].to_numpy()) == {ids[0]: "logic", ids[1]: "logic"}
    again = fetch_redoable(store, "ana")
    assert again is not None
    undo(store, again["event_id"], "ana")
    assert dict(fetch_labels(store)[["question_id", "skill"]].to_numpy()) == {ids[0]: "algebra", ids[1]: "logic"}


def test_an_act_is_taken_back_only_once(store):
    skill = create_skill(store, "logic", "ana")
    label_questions(store, skill, insert_questions(store, 1), "ana", "question")
    event_id = fetch_undoable(store, "ana")["event_id"]
    undo(store, event_id, "ana")
    with pytest.raises(ConflictError, match="already"):
        undo(store, event_id, "ana")


def test_unlabel_touches_only_ones_own_labels(store):
    ids = insert_questions(store, 1)
    skill = create_skill(store, "logic", "ana")
    label_questions(store, skill, ids, "ana", "question")
    label_questions(store, skill, ids, "bo", "question")
    act = unlabel_questions(store, ids, "ana")
    assert fetch_labels(store)["author"].tolist() == ["bo"]
    undo(store, act, "ana")
    assert sorted(fetch_labels(store)["author"]) == ["ana", "bo"]


def test_merged_skills_answer_under_the_new_name_and_come_apart_again(store):
    ids = insert_questions(store, 2)
    a, b, c = (create_skill(store, name, "ana") for name in "abc")
    label_questions(store, a, ids[:1], "ana", "question")
    merge_skills(store, a, b, "ana")
    last = merge_skills(store, b, c, "ana")
    assert fetch_labels(store)["skill"].tolist() == ["c"]
    undo(store, last, "ana")
    assert fetch_labels(store)["skill"].tolist() == ["b"]
    assert fetch_skills(store)["name"].tolist() == ["b", "c"]


def test_a_taken_name_leaves_no_event(store):
    skill = create_skill(store, "logic", "ana")
    create_skill(store, "algebra", "ana")
    before = store.value("SELECT count(*) FROM event")
    with pytest.raises(ConflictError):
        rename_skill(store, skill, "algebra", "ana")
    log = "".join(path.read_text() for path in store.workspace.events.glob("*.jsonl"))
    assert store.value("SELECT count(*) FROM event") == before == len(log.splitlines())


def test_unknown_questions_and_nameless_authors_are_refused(store):
    skill = create_skill(store, "logic", "ana")
    with pytest.raises(NotFoundError, match="nothing was labelled"):
        label_questions(store, skill, ["nowhere"], "ana", "question")
    with pytest.raises(UserError, match="author"):
        create_skill(store, "algebra", "  ")


def test_a_torn_last_line_is_left_out_and_the_next_event_is_kept(workspace):
    with Store.open(workspace) as store:
        create_skill(store, "logic", "ana")
        log = next(workspace.events.glob("*.jsonl"))
    log.write_bytes(log.read_bytes() + b'{"event_id": "9')
    with Store.open(workspace) as store:
        create_skill(store, "algebra", "ana")
    workspace.database.unlink()
    with Store.open(workspace) as store:
        assert fetch_skills(store)["name"].tolist() == ["logic", "algebra"]


def test_a_damaged_line_in_the_middle_is_named(workspace):
    with Store.open(workspace) as store:
        create_skill(store, "logic", "ana")
        create_skill(store, "algebra", "ana")
    log = next(workspace.events.glob("*.jsonl"))
    log.write_text(log.read_text().replace("{", "", 1))
    workspace.database.unlink()
    with pytest.raises(StorageError, match="line 1"):
        Store.open(workspace)


def test_an_event_of_an_unknown_kind_is_refused(store):
    with pytest.raises(StorageError, match="update MetaMoE"):
        record(store, "dance", "ana", {})


def test_event_lines_are_plain_json(store):
    create_skill(store, "逻辑", "安娜")
    line = next(store.workspace.events.glob("*.jsonl")).read_text().splitlines()[0]
    assert json.loads(line)["payload"]["name"] == "逻辑" and "逻辑" in line
