"""One system answers some questions of one task, and the answers are scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.errors import InputError
from metamoe_backend.evaluate.activations import ActivationCollector
from metamoe_backend.evaluate.generation import Stop, find_stop_tokens, iterate_outputs
from metamoe_backend.evaluate.loglikelihood import PackedQuestion, iterate_logliks, pack_question
from metamoe_backend.evaluate.programs import list_stops
from metamoe_backend.evaluate.prompts import encode_blank, encode_pair, encode_prompt, has_blank, make_continuation
from metamoe_backend.evaluate.scorers import score_choices, score_output, score_programs

if TYPE_CHECKING:
    from metamoe_backend.models.systems import OpenSystem

OnAnswered = Callable[[int], None]
"""Told how many questions were just answered."""
CORRECT_FROM = 0.999
"""Least score that counts as correct where a regime gives part marks."""


@dataclass(frozen=True, slots=True)
class Answerer:
    """An opened system and how it is to answer."""

    system: "OpenSystem"
    tokenizer: Any
    batch_tokens: int
    max_new_tokens: int
    max_program_tokens: int = 512
    """Longest answer of a question that is scored by running it."""

    @property
    def max_positions(self) -> int:
        """Longest row the model can read, in tokens."""
        return int(getattr(self.system.model.config, "max_position_embeddings", 0) or 1 << 30)


def answer_choices(
    answerer: Answerer,
    questions: pd.DataFrame,
    routes: NDArray[np.float64] | None,
    sampled: set[str] | None,
    on_answered: OnAnswered,
) -> tuple[pd.DataFrame, ActivationCollector | None]:
    """Score the options of each question: question_id, output, choice, correct, score, logliks.

    sampled: questions whose gates are kept token by token; None records no gates at all.
    """
    packed = [pack_texts(answerer, row, list_options(row)) for row in questions.itertuples()]
    names = questions["question_id"].tolist()
    collector = None
    if sampled is not None:
        prompts = [question.tokens[: question.prompt_tokens].tolist() for question in packed]
        collector = ActivationCollector(answerer.tokenizer, names, prompts, sampled)
    logliks: list[NDArray[np.float64]] = [np.empty(0)] * len(packed)
    for rows, values in iterate_logliks(answerer.system, packed, answerer.batch_tokens, routes, collector):
        for row, value in zip(rows, values, strict=True):
            logliks[row] = value
        on_answered(len(rows))
    golds = [find_gold(row) for row in questions.itertuples()]
    scored = [score_choices(values, gold) for values, gold in zip(logliks, golds, strict=True)]
    frame = pd.DataFrame(
        {
            "question_id": names,
            "output": [options[choice] for options, (choice, _) in zip(questions["choices"], scored, strict=True)],
            "choice": pd.array([choice for choice, _ in scored], dtype="Int64"),
            "correct": [score >= CORRECT_FROM for _, score in scored],
            "score": [score for _, score in scored],
            "logliks": pd.Series(logliks, dtype=object),
        }
    )
    return frame, collector


def answer_freely(
    answerer: Answerer,
    questions: pd.DataFrame,
    routes: NDArray[np.float64] | None,
    sampled: set[str] | None,
    on_answered: OnAnswered,
    stop_texts: Sequence[str],
) -> tuple[pd.DataFrame, ActivationCollector | None]:
    """Generate and score an answer to each question of one task; as `answer_choices`, without choices."""
    code = bool((questions["regime"] == "code").any())
    new_tokens = answerer.max_program_tokens if code else answerer.max_new_tokens
    room = max(1, answerer.max_positions - new_tokens)
    prompts = [encode_prompt(answerer.tokenizer, text)[-room:] for text in questions["shown_text"]]
    names = questions["question_id"].tolist()
    collector = None if sampled is None else ActivationCollector(answerer.tokenizer, names, prompts, sampled)
    stop_tokens = find_stop_tokens(answerer.system.model, answerer.tokenizer)
    stop = Stop(stop_tokens, tuple(stop_texts), new_tokens, strip=not code)
    outputs = [""] * len(prompts)
    batches = iterate_outputs(
        answerer.system, answerer.tokenizer, prompts, stop, answerer.batch_tokens, routes, collector
    )
    for rows, texts in batches:
        for row, text in zip(rows, texts, strict=True):
            outputs[row] = text
        on_answered(len(rows))
    metadata = [None if pd.isna(text) else text for text in questions["metadata"]]
    if code:
        scores = score_programs(outputs, questions["answer"], metadata, lambda: on_answered(0))
    else:
        about = zip(questions["regime"], outputs, questions["answer"], questions["source"], metadata, strict=True)
        scores = [score_output(*one) for one in about]
    frame = pd.DataFrame(
        {
            "question_id": names,
            "output": outputs,
            "choice": pd.array([None] * len(names), dtype="Int64"),
            "correct": [score >= CORRECT_FROM for score in scores],
            "score": scores,
            "logliks": pd.Series([None] * len(names), dtype=object),
        }
    )
    return frame, collector


def find_stop_texts(questions: pd.DataFrame) -> tuple[str, ...]:
    """Where a task's generated answers end: a new line, or an empty line if its right answers have several lines.

    Programs end where their benchmark says (`programs.list_stops`).
    """
    if len(questions) and questions["regime"].iloc[0] == "code":
        return list_stops(questions["metadata"].iloc[0])
    return ("\n\n",) if questions["answer"].str.strip().str.contains("\n").any() else ("\n",)


def find_gold(question: Any) -> int:
    """Index of the right option; raises `InputError` where the question has none."""
    if question.gold is not None and not pd.isna(question.gold):
        return int(question.gold)
    options = list(question.choices)
    if question.answer not in options:
        raise InputError(
            f"Question {question.question_id} of task {question.task!r} is scored by its options, but its answer is "
            "none of them; ingest the task again."
        )
    return options.index(question.answer)


def list_options(question: Any) -> list[str]:
    """The options of a question scored by them; raises `InputError` where there are fewer than two."""
    options = [] if question.choices is None else list(question.choices)
    if len(options) < 2:
        raise InputError(
            f"Question {question.question_id} of task {question.task!r} is scored by its options, but has fewer than "
            "two; ingest the task again."
        )
    return options


def pack_texts(answerer: Answerer, question: Any, texts: Sequence[str]) -> PackedQuestion:
    """One question with several texts to be read behind it, as one row (`loglikelihood.pack_question`)."""
    if has_blank(question.metadata):
        pairs = [encode_blank(answerer.tokenizer, question.shown_text, text) for text in texts]
    else:
        pairs = [encode_pair(answerer.tokenizer, question.shown_text, make_continuation(text)) for text in texts]
    return pack_question(pairs, answerer.max_positions)
