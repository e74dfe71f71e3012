"""Stage "train": one LoRA adapter, for an expert's questions, or for those of all experts together (mixed)."""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from metamoe_backend.config import BASE_EXPERT, LoraSettings, TrainConfig
from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.experts.bank import (
    emit_adapter,
    fetch_taken_names,
    find_free_name,
    publish_adapter,
    publish_folder,
    read_banked,
)
from metamoe_backend.models.adapters import AdapterWeights
from metamoe_backend.models.baselines import (
    add_subspaces,
    choose_places,
    expand_blocks,
    extract_subspaces,
    find_places,
    write_blocks,
)
from metamoe_backend.stage import Context, Inputs
from metamoe_backend.train.examples import Example, hold_back, make_examples, make_prompt
from metamoe_backend.train.loop import run_training
from metamoe_backend.train.sampling import balanced_sample, take_part
from metamoe_backend.train.sources import describe_source, fetch_training_rows
from metamoe_backend.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from metamoe_backend.models.base import LoadedBase
    from metamoe_backend.store.connection import Store


def prepare(store: "Store", config: TrainConfig) -> Inputs:
    """The questions to train on, and the name the adapter will have.

    `questions` has one row a question (columns `sources.COLUMNS`); `target` one row with the column adapter; `start` is
    rows.Adapter, one row where an adapter is trained further, else none. Raises `NotFoundError` for an unknown plan,
    task, data selection, expert or adapter, `ConfigError` when there is nothing to train on or the adapter to start
    from has another shape.
    """
    from metamoe_backend.store.experts import fetch_adapters

    if config.name == BASE_EXPERT:
        raise ConfigError("The name 'base' means no adapter, so it cannot be trained; name another expert.")
    questions = _fetch_questions(store, config)
    part = take_part(questions, config.part_from, config.part_to, config.optim.seed)
    if part.empty:
        raise ConfigError(
            f"No question lies between the shares {config.part_from} and {config.part_to} of the training questions; "
            "move part_from and part_to apart."
        )
    start = fetch_adapters(store, [] if config.start_from is None else [config.start_from])
    for row in start.itertuples():
        _check_start(row, config)
    return {
        "questions": balanced_sample(part, config.limit, config.optim.seed),
        "target": pd.DataFrame({"adapter": [find_free_name(config.name, fetch_taken_names(store))]}),
        "start": start,
    }


def _fetch_questions(store: "Store", config: TrainConfig) -> pd.DataFrame:
    """The questions that the adapter is to learn: of a plan, an expert's own (mixed: all experts'), else all."""
    from metamoe_backend.store.experts import fetch_plan_entries

    questions, who = fetch_training_rows(store, config), ""
    if config.plan is not None:
        experts = sorted(set(fetch_plan_entries(store, config.plan)["expert"]) - {BASE_EXPERT})
        if config.kind == "expert" and config.name not in experts:
            there = ", ".join(experts) or "none but base"
            raise NotFoundError(f"Expert {config.name!r} is not in plan {config.plan!r} (it has: {there}).")
        questions = questions[questions["expert"].isin([config.name] if config.kind == "expert" else experts)]
        who = f" for expert {config.name!r}" if config.kind == "expert" else " for any expert"
    if questions.empty:
        remedy = "ingest some with `ingest … --split`, or choose another split"
        if config.plan is not None:
            remedy = (
                "label questions of that split, freeze the labelling and save the plan again, or choose another split"
            )
        raise ConfigError(f"{describe_source(config)}: no questions{who} in the split {config.split!r}; {remedy}.")
    return questions


def _check_start(adapter: Any, config: TrainConfig) -> None:
    """Raise `ConfigError` unless an adapter (a row of the bank) has the base and the shape that are to be trained."""
    own = (config.base, config.lora.rank, config.lora.alpha, sorted(set(config.lora.targets)))
    found = (adapter.base, adapter.rank, adapter.alpha, sorted(adapter.targets))
    if own != found:
        raise ConfigError(
            f"start_from: adapter {adapter.adapter!r} has base {adapter.base}, rank {adapter.rank}, alpha "
            f"{adapter.alpha:g} and targets {', '.join(found[3])}; set base and lora to the same, or start afresh."
        )


def compute(inputs: Inputs, config: TrainConfig, context: Context) -> None:
    """Train and publish the adapter (or the new blocks); emits adapter, system and metric rows.

    A stop-and-save publishes it as trained so far and raises `StopRequested`; a cancel publishes nothing.
    Raises `ConfigError` when a target names no linear module of the base, or the loss becomes NaN.
    """
    from metamoe_backend.models.base import load_base

    questions = inputs["questions"]
    base = load_base(config.base, config.device, config.optim.dtype, config.lora.four_bit)
    examples = make_question_examples(base.tokenizer, questions, config.optim.max_tokens)
    train, held = hold_back(len(examples), config.optim.eval_share, config.optim.seed)
    begun = read_banked(inputs["start"], base, context.workspace_root)
    model, made = _prepare_model(base, config)
    for weights in begun:
        load_weights(model, weights)
        context.log(f"Starting from adapter {config.start_from}.")
    result = run_training(
        model,
        [examples[index] for index in train],
        [examples[index] for index in held],
        config.optim,
        context,
        device=base.device,
        pad_token=base.tokenizer.pad_token_id,
        processes=config.processes,
    )
    name = inputs["target"]["adapter"].iloc[0]
    name = _publish_blocks(name, made, config, context) if made else _publish(name, model, questions, config, context)
    context.emit("metric", result.metrics)
    context.log(f"System {name}: {result.steps:,} steps, {result.tokens:,} tokens read.")
    if result.stop:
        raise result.stop


