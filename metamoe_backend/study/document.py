"""A study as Markdown, ready for the documentation: what was asked, by which command, what came out."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from metamoe_backend.config import StudyConfig
from metamoe_backend.study.progress import Look
from metamoe_backend.study.recipe import SYSTEMS
from metamoe_backend.study.results import Results
from metamoe_backend.study.studies import Study
from metamoe_backend.study.table import ALL

NAMES = {
    "base": "base model",
    "random": "random expert (mean over the bank)",
    "best-on-test": "best expert on the test questions ‡",
    "full": "expert on the target's full train questions",
    "best": "best expert by the K shots",
    "tuned": "that expert tuned on K shots + selected data",
    "mixed": "mixed data, tuned on the same",
    "uniform": "uniform mixture of the N chosen",
    "arrow": "Arrow over the N chosen",
    "token": "token top-k of the N chosen, trained on the same",
    "two-level": "two-level over the N chosen",
}
"""The rows of the table, in words."""


def write_document(study: Study, look: Look, results: Results) -> str:
    """The whole page. Sizes, dates and commands stand in it; a study that is not done says what is missing."""
    config = study.config
    parts = [
        f"# Study {config.name}",
        _describe(study, look, results),
        "## Again",
        f"```\n{make_command(config)}\n```",
        "The command makes the study, or lets it go on where it stopped; nothing runs twice.",
        "## What was compared",
        _explain(config, results),
        "## Accuracy",
        "Percent on held-out questions, 95 % Wilson interval (of the random expert: lowest to highest of the bank). "
        "Differences in points: paired bootstrap interval, p by exact McNemar.",
        *_per_target(results.compared, [*config.targets, ALL], _accuracy_table, "Nothing has been evaluated yet."),
        "‡ chosen on the test questions themselves: the paper's way, not a result. † an expert in it was trained on "
        "the target's own train questions.",
        "## Forgetting: the other targets",
        "What each target's systems do on the other targets' questions, against the base model and against mixed data. "
        f"Under {ALL} a question's score is the mean over the targets whose system was asked it (bootstrap interval).",
        *_per_target(results.forgetting, [*config.targets, ALL], _forgetting_table, "Needs two targets or more."),
        *_ablations(config, results),
        "## What this does and does not show",
        "Every number is an accuracy at n questions of one seed; an interval that holds 0 shows no difference. The "
        "numbers of the paper (arXiv 2408.15915) come from other models and tasks: only the order of the systems can "
        "be compared with it, not the levels.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def make_command(config: StudyConfig) -> str:
    """The command that asks for the same study; what the workspace would settle by itself is left out."""
    words = ["python", "-m", "metamoe_backend", "study", config.name, "--target", *config.targets]
    plain = StudyConfig(name=config.name, targets=config.targets).model_dump(mode="json")
    for key, value in _flatten(config.model_dump(mode="json"), plain):
        if key not in ("bank", "pool_tasks", "mixed_limit", "plan"):
            text = value if isinstance(value, str) else _as_json(value)
            words += ["--set", f"{key}={text}"]
    return shlex.join([*words, "--wait"])


def _flatten(values: dict[str, Any], plain: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of the settings that are not as they would be."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flatten(value, plain[name], f"{prefix}{name}.")
        elif value != plain[name]:
            # A path says something about a machine and nothing to others.
            found.append((prefix + name, Path(value).name if name == "base" and Path(value).is_dir() else value))
    return found


def _as_json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _describe(study: Study, look: Look, results: Results) -> str:
    config, ended = study.config, results.ended_at
    base = Path(config.base).name if Path(config.base).is_dir() else config.base
    done = f"{look.done} of {len(look.own)} runs finished"
    when = f"asked for on {study.created_at:%Y-%m-%d}" + (f", newest run of {ended:%Y-%m-%d}" if ended else "")
    reads = config.k + config.budget
    return (
        f"Base model {base}; a bank of {len(config.bank)} experts; targets {', '.join(config.targets)}; "
        f"{done} ({results.seconds / 60:.0f} minutes of runs), {when}.\n\n"
        f"K = {config.k} shots ({config.draws} draws averaged), shortlist M = {config.shortlist}, N = {config.experts} "
        f"experts, k = {config.top_k} per token; {config.budget} rows selected from the train questions of "
        f"{len(config.pool_tasks)} tasks, tau = {config.tau:g}. Each training reads {reads} rows for "
        f"{f'{config.optim.steps} steps' if config.optim.steps else f'{config.optim.epochs:g} epochs'} at a learning "
        f"rate of {config.optim.learning_rate:g}, batches of {config.optim.batch_size}; LoRA rank {config.lora.rank} "
        f"on {', '.join(config.lora.targets)}; seed {config.seed}."
    )


def _explain(config: StudyConfig, results: Results) -> str:
    two_level = (
        f"The two-level mixture learns its routers from {config.k + config.budget} questions of the chosen experts "
        f"under plan `{config.plan}`, for only a plan says which question goes where; its experts stay as they are."
        if config.plan
        else "There is no two-level mixture: no plan covers the bank, and without one nothing says which question goes "
        "where."
    )
    read = f"{config.mixed_limit} questions" if config.mixed_limit else "all questions"
    mixed = (
        f"Mixed data is one adapter with the parameters of {config.experts} experts that first reads {read} of the "
        "pool tasks, as many as that many experts read, and then the same K shots and selected rows as the tuned "
        "expert and the token mixture."
    )
    own = "" if config.own_experts else " Experts trained on a target's own train questions were left out for it."
    chosen = "\n".join(f"- {task}: {', '.join(names)}" for task, names in results.chosen.items())
    return f"{mixed} {two_level}{own}\n\nChosen by the K shots:\n\n{chosen or 'not yet'}"


def _per_target(
    frame: pd.DataFrame, targets: Sequence[str], make: Callable[[pd.DataFrame], str], otherwise: str
) -> list[str]:
    if frame.empty:
        return [otherwise]
    there = [target for target in targets if (frame["target"] == target).any()]
    return [f"### {target}\n\n{make(frame[frame['target'] == target])}" for target in there]


def _accuracy_table(frame: pd.DataFrame) -> str:
    head = ["system", "accuracy", "n", "against the tuned expert", "p", "against mixed data", "p"]
    return _table(head, [[_name(row), _level(row), row["n"], *_versus(row, "tuned"), *_versus(row, "mixed")]
                         for row in _in_order(frame)])  # fmt: skip


def _forgetting_table(frame: pd.DataFrame) -> str:
    head = ["system", "accuracy", "n", "against base", "p", "against mixed data", "p"]
    return _table(head, [[_name(row), _level(row), row["n"], *_versus(row, "base"), *_versus(row, "mixed")]
                         for row in _in_order(frame)])  # fmt: skip


def _ablations(config: StudyConfig, results: Results) -> list[str]:
    if not config.ablations:
        return []
    head = ["varied", "accuracy", "n", "against the study's own choice", "p"]

    def make(frame: pd.DataFrame) -> str:
        rows = frame[frame["system"] != "token"].to_dict("records")
        return _table(head, [[row["system"], _level(row), row["n"], *_versus(row, "token")] for row in rows])

    text = "Token top-k with one choice made otherwise. Rows of the same content as the study's own choice are it."
    frame = results.ablations
    return ["## Ablations", text, *_per_target(frame, config.ablations, make, "Nothing has been evaluated yet.")]


def _in_order(frame: pd.DataFrame) -> list[dict[str, Any]]:
    order = {system: place for place, system in enumerate(SYSTEMS)}
    return frame.sort_values("system", key=lambda column: column.map(order)).to_dict("records")  # type: ignore[return-value]


def _name(row: dict[str, Any]) -> str:
    return NAMES[row["system"]] + (" †" if "own" in str(row.get("note", "")).split() else "")


def _level(row: dict[str, Any]) -> str:
    low, high = ("low", "high") if pd.notna(row["low"]) else ("least", "greatest")
    return f"{100 * row['accuracy']:.1f} ({100 * row[low]:.1f} to {100 * row[high]:.1f})"


def _versus(row: dict[str, Any], reference: str) -> list[str]:
    difference, low, high = (row[f"{reference}_{what}"] for what in ("difference", "low", "high"))
    if pd.isna(difference):
        return ["–", "–"]
    p = row[f"{reference}_p"]
    return [f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})", "–" if pd.isna(p) else f"{p:.3f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines)
