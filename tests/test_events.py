"""What people do is kept for ever, applied once, and can be taken back by name."""

import json
from datetime import datetime

import pandas as pd
import pytest

from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError, StorageError, UserError
from metamoe_backend.store.acts import fetch_acts, fetch_question_acts, fetch_redoable, fetch_undoable, undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record
from metamoe_backend.store.experts import fetch_plan_entries, fetch_plans, save_plan
from metamoe_backend.store.skills import (
    accept_suggestions,
    constrain_questions,
    create_skill,
    decide_label,
    fetch_constraints,
    fetch_labels,
    fetch_question_labels,
    fetch_skills,
    fetch_suggestions,
    label_questions,
    merge_skills,
    reject_suggestions,
    rename_skill,
    split_skill,
)
from tests.conftest import insert_questions, insert_rows


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
    assert act is not None and (act.n, act.values["skill"]) == (1, "algebra")
    undo(store, act.event_id, "ana")
    assert dict(fetch_labels(store)[["question_id", "skill"]].to_numpy()) == {ids[0]: "logic", ids[1]: "logic"}
    again = fetch_redoable(store, "ana")
    assert again is not None and again.event_id == act.event_id
    undo(store, again.undone_by, "ana")
    assert dict(fetch_labels(store)[["question_id", "skill"]].to_numpy()) == {ids[0]: "algebra", ids[1]: "logic"}


def test_an_act_is_taken_back_only_once(store):
    skill = create_skill(store, "logic", "ana")
    label_questions(store, skill, insert_questions(store, 1), "ana", "question")
    event_id = fetch_undoable(store, "ana").event_id
    undo(store, event_id, "ana")
    with pytest.raises(ConflictError, match="already"):
        undo(store, event_id, "ana")


def test_unlabel_touches_only_ones_own_labels(store):
    ids = insert_questions(store, 1)
    skill = create_skill(store, "logic", "ana")
    label_questions(store, skill, ids, "ana", "question")
    label_questions(store, skill, ids, "bo", "question")
    act = record(store, "unlabel", "ana", {"question_ids": ids})
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
    with pytest.raises(NotFoundError, match="nothing was changed"):
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


# ---- taking back, in any order ----------------------------------------------------------------------------------


def _standing(store) -> dict[str, str]:
    return dict(fetch_labels(store)[["question_id", "skill"]].to_numpy())


def test_doing_again_brings_back_only_what_the_undo_took(store):
    ids = insert_questions(store, 2)
    act = label_questions(store, create_skill(store, "logic", "ana"), ids, "ana", "question")
    record(store, "unlabel", "ana", {"question_ids": ids[:1]})
    back = undo(store, act, "ana")
    assert _standing(store) == {}
    undo(store, back, "ana")
    assert _standing(store) == {ids[1]: "logic"}


def test_labels_whose_own_act_was_taken_back_do_not_come_back_with_another(store):
    ids = insert_questions(store, 2)
    act = label_questions(store, create_skill(store, "logic", "ana"), ids, "ana", "question")
    off = record(store, "unlabel", "ana", {"question_ids": ids[:1]})
    back = undo(store, act, "ana")
    undo(store, off, "ana")
    assert _standing(store) == {}
    undo(store, back, "ana")
    assert _standing(store) == {ids[0]: "logic", ids[1]: "logic"}


def test_an_act_can_be_taken_back_and_done_again_many_times(store):
    ids = insert_questions(store, 1)
    act = label_questions(store, create_skill(store, "logic", "ana"), ids, "ana", "question")
    for _ in range(3):
        back = undo(store, act, "ana")
        assert _standing(store) == {}
        undo(store, back, "ana")
        assert _standing(store) == {ids[0]: "logic"}


def test_a_new_skill_goes_only_while_it_has_no_labels(store):
    ids = insert_questions(store, 1)
    skill = create_skill(store, "logic", "ana")
    made = fetch_undoable(store, "ana").event_id
    act = label_questions(store, skill, ids, "ana", "question")
    with pytest.raises(ConflictError, match="has labels"):
        undo(store, made, "ana")
    undo(store, act, "ana")
    back = undo(store, made, "ana")
    assert fetch_skills(store).empty
    undo(store, back, "ana")
    assert fetch_skills(store)["skill_id"].tolist() == [skill]


def test_a_refused_suggestion_is_gone_until_that_is_taken_back(store):
    ids = insert_questions(store, 2)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    rows = pd.DataFrame({"question_id": ids, "skill_id": sums, "probability": 0.9, "runner_up": dates, "margin": 0.8})
    insert_rows(store, "suggest", suggestion=rows)
    act = reject_suggestions(store, {ids[0]: sums}, "ana")
    assert fetch_suggestions(store)["question_id"].tolist() == ids[1:]
    insert_rows(store, "suggest", suggestion=rows.assign(skill_id=dates, runner_up=sums))
    assert set(fetch_suggestions(store)["question_id"]) == set(ids)  # another skill may be suggested
    insert_rows(store, "suggest", suggestion=rows)
    assert fetch_suggestions(store)["question_id"].tolist() == ids[1:]
    undo(store, act, "ana")
    assert set(fetch_suggestions(store)["question_id"]) == set(ids)


def test_accepted_suggestions_are_one_act(store):
    ids = insert_questions(store, 2)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    act = accept_suggestions(store, {ids[0]: sums, ids[1]: dates}, "ana")
    assert fetch_labels(store)["how"].tolist() == ["accepted"] * 2
    assert _standing(store) == {ids[0]: "sums", ids[1]: "dates"}
    undo(store, act, "ana")
    assert _standing(store) == {}
    with pytest.raises(UserError, match="select some first"):
        accept_suggestions(store, {}, "ana")


