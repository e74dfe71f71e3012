"""The whole loop from nothing, recorded: what `make demo` does. The recipe (tasks, sizes, settings) is demo_recipe.py.

Every step first looks whether it is done, so that a broken-off recording goes on where it stood.
"""

import hashlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from metamoe_backend import demo_recipe as recipe
from metamoe_backend.demo import RECORDED
from metamoe_backend.doctor import PACKAGES
from metamoe_backend.errors import MetaMoEError
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.launch import launch, run_now
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_plans, fetch_systems, save_plan
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.store.skills import fetch_labels, fetch_question_labels, find_or_create_skill, label_questions
from metamoe_backend.workspace import Workspace

RECORDING = Path("data/workspaces/demo-recording")
BY = "demo script"
MINUTES = {recipe.SHARED: 3.5, "mixed": 7.0}
"""What the longer trainings took when they were last measured."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the recording."""

    title: str
    minutes: float
    """What it took when it was last measured; only for the time left."""
    is_done: Callable[[Store], bool]
    do: Callable[[Store], Any]


def record_demo(out: Path, say: Say) -> dict[str, Any]:
    """Run every step that is not done yet, then lay the result down in `out`; returns its figures."""
    steps = _make_steps(say)
    with Store.open(Workspace(RECORDING), "recording the demo") as store:
        for number, step in enumerate(steps):
            if step.is_done(store):
                continue
            left = sum(later.minutes for later in steps[number:])
            say(f"[{number + 1}/{len(steps)}] {step.title} (about {left:.0f} min left in all)")
            step.do(store)
        figures = summarise(store)
        minutes = _minutes_of_runs(store)
    _lay_down(Workspace(RECORDING), out, figures, minutes)
    say(f"Recorded in {minutes:.0f} min; the demo lies in {out}.")
    return figures


def _make_steps(say: Say) -> list[Step]:
    steps = [_ingest_step(task, split) for task in recipe.TASKS for split in ("test", "train")]
    steps += [_probe_step(split) for split in ("test", "train")]
    steps += [
        _stage_step("Meta-questions", 0.1, "meta_question", "meta-questions", {"method": "template"}),
        _stage_step("Embeddings of questions", 0.5, "embedding", "embed", {"of": "question"}),
        Step(
            "Embeddings of meta-questions",
            0.3,
            lambda store: _count(store, "SELECT count(*) FROM embedding WHERE of = 'meta-question'") > 0,
            lambda store: run_now(store, "embed", {"of": "meta-question"}, BY),
        ),
        _stage_step("The map and its clusters", 0.5, "map", "cluster", recipe.CLUSTER),
        Step("A handful of labels", 0.1, lambda store: len(fetch_labels(store)) > 0, _label_a_handful),
        _stage_step("Suggestions for all other questions", 0.1, "suggestion", "suggest", recipe.SUGGEST),
        _stage_step(
            "Freezing the labelling", 0.1, "labelling", "freeze", {"labelling": "first", "threshold": recipe.THRESHOLD}
        ),
        Step("The plans", 0.1, lambda store: len(fetch_plans(store)) > 0, _save_plans),
    ]
    steps += [
        _job_step(say, f"Adapter {name}", MINUTES.get(name, 1.5), "train", name, values)
        for name, values in recipe.trainings().items()
    ]
    steps += [_job_step(say, f"Mixture {name}", 2, "moe", name, values) for name, values in recipe.MIXTURES.items()]
    steps.append(
        Step(
            "Evaluation of every system on every task",
            10,
            lambda store: _evaluated(store) >= set(recipe.SYSTEMS),
            lambda store: _run_job(store, say, "evaluate", recipe.evaluate()),
        )
    )
    return steps


def _count(store: Store, sql: str) -> int:
    return int(store.value(sql))


