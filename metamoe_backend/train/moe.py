"""Stage "moe": join experts of the bank in a mixture, teach its routers, and publish it under mixtures/."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import BASE_EXPERT, MoeConfig
from metamoe_backend.embed import hash_text, load_encoder
from metamoe_backend.errors import ConfigError
from metamoe_backend.experts.bank import fetch_taken_names, find_free_name, publish_folder, read_banked
from metamoe_backend.models.adapters import AdapterWeights
from metamoe_backend.models.mixtures import ExpertEntry, MixtureSpec, write_mixture
from metamoe_backend.models.routers import FittedRouter, fit_task_router
from metamoe_backend.stage import Context, Inputs
from metamoe_backend.train.examples import hold_back
from metamoe_backend.train.expert import make_question_examples
from metamoe_backend.train.sampling import balanced_sample
from metamoe_backend.train.sources import describe_source, fetch_training_rows
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from metamoe_backend.models.base import LoadedBase
    from metamoe_backend.models.lora_moe import Mixture
    from metamoe_backend.store.connection import Store
    from metamoe_backend.train.loop import TrainingResult

TASK_LEVEL = ("task", "two-level")
TOKEN_LEVEL = ("token", "two-level")


def prepare(store: "Store", config: MoeConfig) -> Inputs:
    """The experts, the questions that teach the routers, and the vectors there are of them.

    `questions` has the columns `sources.COLUMNS`, `expert` being the member of the mixture (or `base`) that each should
    go to, NULL without a plan;
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
    adapters = fetch_adapters(store, config.experts)
    for row in adapters.itertuples():
        if row.base != config.base:
            raise ConfigError(
                f"Expert {row.adapter!r} was made on the base model {row.base!r}, the mixture is to stand on "
                f"{config.base!r}; choose experts of one base."
            )
    questions = assign_experts(fetch_training_rows(store, config), adapters, config)
    _check_questions(questions, config)
    ids = questions["question_id"].tolist() if config.mode in TASK_LEVEL else []
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
    Without a plan nothing is said of where a question should go, and every one teaches the token gates.
    """
    if config.plan is None:
        return questions
    by_skill: dict[str, str] = {}
    for adapter, skills in zip(adapters["adapter"], adapters["skills"], strict=True):
        for skill in skills:
            by_skill.setdefault(skill, adapter)

    def find_member(expert: str, skill: str) -> str | None:
        if expert == BASE_EXPERT:
            return BASE_EXPERT if config.no_expert and config.mode in TASK_LEVEL else None
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
    fitted = _fit_router(questions, inputs["vectors"], config, context) if config.mode in TASK_LEVEL else None
    loaded = load_base(config.base, config.device, config.optim.dtype)
    adapters = read_banked(inputs["adapters"], loaded, context.workspace_root)
    settings = GateSettings(config.mode, config.top_k, config.prior_strength, config.task_top_m, config.granularity)
    mixture = attach_experts(loaded.model, adapters, settings)
    if config.mode == "token":
        # Equal scores would choose the first k experts for every token. With a task level, equal scores are the best
        # start: the mixture then routes exactly as the task level does.
        mixture.draw_gate_weights(config.optim.seed)
    result = _train(mixture, loaded, questions, fitted, config, context) if _learns(config) else None
    name, sha256 = _publish(mixture, adapters, fitted, inputs["target"]["mixture"].iloc[0], config, context)
    _emit(name, sha256, fitted, result, config, context)
    if result is None:
        context.progress(1, 1)
    elif result.stop:
        raise result.stop


def _learns(config: MoeConfig) -> bool:
    """Whether anything learns by gradients: token gates, or the experts."""
    return config.train == "router+experts" or (config.train == "router" and config.mode in TOKEN_LEVEL)


def _check_questions(questions: pd.DataFrame, config: MoeConfig) -> None:
    there = set(questions["expert"])
    if config.mode in TASK_LEVEL:
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
    if _learns(config) and there <= {BASE_EXPERT}:
        raise ConfigError(
            f"{describe_source(config)}: no questions of the split {config.split!r} for these experts, so nothing can "
            "be trained; choose other questions or another split, or train none."
        )


def _fit_router(questions: pd.DataFrame, vectors: pd.DataFrame, config: MoeConfig, context: Context) -> FittedRouter:
    names = [*config.experts, *([BASE_EXPERT] if BASE_EXPERT in set(questions["expert"]) else [])]
    matrix = _collect_vectors(questions, vectors, config, context)
    fitted = fit_task_router(matrix, questions["expert"].tolist(), names, config.optim.seed)
    how = "" if fitted.accuracy is None else f"; right on {fitted.accuracy:.1%} of questions it had not seen"
    context.log(f"Task-level router: {len(questions):,} questions, {len(names)} ways{how}.")
    return fitted


def _collect_vectors(questions: pd.DataFrame, vectors: pd.DataFrame, config: MoeConfig, context: Context) -> np.ndarray:
    """[questions, dimension], float32: the stored vector where it is of the present text, else a new one."""
    texts = questions["prompt" if config.of == "question" else "meta_question"].tolist()
    keys = zip(vectors["question_id"], vectors["text_hash"], strict=True)
    stored = dict(zip(keys, vectors["vector"], strict=True))
    found = [stored.get((name, hash_text(text))) for name, text in zip(questions["question_id"], texts, strict=True)]
    missing = [index for index, vector in enumerate(found) if vector is None]
    if missing:
        context.log(f"Embedding {len(missing):,} questions that {config.encoder} has not embedded yet.")
        for index, vector in zip(
            missing, load_encoder(config.encoder).encode([texts[i] for i in missing]), strict=True
        ):
            found[index] = vector
    return np.stack([np.asarray(vector, dtype=np.float32) for vector in found])


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
    if routes is not None:
        examples = [replace(example, extra=route) for example, route in zip(examples, routes, strict=True)]
    train, held = hold_back(len(examples), config.optim.eval_share, config.optim.seed)
    batch_mask: dict[str, Any] = {}

    def before_forward(batch: dict[str, Any]) -> None:
        mixture.set_routes(batch.get("extra"))
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
        before_forward=before_forward,
        auxiliary_loss=compute_balance if config.balance > 0 and config.mode in TOKEN_LEVEL else None,
    )


def _choose_questions(
    questions: pd.DataFrame, fitted: FittedRouter | None, config: MoeConfig
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The questions to train on, and the task level's out-of-fold word on each [questions, routes].

    Left out: what the plan leaves to the base model, and what the task level would send there: no gate is open then.
    """
    useful = (questions["expert"] != BASE_EXPERT).to_numpy()
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
        base=config.base, experts=[ExpertEntry(name=adapter.name, sha256=adapter.sha256) for adapter in adapters],
        mode=config.mode, top_k=config.top_k, prior_strength=config.prior_strength, task_top_m=config.task_top_m,
        granularity=config.granularity, encoder=config.encoder if fitted else None, of=config.of if fitted else None,
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

    published = publish_folder(folder, name, context.run_id, write)
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