def test_a_split_moves_everyones_labels_and_comes_together_again(store):
    ids = insert_questions(store, 3)
    sums = create_skill(store, "sums", "ana")
    label_questions(store, sums, ids, "ana", "question")
    label_questions(store, sums, ids[:1], "ben", "question")
    act = split_skill(store, sums, "long sums", ids[:2], "cy")
    assert fetch_skills(store)[["name", "labels"]].to_numpy().tolist() == [["sums", 1], ["long sums", 2]]
    assert set(fetch_labels(store)["author"]) == {"ana", "ben"}
    back = undo(store, act, "cy")
    assert fetch_skills(store)[["name", "labels"]].to_numpy().tolist() == [["sums", 3]]
    undo(store, back, "cy")
    assert fetch_skills(store)[["name", "labels"]].to_numpy().tolist() == [["sums", 1], ["long sums", 2]]
    with pytest.raises(ConfigError, match="not all"):
        split_skill(store, sums, "all of it", ids, "cy")


def test_a_decision_counts_above_labels_old_and_new(store):
    ids = insert_questions(store, 1)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids, "ana", "question")
    act = decide_label(store, sums, ids[0], "cy", "it asks for a sum")
    label_questions(store, dates, ids, "ben", "question")
    assert fetch_question_labels(store)["skill"].tolist() == ["sums"]
    undo(store, act, "cy")
    assert fetch_question_labels(store)["skill"].tolist() == ["dates"]


def test_plans_go_back_to_what_they_said_before(store):
    ids = insert_questions(store, 2)
    head = pd.DataFrame([{"labelling": "v1", "labels": 2, "suggestions": 0, "threshold": 1.0, "author": "ana", "created_at": datetime(2026, 11, 3)}])  # fmt: skip
    items = pd.DataFrame({"question_id": ids, "labelling": "v1", "skill": ["sums", "dates"], "source": "label", "probability": 1.0})  # fmt: skip
    insert_rows(store, "freeze", labelling=head, labelling_item=items)
    first = save_plan(store, "plan", "v1", [("sums", "one"), ("dates", "two")], "ana")
    save_plan(store, "plan", "v1", [("sums", "one"), ("dates", "one")], "ana")
    act = fetch_undoable(store, "ana")
    assert (act.kind, act.values["plan"]) == ("plan_saved", "plan")
    back = undo(store, act.event_id, "ana")
    assert fetch_plan_entries(store, "plan")["expert"].tolist() == ["one", "two"]
    undo(store, back, "ana")
    assert fetch_plan_entries(store, "plan")["expert"].tolist() == ["one", "one"]
    undo(store, first, "ana")
    assert fetch_plan_entries(store, "plan")["expert"].tolist() == ["one", "one"]
    undo(store, fetch_undoable(store, "ana").event_id, "ana")
    assert fetch_plans(store).empty


def test_a_plan_that_has_trained_is_kept(synthetic):
    with Store.open(synthetic) as store:
        saved = next(act for act in fetch_acts(store) if act.kind == "plan_saved")
        with pytest.raises(ConflictError, match="has trained"):
            undo(store, saved.event_id, "ana")
        assert len(fetch_plans(store)) == 1


# ---- history ----------------------------------------------------------------------------------------------------


def test_a_question_knows_everything_that_was_done_to_it(store):
    ids = insert_questions(store, 2)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids[1:], "ana", "question")
    act = label_questions(store, sums, ids, "ana", "lasso")
    back = undo(store, act, "ben")
    undo(store, back, "ana")
    decide_label(store, dates, ids[0], "cy", "a date")
    edit = {"question_id": ids[0], "method": "llm", "text": "Which date?"}
    record(store, "meta_question_edited", "ana", edit)
    acts = fetch_question_acts(store, ids[0])
    assert [act.kind for act in acts] == ["meta_question_edited", "label", "undo", "undo", "label"]
    assert [act.by for act in acts] == ["ana", "cy", "ana", "ben", "ana"]
    assert acts[1].values == {"skill": "dates", "how": "decided", "why": "a date"}
    assert acts[3].of.event_id == act and acts[3].undone_by == acts[2].event_id
    assert acts[4].n == 2 and acts[4].undone_by is None


def test_acts_of_a_skill_that_was_taken_back_keep_its_name(store):
    create_skill(store, "sums", "ana")
    undo(store, fetch_undoable(store, "ana").event_id, "ana")
    acts = fetch_acts(store)
    assert (acts[0].kind, acts[0].of.values["skill"]) == ("undo", "sums")


def test_a_constraint_stands_until_taken_back_and_outlives_the_database(workspace):
    with Store.open(workspace) as store:
        ids = insert_questions(store, 4)
        event = constrain_questions(store, "same", ids[:1], ids[1:3], "ana")
        constrain_questions(store, "different", ids[:1], ids[3:], "ana")
        back = undo(store, event, "ana")
        assert fetch_constraints(store)["relation"].tolist() == ["different"]
        undo(store, back, "ana")
    workspace.database.unlink()
    with Store.open(workspace) as store:
        found = fetch_constraints(store)
        assert found["relation"].tolist() == ["same", "different"]
        assert [list(found["first_ids"][0]), list(found["second_ids"][0])] == [ids[:1], ids[1:3]]


def test_a_constraint_needs_two_groups_of_questions_that_exist(store):
    ids = insert_questions(store, 2)
    for first, second in ((ids, ids[:1]), ([], ids)):
        with pytest.raises(ConflictError, match="two groups"):
            constrain_questions(store, "same", first, second, "ana")
    with pytest.raises(NotFoundError, match="nothing was changed"):
        constrain_questions(store, "same", ids, ["nowhere"], "ana")
    assert fetch_constraints(store).empty
