"""Questions are found by words, by what is known of them and by likeness; what is asked together must all hold."""

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.outcomes import OUTCOMES
from metamoe_backend.store.connection import Store
from metamoe_backend.store.finding import NO_SKILL, Filters, fetch_authors, find_questions, parse_filters
from metamoe_backend.store.maps import fetch_newest_map_id, fetch_vectors
from metamoe_backend.store.questions import fetch_questions
from metamoe_backend.store.results import fetch_expert_outcomes
from metamoe_backend.store.skills import (
    fetch_question_labels,
    find_or_create_skill,
    find_skill,
    label_questions,
    merge_skills,
)
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_questions, insert_rows
from tests.synthetic import EXPERTS, SKILLS, build_workspace
from tests.test_cli import say, say_json

TASKS = [task for tasks in SKILLS.values() for task in tasks]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A workspace with labels of two people and questions nobody knows anything of."""
    workspace = build_workspace(tmp_path_factory.mktemp("finding") / "finding", per_split=6)
    with Store.open(workspace, "a test") as store:
        ids = insert_questions(store, 4)
        label_questions(store, find_or_create_skill(store, "logic", "ben"), ids[:1], "ben", "question")
        yield store


@given(st.data())
@settings(max_examples=40)
def test_what_is_asked_together_is_what_each_part_finds(full: Store, data: st.DataObject) -> None:
    known = parse_filters(full, skills=[*SKILLS, NO_SKILL], clusters=[-1, 0, 1, 2], authors=fetch_authors(full))

    def some(values: list | tuple) -> st.SearchStrategy[tuple]:
        return st.lists(st.sampled_from(values), max_size=3).map(tuple)

    low, below = sorted([data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))])
    filters = Filters(
        text=data.draw(
            st.sampled_from(["", "what", "SYLLOGISM", "from follows 7", '"follows from 5"', "yes", "Paris"])
        ),
        tasks=data.draw(some([*TASKS, "toy"])),
        skills=data.draw(some(known.skills)),
        clusters=data.draw(some(known.clusters)),
        authors=data.draw(some(known.authors)),
        confidence_from=data.draw(st.sampled_from([None, low])),
        confidence_below=data.draw(st.sampled_from([None, below])) if low < below else None,
        outcomes=data.draw(some(OUTCOMES)),
        like=data.draw(st.sampled_from([None, find_questions(full, Filters(tasks=("syllogism",)))[0]])),
    )
    parts = [replace(Filters(), **{part.name: getattr(filters, part.name)}) for part in fields(Filters)]
    together = find_questions(full, filters)
    assert set(together) == set.intersection(*(set(find_questions(full, part)) for part in parts))
    assert len(set(together)) == len(together)
    in_order = find_questions(full, Filters(like=filters.like))
    assert together == [question_id for question_id in in_order if question_id in set(together)]


def test_each_part_finds_what_it_says(full: Store) -> None:
    questions = fetch_questions(full).set_index("question_id")
    labels = fetch_question_labels(full).set_index("question_id")
    every = set(questions.index)

    def ids(**parts: object) -> set[str]:
        return set(find_questions(full, Filters(**parts)))

    assert ids() == every
    assert ids(tasks=("syllogism", "toy")) == set(questions.index[questions["task"].isin(["syllogism", "toy"])])
    logic, letters = (find_skill(full, name) for name in ("logic", "letters"))
    assert ids(skills=(logic, letters)) == set(labels.index[labels["skill"].isin(["logic", "letters"])])
    assert ids(skills=(NO_SKILL,)) == every - set(labels.index) == {f"toy-train-{n:04d}" for n in (1, 2, 3)}
    assert ids(authors=("ben",)) == {"toy-train-0000"}
    assert ids(authors=("ana", "ben")) == set(labels.index[labels["source"] == "label"])
    assert ids(confidence_from=1.0) >= ids(authors=("ana", "ben"))
    assert ids(confidence_below=0.7) == set(labels.index[labels["probability"] < 0.7])
    assert ids(confidence_from=0.7) == set(labels.index) - ids(confidence_below=0.7)
    points = full.frame("SELECT question_id, cluster FROM current_map_point")
    noise, first = parse_filters(full, clusters=[-1]), parse_filters(full, clusters=[0])
    assert set(find_questions(full, noise)) == set(points["question_id"][points["cluster"] == -1])
    assert set(find_questions(full, first)) == set(points["question_id"][points["cluster"] == 0])
    answers = full.frame("SELECT question_id, correct FROM prediction WHERE system IN (SELECT unnest(?))", [EXPERTS])
    solved = answers.groupby("question_id")["correct"].mean()
    assert ids(outcomes=("all-correct",)) == set(solved.index[solved == 1])
    assert ids(outcomes=("mixed",)) == set(solved.index[(solved > 0) & (solved < 1)])
    assert ids(outcomes=OUTCOMES) == set(fetch_expert_outcomes(full).index) == set(solved.index)


def test_words_are_found_in_any_case_and_order_and_wherever_the_question_is_described(full: Store) -> None:
    questions = fetch_questions(full)
    prompts = questions["prompt"].str.lower()

    def ids(text: str) -> set[str]:
        return set(find_questions(full, Filters(text=text)))

    assert (
        ids("FOLLOWS syllogism")
        == ids("syllogism follows")
        == set(questions["question_id"][questions["task"] == "syllogism"])
    )
    assert ids('"follows syllogism"') == set()
    assert ids('"SYLLOGISM: what"') == ids("syllogism")
    assert ids("paris") == ids("general_KNOWLEDGE") == ids('"general knowledge"')  # an option; the task; the skill
    assert ids("[number]") == set(questions["question_id"][questions["task"] != "toy"])  # only in the meta-questions
    assert ids("100% of_nothing") == set()
    for text in ("' OR 1=1 --", "%", "\\", "$word_0", '"'):
        assert ids(text) == set(questions["question_id"][prompts.str.contains(text, regex=False)])


def test_the_most_similar_come_first_and_the_question_itself_is_left_out(full: Store) -> None:
    vectors = fetch_vectors(full, "minilm", "question")
    matrix = np.stack(vectors["vector"].to_list())
    like = vectors["question_id"][5]
    order = np.argsort(-(matrix @ matrix[5]), kind="stable")
    assert find_questions(full, Filters(like=like)) == vectors["question_id"][order].tolist()[1:]
    of_task = find_questions(full, Filters(like=like, tasks=("syllogism",)))
    assert of_task == [
        i for i in find_questions(full, Filters(like=like)) if i in find_questions(full, Filters(tasks=("syllogism",)))
    ]


def test_a_question_embedded_again_is_compared_by_its_newest_vector(full: Store, store: Store) -> None:
    first, second, third = insert_questions(store, 3)

    def embed(**vectors: list[float]) -> None:
        rows = [
            {"question_id": name, "encoder": "minilm", "of": "question", "text_hash": "", "vector": np.float32(vector)}
            for name, vector in vectors.items()
        ]
        insert_rows(store, "embed", embedding=pd.DataFrame(rows))

    embed(**{first: [1, 0], second: [1, 0], third: [0.8, 0.6]})
    assert find_questions(store, Filters(like=first)) == [second, third]
    embed(**{second: [0, 1]})
    assert find_questions(store, Filters(like=first)) == [third, second]


def test_a_merged_skill_is_found_under_either_id(store: Store) -> None:
    ids = insert_questions(store, 2)
    kept, gone = (find_or_create_skill(store, name, "ana") for name in ("kept", "gone"))
    label_questions(store, kept, ids[:1], "ana", "question")
    label_questions(store, gone, ids[1:], "ana", "question")
    assert find_questions(store, Filters(skills=(gone,))) == ids[1:]
    merge_skills(store, gone, kept, "ana")
    assert find_questions(store, Filters(skills=(gone,))) == find_questions(store, Filters(skills=(kept,))) == ids


@pytest.mark.parametrize(
    "parts",
    [
        {"confidence_from": 0.5, "confidence_below": 0.5},
        {"confidence_below": 0.0},
        {"confidence_from": float("nan")},
        {"confidence_from": -0.1},
        {"confidence_below": 1.2},
        {"outcomes": ("solved",)},
    ],
)
def test_what_cannot_be_is_refused(parts: dict) -> None:
    with pytest.raises(ConfigError):
        Filters(**parts)


def test_what_is_not_there_is_named(full: Store) -> None:
    with pytest.raises(NotFoundError, match="'nobody'.*ana, ben"):
        parse_filters(full, authors=["nobody"])
    with pytest.raises(NotFoundError, match="'sight'.*logic"):
        parse_filters(full, skills=["sight"])
    with pytest.raises(NotFoundError, match="no cluster 99"):
        parse_filters(full, clusters=[99])
    with pytest.raises(NotFoundError, match="Task 'x'"):
        parse_filters(full, tasks=["x"])
    with pytest.raises(NotFoundError, match="'toy-train-0000' has no vector"):
        find_questions(full, Filters(like="toy-train-0000"))


def test_the_command_line_finds_the_same(synthetic: Workspace) -> None:
    with Store.open(synthetic) as store:
        like = find_questions(store, Filters(tasks=("syllogism",)))[0]
        filters = parse_filters(
            store, ["syllogism", "chain_sum"], ["logic"], [-1, *range(7)], text="what", confidence_below=0.9, like=like,
            outcomes=("mixed",),
        )  # fmt: skip
        wanted, every = find_questions(store, filters), find_questions(store, Filters())
        assert fetch_newest_map_id(store) in filters.clusters[0]
    words = [
        "find", "--text", "WHAT", "--task", "syllogism", "--task", "chain_sum", "--skill", "logic", "--confidence-below", 0.9,
        "--outcome", "mixed", "--like", like, *(word for n in range(-1, 7) for word in ("--cluster", n)),
    ]  # fmt: skip
    assert len(wanted) > 2
    assert say_json(synthetic.root, *words) == {"question_ids": wanted, "n": len(wanted)}
    assert say_json(synthetic.root, *words, "--limit", 2) == {"question_ids": wanted[:2], "n": len(wanted)}
    assert say_json(synthetic.root, "find") == {"question_ids": every, "n": len(every)}
    assert say_json(synthetic.root, "find", "--text", "no such words") == {"question_ids": [], "n": 0}
    printed = say(synthetic.root, "find", "--author", "ana", "--confidence-from", 1, "--limit", 1)
    assert printed.code == 0 and "32 questions found, the first 1 shown." in printed.err
    assert len(printed.out.splitlines()) == 2
    for mistake in (
        ["--limit", 0],
        ["--confidence-below", "nan"],
        ["--skill", "sight"],
        ["--outcome", "x"],
        ["--like", "x"],
    ):
        assert say(synthetic.root, "find", *mistake).sentence
