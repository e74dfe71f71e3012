"""How each stage grows: CPU seconds and memory against questions, activation rows, experts and runs.

CPU seconds of one process of one thread, one call each (activation reads: the median of three). `questions/N/…`: the
stages on N drawn questions, vectors of 384 dimensions in 60 groups; map and clusters end at --map-up-to, meta-questions
and suggestions at --suggest-up-to. `embed_s` ends at 1,000, since each question costs the same. `select_data_s`: N rows
of a pool for a task with 50 shots and 2,000 held-out questions, their vectors at hand.
`activations/N/…`: N rows. `experts/E/forward_vs_bare`: a pass over 1 x 128 tokens of SmolLM2-135M with E experts of
rank 8 on the MLP, top-2, against the bare model. `runs/N/…`: the queue with N runs. `…_mb`: peak memory of the process.
`growth/…`: the exponent between the two largest sizes (1: in proportion, 2: with the square).
"""

import argparse
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
from metamoe_backend.embed import load_encoder
from metamoe_backend.experts.data_selection import choose_diverse, find_nearest, rank_rows
from metamoe_backend.experts.leaks import find_leaks
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
    "questions": (1_000, 10_000, 30_000, 100_000, 1_000_000),
    "activations": (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    "experts": (4, 16, 64, 256, 512),
    "runs": (10, 100, 1_000, 10_000),
}
QUICK: dict[str, tuple[int, ...]] = {
    "questions": (1_000, 3_000), "activations": (10_000, 1_000_000), "experts": (4, 16), "runs": (10, 100),
}  # fmt: skip
WITH_ENCODER, WITH_MAP = 1_000, 100_000
"""The most questions that go through the encoder, and that get meta-questions, a map and suggestions."""
DIMENSIONS, GROUPS = 384, 60
SHOTS, HELD_OUT, BUDGET, TAU = 50, 2_000, 1_000, 0.9
LEAK_NGRAMS, LEAK_COSINE = 0.7, 0.95
ROWS_PER_PART = 50_000
WARM_UPS = (500, 4_500)
"""UMAP compiles for half a minute the first time, and from 4,096 vectors on it finds neighbours in another way."""
Figures = dict[str, list[float]]


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_questions(n: int, with_map: int, with_suggestions: int) -> Iterator[tuple[str, list[float]]]:
    """From a file of n questions to suggestions."""
    prompts, vectors = draw_prompts(n), draw_vectors(n)
    yield "select_data_s", [cpu_seconds(lambda: select_data(prompts, vectors))]
    if n <= WITH_ENCODER:
        encoder = load_encoder("minilm")
        yield "embed_s", [cpu_seconds(lambda: encoder.encode(prompts))]
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "many.jsonl"
        with source.open("w") as file:
            for row, prompt in enumerate(prompts):
                file.write(json.dumps({"question": prompt, "answer": str(row % 10)}) + "\n")
        with Store.open(Workspace(Path(name) / "ws"), "a benchmark") as store:
            values = {"source": str(source), "task": "many"}
            yield "ingest_s", [cpu_seconds(lambda: run_now(store, "ingest", values, "growth"))]
            ids = store.frame("SELECT question_id FROM question ORDER BY position")["question_id"]
            yield "take_in_vectors_s", [cpu_seconds(lambda: emit_vectors(store, ids, vectors))]
            label_some(store, ids)
            yield "next_s", [cpu_seconds(lambda: ask_next(store))]
            if n <= with_suggestions:
                yield "meta_questions_s", [cpu_seconds(lambda: run_now(store, "meta-questions", {}, "growth"))]
                yield "suggest_s", [cpu_seconds(lambda: run_now(store, "suggest", {}, "growth"))]
            if n <= with_map:
                warm_up()
                yield "cluster_s", [cpu_seconds(lambda: run_now(store, "cluster", {}, "growth"))]
            some = ids[: n // 2].tolist()
            skill = create_skill(store, "the first half", "growth")
            yield "label_half_s", [cpu_seconds(lambda: label_questions(store, skill, some, "growth", "lasso"))]
            yield "database_mb", [measure_database(store)]
    yield "peak_mb", [read_peak_mb()]


def warm_up() -> None:
    """Let UMAP compile what it will run."""
    from metamoe_backend.mapping import compute_clusters, compute_projection

    for n in WARM_UPS:
        compute_clusters(compute_projection(draw_vectors(n), 2, 15, 0.1, 0), 15)


def select_data(prompts: list[str], vectors: np.ndarray) -> None:
    """What `select-data` computes for a pool of these rows; questions of another wording are held out."""
    others = draw_vectors(SHOTS + HELD_OUT, seed=1)
    held_out = [f"Which of {row} boxes is heavier than {row * 3} stones, and why so?" for row in range(HELD_OUT)]
    scores, _ = find_nearest(vectors, others[:SHOTS])
    leaks = find_leaks(prompts, held_out, vectors, others[SHOTS:], LEAK_NGRAMS, LEAK_COSINE)
    ranked = rank_rows(scores, ~np.isin(np.arange(len(prompts)), list(leaks)))
    assert len(choose_diverse(vectors, ranked, BUDGET, TAU).selected)


def draw_prompts(n: int) -> list[str]:
    """n questions of a dozen words out of 3,000, half of the words those of the question's group."""
    rng = np.random.default_rng(2)
    common, own = rng.integers(0, 3000, (n, 6)), rng.integers(0, 50, (n, 6))
    own += 50 * (np.arange(n) % GROUPS)[:, None]
    vocabulary = np.array(["".join(rng.choice(list("aeioulnrst"), 6)) for _ in range(3000)], dtype=object)
    words = vocabulary[np.concatenate([own, common], axis=1)]
    return [f"Question {row}: {' '.join(words[row])}?" for row in range(n)]


def label_some(store: Store, ids: pd.Series) -> None:
    """Three labels for each group."""
    for group in range(GROUPS):
        skill = create_skill(store, f"skill {group}", "growth")
        label_questions(store, skill, ids[group::GROUPS][:3].tolist(), "growth", "question")


def measure_database(store: Store) -> float:
    """Megabytes of the database file, all written."""
    store.cursor().execute("CHECKPOINT")
    return store.workspace.database.stat().st_size / 1e6


def draw_vectors(n: int, seed: int = 0) -> np.ndarray:
    """Unit vectors [n, 384], float32; vector i lies in group i % 60, whatever the seed."""
    centres = np.random.default_rng(0).standard_normal((GROUPS, DIMENSIONS), dtype=np.float32)
    vectors = np.random.default_rng(seed + 1).standard_normal((n, DIMENSIONS), dtype=np.float32)
    vectors *= 1.2
    vectors += centres[np.arange(n) % GROUPS]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def emit_vectors(store: Store, ids: pd.Series, vectors: np.ndarray) -> None:
    """What `embed` would have made of the questions."""
    run = create_run(store.workspace, "embed", "minilm", {"encoder": "minilm"}, "growth", {})
    context = RunContext(run)
    context.start()
    for start in range(0, len(ids), ROWS_PER_PART):
        part = ids[start : start + ROWS_PER_PART]
        row = {"encoder": "minilm", "of": "question", "text_hash": part}
        context.emit(
            "embedding", part.to_frame("question_id").assign(**row, vector=list(vectors[start : start + ROWS_PER_PART]))
        )
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


MEASURES: dict[str, Callable[..., Iterator[tuple[str, list[float]]]]] = {
    "questions": measure_questions,
    "activations": measure_activations,
    "experts": measure_experts,
    "runs": measure_runs,
}


def measure(what: str, size: int, options: argparse.Namespace) -> Figures:
    """The figures of one size, each said as soon as it is there; one list a figure."""
    figures = {}
    own = [options.map_up_to, options.suggest_up_to] if what == "questions" else []
    for name, values in MEASURES[what](size, *own):
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
    parser.add_argument("--map-up-to", type=int, default=WITH_MAP, metavar="N", help="more get no map")
    parser.add_argument(
        "--suggest-up-to", type=int, default=WITH_MAP, metavar="N", help="more get no meta-questions or suggestions"
    )
    parser.add_argument("--size", type=int, action="append", help="only this size; may be given again")
    options = parser.parse_args()
    values: dict[str, list[float]] = {}
    for what in options.only or list(SIZES):
        measured = {}
        for size in options.size or (QUICK if options.quick else SIZES)[what]:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured[size] = pool.apply(measure, [what, size, options])
            values |= {f"{what}/{size}/{name}": found for name, found in measured[size].items()}
        values |= find_exponents(what, measured)
    figures = {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found), "n": len(found)}
        for name, found in values.items()
    }
    report(figures, options)


if __name__ == "__main__":
    main()
