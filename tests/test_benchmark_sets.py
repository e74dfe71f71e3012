"""Benchmark sets in the field layout their publishers document: two rows of our own each, as the harness shows them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from metamoe_backend.config import EvaluateConfig
from metamoe_backend.evaluate.answering import find_stop_texts
from metamoe_backend.evaluate.asking import add_shown_text, choose_ways
from metamoe_backend.evaluate.letters import add_letters, extract_letter, has_letters
from metamoe_backend.evaluate.prompts import draw_shots, encode_blank, make_shots, make_shown_text
from metamoe_backend.ingest.files import read_records
from metamoe_backend.ingest.formats import RowRejected, choose_template, find_format
from metamoe_backend.ingest.openings import find_opening
from metamoe_backend.launch import run_now
from metamoe_backend.models.base import load_base
from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_evaluation_questions
from tests.tiny_models import make_tiny_base

OPTIONS = {"text": ["ice", "fire"], "label": ["A", "B"]}
SETS = {
    "OpenBookQA": (
        [{"id": "7-1", "question_stem": "What is hot is", "choices": OPTIONS, "answerKey": "B"},
         {"id": "7-2", "question_stem": "What is cold is", "choices": OPTIONS, "answerKey": "A"}],
        "What is hot is", ["ice", "fire"], 1,
    ),
    "CommonsenseQA": (
        [{"id": "x", "question": "What is hot?", "question_concept": "heat", "choices": OPTIONS, "answerKey": "B"},
         {"id": "y", "question": "What is cold?", "question_concept": "cold", "choices": OPTIONS, "answerKey": "A"}],
        "Question: What is hot?\nA. ice\nB. fire\nAnswer:", ["A", "B"], 1,
    ),
    "HellaSwag": (
        [{"ind": 4, "activity_label": "Baking a cake", "ctx_a": "A man bakes. [header] Step", "ctx_b": "he",
          "ctx": "A man bakes. [header] Step he", "endings": ["stirs [title] the dough", "swims"], "label": "0",
          "source_id": "s", "split": "val", "split_type": "indomain"},
         {"ind": 5, "activity_label": "Rowing", "ctx_a": "They row.", "ctx_b": "", "ctx": "They row.",
          "endings": ["They sing.", "They fly."], "label": 0, "source_id": "s", "split": "val", "split_type": "zeroshot"}],
        "Baking a cake: A man bakes. Step He", ["stirs. the dough", "swims"], 0,
    ),
    "WinoGrande": (
        [{"sentence": "The ball fell through the table because the _ was thin.", "option1": "ball", "option2": "table",
          "answer": "2"},
         {"sentence": "Ann thanked Eve since _ was helped.", "option1": "Ann", "option2": "Eve", "answer": "1"}],
        "The ball fell through the table because the _ was thin.", ["ball", "table"], 1,
    ),
    "MMLU": (
        [{"question": "What is 2 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
         {"question": "What is 1 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 0}],
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", ["A", "B", "C", "D"], 1,
    ),
    "CMMLU": (
        [{"Unnamed: 0": 0, "Question": "二加二等于？", "A": "三", "B": "四", "C": "五", "D": "六", "Answer": "B"},
         {"Unnamed: 0": 1, "Question": "一加二等于？", "A": "三", "B": "四", "C": "五", "D": "六", "Answer": "A"}],
        "二加二等于？\nA. 三\nB. 四\nC. 五\nD. 六\n答案：", ["A", "B", "C", "D"], 1,
    ),
    "BBH": (
        [{"input": "not ( True ) and ( True ) is", "target": "False"}, {"input": "True or False is", "target": "True"}],
        "Q: not ( True ) and ( True ) is\nA:", None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_shown_as_the_harness_shows_it(name: str):
    rows, shown, choices, gold = SETS[name]
    one = find_format(list(rows[0]), {}, rows, "a.jsonl")
    item = one.read(rows[0])
    assert one.name == name
    metadata = None if item.metadata is None else json.dumps(item.metadata)
    assert make_shown_text(choose_template(one, name), item.prompt, metadata=metadata) == shown
    assert (item.choices, item.gold) == (choices, gold)
    assert one.read(rows[1]).prompt != item.prompt


@pytest.mark.parametrize("name", SETS)
def test_a_set_goes_from_file_to_task(name: str, store: Store, tmp_path: Path):
    rows, _, choices, _ = SETS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    run_now(store, "ingest", {"source": str(path), "task": name}, "ana")
    assert store.value("SELECT regime FROM task") == ("choices" if choices else "exact")
    assert store.value("SELECT count(*) FROM question") == 2


@pytest.mark.parametrize(
    ("name", "task", "opening", "example"),
    [
        ("MMLU", "algebra", "The following are multiple choice questions (with answers) about abstract algebra.",
         "What is 1 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: A\n\nWhat is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"),
        ("CMMLU", "cmmlu_elementary_mathematics", "以下是关于初等数学的单项选择题，请直接给出正确答案的选项。",
         "一加二等于？\nA. 三\nB. 四\nC. 五\nD. 六\n答案： A\n\n二加二等于？\nA. 三\nB. 四\nC. 五\nD. 六\n答案："),
        ("BBH", "bbh_boolean_expressions", "Evaluate the result of a random Boolean expression.",
         "Q: True or False is\nA: True\n\nQ: not ( True ) and ( True ) is\nA:"),
        ("OpenBookQA", "openbookqa", "", "What is cold is ice\n\nWhat is hot is"),
    ],
)  # fmt: skip
def test_an_opening_stands_once_before_the_examples(name: str, task: str, opening: str, example: str, store, tmp_path):
    for row, split in zip(SETS[name][0], ("test", "train"), strict=True):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row))
        run_now(store, "ingest", {"source": str(path), "task": task, "split": split}, "ana")
    config = EvaluateConfig(systems=["base"], tasks=[task], n_shot=1)
    found, train = (fetch_evaluation_questions(store, [task], split, None, 0) for split in ("test", "train"))
    shots = {task: draw_shots(choose_ways(train, config), 1, 0)}
    (shown,) = add_shown_text(choose_ways(found, config), shots, 1)["shown_text"]
    assert shown == (f"{opening}\n\n{example}" if opening else example)


def test_every_part_of_bbh_begins_with_a_sentence_of_its_own():
    assert find_opening("BBH", "logical-deduction-three-objects") == (
        "A logical deduction task which requires deducing the order of a sequence of objects."
    )
    assert find_opening("BBH", "BBH/word_sorting") == "Sort a list of words."
    assert find_opening("BBH", "my own questions") is None
    assert find_opening("ARC", "word_sorting") is None


def test_every_part_of_cmmlu_begins_with_its_subject():
    assert find_opening("CMMLU", "cmmlu_agronomy") == "以下是关于农学的单项选择题，请直接给出正确答案的选项。"
    assert "大学教育学" in find_opening("CMMLU", "CMMLU/college-education")
    assert "关于教育学" in find_opening("CMMLU", "education")
    assert find_opening("CMMLU", "reeducation") is None


def test_answers_to_bbh_end_where_the_harness_ends_them(store: Store, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in SETS["BBH"][0]))
    for task in ("bbh_boolean_expressions", "my-own"):
        run_now(store, "ingest", {"source": str(path), "task": task}, "ana")
    part, own = (
        fetch_evaluation_questions(store, [task], "test", None, 0) for task in ("bbh_boolean_expressions", "my-own")
    )
    assert find_stop_texts(part) == ("</s>", "Q:", "<|im_end|>")
    assert find_stop_texts(part, 3) == ("</s>", "Q", "\n\n")
    assert find_stop_texts(own) == ("\n",)


def test_the_nested_layout_of_the_authors_is_read():
    question = {"stem": "What is hot?", "choices": [{"label": "A", "text": "ice"}, {"label": "B", "text": "fire"}]}
    row = {"id": "1", "question": question, "answerKey": "B"}
    item = find_format(list(row), {}, [row], "a.jsonl").read(row)
    assert (item.prompt, item.choices, item.gold) == ("What is hot?", ["ice", "fire"], 1)
    row = {**row, "question": {**question, "question_concept": "heat"}}
    item = find_format(list(row), {}, [row], "a.jsonl").read(row)
    assert (item.prompt, item.choices, item.gold) == ("What is hot?\nA. ice\nB. fire", ["A", "B"], 1)
    with pytest.raises(RowRejected, match="does not hold a stem"):
        find_format(list(row), {}, [row], "a.jsonl").read({**row, "question": "What is hot?"})


def test_a_file_of_bbh_is_read_with_its_remark(tmp_path: Path):
    path = tmp_path / "boolean_expressions.json"
    path.write_text(json.dumps({"canary": "do not train on this", "examples": SETS["BBH"][0]}))
    assert [record.values for record in read_records(path)] == SETS["BBH"][0]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("WinoGrande", {"sentence": "No blank here."}, "exactly one blank"),
        ("WinoGrande", {"sentence": "It was the _"}, "words behind it"),
        ("WinoGrande", {"answer": "3"}, "neither 1 nor 2"),
        ("WinoGrande", {"answer": ""}, "no answer"),
        ("HellaSwag", {"label": ""}, "no answer"),
        ("HellaSwag", {"endings": ["[title]", "x"]}, "empty but for marks"),
        ("HellaSwag", {"ctx_a": "", "ctx_b": ""}, "no question"),
        ("MMLU", {"answer": 4}, "no choice"),
        ("MMLU", {"choices": ["3"]}, "at least 2"),
        ("CMMLU", {"Answer": "E"}, "none of the 4 choices"),
        ("BBH", {"target": ""}, "no answer"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(name: str, change: dict, reason: str):
    rows = SETS[name][0]
    with pytest.raises(RowRejected, match=reason):
        find_format(list(rows[0]), {}, rows, "a.jsonl").read({**rows[0], **change})


def test_what_follows_the_blank_is_scored_after_each_option(tmp_path: Path):
    tokenizer = load_base(str(make_tiny_base(tmp_path / "base")), "cpu").tokenizer
    sentence = SETS["WinoGrande"][0][0]["sentence"]
    tokens, start = encode_blank(tokenizer, f"An _ earlier example.\n\n{sentence}", "table")
    assert tokenizer.decode(tokens[:start]).endswith(
        "earlier example.\n\nThe ball fell through the table because the table"
    )
    assert tokenizer.decode(tokens[start:]) == " was thin."


def test_an_example_with_a_blank_is_shown_filled_in():
    drawn = pd.DataFrame(
        {"question_id": ["a"], "regime": ["choices"], "prompt": ["The _ was thin."], "answer": ["table"],
         "metadata": ['{"blank": "_"}']}
    )  # fmt: skip
    shots = make_shots(drawn, 1, "b")
    assert make_shown_text("{prompt}", "The _ fell.", shots) == "The table was thin.\n\nThe _ fell."


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(b)", "B"), ("b) fire", "B"), ("B. fire", "B"), ("The answer is C.", "C"),
        ("the ANSWER: (d)", "D"), ("答案是B", "B"), ("我选Ｃ。", "C"), ("В", "B"), ("А и В", "A"), ("**B**", "B"),
        ("A cat sits. Answer: B", "B"), ("A cat sits, so B", "B"), ("Ⓒ", "C"), ("Both B and C", "B"),
        ("", None), ("   ", None), ("E", None), ("a cat", None), ("nothing here", None), ("Because", None),
        ("٣", None), ("the answer is a cat", None),
    ],
)  # fmt: skip
def test_the_first_option_letter_counts_in_any_case_and_alphabet(output: str, letter: str | None):
    found = extract_letter(output, 4)
    assert (None if found is None else "ABCD"[found]) == letter


def test_options_are_lettered_once():
    assert add_letters("Q?", ["x", "y"]) == "Q?\nA. x\nB. y"
    assert has_letters(["A", "B"])
    assert not has_letters(["A", "C"])


def test_a_changed_file_of_the_same_name_is_told(store: Store, tmp_path: Path):
    path = tmp_path / "facts.jsonl"

    def ingest(*questions: str, **settings) -> str:
        path.write_text("\n".join(json.dumps({"question": text, "answer": "yes"}) for text in questions))
        run = run_now(store, "ingest", {"source": str(path), **settings}, "ana")
        return run.read_log()

    assert "Note" not in ingest("Is ice cold?", "Is fire hot?", "Is rain wet?")
    assert "Note" not in ingest("Is ice cold?", "Is fire hot?", "Is rain wet?", "Is snow white?"), "a longer file"
    assert "Note" not in ingest("Is sand dry?", split="train"), "another split"
    told = ingest("Is ice cold?", "Is fire cold?", "Is rain wet?")
    assert "1 rows of facts.jsonl read differently now than when facts was made of them" in told
    assert "--task NAME" in told
    assert store.value("SELECT count(*) FROM question") == 6
    assert "Note" not in ingest("Is ice hot?", task="other")
