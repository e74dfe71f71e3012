"""Each benchmark format is recognised by its columns, and each bad row says why it cannot be used."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.errors import ConfigError, InputError
from metamoe_backend.ingest.formats import (
    PLAIN_TEMPLATE,
    QUESTION_TEMPLATE,
    Format,
    Item,
    RowRejected,
    choose_from,
    find_format,
    is_number,
)

ARC = {"question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}
MBPP = {
    "text": "Add two numbers.",
    "code": "def add(a, b):\r\n  return a + b ",
    "task_id": 7,
    "test_list": ["assert 1"],
}
OPTIONS = "What lays eggs?\nOptions:\n- (A) hen\n- (B) cow"


def format_of(row: dict[str, Any], **mapping: str) -> Format:
    return find_format(list(row), mapping, [row], "a.jsonl")


def read(row: dict[str, Any], **mapping: str) -> Item:
    return format_of(row, **mapping).read(row)


def rejection(row: dict[str, Any], like: dict[str, Any] | None = None) -> str:
    with pytest.raises(RowRejected) as caught:
        format_of(like or row).read(row)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "name", "prompt", "choices", "answer", "template"),
    [
        (
            {"query": "Question: dresser\n", "choices": ["a", "b"], "gold": 1},
            "query, choices, gold", "dresser", ["a", "b"], "b", QUESTION_TEMPLATE,
        ),
        (
            {"query": "Passage: Ice melts.\nQuestion: does ice melt?", "choices": ["no", "yes"], "gold": 1},
            "BoolQ query", "Ice melts.\nQuestion: does ice melt?", ["no", "yes"], "yes", PLAIN_TEMPLATE,
        ),
        (
            {"question": "does ice melt", "passage": "Ice melts.", "answer": True},
            "BoolQ", "Ice melts.\nQuestion: does ice melt?", ["no", "yes"], "yes", PLAIN_TEMPLATE,
        ),
        (
            {"context": "2 + 3?", "chain_of_thought": "Count.", "answer": "5"},
            "context, chain_of_thought, answer", "2 + 3?", None, "5", QUESTION_TEMPLATE,
        ),
        (ARC, "ARC", "Which is hot?", ["ice", "fire"], "fire", QUESTION_TEMPLATE),
        (
            {"goal": "Warm up", "sol1": "run", "sol2": "sleep", "label": 0},
            "PiQA", "Warm up", ["run", "sleep"], "run", QUESTION_TEMPLATE,
        ),
        ({"question": "2 + 3?", "answer": "Count. #### 5"}, "GSM8K", "2 + 3?", None, "5", QUESTION_TEMPLATE),
        ({"question": "Who?", "answer": "me"}, "question, answer", "Who?", None, "me", QUESTION_TEMPLATE),
        (
            {"instruction": "Add.", "input": "2 3", "output": "It is 5.", "answer": "5"},
            "instruction", "Add.\n2 3", None, "5", QUESTION_TEMPLATE,
        ),
        ({"prompt": "Who?", "answer": "me"}, "mapping", "Who?", None, "me", QUESTION_TEMPLATE),
    ],
)  # fmt: skip
def test_a_format_is_recognised_and_read(
    row: dict[str, Any], name: str, prompt: str, choices: list[str] | None, answer: str, template: str
) -> None:
    assert (format_of(row).name, format_of(row).template) == (name, template)
    item = read(row)
    assert (item.prompt, item.choices, item.answer) == (prompt, choices, answer)
    assert item.gold == (None if choices is None else choices.index(answer))


def test_mbpp_keeps_its_program_to_the_letter_and_its_tests_in_the_metadata() -> None:
    item = read(MBPP)
    assert format_of(MBPP).regime == "code"
    assert item.answer == MBPP["code"]
    assert item.metadata == {"task_id": 7, "test_list": ["assert 1"]}
    assert "no tests" in rejection({**MBPP, "test_list": []})
    sanitized = read({"prompt": "Add.", "code": "x", "task_id": 1, "test_list": ["assert 1"]})
    assert sanitized.prompt == "Add. Your code should pass these tests:\n\nassert 1"
    assert "test 2 is not valid Python" in rejection({**MBPP, "test_list": ["assert 1", "assert ("]})


def test_human_eval_keeps_the_head_of_its_function_to_the_letter() -> None:
    row = {
        "task_id": "HumanEval/0", "prompt": "\ndef f(n):\n    \"\"\"n\"\"\"\n", "entry_point": "f",
        "canonical_solution": "    return n\n", "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    }  # fmt: skip
    assert (format_of(row).name, format_of(row).regime, format_of(row).template) == ("HumanEval", "code", "{prompt}")
    item = read(row)
    assert (item.prompt, item.answer) == (row["prompt"], row["canonical_solution"])
    assert item.metadata == {key: row[key] for key in ("task_id", "prompt", "entry_point", "test")}
    assert "no entry_point" in rejection({**row, "entry_point": " "})
    assert "the test is not valid Python" in rejection({**row, "test": "def"})


def test_explanations_are_kept_apart_from_answers() -> None:
    assert read({"question": "q", "answer": "2+3=5\n#### 5"}).explanation == "2+3=5"
    assert read({"context": "q", "chain_of_thought": "why", "answer": "5"}).explanation == "why"
    assert read({"question": "q", "answer": "5", "explanation": "why"}).explanation == "why"
    assert (
        read({"instruction": "q", "input": "", "output": "Because 2+3.", "answer": "5"}).explanation == "Because 2+3."
    )
    assert (
        read({"instruction": "q", "input": "", "output": "The correct answer is 5", "answer": "5"}).explanation is None
    )


@pytest.mark.parametrize(
    ("labels", "key"), [(["A", "B"], "B"), (["1", "2"], "2"), (["A", "B"], "2"), (["1", "2"], "B"), (["x", "y"], "y")]
)
def test_arc_labels_may_be_letters_or_numbers(labels: list[str], key: str) -> None:
    row = {**ARC, "choices": {"text": ["ice", "fire"], "label": labels}, "answerKey": key}
    assert read(row).answer == "fire"


def test_equal_options_are_allowed_and_the_index_decides() -> None:
    item = read({"query": "q", "choices": ["a", "b", "b"], "gold": 2})
    assert (item.gold, item.answer) == (2, "b")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": "q", "choices": ["a", "b"], "gold": None}, "no answer"),
        ({"query": "q", "choices": ["a", "b"]}, "no answer"),
        ({"query": "q", "choices": ["a", "b"], "gold": float("nan")}, "no answer"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "no choice"),
        ({"query": "q", "choices": ["a", "b"], "gold": -1}, "no choice"),
        ({"query": "q", "choices": ["a", "b"], "gold": True}, "none of the 2 choices"),
        ({"query": "q", "choices": ["a", "b"], "gold": "c"}, "none of the 2 choices"),
        ({"query": "q", "choices": ["a"], "gold": 0}, "at least 2"),
        ({"query": "q", "choices": [], "gold": 0}, "at least 2"),
        ({"query": "q", "choices": ["a", " "], "gold": 0}, "choice 2 is empty"),
        ({"query": "q", "choices": None, "gold": 0}, "no choices"),
        ({"query": "q", "choices": 7, "gold": 0}, "not a list"),
        ({"query": " ", "choices": ["a", "b"], "gold": 0}, "no question"),
        ({"query": "Question: ", "choices": ["a", "b"], "gold": 0}, "no question"),
        ({"query": ["q"], "choices": ["a", "b"], "gold": 0}, "not text"),
    ],
)
def test_a_row_of_options_that_cannot_be_used_says_why(row: dict[str, Any], reason: str) -> None:
    assert reason in rejection(row, {"query": "q", "choices": ["a", "b"], "gold": 0})


def test_rows_of_the_other_formats_say_why_they_cannot_be_used() -> None:
    assert "none of the 2 choices" in rejection({**ARC, "answerKey": "E"})
    assert "2 choices but 1 labels" in rejection({**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}})
    assert "no choice" in rejection({"goal": "g", "sol1": "a", "sol2": "b", "label": -1})
    assert "no choice" in rejection({"goal": "g", "sol1": "a", "sol2": "", "label": 0})
    assert "none of the 2 choices" in rejection({"question": "q", "passage": "p", "answer": "maybe"})
    gsm8k = {"question": "q", "answer": "so #### 5"}
    assert "####" in rejection({"question": "q", "answer": "so 5"}, gsm8k)
    assert "no answer" in rejection({"question": "q", "answer": "so ####"}, gsm8k)
    assert "no answer" in rejection({"question": "q", "answer": ""}, {"question": "q", "answer": "a"})
    assert "no answer" in rejection({"instruction": "q", "output": "a", "answer": ""})


def test_flan_options_become_choices_and_the_question_keeps_its_text() -> None:
    lettered = read({"question": OPTIONS, "answer": "(A)"})
    assert (lettered.prompt, lettered.choices, lettered.answer, lettered.gold) == (OPTIONS, ["hen", "cow"], "hen", 0)
    assert lettered.free is not None
    assert (lettered.free.answer, lettered.free.choices) == ("(A)", None)
    plain = read({"question": "Is it?\nOptions:\n- yes\n- no", "answer": "no"})
    assert (plain.choices, plain.gold) == (["yes", "no"], 1)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (OPTIONS, "(C)"),
        (OPTIONS, "goose"),
        ("What?\nOptions:\n- a", "a"),
        ("What?\nOptions:\n- a\nand more\n- b", "a"),
        ("What?\nOptions:\n- (A) a\n- b", "a"),
        ('Which?\nOptions:\n- Sentence A: "x"\n- Sentence B: "y"\n', "Sentence A"),
        ("What are options?", "a"),
    ],
)
def test_options_that_do_not_hold_the_answer_leave_it_free(question: str, answer: str) -> None:
    item = read({"question": question, "answer": answer})
    assert (item.prompt, item.answer, item.choices) == (question.strip(), answer, None)


def test_numbered_answers_of_instruction_rows_become_choices() -> None:
    instruction = (
        "Please choose the correct answer to the question: Which is hot?\n\nAnswer1: ice Answer2: fire and smoke "
        "Answer3: snow\n\nAnswer format: answer1/answer2/answer3"
    )
    row = {"instruction": instruction, "input": "", "output": "the correct answer is answer2", "answer": "answer2"}
    item = read(row)
    assert (item.prompt, item.choices) == ("Which is hot?", ["ice", "fire and smoke", "snow"])
    assert (item.answer, item.gold, item.explanation) == ("fire and smoke", 1, None)
    assert item.free == Item(instruction, "answer2")
    assert read({**row, "answer": "answer4"}).choices is None
    assert read({**row, "instruction": instruction.replace("Answer2", "Answer7")}).choices is None


def test_other_columns_are_read_through_a_mapping() -> None:
    row = {"q": "Who?", "a": "me", "why": "I did.", "part": "dev"}
    item = read(row, prompt="q", answer="a", explanation="why", split="part")
    assert (item.prompt, item.answer, item.explanation, item.split) == ("Who?", "me", "I did.", "validation")
    with pytest.raises(RowRejected, match="none of train, validation, test"):
        read({**row, "part": "extra"}, prompt="q", answer="a", split="part")


@pytest.mark.parametrize(
    ("options", "answer", "gold"),
    [
        (["4", "5"], "5", 1),
        (["x", "y"], 1, 1),
        (["0", "1", "2"], 0, 0),
        ('["x", "y"]', "y", 1),
        ("['x', 'y']", "Y", 1),
        ("x | y | z", "z", 2),
        (["x", "y"], "B", 1),
        (["x", "y"], "(b)", 1),
        ([{"text": "x", "label": "q"}, {"text": "y", "label": "r"}], "r", 1),
    ],
)
def test_mapped_answers_may_be_text_index_letter_or_label(options: Any, answer: Any, gold: int) -> None:
    assert read({"q": "?", "c": options, "a": answer}, prompt="q", choices="c", answer="a").gold == gold


def test_choices_may_stand_in_several_columns() -> None:
    row = {"q": "?", "right": "B", "A": "x", "B": "y"}
    assert read(row, prompt="q", choices="A,B", answer="right").answer == "y"


def test_an_unknown_form_names_its_columns_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"a\.jsonl has the columns foo, bar, .*--map prompt=COL answer=COL"):
        format_of({"foo": 1, "bar": 2})
    with pytest.raises(InputError, match=r"no column 'nope' .*foo, bar"):
        format_of({"foo": 1, "bar": 2}, prompt="foo", answer="nope")
    with pytest.raises(ConfigError, match="no field 'gold'"):
        format_of({"foo": 1}, prompt="foo", gold="foo")
    with pytest.raises(ConfigError, match="which column holds the answer"):
        format_of({"foo": 1}, prompt="foo")


@pytest.mark.parametrize("other", ["choices", "context", "options"])
def test_columns_that_would_be_left_out_do_not_go_unnoticed(other: str) -> None:
    with pytest.raises(InputError, match="--map"):
        format_of({"question": "q", "answer": "a", other: "more"})


@pytest.mark.parametrize("text", ["18", "-3", "1,234", "$5", "0.5", ".5", "12.", "$1,000.50"])
def test_numbers_as_gsm8k_writes_them(text: str) -> None:
    assert is_number(text)


@pytest.mark.parametrize("text", ["", "ten", "5 apples", "1/2", "nan", "1e5", "٣", "-", "18%"])
def test_other_texts_are_no_numbers(text: str) -> None:
    assert not is_number(text)


def test_fixed_options_take_an_answer_but_for_case_and_refuse_others() -> None:
    item = choose_from(Item("q", "Yes", explanation="why", metadata={"a": 1}), ["no", "yes"])
    assert (item.answer, item.gold, item.choices, item.explanation) == ("yes", 1, ["no", "yes"], "why")
    with pytest.raises(RowRejected, match="'perhaps' is none of the 2 choices"):
        choose_from(Item("q", "perhaps"), ["no", "yes"])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
SHAPES = [
    {"query": "q", "choices": ["a", "b"], "gold": 0}, ARC, MBPP, {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
    {"question": "q", "passage": "p", "answer": True}, {"question": "q", "answer": "#### 1"},
    {"question": "q", "answer": "a", "explanation": "e"}, {"context": "c", "chain_of_thought": "t", "answer": "1"},
    {"instruction": "i", "input": "", "output": "o", "answer": "a"},
    {"prompt": "p", "choices": ["a", "b"], "answer": "a", "split": "test"},
]  # fmt: skip


@given(data=st.data(), shape=st.sampled_from(SHAPES))
def test_whatever_stands_in_the_cells_a_row_is_read_or_rejected(data: st.DataObject, shape: dict[str, Any]) -> None:
    row = {name: data.draw(anything) for name in shape if data.draw(st.booleans())}
    try:
        item = format_of(shape).read(row)
    except RowRejected as reason:
        assert str(reason)
        return
    assert item.prompt
    assert item.answer
    if item.choices is not None:
        assert item.gold is not None
        assert item.choices[item.gold] == item.answer
        assert len(item.choices) >= 2
