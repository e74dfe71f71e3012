"""Shards give the rows of one job: what is dealt to whom, three stages, and what a kill or a failure of one costs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend import embed, launch, meta_questions
from metamoe_backend.config import EmbedConfig, MetaQuestionConfig
from metamoe_backend.errors import NotFoundError
from metamoe_backend.evaluate import stage as evaluate
from metamoe_backend.jobs import supervisor, worker
from metamoe_backend.jobs.run_folder import RunFolder, list_runs, list_shards, match_runs
from metamoe_backend.jobs.supervisor import resume, retry
from metamoe_backend.pipeline import STAGES
from metamoe_backend.shards import cut_rows, deal_out, number_blocks
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_questions, insert_rows
from tests.fake_encoder import FakeEncoder, install
from tests.recording import RecordingContext
from tests.test_cli import say
from tests.test_evaluate_stage import EXPERTS, Prepared, insert_tasks, make_experts, make_mixture
from tests.tiny_models import make_tiny_base

QUESTIONS = 23

# ---- what is dealt to whom --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 9))
def test_work_is_dealt_evenly_and_each_item_once(sizes: list[int], shards: int) -> None:
    owners = deal_out(sizes, shards)
    assert len(owners) == len(sizes) and set(owners) <= set(range(shards))
    assert owners == deal_out(sizes, shards), "the same each time"
    load = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == shard) for shard in range(shards)]
    assert max(load) - min(load) <= max(sizes, default=0)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_of_equal_items_each_shard_gets_as_many_of_each_kind(
    systems: int, tasks: int, blocks: int, shards: int
) -> None:
    items = [(system, task) for system in range(systems) for task in range(tasks) for _ in range(blocks)]
    kinds = list(zip(*items, strict=True))
    owners = deal_out([256] * len(items), shards, kinds)
    counts = np.bincount(owners, minlength=shards)
    assert counts.max() - counts.min() <= 1
    for system in range(systems):
        own = np.bincount([o for o, kind in zip(owners, kinds[0], strict=True) if kind == system], minlength=shards)
        assert own.max() - own.min() <= 2, "no shard has all of the slow system"


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5), st.integers(1, 6))
def test_rows_are_cut_between_blocks_and_none_is_lost(keys: list[int], size: int, shards: int) -> None:
    frame = pd.DataFrame({"key": keys, "row": range(len(keys))})
    blocks = number_blocks(frame["key"], size)
    parts = cut_rows(frame, blocks, shards)
    assert sorted(pd.concat(parts)["row"]) == list(range(len(keys)))
    assert 1 <= len(parts) <= max(1, min(shards, len(set(blocks))))
    assert len(parts) == 1 or all(len(part) for part in parts)
    of_row = dict(zip(frame["row"], blocks, strict=True))
    for part in parts:
        assert part["row"].is_monotonic_increasing
        again = pd.Series(number_blocks(part["key"], size))
        whole = part["row"].map(of_row)
        assert (again.groupby(whole.to_numpy()).nunique() == 1).all() and again.nunique() == whole.nunique(), (
            "a shard computes the very blocks of one job"
        )


# ---- three stages ------------------------------------------------------------------------------------------------


class Wary(FakeEncoder):
    """An encoder whose vectors depend a little on what it reads beside, as those of real ones do."""

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = super().encode(texts) + np.float32(1e-4) * sum(map(len, texts))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compute(stage: Any, inputs: Any, config: Any, root: Path, run_id: str) -> RecordingContext:
    context = RecordingContext(root, run_id)
    stage.compute(inputs, config, context)
    done, total, _ = context.reports[-1]
    assert done == total
    return context


def join(contexts: list[RecordingContext], table: str, keys: list[str]) -> pd.DataFrame:
    rows = pd.concat([context.rows(table) for context in contexts if table in context.emitted], ignore_index=True)
    assert not rows.duplicated(keys).any()
    return rows.drop(columns="run_id").sort_values(keys, ignore_index=True)


def make_texts(count: int) -> pd.DataFrame:
    """Texts of which every fifth is the first again."""
    texts = [f"What is {number if number % 5 else 0} plus one?" for number in range(count)]
    ids = [f"q{number:03d}" for number in range(count)]
    return pd.DataFrame({"question_id": ids, "text": texts, "text_hash": [embed.hash_text(text) for text in texts]})


@pytest.mark.parametrize("shards", [2, 3, 50])
def test_embedding_in_shards_gives_the_vectors_of_one_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    encoder = Wary()
    monkeypatch.setitem(embed.LOADED, "minilm", encoder)
    monkeypatch.setattr(embed, "CHUNK", 4)
    inputs = {"texts": make_texts(QUESTIONS), "reused": pd.DataFrame({"reused": [7]})}
    config = EmbedConfig(shards=shards)
    whole = compute(embed, inputs, config, tmp_path, "whole")
    asked, encoder.encoded = sorted(encoder.encoded), []
    parts = embed.cut(inputs, config, shards)
    assert len(parts) == min(shards, 5), "19 different texts are five blocks"
    cut = [compute(embed, part, config, tmp_path, f"part-{number}") for number, part in enumerate(parts)]
    pd.testing.assert_frame_equal(
        join(cut, "embedding", ["question_id"]), join([whole], "embedding", ["question_id"]), check_exact=True
    )
    assert sorted(encoder.encoded) == asked, "no text is encoded in two shards"
    assert sum(context.reports[-1][2]["reused"] for context in cut) == 7


@pytest.mark.parametrize("shards", [2, 3])
def test_meta_questions_in_shards_are_those_of_one_job(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, shards: int
) -> None:
    config = MetaQuestionConfig(
        method="llm", model=str(make_tiny_base(tmp_path / "base")), prompt="{question}", max_tokens=8, shards=shards
    )
    questions = make_texts(QUESTIONS).rename(columns={"text": "prompt", "text_hash": "source_hash"})
    inputs = {"questions": questions, "reused": pd.DataFrame({"reused": [0]})}
    whole = compute(meta_questions, inputs, config, tmp_path, "whole")
    parts = meta_questions.cut(inputs, config, shards)
    cut = [compute(meta_questions, part, config, tmp_path, f"part-{number}") for number, part in enumerate(parts)]
    assert len(cut) == shards
    rows = join([whole], "meta_question", ["question_id"])
    assert len(rows) == QUESTIONS
    pd.testing.assert_frame_equal(join(cut, "meta_question", ["question_id"]), rows)


@pytest.fixture
def prepared(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    """Two experts, a mixture and two tasks, answered three questions at a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(evaluate, "PART_QUESTIONS", 3)
    monkeypatch.setitem(embed.LOADED, "minilm", Wary())
    base = str(make_tiny_base(tmp_path / "base"))
    with Store.open(workspace, "a test") as store:
        insert_tasks(store)
        systems = pd.DataFrame([*make_experts(workspace, base), make_mixture(workspace, base, Wary().dim)])
        insert_rows(store, "train", system=systems)
        yield Prepared(store, base)
    torch.set_num_threads(threads)


