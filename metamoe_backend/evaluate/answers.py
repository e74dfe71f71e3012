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
    twice = _find_twice(predictions)
    if twice.empty:
        return
    task = twice["task"].iloc[0]
    found = " and ".join(twice.loc[twice["task"] == task, "way"])
    raise ConfigError(f"Task {task!r} was scored as {found}; choose one of them, their numbers cannot be compared.")


def _find_twice(predictions: pd.DataFrame) -> pd.DataFrame:
    """task and way ("choices 0-shot") of the tasks that were scored in more than one way."""
    ways = predictions[["task", "regime", "n_shot"]].drop_duplicates().sort_values(["task", "regime", "n_shot"])
    ways = ways.assign(way=_name_ways(ways))
    return ways.loc[ways["task"].duplicated(keep=False), ["task", "way"]]


def _name_ways(predictions: pd.DataFrame) -> pd.Series:
    return predictions["regime"].astype(str) + " " + predictions["n_shot"].astype(str) + "-shot"


def list_ways(predictions: pd.DataFrame) -> list[str]:
    """The ways between which one has to choose: those of tasks that were scored in more than one."""
    return sorted(_find_twice(predictions)["way"].unique())


def choose_way(predictions: pd.DataFrame, way: str) -> pd.DataFrame:
    """Of tasks that were scored in several ways, the answers of this one; all of the others.

    Raises `NotFoundError` for a way in which none of them was scored.
    """
    ways = list_ways(predictions)
    if ways and way not in ways:
        raise NotFoundError(f"Nothing was scored as {way!r} here; there are {', '.join(ways)}.")
    several = predictions["task"].isin(_find_twice(predictions)["task"])
    return predictions[~several | _name_ways(predictions).eq(way)]


def choose_commonest_way(predictions: pd.DataFrame) -> pd.DataFrame:
    """Of each task the answers of the way with most of them: for a summary beside which nobody can choose."""
    if _find_twice(predictions).empty:
        return predictions
    ways = _name_ways(predictions)
    commonest = ways.groupby(predictions["task"]).transform(lambda of_task: of_task.mode().iloc[0])
    return predictions[ways.eq(commonest)]


def find_regimes(predictions: pd.DataFrame) -> list[str]:
    """The ways of scoring in `predictions`: figures over tasks of more than one must say which they pool."""
    return sorted(predictions["regime"].unique())


def find_cut(predictions: pd.DataFrame) -> pd.DataFrame:
    """Tasks with answers to questions that were longer than the model reads: task, cut (questions), n (all questions of
    the task), systems (list), most_tokens (cut from one of them)."""
    found = []
    cut = predictions[predictions["cut_tokens"].fillna(0) > 0]
    for task, rows in cut.groupby("task"):
        n = predictions.loc[predictions["task"] == task, "question_id"].nunique()
        systems = sorted(rows["system"].unique())
        found.append((task, rows["question_id"].nunique(), n, systems, int(rows["cut_tokens"].max())))
    return pd.DataFrame(found, columns=["task", "cut", "n", "systems", "most_tokens"])


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
    order = list(dict.fromkeys(systems if systems is not None else predictions["system"]))
    table = pivot_answers(predictions, value)[order].dropna()
    return table.astype(bool) if value == "correct" else table


def pivot_answers(predictions: pd.DataFrame, value: str = "correct") -> pd.DataFrame:
    """`value` of each question (index: task, question_id) under each system (columns); NaN where it gave no answer.

    Raises `ConfigError` where a system answered a question twice.
    """
    again = predictions[predictions.duplicated(["system", "question_id"])]
    if not again.empty:
        first = again.iloc[0]
        raise ConfigError(
            f"System {first['system']!r} answered question {first['question_id']} more than once; "
            "choose one run (or the newest answers) before comparing."
        )
    table = predictions.pivot(index=["task", "question_id"], columns="system", values=value)
    table.columns.name = None
    return table
