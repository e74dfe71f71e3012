"""One system answers some questions of one task, and the answers are scored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.errors import InputError
from metamoe_backend.evaluate.activations import ActivationCollector
from metamoe_backend.evaluate.batches import BatchBudget
from metamoe_backend.evaluate.generation import Stop, find_stop_tokens, iterate_outputs
from metamoe_backend.evaluate.letters import extract_letter
from metamoe_backend.evaluate.loglikelihood import PackedQuestion, iterate_logliks, pack_question
from metamoe_backend.evaluate.programs import list_stops
from metamoe_backend.evaluate.prompts import (
    encode_blank,
    encode_pair,
    encode_prompt,
    has_blank,
    is_of_bbh,
    make_continuation,
)
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
    batch_tokens: int | BatchBudget
    max_new_tokens: int
    max_program_tokens: int = 512
    """Longest answer of a question that is scored by running it."""
    chat: bool = False
    """Prompts stand in a chat template, which ends where the answer begins."""

    @property
    def max_positions(self) -> int:
        """Longest row the model can read, in tokens."""
        return int(getattr(self.system.model.config, "max_position_embeddings", 0) or 1 << 30)


@dataclass(slots=True)
class Problems:
    """What a person should know beside the numbers of one system on one task."""

    asked: int = 0
    cut: int = 0
    longest_cut: int = 0
    empty: int = 0
    unanswered: list[str] = field(default_factory=list)

    def take_out(self, answers: pd.DataFrame) -> pd.DataFrame:
        """The answers that count, of `answer_choices` or `answer_freely`; what is wrong with the others is noted."""
        good = answers["problem"].isna()
        self.asked += len(answers)
        self.unanswered += answers.loc[~good, "problem"].tolist()
        self.cut += int((answers["cut_tokens"] > 0).sum())
        self.longest_cut = max(self.longest_cut, int(answers["cut_tokens"].max()) if len(answers) else 0)
        self.empty += int((good & answers["output"].str.strip().eq("")).sum())
        return answers[good].drop(columns="problem")

    def describe(self, system: str, task: str) -> Iterator[str]:
        """A sentence for each kind of problem there was."""
        about = f"of {self.asked} questions of {task} under {system}"
        if self.cut:
            yield (
                f"{self.cut} {about} are longer than the model reads; their beginning is cut, by {self.longest_cut} "
                "tokens at most."
            )
        if self.empty:
            yield f"{self.empty} {about} got an empty answer; it counts as any other text does."
        if self.unanswered:
            yield f"{len(self.unanswered)} {about} have no answer and count nowhere: {self.unanswered[0]}"


NOT_A_NUMBER = "the model gave no number (NaN) for what comes next; try dtype float32 or look at the weights."


def answer_choices(
    answerer: Answerer,
    questions: pd.DataFrame,
    routes: NDArray[np.float64] | None,
    sampled: set[str] | None,
    on_answered: OnAnswered,
) -> tuple[pd.DataFrame, ActivationCollector | None]:
    """Score the options of each question: question_id, output, choice, correct, score, logliks,
    problem (why a question has no answer that counts, or None), cut_tokens (of a question too long for the model).

    sampled: questions whose gates are kept token by token; None records no gates at all.
    """
    packed, problems = _pack_all(answerer, questions)
    places = [place for place, problem in enumerate(problems) if problem is None]
    names = questions["question_id"].tolist()
    collector = None
    if sampled is not None:
        prompts = [question.tokens[: question.prompt_tokens].tolist() for question in packed]
        collector = ActivationCollector(answerer.tokenizer, [names[place] for place in places], prompts, sampled)
    logliks: list[NDArray[np.float64] | None] = [None] * len(names)
    packed_routes = None if routes is None else routes[places]
    on_answered(len(names) - len(places))
    for rows, values in iterate_logliks(answerer.system, packed, answerer.batch_tokens, packed_routes, collector):
        for row, value in zip(rows, values, strict=True):
            logliks[places[row]] = value
            if np.isnan(value).any():
                problems[places[row]] = NOT_A_NUMBER
        on_answered(len(rows))
    cut_tokens = dict(zip(places, (question.cut_tokens for question in packed), strict=True))
    rows_scored = [
        None if values is None or problem else score_choices(values, find_gold(row))
        for row, values, problem in zip(questions.itertuples(), logliks, problems, strict=True)
    ]
    chosen = [None if scored is None else scored[0] for scored in rows_scored]
    frame = _make_answers(
        names,
        [
            "" if choice is None else options[choice]
            for options, choice in zip(questions["choices"], chosen, strict=True)
        ],
        chosen,
        [0.0 if scored is None else scored[1] for scored in rows_scored],
    )
    return frame.assign(
        logliks=pd.Series(logliks, dtype=object),
        problem=pd.Series(problems, dtype=object),
        cut_tokens=[cut_tokens.get(place, 0) for place in range(len(names))],
    ), collector


def _pack_all(answerer: Answerer, questions: pd.DataFrame) -> tuple[list[PackedQuestion], list[str | None]]:
    """Questions as rows of tokens, those that can be; and for each question what is wrong with it, or None."""
    packed, problems = [], []
    for row in questions.itertuples():
        problem = find_problem(row)
        if problem is None:
            try:
                packed.append(pack_texts(answerer, row, list_options(row)))
            except InputError as error:
                problem = str(error)
        problems.append(problem)
    return packed, problems


def find_problem(question: Any) -> str | None:
    """Why a question cannot be scored by its options, or None."""
    try:
        list_options(question)
        find_gold(question)
    except InputError as error:
        return str(error)
    return None


def _make_answers(
    names: Sequence[str], outputs: Sequence[str], choices: Sequence[int | None], scores: Sequence[float]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "question_id": names,
            "output": pd.Series(outputs, dtype=object),
            "choice": pd.array(list(choices), dtype="Int64"),
            "correct": [score >= CORRECT_FROM for score in scores],
            "score": scores,
        }
    )


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
    whole = [encode_prompt(answerer.tokenizer, text) for text in questions["shown_text"]]
    prompts = [tokens[-room:] for tokens in whole]
    names = questions["question_id"].tolist()
    collector = None if sampled is None else ActivationCollector(answerer.tokenizer, names, prompts, sampled)
    stop_tokens = find_stop_tokens(answerer.system.model, answerer.tokenizer)
    stop = Stop(stop_tokens, tuple(stop_texts), new_tokens, strip=not code)
    found: list[str | None] = [None] * len(prompts)
    batches = iterate_outputs(
        answerer.system, answerer.tokenizer, prompts, stop, answerer.batch_tokens, routes, collector
    )
    for rows, texts in batches:
        for row, text in zip(rows, texts, strict=True):
            found[row] = text
        on_answered(len(rows))
    outputs = [text or "" for text in found]
    choices, scores = _score_outputs(questions, outputs, on_answered)
    by_letter = (questions["regime"] == "letters").to_numpy()
    problems = [
        NOT_A_NUMBER if text is None else find_problem(row) if lettered else None
        for row, text, lettered in zip(questions.itertuples(), found, by_letter, strict=True)
    ]
    return _make_answers(names, outputs, choices, scores).assign(
        logliks=pd.Series([None] * len(names), dtype=object),
        problem=pd.Series(problems, dtype=object),
        cut_tokens=[len(all_of_it) - len(kept) for all_of_it, kept in zip(whole, prompts, strict=True)],
    ), collector


def _score_outputs(
    questions: pd.DataFrame, outputs: Sequence[str], on_answered: OnAnswered
) -> tuple[list[int | None], list[float]]:
    """The option that each output chooses, where there are options, and its score."""
    metadata = [None if pd.isna(text) else text for text in questions["metadata"]]
    if (questions["regime"] == "code").any():
        return [None] * len(outputs), score_programs(outputs, questions["answer"], metadata, lambda: on_answered(0))
    if (questions["regime"] == "letters").any():
        asked = [
            (row, output, find_problem(row) is None)
            for row, output in zip(questions.itertuples(), outputs, strict=True)
        ]
        choices = [extract_letter(output, len(list_options(row))) if good else None for row, output, good in asked]
        right = [good and choice == find_gold(row) for choice, (row, _, good) in zip(choices, asked, strict=True)]
        return choices, [float(one) for one in right]
    about = zip(questions["regime"], outputs, questions["answer"], questions["source"], metadata, strict=True)
    return [None] * len(outputs), [score_output(*one) for one in about]


_BBH_STOPS = ("</s>", "Q:", "<|im_end|>")
_BBH_STOPS_BEHIND_EXAMPLES = ("</s>", "Q", "\n\n")
"""Those of lm-evaluation-harness' tasks bbh_zeroshot_* and bbh_fewshot_*."""


