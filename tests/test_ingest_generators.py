"""reasoning-gym's generators as a source, and their scorers on whatever a model may write."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.ingest.generators import LEFT_OUT, list_generators, read_generator, score_answer
from metamoe_backend.ingest.records import Record
from metamoe_backend.rows import RejectedRow

EXECUTING = ["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"]
PARSING = ["countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"]
SAMPLE = [
    *EXECUTING,
    *PARSING,
    "arc_agi",
    "chain_sum",
    "coin_flip",
    "knights_knaves",
    "prime_factorization",
    "syllogism",
]


def generate(name: str, size: int = 2, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    return [one.values for one in read_generator(name, options, size, seed) if isinstance(one, Record)]


def stored(values: dict[str, Any]) -> str:
    return json.dumps(values["metadata"])


def test_the_same_seed_gives_the_same_questions_and_another_gives_others() -> None:
    first, again, other = generate("chain_sum", 20), generate("chain_sum", 20), generate("chain_sum", 20, seed=1)
    assert first == again
    assert not {row["question"] for row in first} & {row["question"] for row in other}
    assert len(generate("pool_matrix", 2, seed=10**9)) == 2


def test_options_reach_the_generator() -> None:
    (row,) = generate("chain_sum", 1, min_terms=5, max_terms=5)
    assert row["metadata"]["entry"]["metadata"]["num_terms"] == 5


def test_every_listed_generator_has_a_category_a_summary_and_options_that_json_can_hold() -> None:
    generators = list_generators()
    names = [one.name for one in generators]
    assert len(names) == len(set(names)) >= 90
    assert not set(names) & set(LEFT_OUT)
    assert all(one.category and one.summary for one in generators)
    json.dumps([one.options for one in generators], allow_nan=False)
    assert next(one for one in generators if one.name == "chain_sum").options["max_terms"] == 6


@pytest.mark.parametrize("name", SAMPLE)
def test_the_gold_answer_scores_full_marks_after_a_trip_through_json(name: str) -> None:
    for row in generate(name, 2, seed=3):
        assert score_answer(name, f" {row['answer'].strip()}\n", stored(row)) >= 0.99


@pytest.mark.parametrize("name", EXECUTING + PARSING)
def test_an_output_is_never_run_as_code(name: str, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (row,) = generate(name, 1)
    for output in (
        f"open({str(witness)!r}, 'w')",
        f"[open({str(witness)!r}, 'w')]",
        f"__import__('os').system('touch {witness}')",
        f"(lambda: __import__('pathlib').Path({str(witness)!r}).touch())()",
        f"x.__class__.__init__.__globals__['open']({str(witness)!r}, 'w')",
    ):
        assert score_answer(name, output, stored(row)) < 0.5
    assert not witness.exists()


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize(
    "output", ["9**9**9**9", "(((9**9)**9)**9)**9", "1e999999999", "[0] * 10**12", "exp(exp(exp(99)))"]
)
def test_an_output_that_would_never_be_worked_out_is_a_wrong_answer(name: str, output: str) -> None:
    (row,) = generate(name, 1)
    assert score_answer(name, output, stored(row)) < 0.5


def test_equal_formulas_are_right_and_others_wrong() -> None:
    (row,) = generate("polynomial_multiplication", 1)
    assert score_answer("polynomial_multiplication", f"0 + {row['answer']}", stored(row)) == 1
    assert score_answer("polynomial_multiplication", f"1 + {row['answer']}", stored(row)) == 0


def test_part_marks_of_the_scorer_are_kept() -> None:
    (row,) = generate("spiral_matrix", 1)
    as_list = json.dumps([int(number) for number in row["answer"].split()])
    assert score_answer("spiral_matrix", as_list, stored(row)) == pytest.approx(0.1)


@settings(max_examples=60)
@given(output=st.text(max_size=40) | st.sampled_from(["{}", '[{"a":1}]', "[[1]]", "null", "1/0", "nan", "[", "3 4\n5"]))
@pytest.mark.parametrize("name", ["game_of_life", "prime_factorization", "countdown", "coin_flip", "n_queens"])
def test_any_output_gets_a_score(name: str, output: str) -> None:
    (row,) = generate(name, 1)
    assert 0 <= score_answer(name, output, stored(row)) <= 1


def test_scoring_follows_the_generator_that_made_the_question() -> None:
    (row,) = generate("chain_sum", 1)
    assert score_answer("reasoning_gym/other", row["answer"], stored(row)) == 1
    for metadata in (None, "{}", "[]"):
        with pytest.raises(InputError, match="no generator state"):
            score_answer("chain_sum", "5", metadata)


def test_names_that_are_no_generator_get_near_ones() -> None:
    with pytest.raises(NotFoundError, match="did you mean chain_sum"):
        list(read_generator("chainsum", {}, 1, 0))
    for name in LEFT_OUT:
        with pytest.raises(InputError, match="left out, because"):
            list(read_generator(name, {}, 1, 0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_terms": 1, "min_terms": 4}, "max_terms must be >= min_terms"),
        ({"foo": 1}, "no option 'foo'; it has .*max_terms"),
        ({"min_terms": "many"}, "refuses"),
        ({"seed": 3}, "use the seed setting"),
        ({"size": 3}, "use the limit setting"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        list(read_generator("chain_sum", options, 1, 0))


def test_a_question_the_generator_cannot_make_is_a_rejected_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    make = ChainSumDataset.__getitem__

    def fail_once(self: ChainSumDataset, number: int) -> dict[str, Any]:
        if number == 1:
            raise RuntimeError("no path")
        return make(self, number)

    monkeypatch.setattr(ChainSumDataset, "__getitem__", fail_once)
    rows = list(read_generator("chain_sum", {}, 3, 0))
    assert [type(row) for row in rows] == [Record, RejectedRow, Record]
    assert "no path" in rows[1].reason


def test_generators_keep_standard_output_clean(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = generate("bf", 1)
    score_answer("bf", row["answer"], stored(row))
    assert capsys.readouterr().out == ""
