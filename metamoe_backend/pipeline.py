"""The pipeline, top to bottom: each stage, what it reads, what it writes.

    ingest -> meta-questions -> embed -> cluster -> (people label) -> suggest -> freeze -> (people plan)
           -> import | train -> select, select-data -> moe -> evaluate | force -> (people review)

People's acts (skills, labels, edits, plans, reviews) are events, not stages: see `store.events`.
Modules are imported when a stage runs, so that listing the stages costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metamoe_backend.config import (
    ClusterConfig,
    EmbedConfig,
    EvaluateConfig,
    ForceConfig,
    FreezeConfig,
    ImportAdapterConfig,
    IngestConfig,
    MetaQuestionConfig,
    MoeConfig,
    SelectConfig,
    SelectDataConfig,
    SequenceConfig,
    StageConfig,
    SuggestConfig,
    TrainConfig,
)
from metamoe_backend.stage import Context, Inputs, Stage

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store


def _stage(
    name: str,
    config: type[StageConfig],
    module: str,
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    can_be_cut: bool = False,
) -> tuple[str, Stage]:
    def prepare(store: "Store", values: Any) -> Inputs:
        return import_module(f"metamoe_backend.{module}").prepare(store, values)

    def compute(inputs: Inputs, values: Any, context: Context) -> None:
        import_module(f"metamoe_backend.{module}").compute(inputs, values, context)

    def cut(inputs: Inputs, values: Any, shards: int) -> list[Inputs]:
        return import_module(f"metamoe_backend.{module}").cut(inputs, values, shards)

    return name, Stage(name, config, reads, writes, prepare, compute, cut if can_be_cut else None)


STAGES: dict[str, Stage] = dict(
    [
        _stage("ingest", IngestConfig, "ingest.stage", ("a source",), ("task", "question", "rejected_row")),
        _stage("meta-questions", MetaQuestionConfig, "meta_questions", ("question",), ("meta_question",), True),
        _stage("embed", EmbedConfig, "embed", ("question", "meta_question"), ("embedding",), True),
        _stage("cluster", ClusterConfig, "mapping", ("embedding",), ("map", "map_point", "cluster")),
        _stage("suggest", SuggestConfig, "skills.suggest", ("embedding", "label"), ("suggestion",)),
        _stage("freeze", FreezeConfig, "skills.labelling", ("label", "suggestion"), ("labelling", "labelling_item")),
        _stage("import", ImportAdapterConfig, "experts.bank", ("a PEFT folder",), ("adapter", "system")),
        _stage(
            "select",
            SelectConfig,
            "experts.candidates",
            ("adapter", "question"),
            ("candidate_shot", "candidate", "candidate_pair"),
        ),
        _stage("select-data", SelectDataConfig, "experts.select_data", ("question", "a source"), ("selected_row",)),
        _stage("train", TrainConfig, "train.expert", ("plan", "question"), ("adapter", "system", "metric")),
        _stage("sequence", SequenceConfig, "train.sequence", ("plan", "question"), ("adapter", "system", "metric")),
        _stage("moe", MoeConfig, "train.moe", ("plan", "adapter", "embedding"), ("system", "metric")),
        _stage(
            "evaluate",
            EvaluateConfig,
            "evaluate.stage",
            ("system", "question"),
            ("prediction", "activation", "token_activation", "route", "system"),
            True,
        ),
        _stage("force", ForceConfig, "evaluate.counterfactual", ("system", "question"), ("counterfactual",)),
    ]
)