def _prepare_model(base: "LoadedBase", config: TrainConfig) -> "tuple[Any, list[nn.Module]]":
    """The model with what `config.method` trains, and the new blocks where it is made of these."""
    if config.method == "expansion":
        places = choose_places(len(base.model.get_decoder().layers), config.blocks)
        return base.model, expand_blocks(base.model, places)
    if config.method == "osf":
        check_targets(base.model, config.lora)
        return add_subspaces(base.model, config.lora, config.optim.seed), []
    return add_lora(base.model, config.lora, config.optim.seed), []


def _publish(name: str, model: Any, questions: pd.DataFrame, config: TrainConfig, context: Context) -> str:
    extract = extract_subspaces if config.method == "osf" else extract_adapter
    trained = extract(model, config.lora, config.lora.save_dtype)
    name = publish_adapter(context, name, trained, config.base)
    emit_adapter(
        context, name, trained, config.base, source="trained",
        kind=config.kind if config.method == "lora" else "baseline", plan=config.plan,
        skills=sorted(questions["skill"].dropna().unique()), trained_on=sorted(questions["task"].unique()),
        settings=config.model_dump_json(),
    )  # fmt: skip
    return name


def _publish_blocks(name: str, made: "list[nn.Module]", config: TrainConfig, context: Context) -> str:
    """Publish a base model's new blocks as a system; returns the name it got."""
    folder = Workspace(context.workspace_root).expanded
    hashes: list[str] = []

    def write(written: Path) -> None:
        hashes.append(write_blocks(written, config.base, find_places(made), made))

    name = publish_folder(context, folder, name, write)
    system = {
        "system": name, "kind": "baseline", "base": config.base,
        "path": (folder / name).relative_to(context.workspace_root).as_posix(), "experts": [],
        "settings": config.model_dump_json(), "sha256": hashes[0], "created_at": context.created_at,
    }  # fmt: skip
    context.emit("system", pd.DataFrame([system]))
    return name


def make_question_examples(tokenizer: Any, questions: pd.DataFrame, max_tokens: int) -> list[Example]:
    """Examples of questions (columns template, prompt, answer), in their order."""
    prompts = [make_prompt(*texts) for texts in zip(questions["template"], questions["prompt"], strict=True)]
    return make_examples(tokenizer, prompts, questions["answer"].tolist(), max_tokens)


def add_lora(model: "nn.Module", lora: LoraSettings, seed: int) -> Any:
    """The model with a fresh LoRA adapter on every target module, which alone is trained (PEFT's model).

    Raises `ConfigError` for a target that is no linear module of the model.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
    )
    torch.manual_seed(seed % 2**32)
    with warnings.catch_warnings():
        # PEFT asks transformers under a name that is going away: nothing for a run's log.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)  # type: ignore[arg-type]


def check_targets(model: Any, lora: LoraSettings) -> None:
    """Raise `ConfigError` for a target that is no linear module of the model."""
    known = list_linear_modules(model)
    if unknown := [target for target in lora.targets if target not in known]:
        raise ConfigError(
            f"lora.targets: {', '.join(unknown)} matches no linear module of the base model; choose among "
            f"{', '.join(known)}."
        )


def load_weights(model: Any, weights: AdapterWeights) -> None:
    """Put an adapter's matrices into PEFT's model, which must have the same rank, scale and targets."""
    from peft import set_peft_model_state_dict

    if not math.isclose(weights.scale, weights.alpha / weights.rank):
        raise ConfigError(
            f"start_from: adapter {weights.name!r} is scaled by alpha / sqrt(r) (rsLoRA), which is not trained further "
            "here; choose another one."
        )
    tensors = {
        f"base_model.model.{module}.lora_{letter}.weight": matrix.float()
        for letter, matrices in (("A", weights.a), ("B", weights.b))
        for module, matrix in matrices.items()
    }
    if set_peft_model_state_dict(model, tensors).unexpected_keys:  # type: ignore[attr-defined]
        raise ConfigError(f"start_from: adapter {weights.name!r} adapts modules that lora.targets leaves out.")


def list_linear_modules(model: Any) -> list[str]:
    """Last parts of the names of a model's linear modules, the output head left out, in order of first use."""
    from torch import nn

    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def extract_adapter(model: Any, lora: LoraSettings, dtype: str) -> AdapterWeights:
    """The trained matrices of PEFT's model, as numbers of `dtype` on the CPU."""
    import torch
    from peft import get_peft_model_state_dict

    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    for key, values in get_peft_model_state_dict(model).items():
        module, _, matrix = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        (a if matrix == "A" else b)[module] = values.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return AdapterWeights(
        name="", rank=lora.rank, alpha=lora.alpha, scale=lora.alpha / lora.rank, targets=sorted(set(lora.targets)),
        sha256="", a=a, b=b,
    )  # fmt: skip
