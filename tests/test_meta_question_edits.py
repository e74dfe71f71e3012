"""A person's correction of a meta-question stands until it is taken back, and survives a new build."""

import pandas as pd
import pytest

from metamoe_backend.errors import ConflictError, NotFoundError, UserError
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import edit_meta_question, fetch_meta_question_history, fetch_meta_questions
from tests.conftest import insert_questions, insert_rows


@pytest.fixture
def question(store: Store) -> str:
    first = insert_questions(store, 2)[0]
    build(store, first, "What is [number] plus [number]?")
    return first


def build(store: Store, question: str, text: str) -> None:
    row = {"question_id": question, "method": "template", "text": text, "source_hash": text}
    insert_rows(store, "meta-questions", meta_question=pd.DataFrame([row]))


def read(store: Store) -> tuple[str, bool]:
    row = fetch_meta_questions(store).iloc[0]
    return row["text"], bool(row["edited"])


def test_an_edit_counts_and_outlives_a_new_build(store: Store, question: str):
    edit_meta_question(store, question, "template", "  What do two numbers add up to? ", "ana")
    build(store, question, "What is [number] and [number]?")
    assert read(store) == ("What do two numbers add up to?", True)


def test_edits_are_taken_back_one_by_one(store: Store, question: str):
    edit_meta_question(store, question, "template", "first", "ana")
    second = edit_meta_question(store, question, "template", "second", "bo")
    history = fetch_meta_question_history(store, question)
    assert history[["text", "author"]].values.tolist() == [["second", "bo"], ["first", "ana"]]
    undo(store, second, "ana")
    assert read(store) == ("first", True)


def test_what_says_nothing_new_or_nothing_is_refused(store: Store, question: str):
    with pytest.raises(ConflictError, match="reads like this already"):
        edit_meta_question(store, question, "template", "What is [number] plus [number]? ", "ana")
    with pytest.raises(UserError, match="empty"):
        edit_meta_question(store, question, "template", "  ", "ana")
    with pytest.raises(NotFoundError, match="build it first"):
        edit_meta_question(store, question, "llm", "text", "ana")
    assert fetch_meta_question_history(store, question).empty
