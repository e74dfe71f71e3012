"""Stage "moe": join experts of the bank in a mixture, teach its routers, and publish it under mixtures/."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import (
    BASE_EXPERT,
    LEARNT_GATE_MODES,
    OWNER_MODES,
    TASK_LEVEL_MODES,
    MoeConfig,
)
from metamoe_backend.errors import ConfigError
from metamoe_backend.experts.bank import fetch_taken_names, find_free_name, publish_folder, read_banked
from metamoe_backend.models.adapters import AdapterWeights
from metamoe_backend.models.mixtures import ExpertEntry, MixtureSpec, write_mixture
from metamoe_backend.models.routers import FittedRouter
from metamoe_backend.stage import Context, Inputs
from metamoe_backend.train.examples import hold_back
from metamoe_backend.train.expert import check_targets, make_question_examples
from metamoe_backend.train.sampling import balanced_sample
from metamoe_backend.train.sources import describe_source, fetch_training_rows
from metamoe_backend.train.task_router import teach_task_router
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from metamoe_backend.models.base import LoadedBase
    from metamoe_backend.models.lora_moe import Mixture
    from metamoe_backend.store.connection import Store
    from metamoe_backend.train.loop import TrainingResult


def prepare(store: "Store", config: MoeConfig) -> Inputs:
    """The experts, the questions that teach the routers, and the vectors there are of them.

    `questions` has the columns `sources.COLUMNS`, `expert` being the member of the mixture (or `base`) that each should
    go to, NULL without a plan; it has no rows where nothing learns and no source was named;
    `adapters` is rows.Adapter in gate order; `vectors` question_id, text_hash, vector; `target` the name the mixture
    will have. Raises `NotFoundError` for an unknown plan or expert, `ConfigError` when they do not go together.
    """
    from metamoe_backend.store.experts import fetch_adapters
    from metamoe_backend.store.maps import fetch_vectors

    if BASE_EXPERT in (config.name, *config.experts):
        raise ConfigError(
            "The name 'base' means no adapter: give the mixture and its experts other names, and use no_expert to let "
            "the mixture leave questions to the base model."
        )
    adapters = fetch_adapters(store, [] if config.from_scratch else config.experts)
    for row in adapters.itertuples():
        if row.base != config.base:
            raise ConfigError(
                f"Expert {row.adapter!r} was made on the base model {row.base!r}, the mixture is to stand on "
                f"{config.base!r}; choose experts of one base."
            )
    questions = assign_experts(fetch_training_rows(store, config), adapters, config)
    _check_questions(questions, config)
    ids = questions["question_id"].tolist() if config.mode in TASK_LEVEL_MODES else []
    return {
        "questions": questions,
        "adapters": adapters,
        "vectors": fetch_vectors(store, config.encoder, config.of, ids),
        "target": pd.DataFrame({"mixture": [find_free_name(config.name, fetch_taken_names(store))]}),
    }


def assign_experts(questions: pd.DataFrame, adapters: pd.DataFrame, config: MoeConfig) -> pd.DataFrame:
    """`questions` with `expert` turned from the plan's word into the mixture's member; others are left out.

    A question goes to the adapter named by the plan; else (an expert trained again is called NAME-2) to the first
    adapter that was trained on its skill; skills planned to `base` stay `base` where the mixture may route there.
    Without a plan nothing is said of where a question should go, and every one teaches the token gates; where gates
    learn by expert, a question is the first adapter's that was trained on its task.
    """
    if config.plan is None:
        if config.mode not in OWNER_MODES:
            return questions
        learnt: dict[str, str] = {}
        for adapter, tasks in zip(adapters["adapter"], adapters["trained_on"], strict=True):
            learnt = dict.fromkeys(tasks, adapter) | learnt
        return questions.assign(expert=questions["task"].map(learnt).astype(object))
    by_skill: dict[str, str] = {}
    for adapter, skills in zip(adapters["adapter"], adapters["skills"], strict=True):
        for skill in skills:
            by_skill.setdefault(skill, adapter)

    def find_member(expert: str, skill: str) -> str | None:
        if expert == BASE_EXPERT:
            return BASE_EXPERT if config.no_expert and config.mode in TASK_LEVEL_MODES else None
        return expert if expert in config.experts else by_skill.get(skill)

    members = [find_member(*pair) for pair in zip(questions["expert"], questions["skill"], strict=True)]
    assigned = questions.assign(expert=pd.Series(members, index=questions.index, dtype=object))
    return assigned[assigned["expert"].notna()].reset_index(drop=True)


def compute(inputs: Inputs, config: MoeConfig, context: Context) -> None:
    """Make and publish the mixture; emits system and metric rows.

    With a task level, a logistic regression over the questions' vectors learns which expert each question goes to.
    Then, as `config.train` says, the token gates (and the experts' copies) learn on the answers of the experts'
    questions, under the task level's out-of-fold word on each. A stop-and-save publishes what there is and raises
    `StopRequested`; a cancel publishes nothing. Raises `StorageError` when an expert is not the one in the bank.
    """
    from metamoe_backend.models.base import load_base
    from metamoe_backend.models.lora_moe import GateSettings, attach_experts

    questions = inputs["questions"]
    context.progress(0, 1)
    fitted = (
        teach_task_router(questions, inputs["vectors"], config, context) if config.mode in TASK_LEVEL_MODES else None
    )
    loaded = load_base(config.base, config.device, config.optim.dtype)
    adapters = read_banked(inputs["adapters"], loaded, context.workspace_root)
    if config.from_scratch:
        adapters = draw_experts(loaded.model, config)
    mixture = attach_experts(loaded.model, adapters, GateSettings.of(config))
    if config.mode in ("token", "xlora"):
        # Equal scores would choose the first k experts for every token. With a task level, equal scores are the best
        # start: the mixture then routes exactly as the task level does.
        mixture.draw_gate_weights(config.optim.seed)
    result = _train(mixture, loaded, questions, fitted, config, context) if config.learns_by_gradients else None
    name, sha256 = _publish(mixture, adapters, fitted, inputs["target"]["mixture"].iloc[0], config, context)
    _emit(name, sha256, fitted, result, config, context)
    if result is None:
        context.progress(1, 1)
    elif result.stop:
        raise result.stop


def draw_experts(model: "nn.Module", config: MoeConfig) -> list[AdapterWeights]:
    """Fresh experts, which change nothing yet: A drawn as PEFT draws it, B = 0. Their hash is that of A's numbers.

    Raises `ConfigError` for a target that is no linear module of the model.
    """
    import torch
    from torch import nn

    lora = config.lora
    check_targets(model, lora)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: module for name, module in linears.items() if name.rsplit(".", 1)[-1] in lora.targets}
    drawn = []
    for index, name in enumerate(config.experts):
        generator = torch.Generator().manual_seed(config.optim.seed * 1000 + index)
        a = {module: torch.empty(lora.rank, linear.in_features) for module, linear in chosen.items()}
        for matrix in a.values():
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
        b = {module: torch.zeros(linear.out_features, lora.rank) for module, linear in chosen.items()}
        sha256 = hashlib.sha256(b"".join(matrix.numpy().tobytes() for matrix in a.values())).hexdigest()
        drawn.append(
            AdapterWeights(name, lora.rank, lora.alpha, lora.alpha / lora.rank, sorted(set(lora.targets)), sha256, a, b)
        )
    return drawn


def _check_questions(questions: pd.DataFrame, config: MoeConfig) -> None:
    there = set(questions["expert"])
    if config.mode in TASK_LEVEL_MODES:
        missing = [name for name in config.experts if name not in there]
        if missing:
            raise ConfigError(
                f"{describe_source(config)}: no questions of the split {config.split!r} for {', '.join(missing)}, so "
                "the task-level router cannot learn when to choose it; plan a skill for it, leave it out, or use mode "
                "token."
            )
        if config.of == "meta-question" and questions["meta_question"].isna().any():
            count = int(questions["meta_question"].isna().sum())
            raise ConfigError(f"{count} questions of the plan have no meta-question; build them with `meta-questions`.")
    if config.mode == "phatgoose" and (missing := sorted(set(config.experts) - there)):
        raise ConfigError(
            f"{describe_source(config)}: no questions of the split {config.split!r} of {', '.join(missing)}, so its "
            "gate cannot learn; add questions that it was trained on, or leave it out."
        )
    if config.learns_by_gradients and there <= {BASE_EXPERT}:
        raise ConfigError(
            f"{describe_source(config)}: no questions of the split {config.split!r} for these experts, so nothing can "
            "be trained; choose other questions or another split, or train none."
        )


def _train(
    mixture: "Mixture",
    loaded: "LoadedBase",
    questions: pd.DataFrame,
    fitted: FittedRouter | None,
    config: MoeConfig,
    context: Context,
) -> "TrainingResult":
    """Train gates (and experts) on the questions that go to an expert; those left to the base model teach nothing."""
    from metamoe_backend.train.loop import run_training

    chosen, routes = _choose_questions(questions, fitted, config)
    examples = make_question_examples(loaded.tokenizer, chosen, config.optim.max_tokens)
    guides = make_owners(chosen, config.experts) if config.mode in OWNER_MODES else routes
    if guides is not None:
        examples = [replace(example, extra=guide) for example, guide in zip(examples, guides, strict=True)]
    train, held = hold_back(len(examples), config.optim.eval_share, config.optim.seed)
    batch_mask: dict[str, Any] = {}
    set_guides = mixture.set_owners if config.mode in OWNER_MODES else mixture.set_routes

    def before_forward(batch: dict[str, Any]) -> None:
        set_guides(batch.get("extra"))
        batch_mask["real"] = batch["real"]

    def compute_balance() -> Any:
        return config.balance * mixture.compute_balance_loss(batch_mask["real"])

    mixture.unfreeze(experts=config.train == "router+experts")
    return run_training(
        loaded.model,
        [examples[index] for index in train],
        [examples[index] for index in held],
        config.optim,
        context,
        device=loaded.device,
        pad_token=loaded.tokenizer.pad_token_id,
        processes=config.processes,
        before_forward=before_forward,
        auxiliary_loss=compute_balance if config.balance > 0 and config.mode in LEARNT_GATE_MODES else None,
    )


def make_owners(questions: pd.DataFrame, experts: Sequence[str]) -> np.ndarray:
    """[questions, experts], float32: 1 for the expert that a question belongs to; one half each where none is known."""
    owners = questions["expert"].to_numpy()[:, None] == np.array(experts, dtype=object)[None, :]
    unknown = ~owners.any(axis=1, keepdims=True)
    return np.where(unknown, 0.5, owners).astype(np.float32)


def _choose_questions(
    questions: pd.DataFrame, fitted: FittedRouter | None, config: MoeConfig
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The questions to train on, and the task level's out-of-fold word on each [questions, routes].

    Left out: what the plan leaves to the base model, and what the task level would send there: no gate is open then.
    """
    useful = (questions["expert"] != BASE_EXPERT).to_numpy()
    if config.mode == "phatgoose":
        useful = questions["expert"].isin(config.experts).to_numpy()
    if fitted is not None and BASE_EXPERT in fitted.router.names:
        useful = useful & (fitted.unseen.argmax(axis=1) != len(config.experts))
    chosen = questions.assign(_row=np.arange(len(questions)))[useful]
    chosen = balanced_sample(chosen, config.limit, config.optim.seed)
    return chosen, None if fitted is None else fitted.unseen[chosen["_row"].to_numpy()]


def _publish(
    mixture: "Mixture",
    adapters: Sequence[AdapterWeights],
    fitted: FittedRouter | None,
    name: str,
    config: MoeConfig,
    context: Context,
) -> tuple[str, str]:
    """Put the mixture under mixtures/; returns the name it got (see `publish_folder`) and its SHA-256."""
    import torch

    spec = MixtureSpec(
        **asdict(mixture.settings), base=config.base,
        experts=[ExpertEntry(name=adapter.name, sha256=adapter.sha256) for adapter in adapters],
        encoder=config.encoder if fitted else None, of=config.of if fitted else None,
    )  # fmt: skip
    trained = None
    if config.train == "router+experts":
        trained = [mixture.get_expert(index, getattr(torch, config.optim.dtype)) for index in range(len(adapters))]
    gates = mixture.get_gate_weights()
    router = fitted.router if fitted else None
    folder = Workspace(context.workspace_root).mixtures
    sha256 = ""

    def write(written: Path) -> None:
        nonlocal sha256
        sha256 = write_mixture(written, spec, gates, router, trained)

    published = publish_folder(context, folder, name, write)
    mixture.detach()
    return published, sha256


def _emit(
    name: str,
    sha256: str,
    fitted: FittedRouter | None,
    result: "TrainingResult | None",
    config: MoeConfig,
    context: Context,
) -> None:
    folder = Workspace(context.workspace_root).mixtures / name
    system = {
        "system": name, "kind": "moe", "base": config.base,
        "path": folder.relative_to(context.workspace_root).as_posix(), "experts": list(config.experts),
        "settings": config.model_dump_json(), "sha256": sha256, "created_at": context.created_at,
    }  # fmt: skip
    context.emit("system", pd.DataFrame([system]))
    if fitted is not None and fitted.accuracy is not None:
        values = {"route_accuracy": fitted.accuracy, "route_log_loss": fitted.log_loss}
        rows = pd.DataFrame({"step": 0, "name": list(values), "value": list(values.values())})
        context.emit("metric", rows)
    if result is not None:
        context.emit("metric", result.metrics)
    what = (
        "nothing trained by gradients" if result is None else f"{result.steps:,} steps, {result.tokens:,} tokens read"
    )
    context.log(f"Mixture {name}: {', '.join(config.experts)}; {what}.")
