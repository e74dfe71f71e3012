"""How each stage grows: CPU seconds and memory against questions, activation rows, experts and runs.

CPU seconds of one process of one thread, one call each (activation reads: the median of three). `questions/N/…`: the
stages on N drawn questions, vectors of 384 dimensions in 60 groups; those that read vectors end at 100,000.
`activations/N/…`: N rows. `experts/E/forward_vs_bare`: a pass over 1 x 128 tokens of SmolLM2-135M with E experts of
rank 8 on the MLP, top-2, against the bare model. `runs/N/…`: the queue with N runs. `…_mb`: peak memory of the process.
`growth/…`: the exponent between the two largest sizes (1: in proportion, 2: with the square).
"""

import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from activation_rows import EXPERTS as EXPERTS_READ
from activation_rows import LAYERS, MIXTURES, fill, reads
from routing import draw_tokens, forward, make_ours, read_peak_mb
from timing import compare, make_parser, report, time_alternating

from metamoe_backend.config import NextConfig, parse_config
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.jobs.supervisor import poll
from metamoe_backend.launch import run_now
from metamoe_backend.skills.queue import find_next, read_candidates
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.store.skills import create_skill, label_questions
from metamoe_backend.workspace import Workspace

SIZES: dict[str, tuple[int, ...]] = {
    "questions": (1_000, 10_000, 100_000, 1_000_000),
    "activations": (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    "experts": (4, 16, 64, 256, 512),
    "runs": (10, 100, 1_000, 10_000),
}
QUICK: dict[str, tuple[int, ...]] = {
    "questions": (1_000, 3_000), "activations": (10_000, 1_000_000), "experts": (4, 16), "runs": (10, 100),
}  # fmt: skip
WITH_VECTORS = 100_000
DIMENSIONS, GROUPS, TASKS = 384, 60, 20
WARM_UPS = (500, 4_500)
"""UMAP compiles for half a minute the first time, and from 4,096 vectors on it finds neighbours in another way."""
Figures = dict[str, list[float]]


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_questions(n: int) -> Iterator[tuple[str, list[float]]]:
    """From a file of n questions to suggestions."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "many.jsonl"
        with source.open("w") as file:
            for index in range(n):
                prompt = f"Question {index} of kind{index % GROUPS}: what follows from {index * 7 % 1000}?"
                file.write(json.dumps({"question": prompt, "answer": str(index % 10)}) + "\n")
        with Store.open(Workspace(Path(name) / "ws"), "a benchmark") as store:
            values = {"source": str(source), "task": "many"}
            yield "ingest_s", [cpu_seconds(lambda: run_now(store, "ingest", values, "growth"))]
            ids = store.frame("SELECT question_id FROM question ORDER BY position")["question_id"]
            if n <= WITH_VECTORS:
                emit_vectors(store, ids, draw_vectors(n))
                skills = [create_skill(store, f"skill {index}", "growth") for index in range(GROUPS)]
                for index, skill in enumerate(skills):
                    label_questions(store, skill, ids[index::GROUPS][:3].tolist(), "growth", "question")
                yield "cluster_s", [cpu_seconds(lambda: run_now(store, "cluster", {}, "growth"))]
                yield "suggest_s", [cpu_seconds(lambda: run_now(store, "suggest", {}, "growth"))]
                yield "next_s", [cpu_seconds(lambda: ask_next(store))]
            some = ids[: n // 2].tolist()
            skill = create_skill(store, "the first half", "growth")
            yield "label_half_s", [cpu_seconds(lambda: label_questions(store, skill, some, "growth", "lasso"))]
            yield "database_mb", [measure_database(store)]
    yield "peak_mb", [read_peak_mb()]


def measure_database(store: Store) -> float:
    """Megabytes of the database file, all written."""
    store.cursor().execute("CHECKPOINT")
    return store.workspace.database.stat().st_size / 1e6


def draw_vectors(n: int) -> np.ndarray:
    """Unit vectors [n, 384]; question i lies in group i % 60."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(GROUPS, DIMENSIONS))[np.arange(n) % GROUPS] + 1.2 * rng.normal(size=(n, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def emit_vectors(store: Store, ids: pd.Series, vectors: np.ndarray) -> None:
    """What `embed` would have made of the questions."""
    run = create_run(store.workspace, "embed", "minilm", {"encoder": "minilm"}, "growth", {})
    context = RunContext(run)
    context.start()
    row = {"encoder": "minilm", "of": "question", "text_hash": ids, "vector": list(vectors)}
    context.emit("embedding", ids.to_frame("question_id").assign(**row))
    context.finish("finished")
    ingest_run(store, run)


def ask_next(store: Store) -> None:
    """Twenty questions that are worth a label."""
    ids, features = read_candidates(store, parse_config(NextConfig, {"of": "question"}))
    assert len(find_next(store, ids, features, 20, 0)) == 20


def measure_activations(n: int) -> Iterator[tuple[str, list[float]]]:
    """Reads of the Router page over n rows of activation of two mixtures."""
    with tempfile.TemporaryDirectory() as name, Store.open(Workspace(Path(name) / "ws"), "a benchmark") as store:
        questions = round(n / (LAYERS * EXPERTS_READ * len(MIXTURES)))
        yield "insert_s", [cpu_seconds(lambda: fill(store, questions))]
        for read, call in reads(store).items():
            if read in ("means", "means_of_a_task", "clicked_layer_cell", "choices"):
                call()
                yield f"{read}_s", [cpu_seconds(call) for _ in range(3)]
        yield "database_mb", [measure_database(store)]
    yield "peak_mb", [read_peak_mb()]


def measure_experts(n: int) -> Iterator[tuple[str, list[float]]]:
    """A forward pass of n experts in one wide LoRA against the bare model's."""
    import torch

    from metamoe_backend.models.base import load_base

    torch.set_num_threads(1)
    base = load_base("smollm2-135m", "cpu").model.eval()
    sides = {"forward": forward(make_ours(base, n), draw_tokens(1, 128)), "bare": forward(base, draw_tokens(1, 128))}
    seconds = time_alternating(sides, 5, time.process_time)
    figure = compare(seconds, "bare")["forward_vs_bare"]
    yield "forward_vs_bare", [figure["min"], figure["median"], figure["max"]]
    yield "peak_mb", [read_peak_mb()]


def measure_runs(n: int) -> Iterator[tuple[str, list[float]]]:
    """What the Jobs page and the command line do to see how n finished runs stand: at first, and again."""
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name)).create()
        for index in range(n):
            run = create_run(workspace, "ingest", f"run {index}", {"source": "x"}, "growth", {})
            context = RunContext(run)
            context.start()
            context.finish("finished")
        seen: dict[str, Any] = {}
        yield "poll_first_s", [cpu_seconds(lambda: poll(workspace, seen))]
        yield "poll_again_s", [cpu_seconds(lambda: poll(workspace, seen)) for _ in range(3)]


