"""Each scorer says right or wrong as its convention does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.errors import ConfigError, InputError
from metamoe_backend.evaluate.scorers import (
    extract_number,
    score_choices,
    score_choices_by_length,
    score_exact,
    score_number,
    score_output,
)
from metamoe_backend.ingest.generators import read_generator
from metamoe_backend.ingest.records import Record


@pytest.mark.parametrize(
    ("output", "answer", "score"),
    [
        ("Paris", "paris", 1.0),
        ("  the   cat. ", "The cat", 1.0),
        ('"yes"', "yes", 1.0),
        ("ｆｕｌｌ", "full", 1.0),
        ("Paris, France", "Paris", 0.0),
        ("", "0", 0.0),
    ],
)
def test_exact_ignores_case_spaces_quotes_and_the_full_stop(output, answer, score):
    assert score_exact(output, answer) == score


@given(st.text())
def test_every_text_equals_itself(text):
    assert score_exact(text, text) == 1.0


@pytest.mark.parametrize(
    ("output", "answer", "flexible", "strict"),
    [
        ("She makes 9 * 2 = $18 every day.\n#### 18", "18", 1.0, 1.0),
        ("The answer is 1,234.", "1234", 1.0, 0.0),
        ("#### -3\nQuestion: 7", "-3", 0.0, 1.0),
        ("18.00", "18", 1.0, 0.0),
        ("it is 5", "6", 0.0, 0.0),
        ("no number at all ...", "6", 0.0, 0.0),
        ("x1.2.3", "1.2.3", 1.0, 0.0),
        ("答案是１８", "18", 1.0, 0.0),
        ("#### ١٨", "18", 1.0, 1.0),
        ("", "6", 0.0, 0.0),
    ],
)
def test_number_follows_the_two_gsm8k_extractions(output, answer, flexible, strict):
    assert score_number(output, answer) == flexible
    assert score_number(output, answer, "strict") == strict


@given(st.integers(-(10**9), 10**9))
def test_the_last_number_is_found_with_thousands_separators(number):
    assert extract_number(f"12 apples, so it is {number:,}.") == str(number)


def test_choices_take_the_likeliest_and_the_first_of_equals():
    assert score_choices([-3.0, -1.0, -2.0], 1) == (1, 1.0)
    assert score_choices([-1.0, -1.0], 1) == (0, 0.0)


def test_length_normalised_choices_may_differ():
    logliks, options = [-4.0, -6.0], ["ab", "abcdef"]
    assert score_choices(logliks, 1)[0] == 0
    assert score_choices_by_length(logliks, options, 1) == (1, 1.0)


def test_generators_score_their_own_answers():
    record = next(iter(read_generator("chain_sum", {}, 1, 0)))
    assert isinstance(record, Record)
    question, metadata = record.values, json.dumps(record.values["metadata"])
    assert score_output("reasoning_gym", question["answer"], "", "reasoning_gym:chain_sum", metadata) == 1.0
    assert score_output("reasoning_gym", "banana", "", "reasoning_gym:chain_sum", metadata) < 0.1


def test_a_program_is_scored_by_its_tests():
    metadata = json.dumps({"test_list": ["assert double(4) == 8"]})
    reference = "def double(n):\n    return 2 * n"
    assert score_output("code", reference, reference, "mbpp.jsonl", metadata) == 1.0
    assert score_output("code", reference.replace("2", "3"), reference, "mbpp.jsonl", metadata) == 0.0
    with pytest.raises(InputError, match="no tests in its metadata; ingest its task again"):
        score_output("code", reference, reference, "mbpp.jsonl", None)


def test_an_unknown_regime_is_refused():
    with pytest.raises(ConfigError, match="unknown"):
        score_output("vibes", "good", "good", "", None)
