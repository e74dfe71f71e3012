"""Evaluation against lm-evaluation-harness 0.4.13: the same items and answers, the time of each, loading included.

Zero-shot and 5-shot on one set, and a matrix of 6 systems (the base model and five adapters) on 4 sets, each as a
person would run it: one command of the harness per system (it reads one adapter at a time) against one run of ours.
`A_vs_B` is how many times as long A takes, processes in turn: wall time, and with `_cpu` processor time of all threads,
which other programs disturb less. 100 items a set and 3 rounds unless said; quick: 8 items, one round, 3 systems.
`identical_predictions`: share of the zero-shot answers, adapters' too, in which both choose the same option;
`loglik_difference_micronats`: the largest difference of a log-likelihood among them, in millionths of a nat.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timing import make_parser, report

from metamoe_backend.launch import run_now
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace

SYSTEMS = 6
FEWSHOT = 5
Logliks = dict[tuple[str, str], list[list[float]]]
"""By system and set, per item, of each option."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one command (or several) took, and what it found."""

    wall_s: float
    cpu_s: float
    logliks: Logliks

    def describe(self) -> str:
        """The two times in words."""
        return f"{self.wall_s:.1f} s ({self.cpu_s:.1f} s CPU)"


def prepare(folder: Path, data: Path, count: int, systems: int) -> tuple[list[str], list[str]]:
    """Questions, tasks, model and adapters for both sides; the names of the sets and of the adapters."""
    from harness_parity import TASK, TEXTS, read_items, split_query
    from routing import MLP, draw_adapter

    from metamoe_backend.models.adapters import write_adapter
    from metamoe_backend.models.base import load_base

    base = load_base("smollm2-135m", "cpu")
    base.model.save_pretrained(folder / "model")
    base.tokenizer.save_pretrained(folder / "model")
    names = [name for name in TEXTS if (data / f"{name}.jsonl").is_file()]
    for name in names:
        rows = read_items(data / f"{name}.jsonl", count + 2 * FEWSHOT)
        parts = {"test": rows[:count], "train": rows[count:]}
        for split, kept in parts.items():
            theirs = [{**split_query(row["query"]), "choices": row["choices"], "gold": row["gold"]} for row in kept]
            (folder / f"{name}.{split}.theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in theirs))
            (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        task = TASK.format(name=name, file=folder / f"{name}.test.theirs.jsonl", text=TEXTS[name])
        train = f"    train: {folder / name}.train.theirs.jsonl\n"
        task = task.replace("output_type", f"{train}fewshot_split: train\noutput_type")
        (folder / f"{name}.yaml").write_text(task)
    for index in range(systems - 1):
        adapter = draw_adapter(base.model, f"a{index}", MLP, 8, index)
        write_adapter(folder / "adapters" / adapter.name, adapter, "smollm2-135m")
    return names, [f"a{index}" for index in range(systems - 1)]


def run_harness(python: str, folder: Path, names: list[str], shots: int, systems: list[str]) -> Side:
    """One command of the harness per system."""
    from harness_parity import call_harness, read_samples

    logliks: Logliks = {}

    def call_each() -> None:
        for system, out in outputs.items():
            model = f"pretrained={folder / 'model'},dtype=float32"
            model += f",peft={folder / 'adapters' / system}" if system != "base" else ""
            call_harness(
                python, folder, names, model, "--num_fewshot", str(shots), "--output_path", str(out), "--log_samples"
            )

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        outputs = {system: Path(temporary) / system for system in systems}
        wall_s, cpu_s = _time(call_each)
        for system, out in outputs.items():
            for name in names:
                logliks[system, name] = [
                    [float(answer[0]) for answer in sample["filtered_resps"]] for sample in read_samples(out, name)
                ]
    return Side(wall_s, cpu_s, logliks)


def run_ours(folder: Path, names: list[str], shots: int, systems: list[str]) -> Side:
    """One run of ours in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        out = Path(temporary) / "answers.json"
        command = [sys.executable, __file__, "--worker", json.dumps([str(folder), str(out), names, shots, systems])]
        wall_s, cpu_s = _time(lambda: subprocess.run(command, check=True, capture_output=True, text=True))
        rows = json.loads(out.read_text())
    found = {(system, task, prompt, *choices): logliks for system, task, prompt, choices, logliks in rows}
    logliks = {
        (system, name): [found[system, name, *item] for item in _list_items(folder, name)]
        for system in systems
        for name in names
    }
    return Side(wall_s, cpu_s, logliks)


def _list_items(folder: Path, name: str) -> list[tuple[str, ...]]:
    """Prompt and options of each item as our import keeps them."""
    from harness_parity import make_own_prompt

    rows = [json.loads(line) for line in (folder / f"{name}.test.jsonl").read_text().splitlines()]
    return [(make_own_prompt(row["query"]), *row["choices"]) for row in rows]


def _time(call: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and processor seconds of the processes that the call starts and waits for."""
    wall, before = time.perf_counter(), os.times()
    call()
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, cpu_s


def work(folder: Path, out: str, names: list[str], shots: int, systems: list[str]) -> None:
    """What `run_ours` times: workspace, import of the adapters that are evaluated, questions, evaluation."""
    with tempfile.TemporaryDirectory() as temporary, Store.open(Workspace(Path(temporary)), "a benchmark") as store:
        for name in names:
            for split in ("test", "train") if shots else ("test",):
                source = str(folder / f"{name}.{split}.jsonl")
                run_now(store, "ingest", {"source": source, "task": name, "split": split}, "benchmark")
        for system in systems:
            if system != "base":
                values = {"source": str(folder / "adapters" / system), "name": system}
                run_now(store, "import", values, "benchmark")
        settings: dict[str, Any] = {"systems": systems, "tasks": names, "device": "cpu", "n_shot": shots}
        run_now(store, "evaluate", settings, "benchmark")
        found = store.frame(
            "SELECT system, task, prompt, choices, logliks "
            "FROM current_prediction JOIN question USING (question_id, task)"
        )
    rows = [[row.system, row.task, row.prompt, list(row.choices), list(row.logliks)] for row in found.itertuples()]
    Path(out).write_text(json.dumps(rows, default=float))


def compare(theirs: Logliks, ours: Logliks) -> tuple[int, int, float]:
    """Answers that choose the same option, all answers, the largest difference of a log-likelihood."""
    pairs = [(np.array(a), np.array(b)) for key, items in theirs.items() for a, b in zip(items, ours[key], strict=True)]
    same = sum(int(a.argmax() == b.argmax()) for a, b in pairs)
    return same, len(pairs), max(float(np.abs(a - b).max()) for a, b in pairs)


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--data", metavar="DIR", help="folder with eval/arc_easy.jsonl, eval/piqa.jsonl …")
    parser.add_argument("--harness", metavar="PYTHON", help="interpreter that has lm_eval==0.4.13")
    parser.add_argument("--items", type=int, help="items a set")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--systems", type=int, help="systems of the matrix: the base model and adapters")
    parser.add_argument("--only", nargs="+", choices=["0shot", "5shot", "matrix"], default=["0shot", "5shot", "matrix"])
    parser.add_argument("--worker", help="the script calls itself with this")
    options = parser.parse_args()
    if options.worker:
        folder, *rest = json.loads(options.worker)
        work(Path(folder), *rest)
        return
    items, rounds = options.items or (8 if options.quick else 100), options.rounds or (1 if options.quick else 3)
    systems = options.systems or (3 if options.quick else SYSTEMS)
    figures: dict[str, dict[str, float]] = {}
    checked: list[tuple[int, int, float]] = []

    def add(name: str, values: list[float], n: int) -> None:
        figures[name] = {"median": statistics.median(values), "min": min(values), "max": max(values), "n": n}

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names, adapters = prepare(folder, Path(options.data) / "eval", items, systems)
        cases: dict[str, tuple[list[str], int, list[str]]] = {
            "0shot": (names[:1], 0, ["base"]),
            "5shot": (names[:1], FEWSHOT, ["base"]),
            "matrix": (names, 0, ["base", *adapters]),
        }
        for name in options.only:
            sides = []
            for _ in range(rounds):
                theirs, ours = run_harness(options.harness, folder, *cases[name]), run_ours(folder, *cases[name])
                sides.append((theirs, ours))
                print(f"{name}: harness {theirs.describe()}, ours {ours.describe()}", flush=True)
            add(f"harness_vs_ours_{name}", [theirs.wall_s / ours.wall_s for theirs, ours in sides], rounds)
            add(f"harness_vs_ours_{name}_cpu", [theirs.cpu_s / ours.cpu_s for theirs, ours in sides], rounds)
            if cases[name][1] == 0:  # few-shot, the two draw different examples
                checked += [compare(theirs.logliks, ours.logliks) for theirs, ours in sides[:1]]
    if checked:
        same, answers = (sum(values) for values in list(zip(*checked, strict=True))[:2])
        add("identical_predictions", [same / answers], int(answers))
        add("loglik_difference_micronats", [1e6 * max(difference for *_, difference in checked)], int(answers))
    report(figures, options)


if __name__ == "__main__":
    main()