def _ingest_step(task: recipe.TaskRecipe, split: str) -> Step:
    values = {
        "source": f"reasoning_gym:{task.generator}",
        "task": task.name,
        "split": split,
        "limit": task.train if split == "train" else recipe.TEST_QUESTIONS,
        "seed": recipe.SEED + (1 if split == "train" else 1001),
        "options": task.options,
        "choices": task.choices,
        "keep_good": False,
    }
    return _task_step(task.name, split, values)


def _probe_step(split: str) -> Step:
    source = recipe.PROBE_FOLDER / f"general_knowledge_{split}.jsonl"
    return _task_step(recipe.PROBE, split, {"source": str(source), "task": recipe.PROBE, "split": split})


def _task_step(task: str, split: str, values: dict[str, Any]) -> Step:
    return Step(
        f"Questions of {task}, {split}",
        0.05,
        lambda store: store.value("SELECT 1 FROM question WHERE task = ? AND split = ? LIMIT 1", [task, split]) == 1,
        lambda store: run_now(store, "ingest", values, BY),
    )


def _stage_step(title: str, minutes: float, table: str, stage: str, values: dict[str, Any]) -> Step:
    return Step(
        title,
        minutes,
        lambda store: _count(store, f'SELECT count(*) FROM "{table}"') > 0,
        lambda store: run_now(store, stage, values, BY),
    )


def _job_step(say: Say, title: str, minutes: float, stage: str, system: str, values: dict[str, Any]) -> Step:
    return Step(
        title,
        minutes,
        lambda store: system in set(fetch_systems(store)["system"]),
        lambda store: _run_job(store, say, stage, values),
    )


def _run_job(store: Store, say: Say, stage: str, values: dict[str, Any]) -> None:
    """As a job of its own, the way the dashboard starts it."""
    run = launch(store, stage, values, BY)
    wait_for_run(run, say)
    ingest_finished_runs(store)


def wait_for_run(run: RunFolder, say: Say, every_s: float = 1.0) -> None:
    """Wait until a run has ended, telling its progress; raises `MetaMoEError` with its reason when it failed."""
    spec, shown = run.read_spec(), -1.0
    while (status := run.read_state()).state in ("queued", "running"):
        share = status.done / status.total if status.total else 0.0
        if share - shown >= 0.05:
            shown = share
            left = "" if status.eta_s is None else f", {status.eta_s:.0f} s left"
            say(f"  {spec.stage} {spec.name} {_bar(share)} {status.done}/{status.total}{left}")
        time.sleep(every_s)
    if status.state != "finished":
        raise MetaMoEError(f"Run {run.run_id} ended as {status.state}: {status.error or 'asked to by a person'}")


def _minutes_of_runs(store: Store) -> float:
    """Time spent in runs: what a broken-off recording took counts too, what it waited does not."""
    return float(store.value("SELECT coalesce(sum(epoch(ended_at - started_at)), 0) / 60 FROM run"))


def _bar(share: float, width: int = 24) -> str:
    full = round(share * width)
    return "#" * full + "." * (width - full)


def _label_a_handful(store: Store) -> None:
    """As a researcher would who recognises a few questions of each skill: a seeded draw of train questions."""
    questions = store.frame("SELECT question_id, task FROM question WHERE split = 'train' ORDER BY question_id")
    for skill, tasks in recipe.SKILLS.items():
        of_skill = questions[questions["task"].isin(tasks)]
        drawn = of_skill.sample(recipe.LABELS_PER_SKILL, random_state=recipe.SEED)["question_id"]
        label_questions(store, find_or_create_skill(store, skill, BY), drawn.tolist(), BY, "question")


def _save_plans(store: Store) -> None:
    for plan, assignments in recipe.PLANS.items():
        save_plan(store, plan, "first", assignments, BY)


def _evaluated(store: Store) -> set[str]:
    return set(store.frame("SELECT DISTINCT system FROM prediction")["system"])


