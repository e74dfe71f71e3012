"""Stage "select": every candidate of the bank reads and answers the K shots of a task, and the experts are chosen.

How the choice is made stands in `experts.selection`; here are the numbers it rests on. A candidate's work is kept in
the run's scratch folder as soon as it is done, so that a stop loses one candidate's at most.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import SelectConfig
from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.answering import (
    Answerer,
    OnAnswered,
    answer_freely,
    find_gold,
    find_stop_texts,
    list_options,
    pack_texts,
)
from metamoe_backend.evaluate.loglikelihood import iterate_logliks
from metamoe_backend.evaluate.programs import check_code_questions
from metamoe_backend.evaluate.prompts import make_shown_text
from metamoe_backend.evaluate.scorers import score_choices
from metamoe_backend.experts.selection import choose_experts, mark_choice, measure_candidates, rank_candidates
from metamoe_backend.experts.shots import draw_k_shots
from metamoe_backend.jobs.durable import replace_file
from metamoe_backend.stage import Context, Inputs

if TYPE_CHECKING:
    from metamoe_backend.models.base import LoadedBase
    from metamoe_backend.store.connection import Store


def prepare(store: "Store", config: SelectConfig) -> Inputs:
    """The candidates, the draws of K shots, and the questions in them.

    `candidates` is rows.System of adapters on the base model; `draws` has draw, shot, question_id; `questions` has each
    drawn question once: question_id, task, regime, source, choices, answer, gold, metadata, shown_text, reasoned (what
    perplexity is read from), explained. Raises `NotFoundError` for an unknown task or candidate and where the bank has
    none, `ConfigError` where there are too few candidates or questions or a candidate stands on another base model,
    `UnavailableError` where it is scored by running code and there is no sandbox.
    """
    from metamoe_backend.store.questions import fetch_evaluation_questions, fetch_questions

    candidates = _fetch_candidates(store, config)
    pool = fetch_evaluation_questions(store, [config.task], config.split, None, config.seed)
    if pool.empty:
        raise NotFoundError(
            f"Task {config.task!r} has no questions of the split {config.split!r}; ingest some with --split."
        )
    check_code_questions(pool)
    explanations = fetch_questions(store, [config.task], split=config.split).set_index("question_id")["explanation"]
    drawn = [draw_k_shots(pool, config.task, config.k, config.seed + draw) for draw in range(config.draws)]
    draws = pd.concat(
        [shots[["question_id"]].assign(draw=draw, shot=np.arange(len(shots))) for draw, shots in enumerate(drawn)]
    )
    questions = pool[pool["question_id"].isin(draws["question_id"])]
    explanation = questions["question_id"].map(explanations)
    texts = [make_shown_text(row.template, row.prompt, metadata=row.metadata) for row in questions.itertuples()]
    kept = questions[["question_id", "task", "regime", "source", "choices", "answer", "gold", "metadata"]].assign(
        shown_text=texts,
        reasoned=[reasoned_answer(*pair) for pair in zip(explanation, questions["answer"], strict=True)],
        explained=[has_text(text) for text in explanation],
    )
    return {"candidates": candidates, "draws": draws.reset_index(drop=True), "questions": kept}


def reasoned_answer(explanation: str | None, answer: str) -> str:
    """The gold answer with its chain of thought: explanation, new line, answer; the answer alone without one."""
    return f"{str(explanation).strip()}\n{answer}" if has_text(explanation) else answer


def has_text(text: Any) -> bool:
    """Whether there is more than blanks."""
    return isinstance(text, str) and bool(text.strip())


def _fetch_candidates(store: "Store", config: SelectConfig) -> pd.DataFrame:
    from metamoe_backend.store.experts import fetch_adapters, fetch_systems

    adapters = fetch_adapters(store, config.candidates or None)
    for row in adapters.itertuples():
        if config.candidates and row.base != config.base:
            raise ConfigError(
                f"Adapter {row.adapter!r} stands on {row.base!r}, not on {config.base!r}; leave it out, or choose its "
                "base model."
            )
    systems = fetch_systems(store).set_index("system", drop=False)
    wanted = systems.loc[adapters.loc[adapters["base"] == config.base, "adapter"]]
    if not config.candidates:
        wanted = wanted[wanted["kind"] == "expert"]  # a baseline trained on everything is no expert
    if len(wanted) < config.experts:
        raise ConfigError(
            f"experts is {config.experts}, but there are only {len(wanted)} candidates on the base model "
            f"{config.base!r}; lower it, or train or import more adapters."
        )
    return wanted.sort_index().reset_index(drop=True)


def compute(inputs: Inputs, config: SelectConfig, context: Context) -> None:
    """Score every candidate on the shots, compare their weights, and choose.

    Emits candidate_shot, candidate and candidate_pair once all is known. Raises `UnavailableError` for a missing
    device, `StorageError` for changed weights, `StopRequested` when a person asked.
    """
    from metamoe_backend.experts.bank import read_banked
    from metamoe_backend.models.base import load_base

    candidates, questions = inputs["candidates"], inputs["questions"]
    total = len(candidates) * len(questions)
    context.progress(0, total)
    loaded = load_base(config.base, config.device, config.dtype)
    named = candidates.rename(columns={"system": "adapter"})
    pairs = _compare(read_banked(named, loaded, context.workspace_root))
    explained = int(questions["explained"].sum())
    context.log(
        f"{len(questions)} different shots of {config.task}; {explained} have an explanation, "
        f"of the other {len(questions) - explained} the answer alone is read."
    )
    scored = []
    for number, values in enumerate(candidates.to_dict("records")):
        row = {str(name): value for name, value in values.items()}
        done = number * len(questions)
        scores = _restore_or_score(loaded, row, questions, config, context, done, total)
        context.progress(done + len(questions), total)
        scored.append(scores.assign(adapter=row["system"]))
    every = pd.concat(scored, ignore_index=True)
    shots = inputs["draws"].merge(every, on="question_id").merge(questions[["question_id", "explained"]])
    shots = shots.sort_values(["adapter", "draw", "shot"], ignore_index=True)
    ranking = rank_candidates(measure_candidates(shots))
    chosen = choose_experts(ranking, pairs, config.shortlist, config.experts)
    hashes = dict(zip(candidates["system"], candidates["sha256"], strict=True))
    context.emit("candidate_shot", shots)
    context.emit("candidate_pair", pairs)
    context.emit(
        "candidate",
        mark_choice(ranking, chosen, config.shortlist).assign(
            task=config.task, base=config.base, shots=config.k, draws=config.draws,
            adapter_hash=ranking["adapter"].map(hashes),
        ),
    )  # fmt: skip
    context.log(f"Chosen for {config.task}: {', '.join(chosen)}.")


def _restore_or_score(
    loaded: "LoadedBase",
    row: dict[str, Any],
    questions: pd.DataFrame,
    config: SelectConfig,
    context: Context,
    done: int,
    total: int,
) -> pd.DataFrame:
    """What an earlier attempt kept of this candidate, else its scores (see `score_shots`), which are then kept."""
    from metamoe_backend.models.systems import open_system

    path: Path = context.scratch / f"candidate-{row['sha256'][:16]}-{row['system']}.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    answered = 0

    def count(new: int) -> None:
        nonlocal answered
        answered += new
        context.progress(done + answered, total)

    with open_system(loaded, row, context.workspace_root) as system:
        answerer = Answerer(
            system, loaded.tokenizer, config.batch_tokens, config.max_new_tokens, config.max_program_tokens
        )
        scores = score_shots(answerer, questions, count)
    context.scratch.mkdir(parents=True, exist_ok=True)
    replace_file(path, scores.to_parquet)
    context.log(f"{row['system']}: {scores['correct'].sum()} of {len(scores)} correct")
    return scores


def score_shots(answerer: Answerer, questions: pd.DataFrame, on_answered: OnAnswered) -> pd.DataFrame:
    """What one system makes of questions of one task: question_id, nll, tokens, output, correct.

    nll: negative log-likelihood of `reasoned` behind `shown_text`, in nats, summed over its tokens. A question scored
    by its options has them read in the same pass; the others are answered greedily after it.
    """
    choices = questions["regime"].iloc[0] == "choices"
    packed = [
        pack_texts(answerer, row, [*(list_options(row) if choices else ()), row.reasoned])
        for row in questions.itertuples()
    ]
    tokens = [int((question.options == question.option_count - 1).sum()) for question in packed]
    logliks: list[Any] = [None] * len(packed)
    for rows, values in iterate_logliks(answerer.system, packed, answerer.batch_tokens):
        for row_number, value in zip(rows, values, strict=True):
            logliks[row_number] = value
        if choices:
            on_answered(len(rows))
    frame = pd.DataFrame(
        {"question_id": questions["question_id"].to_numpy(), "nll": [-found[-1] for found in logliks], "tokens": tokens}
    )
    if not choices:
        answers, _gates = answer_freely(answerer, questions, None, None, on_answered, find_stop_texts(questions))
        return frame.assign(output=answers["output"].to_numpy(), correct=answers["correct"].to_numpy())
    golds = [find_gold(row) for row in questions.itertuples()]
    picked = [score_choices(found[:-1], gold) for found, gold in zip(logliks, golds, strict=True)]
    return frame.assign(
        output=[options[choice] for options, (choice, _score) in zip(questions["choices"], picked, strict=True)],
        correct=[score == 1 for _choice, score in picked],
    )


def _compare(bank: Any) -> pd.DataFrame:
    """rows.CandidatePair without the run."""
    from metamoe_backend.experts.similarity import Similarity, compute_raw_similarity, compute_similarity

    found = compute_similarity(bank)
    raw = Similarity(found.names, compute_raw_similarity(bank), {})
    return found.list_pairs().assign(raw_similarity=raw.list_pairs()["similarity"])
