"""Stage "evaluate": systems answer questions, and every answer, gate and route becomes a row."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.config import DEFAULT_BASE, EvaluateConfig
from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.activations import ActivationCollector
from metamoe_backend.evaluate.answering import Answerer, Problems, answer_choices, answer_freely, find_stop_texts
from metamoe_backend.evaluate.asking import (
    EXPLAINED_TOKENS,
    add_shown_text,
    apply_chat_template,
    choose_ways,
    list_left_out,
)
from metamoe_backend.evaluate.batches import BatchBudget, find_batch_tokens
from metamoe_backend.evaluate.programs import check_code_questions
from metamoe_backend.evaluate.prompts import draw_shots, encode_prompt
from metamoe_backend.evaluate.sandbox import describe_sandbox
from metamoe_backend.jobs.saved_parts import restore_parts, save_part
from metamoe_backend.shards import deal_out
from metamoe_backend.stage import NOTE, Context, Inputs

if TYPE_CHECKING:
    from metamoe_backend.models.base import LoadedBase
    from metamoe_backend.models.systems import OpenSystem
    from metamoe_backend.store.connection import Store

BASE_SYSTEM = "base"
PART_QUESTIONS = 256
"""Questions of a task answered between two parts: what a kill can cost, and what shards are dealt."""
_PARTS_FEED = ("activation", "token_activation", "route", "prediction")
_EVALUATED = ["system", "system_hash", "question_id", "regime", "n_shot", "prompt_hash", "dtype"]
"""Two answers equal in these need not both be computed."""


def prepare(store: "Store", config: EvaluateConfig) -> Inputs:
    """The systems, the questions with the text each shows the model, and what was evaluated before.

    `systems` is rows.System in the order asked for, `base` among them if asked for (sha256 empty while it was never
    evaluated); `questions` has question_id, task, regime, way, source, choices, answer, gold, metadata, prompt,
    meta_question, shown_text, prompt_hash; `evaluated` names answers that exist; `left_out` has task and reason of the
    tasks that cannot be asked like this (no questions of the split, too few examples), which the others do not wait
    for. Raises `NotFoundError` for unknown systems and tasks and where no task has questions of the split,
    `UnavailableError` where a task is scored by running code and there is no sandbox, `ConfigError` where `base` could
    be two models or all tasks are left out.
    """
    from metamoe_backend.store.questions import fetch_evaluation_questions
    from metamoe_backend.store.results import fetch_evaluated

    systems = _fetch_systems(store, list(dict.fromkeys(config.systems)))
    config = config.model_copy(update={"tasks": list(dict.fromkeys(config.tasks))})
    found = fetch_evaluation_questions(store, config.tasks, config.split, config.limit, config.seed)
    questions, shots = choose_ways(found, config), _fetch_shots(store, config)
    left_out = list_left_out(questions, config, shots)
    if len(left_out) == len(config.tasks):
        empty = questions.empty
        raise (NotFoundError if empty else ConfigError)(next(iter(left_out.values())))
    questions = questions[~questions["task"].isin(list(left_out))]
    check_code_questions(questions)
    evaluated = fetch_evaluated(store)
    return {
        "systems": systems,
        "questions": add_shown_text(questions, shots, config.n_shot),
        "evaluated": evaluated.loc[evaluated["question_id"].isin(questions["question_id"]), _EVALUATED],
        "left_out": pd.DataFrame(list(left_out.items()), columns=["task", "reason"], dtype=object),
    }


def _fetch_systems(store: "Store", names: Sequence[str]) -> pd.DataFrame:
    from metamoe_backend.store.experts import fetch_systems

    systems = fetch_systems(store, names)
    if BASE_SYSTEM in names:
        if BASE_SYSTEM not in set(systems["system"]):
            row = _make_base_row(_find_base(systems, fetch_systems(store)))
            systems = pd.concat([systems, row], ignore_index=True) if len(systems) else row
        own = systems.loc[systems["system"] == BASE_SYSTEM, "base"].iloc[0]
        for other in systems.itertuples():
            if other.base != own:
                raise ConfigError(
                    f"Here 'base' is {own!r}, but system {other.system!r} stands on {other.base!r}; evaluate systems "
                    "on another base model without 'base', or in a workspace of their own."
                )
    return systems.set_index("system", drop=False).loc[list(names)].reset_index(drop=True)


def _find_base(chosen: pd.DataFrame, every: pd.DataFrame) -> str:
    """The base model that 'base' means: that of the chosen systems, else that of all systems, else the default."""
    for frame in (chosen, every):
        bases = frame["base"].unique()
        if len(bases) > 1:
            raise ConfigError(
                f"'base' could be {' or '.join(sorted(bases))}; name systems of one base model together with 'base'."
            )
        if len(bases) == 1:
            return str(bases[0])
    return DEFAULT_BASE


def _make_base_row(base: str) -> pd.DataFrame:
    row = {"system": BASE_SYSTEM, "kind": "base", "base": base, "path": "", "experts": [], "settings": "{}"}
    return pd.DataFrame([row | {"sha256": "", "run_id": "", "created_at": pd.NaT}])


def _fetch_shots(store: "Store", config: EvaluateConfig) -> dict[str, pd.DataFrame]:
    """Example questions per task, as `choose_ways` makes them."""
    from metamoe_backend.store.questions import fetch_evaluation_questions

    if config.n_shot == 0:
        return {}
    train = choose_ways(fetch_evaluation_questions(store, config.tasks, "train", None, config.seed), config)
    return {task: draw_shots(train[train["task"] == task], config.n_shot, config.seed) for task in config.tasks}


@dataclass
class _Tally:
    """How far the run is. Skipped questions count as done, but not for the speed."""

    context: Context
    total: int
    done: int = 0
    answered: int = 0
    started: float = field(default_factory=time.monotonic)

    def skip(self, questions: int) -> None:
        self.done += questions
        self.context.progress(self.done, self.total)

    def add(self, questions: int) -> None:
        self.done += questions
        self.answered += questions
        speed = self.answered / max(time.monotonic() - self.started, 1e-9)
        self.context.progress(self.done, self.total, questions_per_s=round(speed, 3))


def compute(inputs: Inputs, config: EvaluateConfig, context: Context) -> None:
    """Let each system answer each question that it has not answered yet; emits parts as they are ready.

    Emits prediction, route, activation, token_activation, and system where `base` was never recorded. What an earlier
    attempt of the same run answered is not answered again. Raises `UnavailableError` for a missing device or encoder,
    `StorageError` for changed weights, `StopRequested` when a person asked.
    """
    from metamoe_backend.models.base import load_base

    systems, questions = inputs["systems"], inputs["questions"]
    if (questions["regime"] == "code").any():
        context.log(f"Programs run in {describe_sandbox()}.")
    for reason in inputs["left_out"]["reason"] if "left_out" in inputs else ():
        context.log(f"{NOTE}Left out: {reason}")
    if "way" not in questions:  # handed over before there were ways
        questions = questions.assign(way=questions["regime"])
    questions = questions.assign(block=_number_blocks(questions))
    own = {name: _choose_own(questions, name, inputs.get("work")) for name in systems["system"]}
    systems = systems[systems["system"].map(lambda name: len(own[name]) > 0)]
    done = restore_parts(context, _PARTS_FEED, ("system", "question_id"))
    tally = _Tally(context, total=sum(map(len, own.values())))
    context.progress(0, tally.total)
    for base, rows in systems.groupby("base", sort=False):
        loaded = load_base(str(base), config.device, config.dtype)
        asked = apply_chat_template(questions, loaded.tokenizer, loaded.name) if config.chat else questions
        budget = BatchBudget(config.batch_tokens or find_batch_tokens(loaded.model), context.log)
        for values in rows.to_dict("records"):
            row: dict[str, Any] = {str(name): value for name, value in values.items()}
            if row["kind"] == "base":
                row = _record_base(row, loaded, context)
            mine = asked.loc[own[row["system"]]]
            pending = _find_pending(mine, row, inputs["evaluated"], done, loaded.dtype, config.n_shot)
            tally.skip(len(mine) - len(pending))
            if len(pending):
                _evaluate_system(loaded, row, asked, pending, config, tally, budget)


def cut(inputs: Inputs, config: EvaluateConfig, shards: int) -> list[Inputs]:
    """Inputs of at most so many runs, which give the rows of one. `work` says what is each one's: system, task, block.

    All questions go to all of them: a task's token sample and stop texts are the same however it is cut. Blocks are
    dealt out system by system and task by task, so that each run gets as many questions, and as many of each system
    and task: these differ most in what an answer costs.
    """
    systems, questions = inputs["systems"], inputs["questions"].assign(block=_number_blocks(inputs["questions"]))
    nothing = pd.DataFrame(columns=["system", "question_id"], dtype=object)
    found = []
    for values in systems.to_dict("records"):
        row = {str(name): value for name, value in values.items()}
        new = _find_pending(questions, row, inputs["evaluated"], nothing, config.dtype, config.n_shot)
        marked = questions.assign(new=questions.index.isin(new.index), system=row["system"])
        found.append(marked.groupby(["system", "task", "block"], sort=False)["new"].sum().reset_index())
    work = pd.concat(found, ignore_index=True)
    shards = min(shards, len(work))
    owners = deal_out(work["new"].tolist(), shards, [work["system"].tolist(), work["task"].tolist()])
    columns = ["system", "task", "block"]
    parts = [work.loc[[owner == shard for owner in owners], columns] for shard in range(shards)]
    return [inputs | {"work": part.reset_index(drop=True)} for part in parts if len(part)]


def _number_blocks(questions: pd.DataFrame) -> pd.Series:
    """Questions of a task that are answered together, in batches of which no other question is part."""
    return questions.groupby("task").cumcount() // PART_QUESTIONS


def _choose_own(questions: pd.DataFrame, system: str, work: pd.DataFrame | None) -> pd.Index:
    """The questions that this run lets a system answer: all, or those of its shard."""
    if work is None:
        return questions.index
    columns = ["task", "block"]
    mine = pd.MultiIndex.from_frame(work.loc[work["system"] == system, columns])
    return questions.index[pd.MultiIndex.from_frame(questions[columns]).isin(mine)]


def _record_base(row: dict[str, Any], loaded: "LoadedBase", context: Context) -> dict[str, Any]:
    """The base model as a system: its hash is known once it is loaded."""
    if not row["sha256"]:
        recorded = row | {"sha256": loaded.sha256, "created_at": context.created_at}
        context.emit("system", pd.DataFrame([recorded]).drop(columns="run_id"))
    return row | {"sha256": loaded.sha256}


def _find_pending(
    questions: pd.DataFrame,
    system: dict[str, Any],
    evaluated: pd.DataFrame,
    done: pd.DataFrame,
    dtype: str,
    n_shot: int,
) -> pd.DataFrame:
    """The questions this system has not answered, by an earlier run or by an earlier attempt of this one."""
    asked = questions[["question_id", "way", "prompt_hash"]].rename(columns={"way": "regime"})
    asked = asked.assign(system=system["system"], system_hash=system["sha256"], n_shot=n_shot, dtype=dtype)
    answered = set(evaluated[_EVALUATED].itertuples(index=False, name=None))
    finished = set(done.loc[done["system"] == system["system"], "question_id"])
    keys = asked[_EVALUATED].itertuples(index=False, name=None)
    new = [key not in answered and name not in finished for key, name in zip(keys, asked["question_id"], strict=True)]
    return questions[new]


def _evaluate_system(
    loaded: "LoadedBase",
    row: dict[str, Any],
    questions: pd.DataFrame,
    pending: pd.DataFrame,
    config: EvaluateConfig,
    tally: _Tally,
    budget: BatchBudget,
) -> None:
    from metamoe_backend.models.systems import open_system

    context = tally.context
    with open_system(loaded, row, context.workspace_root) as system:
        longest = max(config.max_new_tokens, EXPLAINED_TOKENS) if config.explained else config.max_new_tokens
        answerer = Answerer(system, loaded.tokenizer, budget, longest, config.max_program_tokens, config.chat)
        # Block by block, as all else: what an encoder gives depends a little on what it reads beside.
        parts = [(part, compute_routes(system, part, row["system"])) for part in _list_blocks(pending)]
        record = config.activations and row["kind"] == "moe"
        for task, of_task in groupby(parts, lambda each: each[0]["task"].iloc[0]):
            everything = questions[questions["task"] == task]
            sampled = draw_token_sample(everything["question_id"], config.token_sample, config.seed) if record else None
            if everything["regime"].iloc[0] == "code":
                _warn_of_long_programs(answerer, everything, context)
            stop_texts = find_stop_texts(everything, config.n_shot)
            right, asked, problems = 0.0, 0, Problems()
            for part, part_routes in of_task:
                if part["regime"].iloc[0] == "choices":
                    answers, gates = answer_choices(answerer, part, part_routes, sampled, tally.add)
                else:
                    answers, gates = answer_freely(answerer, part, part_routes, sampled, tally.add, stop_texts)
                answers = problems.take_out(answers)
                right += answers["correct"].sum()
                frames = _make_rows(answers, gates, part, row, loaded, config.n_shot)
                if record and part_routes is not None:
                    kept = part["question_id"].isin(answers["question_id"]).to_numpy()
                    frames["route"] = make_route_rows(part["question_id"][kept], system.route_names, part_routes[kept])
                if len(answers):
                    named = {table: frame.assign(system=row["system"]) for table, frame in frames.items()}
                    save_part(context, _PARTS_FEED, named)
                asked += len(part)
            context.log(f"{row['system']} on {task}: {right:.0f} of {asked} correct")
            for sentence in problems.describe(row["system"], str(task)):
                context.log(f"{NOTE}{sentence}")


def _list_blocks(questions: pd.DataFrame) -> list[pd.DataFrame]:
    """Blocks of questions, task after task in order of their first question."""
    tasks = [rows for _, rows in questions.groupby("task", sort=False)]
    return [block for rows in tasks for _, block in rows.groupby("block")]


def _warn_of_long_programs(answerer: Answerer, questions: pd.DataFrame, context: Context) -> None:
    lengths = [len(encode_prompt(answerer.tokenizer, answer)) for answer in questions["answer"]]
    longer = sum(length > answerer.max_program_tokens for length in lengths)
    if longer:
        context.log(
            f"{longer} of {len(lengths)} reference programs of {questions['task'].iloc[0]} have more than "
            f"{answerer.max_program_tokens} tokens (the longest {max(lengths)}); raise max_program_tokens."
        )


def compute_routes(system: "OpenSystem", questions: pd.DataFrame, name: str) -> NDArray[np.float64] | None:
    """Task-level probabilities [questions, routes]; None for a system without a task level.

    Raises `NotFoundError` when the router reads meta-questions and some question has none.
    """
    if system.routes_text is None:
        return None
    texts = questions["prompt" if system.routes_text == "question" else "meta_question"]
    missing = questions.loc[texts.isna(), "task"]
    if len(missing):
        raise NotFoundError(
            f"The router of {name!r} reads meta-questions, and {len(missing)} questions (the first of task "
            f"{missing.iloc[0]!r}) have none; build them with `meta-questions`."
        )
    return system.compute_routes(texts.tolist())


def draw_token_sample(question_ids: pd.Series, count: int, seed: int) -> set[str]:
    """`count` of a task's questions, the same for every system and however the run is cut into parts."""
    ordered = np.sort(question_ids.to_numpy(dtype=str))
    return set(np.random.default_rng(seed).permutation(ordered)[:count].tolist())