KEYS = {
    "prediction": ["system", "question_id"],
    "activation": ["system", "question_id", "layer", "site", "expert"],
    "token_activation": ["system", "question_id", "position", "layer", "expert"],
    "route": ["system", "question_id", "expert"],
}


@pytest.mark.parametrize("shards", [2, 5])
def test_an_evaluation_in_shards_gives_the_rows_of_one_job(prepared: Prepared, shards: int) -> None:
    whole = prepared.evaluate(run_id="whole")
    config = prepared.config(shards=shards)
    parts = evaluate.cut(evaluate.prepare(prepared.store, config), config, shards)
    cut = [compute(evaluate, part, config, prepared.root, f"part-{number}") for number, part in enumerate(parts)]
    for table, keys in KEYS.items():
        pd.testing.assert_frame_equal(join(cut, table, keys), join([whole], table, keys), check_exact=True)
    asked = [context.reports[-1][1] for context in cut]
    assert sum(asked) == len(join([whole], "prediction", KEYS["prediction"])) and max(asked) - min(asked) <= 3
    systems = [set(context.rows("prediction")["system"]) for context in cut]
    assert all("moe" in each for each in systems[:2]), "the mixture, which is slower, is everywhere"


def test_what_was_evaluated_before_is_not_dealt_out(prepared: Prepared) -> None:
    first = evaluate.prepare(prepared.store, prepared.config(systems=EXPERTS, tasks=["colour"]))
    context = compute(evaluate, first, prepared.config(), prepared.root, "first")
    insert_rows(prepared.store, "evaluate", prediction=context.rows("prediction").drop(columns="run_id"))
    config = prepared.config(systems=EXPERTS, tasks=["colour", "sum"], shards=2)
    parts = evaluate.cut(evaluate.prepare(prepared.store, config), config, 2)
    cut = [compute(evaluate, part, config, prepared.root, f"part-{number}") for number, part in enumerate(parts)]
    assert [len(context.rows("prediction")) for context in cut] == [7, 7]
    assert set(pd.concat([context.rows("prediction") for context in cut])["question_id"].str[:3]) == {"sum"}


