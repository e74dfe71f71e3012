"""Predictions as one table of questions x systems, and the checks that keep unlike numbers apart."""

from collections.abc import Sequence

import pandas as pd

from metamoe_backend.errors import ConfigError, NotFoundError

ALL_TASKS = "all tasks"
"""Stands in the task column where tasks are pooled; no task can have this name, it has a space."""


def require_one_regime(predictions: pd.DataFrame) -> None:
    """Raise `ConfigError` where one task was scored in two ways: such numbers must not meet in one table.

    predictions: task, regime, n_shot.
    """
    ways = predictions[["task", "regime", "n_shot"]].drop_duplicates().sort_values(["task", "regime", "n_shot"])
    twice = ways[ways["task"].duplicated(keep=False)]
    if twice.empty:
        return
    task = twice["task"].iloc[0]
    found = " and ".join(f"{row.regime} {row.n_shot}-shot" for row in twice[twice["task"] == task].itertuples())
    raise ConfigError(f"Task {task!r} was scored as {found}; choose one of them, their numbers cannot be compared.")


def find_regimes(predictions: pd.DataFrame) -> list[str]:
    """The ways of scoring in `predictions`: figures over tasks of more than one must say which they pool."""
    return sorted(predictions["regime"].unique())


def require_systems(predictions: pd.DataFrame, systems: Sequence[str]) -> None:
    """Raise `NotFoundError` for the first of `systems` that answered nothing in `predictions`."""
    there = sorted(predictions["system"].unique())
    for system in systems:
        if system not in there:
            answered = ", ".join(there[:12]) or "none"
            raise NotFoundError(
                f"System {system!r} has no predictions here (there are: {answered}); evaluate it first."
            )


def compute_answer_table(
    predictions: pd.DataFrame, systems: Sequence[str] | None = None, value: str = "correct"
) -> pd.DataFrame:
    """`value` of each question (index: task, question_id) under each system (columns, in the order asked for).

    Only questions that all the systems answered are kept, so that every comparison is paired. Raises `NotFoundError`
    for a system without predictions, `ConfigError` where regimes are mixed or a system answered a question twice.
    """
    if systems is not None:
        require_systems(predictions, systems)
        predictions = predictions[predictions["system"].isin(list(systems))]
    require_one_regime(predictions)
    again = predictions[predictions.duplicated(["system", "question_id"])]
    if not again.empty:
        first = again.iloc[0]
        raise ConfigError(
            f"System {first['system']!r} answered question {first['question_id']} more than once; "
            "choose one run (or the newest answers) before comparing."
        )
    order = list(dict.fromkeys(systems if systems is not None else predictions["system"]))
    table = predictions.pivot(index=["task", "question_id"], columns="system", values=value)[order].dropna()
    table.columns.name = None
    return table.astype(bool) if value == "correct" else table
