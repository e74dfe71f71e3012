"""Evaluation against lm-evaluation-harness 0.4.13: the same items and answers, the time of each, loading included.

Zero-shot and 5-shot on one set, and a matrix of 6 systems (the base model and five adapters) on 4 sets, each as a
person would run it: one command of the harness per system (it reads one adapter at a time) against one run of ours.
Processes alternate; wall time. `A_vs_B` is how many times as long A takes.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness_parity import TASK, TEXTS, call_harness, read_items, split_query
from routing import MLP, draw_adapter
from timing import make_parser, report

from metamoe_backend.launch import run_now
from metamoe_backend.models.adapters import write_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace

SYSTEMS = 6
FEWSHOT = 5


def prepare(folder: Path, data: Path, count: int) -> list[str]:
    """Questions, tasks, model and adapters for both sides; the names of the sets."""
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
    for index in range(SYSTEMS - 1):
        adapter = draw_adapter(base.model, f"a{index}", MLP, 8, index)
        write_adapter(folder / "adapters" / adapter.name, adapter, "smollm2-135m")
    return names


def run_harness(python: str, folder: Path, names: list[str], shots: int, adapter: str | None) -> float:
    """Seconds of one command of the harness."""
    model = f"pretrained={folder / 'model'},dtype=float32"
    model += f",peft={folder / 'adapters' / adapter}" if adapter else ""
    started = time.perf_counter()
    call_harness(python, folder, names, model, "--num_fewshot", str(shots))
    return time.perf_counter() - started


def run_ours(folder: Path, names: list[str], shots: int, systems: list[str]) -> float:
    """Seconds of one run of ours in a process of its own: a copy of the prepared workspace each time."""
    command = [sys.executable, __file__, "--worker", json.dumps([str(folder), names, shots, systems])]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started


def work(folder: Path, names: list[str], shots: int, systems: list[str]) -> None:
    """What `run_ours` times: workspace, import of the adapters that are evaluated, questions, evaluation."""
    with tempfile.TemporaryDirectory() as temporary, Store.open(Workspace(Path(temporary)), "a benchmark") as store:
        for name in names:
            for split in ("test", "train"):
                source = str(folder / f"{name}.{split}.jsonl")
                run_now(store, "ingest", {"source": source, "task": name, "split": split}, "benchmark")
        for system in systems:
            if system != "base":
                values = {"source": str(folder / "adapters" / system), "name": system}
                run_now(store, "import", values, "benchmark")
        settings: dict[str, Any] = {"systems": systems, "tasks": names, "device": "cpu", "n_shot": shots}
        run_now(store, "evaluate", settings, "benchmark")


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--data", metavar="DIR", help="folder with eval/arc_easy.jsonl, eval/piqa.jsonl …")
    parser.add_argument("--harness", metavar="PYTHON", help="interpreter that has lm_eval==0.4.13")
    parser.add_argument("--worker", help="the script calls itself with this")
    options = parser.parse_args()
    if options.worker:
        folder, *rest = json.loads(options.worker)
        work(Path(folder), *rest)
        return
    count, rounds = (20, 1) if options.quick else (100, 3)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = prepare(folder, Path(options.data) / "eval", count)
        adapters = [f"a{index}" for index in range(SYSTEMS - 1)]
        one = [names[0]]
        sides = {
            "0shot": (
                lambda: run_harness(options.harness, folder, one, 0, None),
                lambda: run_ours(folder, one, 0, ["base"]),
            ),
            "5shot": (
                lambda: run_harness(options.harness, folder, one, FEWSHOT, None),
                lambda: run_ours(folder, one, FEWSHOT, ["base"]),
            ),
            "matrix": (
                lambda: sum(run_harness(options.harness, folder, names, 0, name) for name in (None, *adapters)),
                lambda: run_ours(folder, names, 0, ["base", *adapters]),
            ),
        }
        for name, (theirs, ours) in sides.items():
            ratios = sorted(theirs() / ours() for _ in range(1 if name == "matrix" and options.quick else rounds))
            figures[f"harness_vs_ours_{name}"] = {
                "median": ratios[len(ratios) // 2], "min": ratios[0], "max": ratios[-1], "n": len(ratios),
            }  # fmt: skip
    report(figures, options)


if __name__ == "__main__":
    main()