def summarise(store: Store) -> dict[str, Any]:
    """The recording's figures: how good the suggestions were, and the accuracy of every system on every task."""
    from metamoe_backend.evaluate.forgetting import compare_systems, compute_accuracies
    from metamoe_backend.store.results import fetch_predictions

    skill_of = {task: skill for skill, tasks in recipe.SKILLS.items() for task in tasks}
    assigned = fetch_question_labels(store)
    tasks = store.frame("SELECT question_id, task FROM question")
    suggested = assigned[assigned["source"] == "suggestion"].merge(tasks, on="question_id")
    right = suggested["skill"] == suggested["task"].map(skill_of)
    predictions = fetch_predictions(store)
    kind = predictions["task"].eq(recipe.PROBE).map({True: "probe", False: "skills"})
    predictions = pd.concat([predictions.assign(part="all"), predictions.assign(part=kind)])
    rivals = [system for system in recipe.SYSTEMS if system not in recipe.MIXTURES]
    pairs = [(mixture, rival) for mixture in recipe.MIXTURES for rival in rivals]
    versus = [compare_systems(part, pairs, "part") for _, part in predictions.groupby("part")]
    accuracy = compute_accuracies(predictions[predictions["part"] == "all"])
    return {
        "suggestions": {"n": len(suggested), "right": int(right.sum())},
        "accuracy": json.loads(accuracy.to_json(orient="records")),
        "mixture_against": json.loads(pd.concat(versus).to_json(orient="records")),
    }


def _lay_down(recorded: Workspace, out: Path, figures: dict[str, Any], minutes: float) -> None:
    """Copy what the demo consists of: no database, no inputs, no checkpoints, no logs of locks."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    kept = shutil.ignore_patterns("inputs", "checkpoints", "*.lock", ".*", "control.json")
    for folder in RECORDED:
        shutil.copytree(recorded.root / folder, partial / folder, ignore=kept)
    for run in (partial / "runs").iterdir():
        _shrink_parts(run)
        _forget_machine(run / "spec.json")
    about = {
        "command": "make demo",
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round(minutes, 1),
        "seed": recipe.SEED,
        "machine": f"{platform.machine()}, {_cores()} cores",
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in PACKAGES},
        "figures": figures,
    }
    (partial / "demo.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _forget_machine(spec: Path) -> None:
    """Paths in the demo start at the project's folder, wherever that lay while it was recorded."""
    project = str(Path(__file__).resolve().parent.parent)
    text = spec.read_text(encoding="utf-8")
    spec.write_text(text.replace(f'"{project}"', '"."').replace(f'"{project}/', '"'), encoding="utf-8")


KEPT_DIGITS = {"embedding": ("vector", 3), "activation": ("weight", 4), "token_activation": ("weight", 4)}
"""Columns that are committed rounded: their last digits cost megabytes and change no figure."""


def _shrink_parts(run: Path) -> None:
    """Write a run's parts again, each table as one part, rounded as `KEPT_DIGITS` says, and its manifest with them.

    Meta-questions' vectors are left out: they can be computed again in seconds and no recorded result rests on them.
    """
    import pyarrow.parquet as pq

    from metamoe_backend.jobs.parts import arrow_schema

    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    tables: dict[str, list[Path]] = {}
    for part in manifest["parts"]:
        tables.setdefault(part["target"], []).append(run / "output" / part["part"])
    parts = []
    for target, paths in tables.items():
        frame = pd.concat([pq.read_table(path).to_pandas() for path in paths], ignore_index=True)
        for path in paths:
            path.unlink()
        if target == "embedding" and (frame["of"] != "question").any():
            continue
        if target in KEPT_DIGITS:
            column, digits = KEPT_DIGITS[target]
            frame[column] = [np.round(value, digits) for value in frame[column]]
        path = run / "output" / f"{target}-0001.parquet"
        table = pa.Table.from_pandas(frame, schema=arrow_schema(target), preserve_index=False)
        pq.write_table(table, path, compression="zstd", compression_level=19)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        parts.append({"part": path.name, "target": target, "rows": len(frame), "sha256": sha256})
    manifest["parts"] = parts
    (run / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))