MEASURES = {
    "questions": measure_questions, "activations": measure_activations, "experts": measure_experts,
    "runs": measure_runs,
}  # fmt: skip


def measure(what: str, size: int) -> Figures:
    """The figures of one size, each said as soon as it is there; one list a figure."""
    if what == "questions":
        from metamoe_backend.mapping import compute_clusters, compute_projection

        for warm_up in WARM_UPS:
            compute_clusters(compute_projection(draw_vectors(warm_up), 2, 15, 0.1, 0), 15)
    figures = {}
    for name, values in MEASURES[what](size):
        figures[name] = values
        print(f"{what}/{size:,}/{name}: {statistics.median(values):.3f}", flush=True)
    return figures


def find_exponents(what: str, measured: dict[int, Figures]) -> dict[str, list[float]]:
    """log of the ratio of the last two figures over log of the ratio of their sizes."""
    found = {}
    for name in measured[min(measured)]:
        sizes = [size for size in sorted(measured) if name in measured[size]][-2:]
        if len(sizes) == 2:
            low, high = (max(statistics.median(measured[size][name]), 1e-6) for size in sizes)
            found[f"growth/{what}_{name}"] = [math.log(high / low) / math.log(sizes[1] / sizes[0])]
    return found


def main() -> None:
    """Each size in a process of its own, so that memory is that size's."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--only", choices=list(SIZES), action="append", help="only this; may be given again")
    options = parser.parse_args()
    values: dict[str, list[float]] = {}
    for what in options.only or list(SIZES):
        measured = {}
        for size in (QUICK if options.quick else SIZES)[what]:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured[size] = pool.apply(measure, [what, size])
            values |= {f"{what}/{size}/{name}": found for name, found in measured[size].items()}
        values |= find_exponents(what, measured)
    figures = {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found), "n": len(found)}
        for name, found in values.items()
    }
    report(figures, options)


if __name__ == "__main__":
    main()
