"""The stage that chooses experts: its numbers against the model's own, what a stop costs, and what it refuses."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metamoe_backend.cli import main
from metamoe_backend.config import EvaluateConfig, SelectConfig, parse_config
from metamoe_backend.errors import ConfigError, InputError, NotFoundError, StopRequested, StorageError
from metamoe_backend.evaluate import stage as evaluate_stage
from metamoe_backend.experts import candidates
from metamoe_backend.experts.selection import CRITERIA, rank_subsets
from metamoe_backend.launch import run_now
from metamoe_backend.models.adapters import hash_adapter, read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.store.connection import Store
from metamoe_backend.store.expert_selections import (
    fetch_candidate_pairs,
    fetch_candidate_shots,
    fetch_candidates,
    fetch_selections,
)
from metamoe_backend.verbs import common
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_rows
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_adapter, make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["a", "b", "c", "d", "e"]
MADE_AT = datetime(2026, 11, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(make_tiny_base(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture
def store(workspace: Workspace, base: str):
    """Five experts, the mixed baseline, an OSF baseline and an expert of another base; a task of options and one of numbers."""
    with Store.open(workspace, "a test") as opened:
        insert_tasks(opened)
        rows = [bank_row(workspace, base, name, seed) for seed, name in enumerate(NAMES)]
        rows += [bank_row(workspace, base, "all", 9, kind="mixed"), bank_row(workspace, base, "other", 8, on="another")]
        rows += [bank_row(workspace, base, "guarded", 7, kind="baseline")]
        adapters, systems = zip(*rows, strict=True)
        insert_rows(opened, "train", adapter=pd.DataFrame(adapters), system=pd.DataFrame(systems))
        yield opened


def insert_tasks(store: Store) -> None:
    tasks = pd.DataFrame(
        [
            {"task": "colour", "regime": "choices", "template": "Question: {prompt}\nAnswer:"},
            {"task": "sum", "regime": "number", "template": "{prompt} ="},
            {"task": "program", "regime": "code", "template": "{prompt}"},
        ]
    ).assign(source="a test", created_at=MADE_AT)
    colours = ["red", "green", "dark blue"]
    rows = []
    for number in range(12):
        rows += [
            {"task": "colour", "prompt": f"Which colour is thing {number}?", "choices": colours,
             "answer": colours[number % 3], "gold": number % 3, "explanation": f"Thing {number} is painted." if number % 2 else None},
            {"task": "sum", "prompt": f"{number} + 1", "choices": None, "answer": str(number + 1), "gold": None,
             "explanation": None},
            {"task": "program", "prompt": f"write {number}", "choices": None, "answer": "x", "gold": None,
             "explanation": None},
        ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(split="train", position=0).astype({"gold": "Int64"})
    frame["question_id"] = [f"{row.task}-{index}" for index, row in enumerate(frame.itertuples())]
    insert_rows(store, "ingest", task=tasks, question=frame)


def bank_row(
    workspace: Workspace, base: str, name: str, seed: int, kind: str = "expert", on: str | None = None
) -> tuple[dict, dict]:
    folder = make_tiny_adapter(workspace.adapters / name, Path(base), rank=2 + seed % 2, seed=seed)
    about = {"base": on or base, "sha256": hash_adapter(folder), "created_at": MADE_AT}
    adapter = about | {
        "adapter": name, "rank": 2 + seed % 2, "alpha": 8.0, "targets": ["up_proj"], "parameters": 1, "source": "trained",
        "plan": None, "skills": [], "trained_on": ["colour"] if name == "a" else [],
    }  # fmt: skip
    system = about | {"system": name, "kind": kind, "path": f"adapters/{name}", "experts": [], "settings": "{}"}
    return adapter, system


def make_config(base: str, **settings) -> SelectConfig:
    values = {"task": "colour", "base": base, "device": "cpu", "k": 4, "draws": 2, "shortlist": 4, "experts": 2}
    return parse_config(SelectConfig, values | {"max_new_tokens": 4} | settings)


def select(store: Store, base: str, run_id: str = "run-1", act=lambda done: None, **settings) -> RecordingContext:
    config = make_config(base, **settings)
    inputs = candidates.prepare(store, config)
    context = RecordingContext(store.workspace.root, run_id, act)
    candidates.compute(inputs, config, context)
    return context


def test_every_candidate_is_scored_on_every_shot_and_the_choice_follows_from_the_rows(store: Store, base: str) -> None:
    context = select(store, base)
    shots, ranking = context.rows("candidate_shot"), context.rows("candidate")
    assert sorted(ranking["adapter"]) == NAMES  # neither a baseline nor the expert of another base
    assert len(shots) == 5 * 2 * 4 and not shots.duplicated(["adapter", "draw", "shot"]).any()
    # A question in both draws is read once and has one value.
    assert shots.groupby(["adapter", "question_id"])["nll"].nunique().eq(1).all()
    assert ranking["shortlisted"].sum() == 4 and ranking["chosen"].sum() == 2
    each = shots.assign(perplexity=np.exp(shots["nll"] / shots["tokens"]))
    perplexity = each.groupby(["adapter", "draw"])["perplexity"].sum().groupby("adapter").mean()
    assert ranking.set_index("adapter")["perplexity"].to_dict() == pytest.approx(perplexity.to_dict())
    subsets = rank_subsets(ranking, context.rows("candidate_pair"), 4, 2)
    assert set(subsets["experts"].iloc[0]) == set(ranking.loc[ranking["chosen"], "adapter"])
    pairs = context.rows("candidate_pair")
    assert len(pairs) == 10 and pairs["similarity"].notna().all()
    ranks = {name: 2 + seed % 2 for seed, name in enumerate(NAMES)}
    for row in pairs.itertuples():
        assert pd.isna(row.raw_similarity) == (ranks[row.adapter] != ranks[row.other])
    assert context.reports[-1][:2] == (5 * shots["question_id"].nunique(),) * 2


def test_perplexity_reads_explanation_and_answer_as_the_model_itself_does(store: Store, base: str) -> None:
    shots = select(store, base).rows("candidate_shot")
    questions = store.frame("SELECT * FROM question").set_index("question_id")
    loaded = load_base(base, "cpu")
    systems = store.frame("SELECT * FROM system").set_index("system", drop=False)
    from metamoe_backend.models.systems import open_system

    with open_system(loaded, systems.loc["b"], store.workspace.root) as system:
        for row in shots[(shots["adapter"] == "b") & (shots["draw"] == 0)].itertuples():
            question = questions.loc[row.question_id]
            reasoned = f"{question['explanation']}\n{question['answer']}" if row.explained else question["answer"]
            shown = f"Question: {question['prompt']}\nAnswer:"
            prompt = loaded.tokenizer(shown)["input_ids"]
            whole = loaded.tokenizer(f"{shown} {reasoned}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logs = system.model(input_ids=whole).logits[0].log_softmax(-1)
            tokens = range(len(prompt), whole.shape[1])
            assert row.nll == pytest.approx(-sum(logs[at - 1, whole[0, at]].item() for at in tokens), rel=1e-4)
            assert row.tokens == len(tokens)
    assert set(shots["explained"]) == {True, False}


@pytest.mark.parametrize("task", ["colour", "sum"])
def test_right_and_wrong_are_those_of_an_evaluation(store: Store, base: str, task: str) -> None:
    shots = select(store, base, task=task, k=12, draws=1).rows("candidate_shot")
    config = EvaluateConfig(systems=NAMES, tasks=[task], split="train", device="cpu", max_new_tokens=4)
    context = RecordingContext(store.workspace.root, "evaluation")
    evaluate_stage.compute(evaluate_stage.prepare(store, config), config, context)
    key = {"adapter": "system"}
    both = shots.rename(columns=key).merge(context.rows("prediction"), on=["system", "question_id"])
    assert len(both) == 5 * 12
    assert both["output_x"].tolist() == both["output_y"].tolist()
    assert both["correct_x"].tolist() == both["correct_y"].tolist()
    assert shots["explained"].any() == (task == "colour")


def test_the_first_shots_are_those_of_a_smaller_k_and_draws_differ(store: Store, base: str) -> None:
    large = candidates.prepare(store, make_config(base, k=6, draws=3))["draws"]
    small = candidates.prepare(store, make_config(base, k=2, draws=3))["draws"]
    first = large[large["shot"] < 2].reset_index(drop=True)
    assert first["question_id"].tolist() == small["question_id"].tolist()
    assert large.groupby("draw")["question_id"].agg(tuple).nunique() == 3
    assert large.groupby("draw")["question_id"].nunique().eq(6).all()


def test_a_stop_loses_the_candidate_at_hand_and_no_other(store: Store, base: str, monkeypatch) -> None:
    whole = select(store, base, "whole").rows("candidate_shot")
    questions = whole["question_id"].nunique()

    def stop(done: int) -> None:
        if done > 2 * questions:
            raise StopRequested(save=True)

    with pytest.raises(StopRequested):
        select(store, base, "run-2", stop)
    read = []
    original = candidates.score_shots

    def spy(*arguments):
        read.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(candidates, "score_shots", spy)
    resumed = select(store, base, "run-2").rows("candidate_shot")
    assert len(read) == 3
    pd.testing.assert_frame_equal(resumed.drop(columns="run_id"), whole.drop(columns="run_id"))


def test_named_candidates_may_be_of_any_kind(store: Store, base: str) -> None:
    ranking = select(store, base, candidates=["all", "a"], experts=1).rows("candidate")
    assert sorted(ranking["adapter"]) == ["a", "all"]


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"k": 13}, ConfigError, "k is 13, but task 'colour' has 12 train questions"),
        ({"task": "nothing"}, NotFoundError, "Task 'nothing' does not exist"),
        ({"task": "program"}, InputError, "no tests in its metadata"),
        ({"split": "test"}, NotFoundError, "no questions of the split 'test'"),
        ({"candidates": ["a", "nobody"]}, NotFoundError, "'nobody' does not exist"),
        ({"candidates": ["a", "b", "other"]}, ConfigError, "'other' stands on 'another', not on"),
        ({"experts": 6, "shortlist": 8}, ConfigError, "experts is 6, but there are only 5 candidates"),
        ({"candidates": ["a"]}, ConfigError, "only 1 candidates"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(store: Store, base: str, settings: dict, error, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        candidates.prepare(store, make_config(base, **settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"experts": 5}, "experts is 5 but shortlist is 4"),
        ({"candidates": ["a", "a"]}, "a name stands twice"),
        ({"shortlist": 32, "experts": 16}, "more than 200,000 sets"),
        ({"k": 0}, "k: "),
        ({"colour": 1}, "colour: "),
    ],
)
def test_settings_that_cannot_be(base: str, settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_config(base, **settings)


def test_an_adapter_that_is_gone_or_changed_is_named_before_anything_is_read(
    store: Store, base: str, monkeypatch
) -> None:
    monkeypatch.setattr(candidates, "score_shots", lambda *arguments: pytest.fail("nothing may be scored"))
    make_tiny_adapter(store.workspace.adapters / "c", Path(base), seed=77)
    with pytest.raises(StorageError, match="expert 'c' are not those recorded"):
        select(store, base)


def test_a_selection_is_read_back(store: Store, base: str) -> None:
    context = select(store, base)
    frames = {name: context.rows(name).drop(columns="run_id") for name in context.emitted}
    run_id = insert_rows(store, "select", **frames)
    selection = fetch_selections(store).iloc[0]
    ranking = fetch_candidates(store, run_id)
    assert (selection["run_id"], selection["task"], selection["shots"], selection["draws"]) == (run_id, "colour", 4, 2)
    assert list(selection["chosen"]) == ranking.loc[ranking["chosen"], "adapter"].tolist()
    assert (selection["candidates"], selection["shortlist"], selection["experts"]) == (5, 4, 2)
    assert json.loads(selection["config"]) == {}
    assert ranking["sha256"].tolist() == ranking["adapter_hash"].tolist()
    known = dict(zip(ranking["adapter"], ranking["trained_on"], strict=True))
    assert list(known["a"]) == ["colour"] and list(known["b"]) == []
    assert len(fetch_candidate_pairs(store, run_id)) == 10
    assert fetch_candidate_shots(store, run_id)["prompt"].str.startswith("Which colour").all()
    assert read_adapter(store.workspace.adapters / "a").sha256 == known_hash(ranking, "a")
    with pytest.raises(NotFoundError, match="chose no experts"):
        fetch_candidates(store, "nothing")


def known_hash(ranking: pd.DataFrame, adapter: str) -> str:
    return ranking.set_index("adapter").loc[adapter, "adapter_hash"]


def test_the_command_says_what_was_chosen_and_why(store: Store, base: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(common, "launch", lambda store, stage, values, by, *_: run_now(store, stage, values, by))
    root = str(store.workspace.root)
    store.close()
    words = ["--workspace", root, "select", "--task", "colour", "--k", "4", "--draws", "2", "--shortlist", "4"]
    words += ["--experts", "2", "--base", base, "--device", "cpu", "--by", "ana"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(said["chosen"]) == 2 and set(said["chosen"]) <= set(NAMES)
    assert [row["adapter"] for row in said["ranking"] if row["chosen"]] == said["chosen"]
    assert said["subsets"][0]["experts"] == said["chosen"] and len(said["subsets"]) == 6
    assert set(said["alone"]) == set(CRITERIA) and said["run_id"]
    assert {row["k"] for row in said["stability"]} == {1, 2, 4}
    assert main(words) == 0  # the same for a person
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*NAMES, "by one criterion alone"))
    assert main([*words, "--k", "13"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "metamoe: k is 13, but task 'colour' has 12 train questions; lower k or ingest more with --split train."
    )
