"""Stage "force": what a mixture answers as routed, with every token sent to one expert, and without any expert."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pandas as pd

from metamoe_backend.config import BASE_EXPERT, ForceConfig
from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.evaluate.answering import Answerer, answer_choices, answer_freely, find_stop_texts
from metamoe_backend.evaluate.programs import check_code_questions
from metamoe_backend.evaluate.prompts import make_shown_text
from metamoe_backend.evaluate.stage import compute_routes
from metamoe_backend.stage import Context, Inputs

if TYPE_CHECKING:
    from metamoe_backend.models.systems import OpenSystem
    from metamoe_backend.store.connection import Store

ROUTED = "routed"
"""Stands in the expert column for the mixture's own routing."""
_KEPT = ["question_id", "task", "regime", "source", "choices", "answer", "gold", "metadata", "prompt", "meta_question"]


def prepare(store: "Store", config: ForceConfig) -> Inputs:
    """The mixture (rows.System) and the questions with the text each shows the model and where its answer ends.

    Raises `NotFoundError` for an unknown system or question, `ConfigError` for a system that is no mixture or has an
    expert called "routed", `UnavailableError` where one is scored by running code and there is no sandbox.
    """
    from metamoe_backend.store.experts import fetch_systems
    from metamoe_backend.store.questions import fetch_evaluation_questions, fetch_questions

    systems = fetch_systems(store, [config.system])
    if systems["kind"].iloc[0] != "moe":
        raise ConfigError(f"System {config.system!r} has no router; name a mixture.")
    if ROUTED in list(systems["experts"].iloc[0]):
        raise ConfigError(f"An expert of {config.system!r} is called {ROUTED!r}, as its own routing is; rename it.")
    wanted = list(dict.fromkeys(config.questions))
    found = fetch_questions(store, question_ids=wanted)
    for question_id in wanted:
        if question_id not in set(found["question_id"]):
            raise NotFoundError(f"Question {question_id!r} does not exist here; `find` lists questions with their ids.")
    check_code_questions(found)
    parts = []
    for (task, split), rows in found.groupby(["task", "split"], sort=False):
        everything = fetch_evaluation_questions(store, [str(task)], str(split), None, 0)
        asked = everything[everything["question_id"].isin(rows["question_id"])]
        texts = [make_shown_text(row.template, row.prompt, metadata=row.metadata) for row in asked.itertuples()]
        # As an evaluation of the whole task ends its answers, so that what is routed answers as it did there.
        parts.append(asked[_KEPT].assign(shown_text=texts, stop_texts=[list(find_stop_texts(everything))] * len(asked)))
    return {"systems": systems, "questions": pd.concat(parts, ignore_index=True)}


def compute(inputs: Inputs, config: ForceConfig, context: Context) -> None:
    """Answer each question once as routed, once per expert alone, once by the bare base model; emits counterfactual.

    Raises `UnavailableError` for a missing device or encoder, `StorageError` for changed weights, `StopRequested` when
    a person asked.
    """
    from metamoe_backend.models.base import load_base
    from metamoe_backend.models.systems import open_system

    row: dict[str, Any] = {str(name): value for name, value in inputs["systems"].iloc[0].items()}
    questions = inputs["questions"]
    context.progress(0, 1)
    loaded = load_base(str(row["base"]), config.device, config.dtype)
    with open_system(loaded, row, context.workspace_root) as system:
        answerer = Answerer(
            system, loaded.tokenizer, config.batch_tokens, config.max_new_tokens, config.max_program_tokens
        )
        total, done, answers = (len(system.experts) + 2) * len(questions), 0, []
        for _, asked in questions.groupby("task", sort=False):
            for name, forced in _iterate_ways(system):
                with forced:
                    frame = _answer(answerer, asked, config.system if name == ROUTED else None)
                answers.append(frame.assign(expert=name, regime=asked["regime"].to_numpy()))
                done += len(asked)
                context.progress(done, total)
    context.emit("counterfactual", pd.concat(answers).assign(system=config.system, system_hash=row["sha256"]))


def _iterate_ways(system: "OpenSystem") -> Iterator[tuple[str, AbstractContextManager[None]]]:
    yield ROUTED, nullcontext()
    for name in [*system.experts, BASE_EXPERT]:
        yield name, system.force(name)


def _answer(answerer: Answerer, questions: pd.DataFrame, routed: str | None) -> pd.DataFrame:
    """Answers to questions of one task; `routed` names the mixture where its own router decides."""
    routes = None if routed is None else compute_routes(answerer.system, questions, routed)

    def on_answered(_questions: int) -> None:
        pass

    if questions["regime"].iloc[0] == "choices":
        answers, _gates = answer_choices(answerer, questions, routes, None, on_answered)
    else:
        answers, _gates = answer_freely(answerer, questions, routes, None, on_answered, questions["stop_texts"].iloc[0])
    problems = answers["problem"].dropna()
    if len(problems):
        raise InputError(f"Question {answers.loc[problems.index[0], 'question_id']} has no answer: {problems.iloc[0]}")
    return answers.drop(columns=["problem", "cut_tokens"])