# ---- runs of their own --------------------------------------------------------------------------------------------


@pytest.fixture
def asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A workspace with questions, whose shards wait for a test to work on them; blocks of four texts."""
    monkeypatch.setattr(embed, "CHUNK", 4)
    monkeypatch.setattr(supervisor, "_ensure_supervisor", lambda workspace: None)
    install(monkeypatch)
    insert_questions(store, QUESTIONS)
    return store


def work_on(run: RunFolder) -> None:
    worker.run(run.path)


def fetch(store: Store) -> pd.DataFrame:
    return store.frame("SELECT question_id, encoder, of, text_hash, vector FROM embedding ORDER BY question_id")


def test_shards_are_runs_that_are_taken_in_as_one(asked: Store) -> None:
    first = launch.launch(asked, "embed", {"shards": 3}, "ana")
    runs = list_shards(first)
    stem = first.run_id.removesuffix(".1of3")
    assert [run.run_id for run in runs] == [f"{stem}.{index}of3" for index in (1, 2, 3)]
    assert [(run.read_state().shard.index, run.read_state().place) for run in runs] == [(1, 1), (2, 2), (3, 3)]  # type: ignore[union-attr]
    assert match_runs(asked.workspace, stem[-4:]) == runs and match_runs(asked.workspace, f"{stem[-4:]}.2") == runs[1:2]
    for run in runs:
        with pytest.raises(NotFoundError, match=r"no minilm vector.* Or wait: \d of the runs that make such rows"):
            launch.launch(asked, "cluster", {}, "ana")
        work_on(run)
        ingest_finished_runs(asked)
    launch.launch(asked, "cluster", {}, "ana")
    rows = fetch(asked)
    assert rows["question_id"].is_unique and len(rows) == QUESTIONS
    assert STAGES["embed"].prepare(asked, EmbedConfig())["texts"].empty
    again = retry(runs[1])
    assert again.run_id.endswith(".2of3") and list_shards(again) == [again]


def test_no_more_runs_are_made_than_there_are_blocks(asked: Store) -> None:
    run = launch.launch(asked, "embed", {"shards": 200}, "ana")
    assert len(list_shards(run)) == 6
    for each in list_shards(run):
        work_on(each)
    ingest_finished_runs(asked)
    nothing_left = launch.launch(asked, "embed", {"shards": 200}, "ana")
    assert list_shards(nothing_left) == [nothing_left] and nothing_left.read_spec().shard is None


def test_in_this_process_it_is_one_run(asked: Store) -> None:
    run = launch.run_now(asked, "embed", {"shards": 3}, "ana")
    assert list_shards(run) == [run] and len(fetch(asked)) == QUESTIONS


KILLED = """
import os, signal, sys
from pathlib import Path
from metamoe_backend import embed
from metamoe_backend.jobs import worker
from tests.fake_encoder import FakeEncoder

class Mortal(FakeEncoder):
    def encode(self, texts):
        if self.encoded:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)

