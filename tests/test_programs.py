"""Tasks scored by running programs: prompts, ends, tests, and the way from a file to a prediction."""

import json
from pathlib import Path

import pandas as pd
import pytest

from metamoe_backend.config import EvaluateConfig
from metamoe_backend.errors import InputError, UnavailableError
from metamoe_backend.evaluate import answering, programs, stage
from metamoe_backend.evaluate.programs import extract_program, list_stops, make_problem, mark_end
from metamoe_backend.evaluate.sandbox import Problem, run_problem, run_problems
from metamoe_backend.ingest.formats import find_format
from metamoe_backend.ingest.human_eval import read_human_eval
from metamoe_backend.launch import run_now
from metamoe_backend.models.adapters import hash_adapter
from metamoe_backend.store.connection import Store
from tests.conftest import insert_rows
from tests.recording import RecordingContext
from tests.test_evaluate_stage import make_system
from tests.tiny_models import make_tiny_adapter, make_tiny_base

ROWS = [
    {
        "task_id": 1, "text": "Write a function that doubles a number.", "code": "def double(n):\r\n  return 2 * n ",
        "test_list": ["assert double(2) == 4", "assert double(0) == 0", "assert double(-1) == -2"],
    },
    {
        "task_id": 2, "text": "Write a function for the area of a circle.",
        "code": "import math\ndef area(r):\n  return math.pi * r ** 2",
        "test_list": ["assert math.isclose(area(1), math.pi)", "assert area(0) == 0", "assert area(2) > area(1)"],
    },
    {
        "task_id": 3, "text": "Write a function that sums two numbers.", "code": "def sum(a, b):\n  return a + b",
        "test_list": ["assert sum(1, 2) == 3", "assert sum(0, 0) == 0", "assert sum(-1, 1) == 0"],
    },
    {
        "task_id": 4, "text": "Write a function for the longest chain.", "test_setup_code": "first = Link(1)\nfirst.next = Link(2)",
        "code": "class Link(object):\n  def __init__(self, n):\n    self.n = n\n    self.next = None\n"
                "def length(link):\n  return 0 if link is None else 1 + length(link.next)",
        "test_list": ["assert length(first) == 2", "assert length(None) == 0", "assert length([Link(5)][0]) == 1"],
    },
]  # fmt: skip


def read(row: dict):
    return find_format(list(row), {}, [row], "a.jsonl").read(row)


def test_the_prompt_is_mbpps_own_and_examples_end_with_done():
    one = find_format(list(ROWS[0]), {}, ROWS, "a.jsonl")
    shown = one.template.replace("{prompt}", one.read(ROWS[0]).prompt)
    assert shown == (
        "You are an expert Python programmer, and here is your task: Write a function that doubles a number. Your code "
        "should pass these tests:\n\nassert double(2) == 4\nassert double(0) == 0\nassert double(-1) == -2\n[BEGIN]\n"
    )
    metadata = json.dumps(one.read(ROWS[0]).metadata)
    assert mark_end("x = 1", metadata) == "x = 1\n[DONE]"
    assert list_stops(metadata) == ("[DONE]",)


def test_reference_programs_pass_and_one_does_not_solve_the_other():
    items = [read(row) for row in ROWS]
    right = [make_problem(item.answer, item.answer, json.dumps(item.metadata)) for item in items]
    assert [verdict.reason for verdict in run_problems(right)] == [""] * len(ROWS)
    shifted = [
        make_problem(other.answer, item.answer, json.dumps(item.metadata))
        for item, other in zip(items, items[1:] + items[:1], strict=True)
    ]
    assert not any(verdict.passed for verdict in run_problems(shifted))


def test_a_program_cannot_replace_what_the_tests_bring_along():
    item = read(ROWS[1])
    forged = "class math:\n    pi = 0\n    isclose = lambda *args: True\ndef area(r):\n    return r"
    assert not run_problem(make_problem(forged, item.answer, json.dumps(item.metadata))).passed


@pytest.mark.parametrize(
    ("output", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```\nThis sets x.", "x = 1\n"),
        ("Here it is:\n```\nx = 1\n```", "x = 1\n"),
        ("x = 1\n```\nThis sets x.", "x = 1\n"),
    ],
)
def test_a_fenced_program_is_taken_out(output: str, program: str):
    assert extract_program(output) == program


def human_eval() -> list:
    return [read(record.values) for record in read_human_eval(None)]


