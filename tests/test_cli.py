"""The whole loop from the command line, on a tiny model: what each verb prints, and how it refuses."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from metamoe_backend import cli, launch
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.rows import TABLES
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs import common
from metamoe_backend.verbs import workspace as workspace_verbs
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_questions, insert_system
from tests.fake_encoder import install
from tests.tiny_models import make_tiny_base

ROOT = Path(__file__).resolve().parent.parent
SKILLS = {"sums": "arithmetic", "colours": "sight"}


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit status."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one line of standard output."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """What a person's mistake is answered with: one line, nothing on standard output."""
        assert self.code == 2, (self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("metamoe: ") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("metamoe: ").rstrip("\n")


def say(workspace: Path, *words: object) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(["--workspace", str(workspace), *map(str, words)])
        except SystemExit as end:  # what argparse does about a command it cannot read
            code = int(end.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def run_in_this_process(store: Store, stage: str, values: dict[str, Any], by: str, *_: object) -> RunFolder:
    return launch.run_now(store, stage, values, by)


def say_json(workspace: Path, *words: object) -> dict[str, Any]:
    return say(workspace, *words, "--json").json


def in_a_process(workspace: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does."""
    command = [sys.executable, "-m", "metamoe_backend", "--workspace", str(workspace), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_sums(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {i} plus {i + 1}? Add the two numbers.", "answer": str(2 * i + 1)}
        for i in range(start, start + n)
    ]


def make_colours(n: int, start: int = 0) -> list[dict[str, Any]]:
    things = ["sky", "grass", "snow", "blood", "coal", "lemon"]
    return [
        {
            "query": f"Which colour has the {things[i % 6]} in picture {i}?",
            "choices": ["blue", "red"],
            "gold": i % 2,
        }
        for i in range(start, start + n)
    ]


# ---- the loop ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for split, n, start in (("train", 24, 0), ("test", 8, 100)):
        write_jsonl(folder / f"sums_{split}.jsonl", make_sums(n, start))
        write_jsonl(folder / f"colours_{split}.jsonl", make_colours(n, start))
    return folder


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[dict[str, Any]]:
    """Every stage once, in a workspace of its own; what each said, by verb. Jobs run in this process, but for one."""
    folder = tmp_path_factory.mktemp("loop")
    workspace = folder / "workspace"
    said: dict[str, Any] = {"workspace": workspace, "out": folder / "suggestions.csv"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAMOE_CACHE", str(folder / "cache"))
        install(patch)
        base = make_tiny_base(folder / "tiny")
        for task in SKILLS:
            for split in ("train", "test"):
                source = files / f"{task}_{split}.jsonl"
                said[f"ingest {task} {split}"] = say_json(workspace, "ingest", source, "--task", task, "--split", split)
        said["meta-questions"] = say_json(workspace, "meta-questions")
        said["embed"] = say_json(workspace, "embed")
        said["cluster"] = say_json(workspace, "cluster", "--min-cluster-size", 5, "--neighbours", 5, "--seed", 1)
        said["next"] = say_json(workspace, "next", "--count", 6)
        said["label"] = label_some(workspace, folder)
        said["suggest"] = say_json(workspace, "suggest", "--out", said["out"])
        said["plan"] = say_json(workspace, "plan", "p", "--assign", "arithmetic=calc", "sight=eyes")
        settings = ("--base", base, "--steps", 3, "--device", "cpu", "--wait", "--set", "optim.batch_size=4")
        said["train in a worker"] = say_json(workspace, "train", "expert", "calc", *settings)
        patch.setattr(common, "launch", run_in_this_process)
        said["train expert"] = say_json(workspace, "train", "expert", "eyes", *settings)
        said["train mixed"] = say_json(workspace, "train", "mixed", *settings)
        said["train moe"] = say_json(workspace, "train", "moe", "both", "--experts", "calc,eyes", *settings)
        said["evaluate"] = say_json(
            workspace, "evaluate", "--system", "base", "calc", "eyes", "--system", "mixed", "both",
            "--task", "sums", "colours", "--limit", 5, "--device", "cpu", "--set", "max_new_tokens=4",
        )  # fmt: skip
        yield said


def label_some(workspace: Path, folder: Path) -> dict[str, Any]:
    """Three labels a skill: one by id, one cluster, the rest by file."""
    ids = {
        task: [row[0] for row in ask(workspace, f"SELECT question_id FROM question WHERE task = '{task}' LIMIT 4")]
        for task in SKILLS
    }
    path = folder / "labels.csv"
    rows = "".join(f"{question},{SKILLS[task]}\n" for task in SKILLS for question in ids[task][1:])
    path.write_text("question_id,skill\n" + rows)
    return {
        "question": say_json(
            workspace, "label", "--skill", "arithmetic", "--by", "ana", "--question", ids["sums"][0], ids["sums"][0]
        ),
        "file": say_json(workspace, "label", "--by", "ana", "--file", path),
    }


def ask(workspace: Path, statement: str) -> list[list[Any]]:
    return say_json(workspace, "sql", statement)["rows"]


def test_files_become_tasks(loop: dict[str, Any]):
    assert loop["ingest sums train"] == {"task": "sums", "added": 24, "duplicates": 0, "rejected": 0}
    assert loop["ingest colours test"] == {"task": "colours", "added": 8, "duplicates": 0, "rejected": 0}


def test_a_second_time_everything_is_a_duplicate_and_the_task_is_still_named(loop: dict[str, Any], files: Path):
    again = say_json(loop["workspace"], "ingest", files / "sums_test.jsonl", "--task", "sums")
    assert again == {"task": "sums", "added": 0, "duplicates": 8, "rejected": 0}


def test_meta_questions_and_vectors_are_made_once(loop: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch)
    assert loop["meta-questions"] == {"built": 64, "reused": 0}
    assert say_json(loop["workspace"], "meta-questions", "--task", "sums") == {"built": 0, "reused": 32}
    assert loop["embed"] == {"embedded": 64, "reused": 0, "dim": 48}
    assert say_json(loop["workspace"], "embed") == {"embedded": 0, "reused": 64, "dim": 48}


def test_the_map_says_how_good_its_clusters_are(loop: dict[str, Any]):
    found = loop["cluster"]
    assert list(found) == ["map_id", "clusters", "noise_share", "nmi", "ari"]
    assert found["clusters"] >= 2 and 0 <= found["noise_share"] < 1
    assert ask(loop["workspace"], "SELECT map_id FROM map") == [[found["map_id"]]]


def test_labels_are_counted_by_question(loop: dict[str, Any]):
    assert loop["label"] == {"question": {"labelled": 1}, "file": {"labelled": 6}}


def test_what_to_label_next_is_known_before_the_first_label_and_after(loop: dict[str, Any], tmp_path: Path):
    assert len(set(loop["next"]["question_ids"])) == 6
    out = tmp_path / "next.csv"
    found = say_json(loop["workspace"], "next", "--count", 100, "--out", out)["question_ids"]
    labelled = {row[0] for row in ask(loop["workspace"], "SELECT question_id FROM question_label")}
    assert len(set(found)) == len(found) == 57 and not labelled & set(found)
    with open(out, encoding="utf-8", newline="") as file:
        assert [row["question_id"] for row in csv.DictReader(file)] == found
    shown = say(loop["workspace"], "next", "--count", 2)
    assert shown.code == 0 and found[0] in shown.out


def test_constraints_are_made_listed_and_taken_back(loop: dict[str, Any]):
    workspace = loop["workspace"]
    ids = [row[0] for row in ask(workspace, "SELECT question_id FROM question ORDER BY question_id LIMIT 2")]
    made = say_json(workspace, "constrain", "same", "--question", *ids, "--by", "ana")
    assert (made["relation"], made["first"], made["second"]) == ("same", 1, 1)
    clusters = say_json(workspace, "constrain", "different", "--cluster", 0, 1, "--by", "ana")
    assert clusters["first"] >= 5 and clusters["second"] >= 5
    assert say_json(workspace, "suggest")["suggested"] == 57
    for event in (made["event_id"], clusters["event_id"]):
        listed = say_json(workspace, "constrain", "list")["constraints"]
        assert event in {row["event_id"] for row in listed}
        say_json(workspace, "constrain", "retract", "--event", event, "--by", "ana")
    assert say_json(workspace, "constrain", "list") == {"constraints": []}


def test_suggestions_and_their_file(loop: dict[str, Any]):
    assert loop["suggest"] == {"suggested": 57, "classes": ["arithmetic", "sight"]}
    with open(loop["out"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["question_id", "skill", "probability", "source"]
    assert sorted(row["source"] for row in rows) == ["label"] * 7 + ["suggestion"] * 57
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_a_plan_freezes_a_labelling_under_its_name(loop: dict[str, Any]):
    assert (loop["plan"]["plan"], loop["plan"]["labelling"]) == ("p", "p")
    assert {entry["skill"]: entry["expert"] for entry in loop["plan"]["entries"]} == {
        "arithmetic": "calc",
        "sight": "eyes",
    }


@pytest.mark.parametrize("verb", ["train in a worker", "train expert", "train mixed", "train moe"])
def test_training_says_which_run_and_how_it_ended(loop: dict[str, Any], verb: str):
    assert loop[verb]["state"] == "finished"
    names = {"train in a worker": "calc", "train expert": "eyes", "train mixed": "mixed", "train moe": "both"}
    assert loop[verb]["makes"] == [names[verb]]
    state = ask(loop["workspace"], f"SELECT state FROM run WHERE run_id = '{loop[verb]['run_id']}'")
    assert state == [["finished"]]


def test_a_name_that_is_taken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda _: None)
    with Store.open(Workspace(tmp_path / "ws"), "a test") as store:
        insert_questions(store, 4)
        insert_system(store, "arith")
    base = make_tiny_base(tmp_path / "tiny")
    said = say(tmp_path / "ws", "train", "expert", "arith", "--task", "toy", "--base", base, "--json")
    assert said.json["makes"] == ["arith-2"]
    assert "arith is taken: what this run makes will be called arith-2." in said.err


def test_the_worker_ran_apart_and_its_results_were_taken_in(loop: dict[str, Any]):
    state = json.loads((loop["workspace"] / "runs" / loop["train in a worker"]["run_id"] / "state.json").read_text())
    assert state["process"]["pid"] != os.getpid()
    assert ask(loop["workspace"], "SELECT kind FROM system WHERE system = 'calc'") == [["expert"]]


def test_evaluation_counts_its_answers(loop: dict[str, Any]):
    assert loop["evaluate"]["rows"] == 5 * 2 * 5  # systems, tasks, questions a task
    assert ask(loop["workspace"], "SELECT count(*) FROM current_prediction") == [[50]]


def test_tables_of_the_pages(loop: dict[str, Any]):
    workspace = loop["workspace"]
    outcomes = say_json(workspace, "outcomes")
    assert {row["task"] for row in outcomes["outcomes"]} >= {"sums", "colours"}
    assert "mixture_against_best_expert" in outcomes
    assert outcomes["regimes"] == ["choices", "number"]
    n = {row["n"] for row in outcomes["outcomes"] if row["task"] == "all tasks"}.pop()
    for table, by in (("outcomes_by_skill", "skill"), ("experts_that_solve_a_question", "task")):
        assert sum(row["questions"] for row in outcomes[table] if row[by] == "all tasks") == n
    assert sum(row["questions"] for row in outcomes["solved_by_exactly"]) == n
    solved = {tuple(row["solvers"]): row["questions"] for row in outcomes["solved_by_exactly"]}
    assert set(solved) <= {(), ("calc",), ("eyes",), ("calc", "eyes")}
    assert {row["expert"] for row in outcomes["regret_by_expert"]} == {"calc", "eyes"}
    assert all(row["fault"] in ("routing", "mixing") and row["right"] for row in outcomes["regret"])
    forgetting = say_json(workspace, "forgetting", "--system", "calc")
    assert {row["system"] for row in forgetting["accuracy"]} == {"base", "calc"}
    assert {row["n"] for row in forgetting["difference_to_base"] if row["task"] == "sums"} == {5}
    assert all(row["p_holm"] >= row["p"] for row in forgetting["difference_to_base"])
    assert {(row["expert"], row["task"]) for row in forgetting["forgetting_by_expert_and_task"]} == {
        ("calc", "colours"),
        ("eyes", "sums"),
    }
    assert all(row["norm"] > 0 and row["length"] > 0 for row in forgetting["forgetting_by_expert_and_task"])
    assert [row["n"] for row in forgetting["what_predicts_forgetting"]] == [2, 2, 2, 2]
    activations = say_json(workspace, "activations")
    assert activations["system"] == "both"
    assert {row["expert"] for row in activations["load"]} == {"calc", "eyes"}
    assert all(0 <= row["chosen"] <= 1 for row in activations["layer_by_expert"])
    assert len(activations["chosen_together"]) == 4 and activations["token_entropy"][0]["gates"] > 0
    assert {row["first"] for row in activations["agreement"]} <= {"label", "by_question", "by_token"}
    assert sum(row["questions"] for row in activations["confusion"]) == sum(
        row["n"] for row in activations["agreement"]
    )
    assert set(activations["thresholds"]) == {"dominant_from", "unused_below_part_of_even"}


def test_a_question_is_forced_through_each_expert(loop: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    workspace = loop["workspace"]
    install(monkeypatch)
    monkeypatch.setattr(common, "launch", run_in_this_process)  # the router's encoder is a fake of this process
    rows = say_json(workspace, "sql", "SELECT question_id FROM question WHERE split = 'test' ORDER BY ALL LIMIT 1")[
        "rows"
    ]
    forced = say_json(workspace, "force", "--system", "both", "--question", rows[0][0], "--device", "cpu")
    assert [row["expert"] for row in forced["answers"]] == ["routed", "calc", "eyes", "base"]
    assert {row["question_id"] for row in forced["answers"]} == {rows[0][0]}
    before = say_json(workspace, "sql", "SELECT count(*) FROM run")["rows"]
    refused = say(workspace, "force", "--system", "both", "--question", "nobody")
    assert refused.code == 2 and "nobody" in refused.err
    assert say_json(workspace, "sql", "SELECT count(*) FROM run")["rows"] == before


def test_without_json_tables_are_for_people(loop: dict[str, Any]):
    said = say(loop["workspace"], "forgetting")
    assert said.code == 0
    assert "accuracy" in said.out and "difference_to_base" in said.out


def test_sql_gives_columns_and_rows(loop: dict[str, Any]):
    statement = "SELECT question_id, task, split, prompt, answer FROM question ORDER BY ALL LIMIT 2"
    result = say_json(loop["workspace"], "sql", statement)
    assert result["columns"] == ["question_id", "task", "split", "prompt", "answer"]
    assert len(result["rows"]) == 2 and all(len(row) == 5 for row in result["rows"])
    assert len(say_json(loop["workspace"], "sql", "SELECT * FROM question", "--limit", 3)["rows"]) == 3
    odd = say_json(loop["workspace"], "sql", "SELECT 'nan'::DOUBLE, NULL, [1, 2], DATE '2026-01-02', '猫'")
    assert odd["rows"] == [["NaN", None, [1, 2], "2026-01-02", "猫"]]


def test_the_report_is_written_where_one_says(loop: dict[str, Any], tmp_path: Path):
    out = tmp_path / "report.md"
    assert say_json(loop["workspace"], "report", "--out", out) == {"file": str(out)}
    assert "calc" in out.read_text()
    assert "cannot be written" in say(loop["workspace"], "report", "--out", tmp_path).sentence


def test_rebuild_counts_what_was_there(loop: dict[str, Any]):
    before = count_rows(loop["workspace"])
    assert say_json(loop["workspace"], "rebuild")["rows"] == before
    assert count_rows(loop["workspace"]) == before


def test_repair_leaves_a_healthy_database_alone(loop: dict[str, Any]):
    assert say_json(loop["workspace"], "repair") == {
        "repaired": "nothing: the database opens",
        "kept_copy": "",
        "bytes_cut": 0,
    }


def test_the_doctor_names_what_is_there(loop: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("httpx.head", find_no_hub)
    found = {finding["what"]: finding for finding in say_json(loop["workspace"], "doctor")["findings"]}
    assert found["workspace"]["ok"] and "64 questions" in found["workspace"]["found"]
    assert found["device cpu"]["ok"]
    assert "not reachable" in found["model hub"]["found"]


def find_no_hub(*_: object, **__: object) -> None:
    raise httpx.ConnectError("no way there")


# ---- mistakes ---------------------------------------------------------------------------------------------------


def count_rows(workspace: Path) -> dict[str, int]:
    with Store.open(Workspace(workspace), "counting") as store:
        return {table: store.value(f'SELECT count(*) FROM "{table}"') for table in TABLES}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """A small workspace that no mistake may change."""
    workspace = tmp_path_factory.mktemp("small") / "workspace"
    say_json(workspace, "ingest", files / "sums_test.jsonl", "--task", "sums")
    return workspace


@pytest.fixture
def unchanged(held_out: Path) -> Iterator[Path]:
    rows, runs = count_rows(held_out), sorted(path.name for path in (held_out / "runs").iterdir())
    yield held_out
    assert count_rows(held_out) == rows
    assert sorted(path.name for path in (held_out / "runs").iterdir()) == runs


def make_bad_file(kind: str, folder: Path) -> Path:
    good = make_sums(30, 200)
    path = folder / "bad.jsonl"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "wrong encoding":
        path.write_bytes('{"question": "Größe?", "answer": "1"}\n'.encode("latin-1"))
    elif kind == "broken line":
        lines = write_jsonl(path, good).read_text().splitlines()
        path.write_text("\n".join([*lines[:16], lines[16][:20], *lines[17:]]))
    elif kind == "no answer":
        write_jsonl(path, [*good[:3], {"question": "What?", "answer": ""}])
    elif kind == "no such choice":
        write_jsonl(path, [{"query": "Which?", "choices": ["a", "b"], "gold": 7}])
    elif kind == "cut Parquet":
        import pandas as pd

        path = folder / "bad.parquet"
        pd.DataFrame(good).to_parquet(path)
        path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", ["bad.jsonl"]),
        ("wrong encoding", ["bad.jsonl", "UTF-8"]),
        ("broken line", ["bad.jsonl", "17"]),
        ("no answer", ["bad.jsonl", "4", "answer"]),
        ("no such choice", ["bad.jsonl", "1"]),
        ("cut Parquet", ["bad.parquet"]),
    ],
)
def test_a_bad_file_gets_one_sentence_and_changes_nothing(unchanged: Path, tmp_path: Path, kind: str, words: list[str]):
    sentence = say(unchanged, "ingest", make_bad_file(kind, tmp_path), "--task", "new", "--json").sentence
    assert all(word in sentence for word in words), sentence


def test_rejected_rows_are_written_down_also_when_nothing_is_kept(unchanged: Path, tmp_path: Path):
    rejected = tmp_path / "rejected.csv"
    assert say(unchanged, "ingest", make_bad_file("no answer", tmp_path), "--rejected", rejected).sentence
    with open(rejected, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["line", "reason", "text"] and rows[0]["line"] == "4"


def test_the_good_rows_are_kept_if_one_says_so(tmp_path: Path):
    bad = make_bad_file("no answer", tmp_path)
    result = say_json(tmp_path / "w", "ingest", bad, "--keep-good")
    assert result == {"task": "bad", "added": 3, "duplicates": 0, "rejected": 1}


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "{good}", "--task", "../../x"),
        ("ingest", "../../x"),
        ("ingest", "{good}", "--limit", "0"),
        ("ingest", "{good}", "--map", "prompt"),
        ("ingest", "reasoning_gym:../../x"),
        ("meta-questions", "--task", "../../x"),
        ("meta-questions", "--set", "nonsense=1"),
        ("embed", "--encoder", "../../x"),
        ("cluster",),
        ("cluster", "--min-cluster-size", "1"),
        ("label", "--skill", "s", "--by", "ana", "--question", "../../x"),
        ("label", "--skill", "s", "--by", "ana", "--cluster", "0"),
        ("label", "--by", "ana", "--question", "x"),
        ("label", "--by", "ana", "--file", "../../x"),
        ("suggest",),
        ("next",),
        ("next", "--count", "0"),
        ("constrain", "same"),
        ("constrain", "same", "--question", "x", "y"),
        ("constrain", "different", "--cluster", "0", "1"),
        ("constrain", "retract"),
        ("freeze", "../../x"),
        ("plan", "../../x", "--assign", "s=e"),
        ("plan", "p", "--assign", "s"),
        ("plan", "p", "--assign", "s=../../x"),
        ("plan", "p", "--assign", "s=e"),
        ("plan", "p", "--assign", "s=e", "--labelling", "../../x"),
        ("train", "expert", "x"),
        ("train", "expert", "../../x", "--plan", "p"),
        ("train", "mixed", "--plan", "../../x"),
        ("train", "moe", "m", "--plan", "p", "--experts", "a,a"),
        ("import", "../../x", "name"),
        ("select", "--task", "../../x"),
        ("select", "--task", "sums", "--k", "0"),
        ("select", "--task", "sums", "--experts", "9"),
        ("select", "--task", "sums"),
        ("evaluate", "--system", "../../x", "--task", "sums"),
        ("evaluate", "--system", "base", "--task", "../../x"),
        ("outcomes",),
        ("forgetting", "--task", "../../x"),
        ("forgetting", "--system", "nobody"),
        ("activations",),
        ("sql", "DROP TABLE question"),
        ("sql", "SELECT nothing FROM nowhere"),
        ("sql", "SELECT 1; SELECT 2"),
        ("sql", "SELECT 1", "--limit", "-1"),
        ("sql", "SELECT 1", "--timeout", "0"),
        ("train",),
        ("dance",),
        ("ingest", "{good}", "--limit", "many"),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_sentence_and_changes_nothing(unchanged: Path, files: Path, words: tuple[str, ...]):
    said = say(unchanged, *(word.format(good=files / "sums_test.jsonl") for word in words), "--json")
    assert len(said.sentence) > 20


def test_a_bad_label_file_labels_nothing(unchanged: Path, tmp_path: Path):
    known = ask(unchanged, "SELECT question_id FROM question LIMIT 1")[0][0]
    path = tmp_path / "labels.csv"
    for text, expected in [
        (f"question_id,skill\n{known},s\nunknown,s\n", "unknown"),
        (f"question_id,skill\n{known},s\n{known},\n", "line 3"),
        (f"question_id,skill\n{known},{'s' * 61}\n", "line 2"),
        (f"question,skill\n{known},s\n", "question_id"),
        ("question_id,skill\n", "no rows"),
        ("", "question_id"),
    ]:
        path.write_text(text)
        assert expected in say(unchanged, "label", "--by", "ana", "--file", path).sentence
    path.write_bytes(f"question_id,skill\n{known},Größe\n".encode("latin-1"))
    assert "UTF-8" in say(unchanged, "label", "--by", "ana", "--file", path).sentence


def test_while_one_holds_the_workspace_the_next_is_told_who(held_out: Path):
    with Store.open(Workspace(held_out), "the dashboard"):
        for words in (("meta-questions",), ("sql", "SELECT 1"), ("rebuild",), ("repair",)):
            assert "held by the dashboard" in say(held_out, *words).sentence


def test_there_is_nothing_to_mend_where_no_workspace_is(tmp_path: Path):
    for verb in ("rebuild", "repair"):
        assert "no workspace" in say(tmp_path / "nowhere", verb).sentence
    assert not (tmp_path / "nowhere").exists()


def test_a_process_keeps_its_streams_apart(tmp_path: Path, files: Path):
    workspace = tmp_path / "workspace"
    good = in_a_process(workspace, "ingest", files / "sums_test.jsonl", "--json")
    assert (good.returncode, json.loads(good.stdout)["added"]) == (0, 8)
    assert good.stdout.count("\n") == 1
    bad = in_a_process(workspace, "ingest", make_bad_file("broken line", tmp_path), "--json")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1), bad.stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def stumble(options: object) -> None:
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(workspace_verbs, "run_doctor", stumble)
    said = say(tmp_path, "doctor", "--json")
    assert (said.code, said.out) == (1, "")
    assert "Traceback" in said.err and "nobody thought of this" in said.err
