"""The stage select-data: which rows of a pool a task's experts are trained on, and why the others are not.

Rows and shots are embedded with question, explanation and answer. Refused first are the leaks (`leaks`); of the rest,
`data_selection` takes those nearest to the K shots and not near each other.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import IngestConfig, SelectDataConfig
from metamoe_backend.errors import NotFoundError
from metamoe_backend.experts.data_selection import Choice, choose_diverse, find_nearest, rank_rows
from metamoe_backend.experts.leaks import Leak, find_leaks, split_words
from metamoe_backend.experts.shots import draw_k_shots
from metamoe_backend.ingest.files import check_file
from metamoe_backend.ingest.stage import is_file_source, read_rows
from metamoe_backend.vector_cache import embed_texts
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store

Said = tuple[str, str | None, str | None]
"""Decision, reason and other of a row."""

ROWS_PER_PART = 50_000
_TEXTS = ["prompt", "answer", "explanation"]


def prepare(store: "Store", config: SelectDataConfig) -> "Inputs":
    """shots: the K shots. held_out: validation and test questions. target: its row. pool: rows, where it is of tasks.

    Raises `NotFoundError` for an unknown task or an empty pool, `ConfigError` where the task has fewer than k train
    questions, `InputError` for a pool that is no readable file.
    """
    from metamoe_backend.store.questions import fetch_questions, fetch_tasks, require_tasks

    require_tasks(store, [config.task, *config.tasks])
    if config.pool and is_file_source(config.pool):
        check_file(Path(config.pool).expanduser())
    target = fetch_questions(store, [config.task])
    guarded = target if config.guard == "task" else fetch_questions(store)
    tasks = fetch_tasks(store)
    inputs = {
        "shots": draw_k_shots(target[target["split"] == "train"], config.task, config.k, config.seed).head(config.k),
        "held_out": guarded[guarded["split"] != "train"],
        "target": tasks.loc[tasks["task"] == config.task, ["task", "regime"]],
    }
    columns = ["question_id", "task", *_TEXTS]
    inputs |= {name: inputs[name][columns].reset_index(drop=True) for name in ("shots", "held_out")}
    if config.tasks:
        rows = fetch_questions(store, config.tasks, split="train")
        if rows.empty:
            raise NotFoundError(
                f"The tasks {', '.join(config.tasks)} have no train questions; ingest some with --split train."
            )
        rows = rows[_TEXTS].head(config.limit or len(rows)).reset_index(drop=True)
        inputs["pool"] = rows.assign(position=range(len(rows)), split=None)
    return inputs


def compute(inputs: "Inputs", config: SelectDataConfig, context: "Context") -> None:
    """Emit a selected_row for each shot and each row of the pool, and a rejected_row for what cannot be read.

    The last progress report carries the metrics held_out (questions guarded) and rows_DECISION for each decision.
    """
    shots, held_out = inputs["shots"], inputs["held_out"]
    pool = inputs["pool"] if config.tasks else _read_pool(inputs["target"]["regime"].iloc[0], config, context)
    texts = [_full_text(frame) for frame in (shots, held_out, pool)]
    ends = np.cumsum([len(each) for each in texts])
    total = int(ends[-1]) + len(pool)
    of_shots, of_held_out, of_pool = np.split(
        embed_texts(
            [text for each in texts for text in each],
            config.encoder,
            Workspace(context.workspace_root).vectors,
            lambda done, _: context.progress(done, total),
        ),
        ends[:2],
    )
    scores, nearest = find_nearest(of_pool, of_shots)
    rows = pool[["position", *_TEXTS]].assign(
        task=config.task, score=scores.astype(float), nearest=shots["question_id"].to_numpy()[nearest]
    )
    leaks = find_leaks(
        pool["prompt"].tolist(), held_out["prompt"].tolist(), of_pool, of_held_out, config.leak_ngrams,
        config.leak_similarity, lambda done: context.progress(int(ends[-1]) + done, total),
    )  # fmt: skip
    refused = _find_own_held_out(pool) | {row: _explain_leak(leak, held_out) for row, leak in leaks.items()}
    said = _find_shots(pool, shots) | {row: ("leak", *why) for row, why in refused.items()}
    usable = ~np.isin(np.arange(len(pool)), list(said))
    ranked = rank_rows(scores, usable)
    if config.pick == "random":
        ranked = np.random.default_rng(config.seed).permutation(ranked)
    choice = choose_diverse(of_pool, ranked, config.budget, config.tau, config.consider)
    said |= _explain_choice(choice, pool, config.tau)
    others = "nearer to the shots" if config.pick == "similar" else "drawn before it"
    beyond = ("beyond", f"The budget of {config.budget} rows was spent on rows {others}.", None)
    rows[["decision", "reason", "other"]] = [said.get(row, beyond) for row in range(len(rows))]
    _emit(rows, shots, context)
    found = rows["decision"].value_counts().to_dict()
    context.log(
        f"{found.get('selected', 0)} of {len(rows)} rows chosen for {config.task}, {found.get('similar', 0)} dropped "
        f"as similar, {found.get('leak', 0)} refused as leaks of {len(held_out)} held-out questions."
    )
    metrics = {f"rows_{name}": float(found.get(name, 0)) for name in ("selected", "similar", "leak", "beyond")}
    context.progress(total, total, held_out=len(held_out), **metrics)


def _read_pool(regime: str, config: SelectDataConfig, context: "Context") -> pd.DataFrame:
    source = IngestConfig(
        source=str(config.pool), split="train", limit=config.limit, seed=config.seed, mapping=config.mapping,
        keep_good=config.keep_good,
    )  # fmt: skip
    rows, rejected = read_rows(source, regime, lambda done: context.progress(0, done))
    if rejected:
        context.emit("rejected_row", pd.DataFrame([asdict(row) for row in rejected]).drop(columns="run_id"))
    return rows


def _full_text(frame: pd.DataFrame) -> list[str]:
    """Question, explanation and answer, one below the other: what a training reads."""
    parts = zip(frame["prompt"], frame["explanation"], frame["answer"], strict=True)
    return ["\n".join(part for part in row if isinstance(part, str) and part) for row in parts]


def _find_own_held_out(pool: pd.DataFrame) -> dict[int, tuple[str, None]]:
    """Rows that their own source holds out."""
    return {
        row: (f"Its source counts it to the {split} split.", None)
        for row, split in enumerate(pool["split"])
        if split in ("validation", "test")
    }


def _explain_leak(leak: Leak, held_out: pd.DataFrame) -> tuple[str, str]:
    question = held_out.iloc[leak.question]
    return f"It {leak.reason} a held-out question of {question['task']}.", str(question["question_id"])


def _find_shots(pool: pd.DataFrame, shots: pd.DataFrame) -> dict[int, Said]:
    """Rows that say the same as one of the K shots, which is trained on anyway."""
    shot_of = {_words(shot): shot.question_id for shot in shots.itertuples()}
    found = ((row, shot_of.get(_words(item))) for row, item in enumerate(pool.itertuples()))
    return {row: ("similar", "It is one of the K shots already.", shot) for row, shot in found if shot}


def _words(row: Any) -> tuple[str, ...]:
    return (*split_words(row.prompt), "\n", *split_words(row.answer))


def _explain_choice(choice: Choice, pool: pd.DataFrame, tau: float) -> dict[int, Said]:
    said: dict[int, Said] = {int(row): ("selected", None, None) for row in choice.selected}
    positions = pool["position"].to_numpy()
    for row, better, similarity in zip(choice.dropped, choice.better, choice.similarity, strict=True):
        reason = f"Its cosine with a row nearer to the shots is {similarity:.2f}, above tau = {tau:g}."
        said[int(row)] = ("similar", reason, f"row {positions[better]}")
    return said


def _emit(rows: pd.DataFrame, shots: pd.DataFrame, context: "Context") -> None:
    chosen = shots[["task", *_TEXTS]].assign(
        position=range(len(shots)), score=1.0, nearest=shots["question_id"], decision="shot", reason=None, other=None
    )
    context.emit("selected_row", chosen)
    for start in range(0, len(rows), ROWS_PER_PART):
        context.emit("selected_row", rows.iloc[start : start + ROWS_PER_PART])