def test_human_eval_comes_from_its_package_and_goes_on_from_the_prompt():
    items = human_eval()
    assert len(items) == 164
    chosen = [items[number] for number in (0, 32, 38)]  # 32 and 38 test with helpers that the prompt defines
    given = [(item.answer, json.dumps(item.metadata)) for item in chosen]
    assert all(verdict.passed for verdict in run_problems([make_problem(answer, "", text) for answer, text in given]))
    empty = run_problems([make_problem("    pass\n", "", text) for _, text in given])
    assert not any(verdict.passed for verdict in empty)
    assert list_stops(given[0][1]) == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    helper = "    return 0.0\n\ndef poly(xs, x):\n    return 0.0\n"
    assert not run_problem(make_problem(helper, "", given[1][1])).passed
    with pytest.raises(InputError, match="write humaneval: alone"):
        next(read_human_eval("plus"))


@pytest.mark.model
def test_all_canonical_solutions_of_human_eval_pass():
    items = human_eval()
    verdicts = run_problems([make_problem(item.answer, "", json.dumps(item.metadata)) for item in items])
    assert sum(verdict.passed for verdict in verdicts) == 164


def test_human_eval_is_ingested_by_its_name(store: Store):
    run_now(store, "ingest", {"source": "humaneval:", "limit": 5}, "ana")
    task = store.frame("SELECT * FROM task").iloc[0]
    assert (task["task"], task["regime"], task["source"], task["template"]) == (
        "humaneval",
        "code",
        "humaneval:",
        "{prompt}",
    )
    assert store.value("SELECT count(*) FROM question") == 5


@pytest.fixture
def prepared(store: Store, tmp_path: Path) -> Store:
    """The four questions as test split, the same as train split of another wording, and an expert."""
    for split, ask in (("test", "Write"), ("train", "Please write")):
        path = tmp_path / "small.jsonl"
        rows = [row | {"text": row["text"].replace("Write", ask)} for row in ROWS]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        run_now(store, "ingest", {"source": str(path), "split": split}, "ana")
    base = make_tiny_base(tmp_path / "base")
    folder = make_tiny_adapter(store.workspace.adapters / "coder", base, seed=1)
    system = make_system("coder", "expert", str(base), "adapters/coder", hash_adapter(folder), [])
    insert_rows(store, "train", system=pd.DataFrame([system]))
    return store


def evaluate(store: Store, **settings) -> RecordingContext:
    config = EvaluateConfig(systems=["coder"], tasks=["small"], device="cpu", max_program_tokens=16, **settings)
    context = RecordingContext(store.workspace.root)
    stage.compute(stage.prepare(store, config), config, context)
    return context


def test_a_model_that_cannot_program_passes_nothing(prepared: Store):
    context = evaluate(prepared)
    predictions = context.rows("prediction")
    assert len(predictions) == 4
    assert predictions["output"].str.len().gt(0).any()
    assert set(predictions["regime"]) == {"code"}
    assert not predictions["correct"].any()
    assert any(line.startswith("Programs run in bubblewrap") and "one process" in line for line in context.messages)
    assert any("4 of 4 reference programs of small have more than 16 tokens" in line for line in context.messages)


def test_reference_programs_count_as_correct(prepared: Store, monkeypatch):
    questions = prepared.frame("SELECT prompt, answer FROM question WHERE split = 'test'")
    seen = []

    def write(system, tokenizer, prompts, stop, *args):
        seen.append(stop)
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        for row, text in enumerate(texts):
            found = [answer for prompt, answer in zip(*questions.to_dict("list").values(), strict=True)
                     if text.rstrip().endswith(f"{prompt}\n[BEGIN]")]  # fmt: skip
            yield [row], [stop.cut(found[0] + "\n[DONE]\nmore")]

    monkeypatch.setattr(answering, "iterate_outputs", write)
    predictions = evaluate(prepared, n_shot=3).rows("prediction")
    assert predictions["correct"].tolist() == [True] * 4
    assert predictions["score"].tolist() == [1.0] * 4
    assert (seen[0].texts, seen[0].max_new_tokens, seen[0].strip) == (("[DONE]",), 16, False)


def test_three_examples_stand_before_the_question(prepared: Store):
    config = EvaluateConfig(systems=["coder"], tasks=["small"], n_shot=3)
    shown = stage.prepare(prepared, config)["questions"]["shown_text"].iloc[0]
    assert shown.count("[BEGIN]\n") == 4
    assert shown.count("\n[DONE]\n\nYou are an expert Python programmer") == 3
    assert shown.endswith("[BEGIN]\n")


def test_without_a_sandbox_a_task_of_programs_is_refused_before_anything_is_computed(prepared: Store, monkeypatch):
    def refuse() -> None:
        raise UnavailableError("no bubblewrap; install bubblewrap")

    monkeypatch.setattr(programs, "check_sandbox", refuse)
    with pytest.raises(UnavailableError, match="install bubblewrap"):
        evaluate(prepared)
    assert isinstance(make_problem("x", "x", '{"test_list": ["assert 1"]}'), Problem)