embed.CHUNK = 4
embed.LOADED["minilm"] = Mortal()
worker.run(Path(sys.argv[1]))
"""


def test_a_killed_shard_loses_and_repeats_nothing(asked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list_shards(launch.launch(asked, "embed", {"shards": 3}, "ana"))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(runs[1].path)], cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    assert runs[1].read_state().state == "failed" and len(runs[1].parts()) == 1
    for run in (runs[0], runs[2]):
        work_on(run)
    ingest_finished_runs(asked)
    assert len(fetch(asked)) == 15
    encoder = install(monkeypatch)
    resume(runs[1])
    work_on(runs[1])
    assert len(encoder.encoded) == 4, "the first block is not encoded again"
    ingest_finished_runs(asked)
    rows = fetch(asked)
    assert len(rows) == QUESTIONS and rows["question_id"].is_unique
    prompts = asked.frame("SELECT prompt FROM question ORDER BY question_id")["prompt"].tolist()
    assert np.array_equal(np.stack(rows["vector"].tolist()), FakeEncoder().encode(prompts))


def test_a_stopped_shard_goes_on(asked: Store) -> None:
    """What it handed over when it stopped is there once."""
    run = list_shards(launch.launch(asked, "embed", {"shards": 2}, "ana"))[0]
    encoder = embed.LOADED["minilm"]

    class Stopping(FakeEncoder):
        def encode(self, texts: list[str]) -> np.ndarray:
            run.write_request(save=True)
            return super().encode(texts)

    embed.LOADED["minilm"] = Stopping()
    work_on(run)
    embed.LOADED["minilm"] = encoder
    assert (run.read_state().state, run.read_state().done) == ("stopped", 4)
    ingest_finished_runs(asked)
    resume(run)
    work_on(run)
    ingest_finished_runs(asked)
    rows = fetch(asked)
    assert len(rows) == 12 and rows["question_id"].is_unique


def test_a_failing_shard_leaves_the_others(asked: Store, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, which waits for all, and says which one to resume."""
    encoder = FakeEncoder()

    class Picky(FakeEncoder):
        def encode(self, texts: list[str]) -> np.ndarray:
            if any("What is 4 plus" in text for text in texts):
                raise OSError("the disk is on fire")
            return encoder.encode(texts)

    monkeypatch.setitem(embed.LOADED, "minilm", Picky())
    asked.close()
    monkeypatch.setattr(launch, "submit_shards", lambda workspace, runs, profile: [work_on(run) for run in runs])
    said = say(workspace.root, "embed", "--shards", 3)
    (failed,) = [run for run in list_runs(workspace) if run.read_state().state == "failed"]
    assert said.sentence.startswith(f"Run {failed.run_id} failed: OSError: the disk is on fire")
    assert said.sentence.endswith("1 of 3 shards failed; `jobs resume RUN` lets one go on.")
    monkeypatch.setitem(embed.LOADED, "minilm", encoder)
    assert say(workspace.root, "jobs", "resume", failed.run_id).code == 0
    work_on(failed)
    with Store.open(workspace, "a test") as opened:
        rows = fetch(opened)
    assert len(rows) == QUESTIONS and rows["question_id"].is_unique


def test_the_command_line_shows_shards_as_one_thing(
    asked: Store, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.close()
    monkeypatch.setattr(launch, "submit_shards", lambda workspace, runs, profile: [work_on(run) for run in runs])
    embedded = say(workspace.root, "embed", "--shards", 3, "--json").json
    assert embedded == {"embedded": QUESTIONS, "reused": 0, "dim": 48}
    listed = say(workspace.root, "jobs", "--json").json["runs"]
    assert [run["shard"] for run in listed[:3]] == [{"index": index, "of": 3} for index in (3, 2, 1)]
    assert "minilm, shard 2 of 3" in say(workspace.root, "jobs").out
    stem = listed[0]["run_id"].partition(".3of3")[0]
    shown = say(workspace.root, "jobs", "show", stem, "--json").json["runs"]
    assert [run["made"]["rows"]["embedding"] for run in shown] == [8, 8, 7]
    assert shown[0]["command"].endswith("embed --shards 3")
