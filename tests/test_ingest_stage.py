"""The ingest stage on a real workspace: all rows or none, duplicates, regimes, names, previews."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from metamoe_backend.config import IngestConfig, TaskName, parse_config
from metamoe_backend.errors import ConfigError, ConflictError, InputError
from metamoe_backend.ingest import RejectedRowsError, make_question_id, make_task_name, read_preview
from metamoe_backend.launch import run_now
from metamoe_backend.store.connection import Store

CHOICES = [{"query": f"Question: Which is {n}?", "choices": [str(n), "other"], "gold": 0} for n in range(5)]
FREE = [{"question": f"Who is {n}?", "answer": f"person {n}"} for n in range(5)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def ingest(store: Store, source: object, **values: Any) -> dict[str, int]:
    run = run_now(store, "ingest", {"source": str(source), **values}, "ana")
    metrics = run.read_state().metrics
    return {name: int(metrics[name]) for name in ("added", "duplicates", "rejected")}


def counts(store: Store) -> tuple[int, ...]:
    return tuple(store.value(f"SELECT count(*) FROM {table}") for table in ("task", "question", "rejected_row", "run"))


def task_row(store: Store, task: str) -> dict[str, Any]:
    return store.frame("SELECT * FROM task WHERE task = ?", [task]).iloc[0].to_dict()


def test_a_file_becomes_a_task(store: Store, tmp_path: Path) -> None:
    assert ingest(store, write(tmp_path / "toy.jsonl", CHOICES)) == {"added": 5, "duplicates": 0, "rejected": 0}
    task = task_row(store, "toy")
    assert (task["regime"], task["template"], task["source"]) == ("choices", "Question: {prompt}\nAnswer:", "toy.jsonl")
    rows = store.frame("SELECT * FROM question ORDER BY position")
    first = rows.iloc[0]
    assert (first["prompt"], list(first["choices"]), first["answer"], first["gold"]) == (
        "Which is 0?", ["0", "other"], "0", 0,
    )  # fmt: skip
    assert list(rows["position"]) == [0, 1, 2, 3, 4]
    assert set(rows["split"]) == {"test"}
    assert first["question_id"] == make_question_id("toy", "Which is 0?", ["0", "other"], "0")


def test_the_question_id_is_the_hash_of_its_content() -> None:
    assert make_question_id("t", "p", None, "a") == "5be7f2c6e5b8bb2e"
    ids = {
        make_question_id("t", "p", None, "a"),
        make_question_id("u", "p", None, "a"),
        make_question_id("t", "p", ["a", "b"], "a"),
        make_question_id("t", "p", ["b", "a"], "a"),
        make_question_id("t", "p", None, "ä"),
    }
    assert len(ids) == 5


def test_a_bad_row_stops_everything_unless_the_good_rows_are_asked_for(store: Store, tmp_path: Path) -> None:
    rows = [*CHOICES[:2], '{"query": ', {**CHOICES[2], "gold": 9}, *CHOICES[3:]]
    path = write(tmp_path / "toy.jsonl", rows)
    before = counts(store)
    with pytest.raises(RejectedRowsError) as caught:
        ingest(store, path)
    assert str(caught.value).startswith("2 of 6 rows of toy.jsonl cannot be used; first: line 3: not valid JSON")
    assert str(caught.value).endswith("mend them or keep the good rows (--keep-good).")
    assert [(row.line, row.text) for row in caught.value.rejected] == [(3, '{"query": '), (4, json.dumps(rows[3]))]
    assert counts(store) == before
    assert ingest(store, path, keep_good=True) == {"added": 4, "duplicates": 0, "rejected": 2}
    assert list(store.frame("SELECT line FROM rejected_row ORDER BY line")["line"]) == [3, 4]
    assert list(store.frame("SELECT position FROM question ORDER BY 1")["position"]) == [0, 1, 4, 5]


def test_a_source_without_any_good_row_is_refused_even_so(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.jsonl", [{**CHOICES[0], "gold": 7}])
    with pytest.raises(RejectedRowsError, match=r"None of the 1 rows .*line 1: the answer 7"):
        ingest(store, path, keep_good=True)
    with pytest.raises(RejectedRowsError, match=r"None of the first 2 rows .*line 1: not valid JSON"):
        ingest(store, write(tmp_path / "toy.jsonl", ["oops", "{"]), keep_good=True)
    with pytest.raises(InputError, match="holds no rows"):
        ingest(store, write(tmp_path / "toy.csv", ["question,answer"]))
    assert counts(store) == (0, 0, 0, 0)


def test_duplicates_are_counted_within_the_file_and_across_splits(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.jsonl", [*FREE, FREE[0], FREE[0]])
    assert ingest(store, path, split="train") == {"added": 5, "duplicates": 2, "rejected": 0}
    assert ingest(store, path, split="test") == {"added": 0, "duplicates": 7, "rejected": 0}
    more = write(tmp_path / "more.jsonl", [FREE[0], {"question": "New?", "answer": "yes"}])
    assert ingest(store, more, task="toy", split="test") == {"added": 1, "duplicates": 1, "rejected": 0}
    assert ingest(store, more, split="test")["added"] == 2, "the same questions in another task are its own"
    assert store.value("SELECT count(*) FROM question WHERE task = 'toy' AND split = 'test'") == 1


def test_at_most_limit_rows_are_read(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.jsonl", [*FREE, {"question": "bad"}])
    assert ingest(store, path, limit=3) == {"added": 3, "duplicates": 0, "rejected": 0}
    assert ingest(store, path, limit=3) == {"added": 0, "duplicates": 3, "rejected": 0}


@pytest.mark.parametrize(
    ("rows", "regime"),
    [
        (CHOICES, "choices"),
        (FREE, "exact"),
        ([{"question": "q", "answer": "so #### 1,200"}, {"question": "r", "answer": "so #### -3"}], "number"),
        ([{"question": "q", "answer": "so #### 1"}, {"question": "r", "answer": "so #### yes"}], "exact"),
        ([{"question": "q?\nOptions:\n- a\n- b", "answer": "a"}], "choices"),
        ([{"question": "q?\nOptions:\n- a\n- b", "answer": "a"}, {"question": "r?", "answer": "b"}], "exact"),
        ([{"text": "Add.", "code": "x", "task_id": 1, "test_list": ["assert 1"]}], "code"),
    ],
)
def test_the_regime_follows_from_all_answers(store: Store, tmp_path: Path, rows: list[Any], regime: str) -> None:
    ingest(store, write(tmp_path / "toy.jsonl", rows))
    assert task_row(store, "toy")["regime"] == regime
    has_choices = store.frame("SELECT choices IS NOT NULL AS yes FROM question")["yes"]
    assert set(has_choices) == {regime == "choices"}


def test_rows_that_ask_for_another_regime_than_the_task_has_are_refused(store: Store, tmp_path: Path) -> None:
    ingest(store, write(tmp_path / "toy.jsonl", CHOICES))
    with pytest.raises(ConflictError, match=r"Task toy is scored as choices, .*exact; .*--task NAME"):
        ingest(store, write(tmp_path / "more.jsonl", FREE), task="toy")
    assert counts(store)[:2] == (1, 5)


def test_rows_that_could_be_scored_as_the_task_is_join_it(store: Store, tmp_path: Path) -> None:
    ingest(store, write(tmp_path / "toy.jsonl", FREE))
    more = [{"question": "q?\nOptions:\n- a\n- b", "answer": "a"}]
    assert ingest(store, write(tmp_path / "more.jsonl", more), task="toy")["added"] == 1
    assert ingest(store, write(tmp_path / "more.jsonl", [{"question": "n", "answer": "7"}]), task="toy")["added"] == 1
    assert store.value("SELECT count(*) FROM question WHERE choices IS NULL AND gold IS NULL") == 7


def test_fixed_options_score_free_answers_by_likelihood(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.jsonl", [{"question": "a?", "answer": "Yes"}, {"question": "b?", "answer": "no"}])
    ingest(store, path, choices=["no", "yes"])
    rows = store.frame("SELECT answer, gold FROM question ORDER BY position")
    assert rows.to_dict("list") == {"answer": ["yes", "no"], "gold": [1, 0]}
    with pytest.raises(RejectedRowsError, match="'Yes' is none of the 2 choices"):
        ingest(store, path, task="other", choices=["no", "maybe"])
    with pytest.raises(ConfigError, match="at least two different"):
        ingest(store, path, task="other", choices=["no", "No"])
    with pytest.raises(ConfigError, match="options of their own"):
        ingest(store, write(tmp_path / "more.jsonl", CHOICES), choices=["no", "yes"])


def test_a_generator_becomes_a_task_and_its_answers_can_be_scored(store: Store) -> None:
    from metamoe_backend.evaluate.scorers import score_output

    source = "reasoning_gym:chain_sum"
    assert ingest(store, source, limit=30, split="train")["added"] == 30
    assert ingest(store, source, limit=30, seed=1)["added"] == 30
    task = task_row(store, "reasoning_gym/chain_sum")
    assert (task["regime"], task["template"], task["source"]) == ("reasoning_gym", "{prompt}\nAnswer:", source)
    row = store.frame("SELECT * FROM question").iloc[0]
    assert score_output(task["regime"], row["answer"], row["answer"], source, row["metadata"]) == 1
    assert score_output(task["regime"], "nothing", row["answer"], source, row["metadata"]) == 0


def test_a_generator_with_fixed_options(store: Store) -> None:
    source = "reasoning_gym:syllogism"
    added = ingest(store, source, limit=20, choices=["Yes", "No"])["added"]
    assert task_row(store, "reasoning_gym/syllogism")["regime"] == "choices"
    assert store.value("SELECT count(*) FROM question WHERE choices[gold + 1] = answer") == added
    with pytest.raises(RejectedRowsError):
        ingest(store, "reasoning_gym:chain_sum", limit=5, choices=["Yes", "No"])
    with pytest.raises(ConfigError, match="options: these belong to a reasoning_gym generator"):
        ingest(store, Path(__file__).with_suffix(".jsonl"), options={"min_terms": 2})


def test_a_mapping_with_its_own_splits(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.csv", ["q,a,part", "one?,1,train", "two?,2,", "three?,3,dev"])
    with pytest.raises(InputError, match=r"columns q, a, part, .*--map prompt=COL answer=COL"):
        ingest(store, path)
    ingest(store, path, mapping={"prompt": "q", "answer": "a", "split": "part"})
    assert list(store.frame("SELECT split FROM question ORDER BY position")["split"]) == ["train", "test", "validation"]


def test_half_characters_are_rejected_before_they_reach_the_database(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.jsonl", [*FREE, '{"question": "\\ud800", "answer": "a"}'])
    with pytest.raises(RejectedRowsError, match="line 6: the row holds half a character"):
        ingest(store, path)
    assert ingest(store, path, keep_good=True) == {"added": 5, "duplicates": 0, "rejected": 1}


def test_chinese_questions_come_through(store: Store, tmp_path: Path) -> None:
    ingest(store, write(tmp_path / "中文.jsonl", [{"question": "二加三等于几?", "answer": "五"}]))
    assert store.frame("SELECT task, prompt, answer FROM question").values.tolist() == [["中文", "二加三等于几?", "五"]]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/arc_easy.jsonl", "arc_easy"),
        ("/tmp/../x y(1).csv", "x_y_1"),
        ("../../..evil.jsonl", "evil"),
        ("reasoning_gym:chain_sum", "reasoning_gym/chain_sum"),
        ("reasoning_gym:../../x", "reasoning_gym/x"),
        ("hub:allenai/ai2_arc:ARC-Easy", "ai2_arc/ARC-Easy"),
        ("hub:squad", "squad"),
    ],
)
def test_the_default_name_comes_from_the_source(source: str, name: str) -> None:
    assert make_task_name(IngestConfig(source=source)) == name


def test_names_that_lead_out_of_a_folder_are_refused() -> None:
    for task in ("../../x", "a/../b", "..", "/etc", "a/b/c", "a\0b", ""):
        with pytest.raises(ConfigError, match="task"):
            parse_config(IngestConfig, {"source": "a.jsonl", "task": task})
    with pytest.raises(InputError, match="--task NAME"):
        make_task_name(IngestConfig(source="...jsonl"))


@given(source=st.text(max_size=100) | st.builds("{}{}".format, st.sampled_from(["hub:", "reasoning_gym:"]), st.text()))
def test_every_default_name_is_a_valid_one(source: str) -> None:
    try:
        name = make_task_name(IngestConfig(source=source))
    except InputError:
        return
    assert TypeAdapter(TaskName).validate_python(name) == name


def test_a_preview_shows_the_rows_as_they_would_be_ingested(tmp_path: Path) -> None:
    rows = [*CHOICES, {**CHOICES[0], "gold": 9}, "oops", *CHOICES]
    preview = read_preview(IngestConfig(source=str(write(tmp_path / "toy.jsonl", rows))), 7)
    assert (preview.task, preview.format_name, preview.regime) == ("toy", "query, choices, gold", "choices")
    assert preview.mapping == {"prompt": "query", "choices": "choices", "answer": "gold"}
    assert list(preview.rows["prompt"]) == [f"Which is {n}?" for n in range(5)]
    assert [row.line for row in preview.rejected] == [6, 7]
    assert preview.columns == ["query", "choices", "gold"]
    assert preview.problem is None
    assert list(preview.records["query"][:1]) == ["Question: Which is 0?"]


def test_a_preview_of_an_unknown_form_shows_its_rows_and_the_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.csv", ["q,answer", "one?,1", "two?,2"])
    preview = read_preview(IngestConfig(source=str(path)))
    assert preview.format_name is None
    assert preview.problem is not None
    assert "--map" in preview.problem
    assert preview.mapping == {"answer": "answer"}
    assert preview.records.to_dict("list") == {"q": ["one?", "two?"], "answer": ["1", "2"]}
    mapped = read_preview(IngestConfig(source=str(path), mapping={"prompt": "q"}))
    assert list(mapped.rows["prompt"]) == ["one?", "two?"]
    assert mapped.problem is None
    generated = read_preview(IngestConfig(source="reasoning_gym:chain_sum"), 4)
    assert (len(generated.rows), generated.regime) == (4, "reasoning_gym")


def test_a_failed_ingest_of_a_parquet_file_cut_short_leaves_the_database_as_it_was(
    store: Store, tmp_path: Path
) -> None:
    ingest(store, write(tmp_path / "toy.jsonl", FREE))
    before = counts(store)
    pd.DataFrame(FREE * 50).to_parquet(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match="cut short"):
        ingest(store, tmp_path / "cut.parquet", keep_good=True)
    assert counts(store) == before


def test_what_the_model_is_shown_can_be_said(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.jsonl", CHOICES)
    ingest(store, path, task="own", template="Q: {prompt} A:")
    assert task_row(store, "own")["template"] == "Q: {prompt} A:"
    with pytest.raises(ConflictError, match="is shown as 'Q: {prompt} A:', not as '{prompt}!'"):
        ingest(store, path, task="own", template="{prompt}!")
    with pytest.raises(ConfigError, match="template: write {prompt} where the question goes"):
        parse_config(IngestConfig, {"source": "x", "template": "Q:"})


@pytest.mark.parametrize("task", ["openbook_qa", "OpenBookQA", "mine/openbookqa"])
def test_openbookqa_shows_the_bare_stem_as_the_harness_does(store: Store, tmp_path: Path, task: str) -> None:
    path = write(tmp_path / "toy.jsonl", CHOICES)
    ingest(store, path, task=task)
    assert task_row(store, task)["template"] == "{prompt}"
    assert read_preview(IngestConfig(source=str(path), task=task)).template == "{prompt}"
