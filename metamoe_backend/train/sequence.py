"""Stage "sequence": one adapter learns task after task; after each it is published as a system of its own.

Evaluating all steps gives the accuracy matrix R[i,j] of continual learning (see `evaluate.forgetting`). Step i+1 starts
from the published adapter of step i, so that a run that was stopped or killed goes on to the same bytes.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from metamoe_backend.config import BASE_EXPERT, SequenceConfig, SourceSettings
from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.experts.bank import emit_adapter, fetch_taken_names, list_names, publish_adapter
from metamoe_backend.jobs.durable import replace_file
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.stage import Context, Inputs
from metamoe_backend.train.examples import Example, count_steps, hold_back
from metamoe_backend.train.expert import add_lora, extract_adapter, load_weights, make_question_examples
from metamoe_backend.train.loop import run_training
from metamoe_backend.train.sampling import balanced_sample, take_part
from metamoe_backend.train.sources import fetch_training_rows
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

PUBLISHED = "system"
"""The table whose rows are kept last: where they are, a step is published whole."""


def prepare(store: "Store", config: SequenceConfig) -> Inputs:
    """The questions of every step, and the names the steps will have.

    `questions` has the columns `sources.COLUMNS` and step (from 1) and replayed (true for what an earlier step has
    taught); `target` has one row a step: step, label (the expert or task), adapter. Raises `NotFoundError` for an
    unknown plan, expert or task, `ConfigError` for a step with no questions.
    """
    source = SourceSettings(plan=config.plan, tasks=[] if config.plan else config.order, split=config.split)
    rows = fetch_training_rows(store, source)
    by = "expert" if config.plan else "task"
    if config.plan:
        _require_experts(store, config)
    parts: list[pd.DataFrame] = []
    for number, label in enumerate(config.order, start=1):
        own = balanced_sample(rows[rows[by] == label], config.limit, config.optim.seed)
        if own.empty:
            raise ConfigError(f"order: {label!r} has no questions in the split {config.split!r}; leave it out.")
        earlier = [part[~part["replayed"]] for part in parts]
        parts.append(_mix(own, earlier, config).assign(step=number))
    name = _find_free_name(config, fetch_taken_names(store))
    target = [(number, label, f"{name}-{number}") for number, label in enumerate(config.order, start=1)]
    return {
        "questions": pd.concat(parts, ignore_index=True),
        "target": pd.DataFrame(target, columns=["step", "label", "adapter"]),
    }


def _require_experts(store: "Store", config: SequenceConfig) -> None:
    from metamoe_backend.store.experts import fetch_plan_entries

    known = sorted(set(fetch_plan_entries(store, str(config.plan))["expert"]) - {BASE_EXPERT})
    for label in config.order:
        if label not in known:
            there = ", ".join(known) or "none but base"
            raise NotFoundError(f"order: {label!r} is no expert of plan {config.plan!r} (it has: {there}).")


def _mix(own: pd.DataFrame, earlier: Sequence[pd.DataFrame], config: SequenceConfig) -> pd.DataFrame:
    """A step's own questions, then the share `replay` of each earlier step's: the same rows at every later step."""
    again = [take_part(part, 0.0, config.replay, config.optim.seed).assign(replayed=True) for part in earlier]
    return pd.concat([own.assign(replayed=False), *again], ignore_index=True)


def _find_free_name(config: SequenceConfig, taken: set[str]) -> str:
    numbers = range(1, len(config.order) + 1)
    return next(name for name in list_names(config.name) if not {f"{name}-{number}" for number in numbers} & taken)


def compute(inputs: Inputs, config: SequenceConfig, context: Context) -> None:
    """Train step after step and publish each; emits adapter, system and metric rows.

    A stop keeps the steps that are done and a checkpoint of the one that is not, so that the run can go on; a cancel
    hands nothing over. Raises `ConfigError` when the loss becomes NaN, or a target names no module of the base.
    """
    from metamoe_backend.models.base import load_base

    base = load_base(config.base, config.device, config.optim.dtype, config.lora.four_bit)
    questions, targets = inputs["questions"], inputs["target"]
    examples = {
        step: make_question_examples(base.tokenizer, part, config.optim.max_tokens)
        for step, part in questions.groupby("step")
    }
    steps = _plan_steps(targets, examples, config, context)
    model = add_lora(base.model, config.lora, config.optim.seed)
    restored = _restore(steps, context)
    for step in steps:
        if step.number in restored:
            name = restored[step.number]
        else:
            part = questions[questions["step"] == step.number]
            name = _train_step(step, model, base, part, config)
        load_weights(model, read_adapter(Workspace(context.workspace_root).adapters / name))


@dataclass
class _Step:
    """One step, and the context of its training: progress counts over all steps, checkpoints lie in its own folder.

    What it emits is kept beside its checkpoints, so that an attempt that was killed need not train it again.
    """

    number: int
    label: str
    adapter: str
    train: list[Example]
    held: list[Example]
    done_before: int
    """Optimizer steps of the steps before it."""
    total: int
    """Optimizer steps of the whole sequence."""
    context: Context

    def __post_init__(self) -> None:
        outer = self.context
        self.run_id, self.by, self.created_at = outer.run_id, outer.by, outer.created_at
        self.workspace_root = outer.workspace_root
        self.scratch: Path = outer.scratch / f"step-{self.number}"
        self.log = outer.log

    def progress(self, done: int, total: int, **metrics: float) -> None:  # noqa: ARG002 - the total is the sequence's
        self.context.progress(self.done_before + done, self.total, **metrics)

    def emit(self, table: str, frame: pd.DataFrame) -> None:
        replace_file(self.scratch / f"{table}.parquet", frame.to_parquet)
        self.context.emit(table, frame)


def _plan_steps(
    targets: pd.DataFrame, examples: dict[Any, list[Example]], config: SequenceConfig, context: Context
) -> list[_Step]:
    optim, steps, done = config.optim, [], 0
    for number, label, adapter in zip(targets["step"], targets["label"], targets["adapter"], strict=True):
        rows = examples[number]
        train, held = hold_back(len(rows), optim.eval_share, optim.seed)
        step = _Step(number, label, adapter, [rows[i] for i in train], [rows[i] for i in held], done, 0, context)
        step.scratch.mkdir(parents=True, exist_ok=True)
        done += count_steps(len(train), optim.steps, optim.epochs, optim.batch_size)
        steps.append(step)
    for step in steps:
        step.total = done
    return steps


def _restore(steps: Sequence[_Step], context: Context) -> dict[int, str]:
    """Number and name of the steps that earlier attempts published; rows that were not handed over are emitted."""
    emitted = [
        pd.read_parquet(part.path, columns=["system"]) for part in RunFolder(context.scratch.parent).parts("system")
    ]
    there = {name for frame in emitted for name in frame["system"]}
    found = {}
    for step in steps:
        if not (step.scratch / f"{PUBLISHED}.parquet").is_file():
            break
        name = str(pd.read_parquet(step.scratch / f"{PUBLISHED}.parquet")["system"].iloc[0])
        if name not in there:
            for path in sorted(step.scratch.glob("*.parquet")):
                context.emit(path.stem, pd.read_parquet(path))
        found[step.number] = name
        context.log(f"Step {step.number} ({step.label}) is done: adapter {name}.")
    return found


def _train_step(step: _Step, model: Any, base: Any, questions: pd.DataFrame, config: SequenceConfig) -> str:
    replayed = int(questions["replayed"].sum())
    step.log(f"Step {step.number}: {step.label}, {len(questions) - replayed:,} questions, {replayed:,} replayed.")
    result = run_training(
        model, step.train, step.held, config.optim, step, device=base.device, pad_token=base.tokenizer.pad_token_id
    )
    metrics = result.metrics.assign(step=result.metrics["step"] + step.done_before)
    if result.stop:
        step.context.emit("metric", metrics)
        step.log(f"Stopped in step {step.number}, which is not published yet; resume the run to go on.")
        raise result.stop
    trained = extract_adapter(model, config.lora, config.lora.save_dtype)
    name = publish_adapter(step, step.adapter, trained, config.base)
    step.emit("metric", metrics)
    own = questions[~questions["replayed"]]
    settings = config.model_dump(mode="json") | {
        "step": step.number, "step_label": step.label, "step_tasks": sorted(own["task"].unique()),
    }  # fmt: skip
    emit_adapter(
        step, name, trained, config.base, source="trained", kind="baseline", plan=config.plan,
        skills=sorted(own["skill"].dropna().unique()), trained_on=sorted(questions["task"].unique()),
        settings=json.dumps(settings),
    )  # fmt: skip
    for checkpoint in step.scratch.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    step.log(f"Adapter {name}: {result.steps:,} steps, {result.tokens:,} tokens read.")
    return name