def find_stop_texts(questions: pd.DataFrame, n_shot: int = 0) -> tuple[str, ...]:
    """Where a task's generated answers end: a new line, or an empty line if its right answers have several lines.

    Programs and answers to BBH end where their benchmark says (`programs.list_stops`).
    """
    if len(questions) and questions["regime"].iloc[0] == "code":
        return list_stops(questions["metadata"].iloc[0])
    if len(questions) and questions["regime"].iloc[0] == "letters":
        return ("Question:",)  # a letter may stand behind an empty line
    if "way" in questions and len(questions) and questions["way"].iloc[0].startswith("number, explained"):
        # The next question, which a model likes to ask itself; an empty line where questions have no such mark.
        return ("Question:",) if questions["shown_text"].str.contains("Question:").all() else ("\n\n",)
    if len(questions) and is_of_bbh(questions["metadata"].iloc[0]):
        return _BBH_STOPS_BEHIND_EXAMPLES if n_shot else _BBH_STOPS
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
    options = list(question.choices) if pd.api.types.is_list_like(question.choices) else []
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
        continuations = [text if answerer.chat else make_continuation(text) for text in texts]
        pairs = [encode_pair(answerer.tokenizer, question.shown_text, continuation) for continuation in continuations]
    return pack_question(pairs, answerer.max_positions)