def make_route_rows(question_ids: pd.Series, names: Sequence[str], routes: NDArray[np.float64]) -> pd.DataFrame:
    """rows.Route without run and system: one row a question and route."""
    return pd.DataFrame(
        {
            "question_id": np.repeat(question_ids.to_numpy(dtype=object), len(names)),
            "expert": np.tile(np.asarray(names, dtype=object), len(question_ids)),
            "probability": routes.astype(float).reshape(-1),
        }
    )


def _make_rows(
    answers: pd.DataFrame,
    gates: ActivationCollector | None,
    questions: pd.DataFrame,
    row: dict[str, Any],
    loaded: "LoadedBase",
    n_shot: int,
) -> dict[str, pd.DataFrame]:
    """Rows of every table but route, without run and system."""
    asked = questions.set_index("question_id").loc[answers["question_id"]]
    frames = {
        "prediction": answers.assign(
            regime=asked["way"].to_numpy(),
            n_shot=n_shot,
            prompt_hash=asked["prompt_hash"].to_numpy(),
            system_hash=row["sha256"],
            base_hash=loaded.sha256,
            dtype=loaded.dtype,
        )
    }
    if gates is not None and gates.activations:
        frames["activation"] = pd.concat(gates.activations, ignore_index=True)
    if gates is not None and gates.token_activations:
        frames["token_activation"] = pd.concat(gates.token_activations, ignore_index=True)
    for table in ("activation", "token_activation"):
        if table in frames and len(answers) < len(questions):
            frames[table] = frames[table][frames[table]["question_id"].isin(answers["question_id"])]
    return frames
