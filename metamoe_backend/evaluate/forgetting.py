"""What was lost for what was gained: accuracy of each system on each task, against base and against the mixture.

Frames are predictions (rows.Prediction columns joined with question.task), one regime per task. The formulas of
sequential training are in METHODS section 3; `FORMULAS` is what a page prints beside each number.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.answers import (
    compute_answer_table,
    list_ways,
    pivot_answers,
    require_one_regime,
    require_systems,
)
from metamoe_backend.evaluate.intervals import adjust_holm, compare_pair, compute_wilson_interval

FORMULAS = {
    "ACC": "mean over j of R[T,j]",
    "BWT": "mean over j<T of (R[T,j] - R[j,j])",
    "FWT": "mean over j>=2 of (R[j-1,j] - b[j])",
    "F": "mean over j<T of (max over l<T of R[l,j], minus R[T,j])",
    "I": "mean over j of (R*[j] - R[j,j])",
}
"""R[i,j]: accuracy on task j after step i of T. b: base. R*: trained on the mixture of all tasks.

ACC, BWT, FWT: Lopez-Paz & Ranzato (2017), arXiv 1706.08840. F (forgetting), I (intransigence): Chaudhry et al.
(2018), arXiv 1801.10112. Other libraries average other cells under the same names, hence the formula beside a number.
"""


SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One adapter trained task after task (stage "sequence"), and kept after each step."""

    name: str
    replay: float
    steps: list[str]
    """The system after each step, in order."""
    labels: list[str]
    """What each step learned: an expert or a task."""
    tasks: list[list[str]]
    """The tasks of each step."""


def find_sequences(systems: pd.DataFrame) -> list[TrainingSequence]:
    """The sequences whose steps are all among `systems` (rows.System), newest first."""
    made: dict[str, list[tuple[str, dict]]] = {}
    for row in systems.sort_values("run_id", ascending=False).itertuples():
        settings = json.loads(str(row.settings))
        if "step" in settings:
            made.setdefault(str(row.run_id), []).append((str(row.system), settings))
    found = []
    for steps in made.values():
        steps.sort(key=lambda step: step[1]["step"])
        first = steps[0][1]
        if len(steps) == len(first["order"]):
            labels, tasks = [s["step_label"] for _, s in steps], [s["step_tasks"] for _, s in steps]
            found.append(TrainingSequence(first["name"], first["replay"], [name for name, _ in steps], labels, tasks))
    return found


def compute_sequence_accuracies(
    predictions: pd.DataFrame, sequence: TrainingSequence, others: Sequence[str] = ()
) -> pd.DataFrame:
    """Accuracy of the steps of a sequence, and of `others`, on what each step learned: R[i,j] in rows.

    Columns system, task (the step's label; a step's tasks are pooled), correct, n, accuracy, low, high (Wilson). Only
    questions that every one of these systems answered count. Raises `NotFoundError` where a step has none.
    """
    rows = []
    systems = [*sequence.steps, *others]
    for label, tasks in zip(sequence.labels, sequence.tasks, strict=True):
        part = predictions[predictions["task"].isin(tasks)]
        there = set(part["system"])
        missing = [name for name in systems if name not in there]
        if missing:
            raise NotFoundError(f"System {missing[0]!r} was not evaluated on {', '.join(tasks)}; evaluate it first.")
        solved = compute_answer_table(part, systems)
        rows += [(name, label, int(solved[name].sum()), len(solved)) for name in systems]
    frame = pd.DataFrame(rows, columns=["system", "task", "correct", "n"])
    frame["accuracy"] = frame["correct"] / frame["n"]
    frame["low"], frame["high"] = compute_wilson_interval(frame["correct"], frame["n"])
    return frame


def summarise_training_sequence(
    accuracies: pd.DataFrame, sequence: TrainingSequence, base: str = "base", mixed: str | None = None
) -> pd.DataFrame:
    """`summarise_sequence` of `compute_sequence_accuracies`; FWT and I where base and mixed are among the systems."""
    there = set(accuracies["system"])
    after = pivot_accuracies(accuracies, sequence.steps, sequence.labels)
    references = [
        pivot_accuracies(accuracies, [name], sequence.labels)[0] if name is not None and name in there else None
        for name in (base, mixed)
    ]
    return summarise_sequence(after, *references)


def find_baselines(systems: pd.DataFrame) -> list[str]:
    """The mixed-data baselines among `systems` (rows.System): adapters of all skills that no other one started from."""
    settings = [json.loads(text) for text in systems["settings"]]
    begun_from = {values.get("start_from") for values in settings}
    mixed = systems.loc[systems["kind"] == "mixed", "system"]
    return [name for name in mixed if name not in begun_from]


def find_own_tasks(systems: pd.DataFrame, adapters: pd.DataFrame, evaluated: Collection[str]) -> dict[str, list[str]]:
    """Expert to the tasks it learned, for `evaluated` experts whose training tasks are known.

    systems, adapters: rows.System, rows.Adapter.
    """
    experts = set(systems.loc[systems["kind"] == "expert", "system"]) & set(evaluated)
    return {
        str(row.adapter): list(row.trained_on)
        for row in adapters.itertuples()
        if row.adapter in experts and len(row.trained_on)
    }


def compute_accuracies(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each system on each task: system, task, regime, n_shot, correct, n, accuracy, low, high (Wilson).

    Raises `ConfigError` where regimes are mixed within a task.
    """
    require_one_regime(predictions)
    cells = predictions.groupby(["system", "task", "regime", "n_shot"], sort=False)["correct"].agg(["sum", "size"])
    frame = cells.rename(columns={"sum": "correct", "size": "n"}).astype(int).reset_index()
    frame["accuracy"] = frame["correct"] / frame["n"]
    frame["low"], frame["high"] = compute_wilson_interval(frame["correct"], frame["n"])
    return frame


def compare_systems(
    predictions: pd.DataFrame, pairs: Sequence[tuple[str, str]], group: str = "task", seed: int = 0
) -> pd.DataFrame:
    """Each (system, reference) of `pairs` on the questions both answered, one row per group.

    group: the column whose values are kept apart: task, or one the caller joined (a skill, own and other tasks).
    Columns: system, reference, `group`, n, accuracy, reference_accuracy, difference, low, high (paired bootstrap),
    gained, lost (questions only the one or only the other solved), p (exact McNemar), shown, regimes (ways of scoring
    pooled in the group).
    """
    if group not in predictions:
        raise ConfigError(f"The predictions have no column {group!r} to group by.")
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    require_systems(predictions, names)
    predictions = predictions[predictions["system"].isin(names)]
    if list_ways(predictions):  # of systems that no pair brings together, perhaps
        for pair in pairs:
            require_one_regime(predictions[predictions["system"].isin(pair)])
    kinds = predictions.drop_duplicates("question_id").set_index("question_id")[list({group, "regime"})]
    answers = pivot_answers(predictions)
    kinds = kinds.loc[answers.index.get_level_values("question_id")]
    solved = {name: answers[name].to_numpy(dtype=float) for name in names}  # 1, 0, or NaN: not answered
    rows, groups = [], _positions(kinds[group])
    for system, reference in pairs:
        paired = ~np.isnan(solved[system] + solved[reference])
        for value, positions in groups.items():
            kept = positions[paired[positions]]
            if not len(kept):
                continue
            regimes = ", ".join(sorted(kinds["regime"].iloc[kept].unique()))
            about_pair = {"system": system, "reference": reference, group: value, "regimes": regimes}
            rows.append(about_pair | compare_pair(solved[system][kept] == 1, solved[reference][kept] == 1, seed))
    columns = ["n", "accuracy", "reference_accuracy", "difference", "low", "high", "gained", "lost", "p", "shown"]
    return pd.DataFrame(rows, columns=["system", "reference", group, *columns, "regimes"])


def _positions(values: pd.Series) -> Mapping[str, NDArray[np.intp]]:
    return values.reset_index(drop=True).groupby(values.to_numpy()).indices  # type: ignore[return-value]


def compute_differences_to_base(
    predictions: pd.DataFrame, base: str = "base", group: str = "task", seed: int = 0
) -> pd.DataFrame:
    """`compare_systems` of every other system with `base`: the forgetting matrix, negative where something was lost.

    With p_holm (p corrected over all cells of this matrix) and significant (p_holm below `SIGNIFICANT`).
    """
    systems = [name for name in dict.fromkeys(predictions["system"]) if name != base]
    cells = compare_systems(predictions, [(system, base) for system in systems], group, seed)
    adjusted = adjust_holm(cells["p"])
    return cells.assign(p_holm=adjusted, significant=adjusted < SIGNIFICANT)


def find_changed(predictions: pd.DataFrame, system: str, task: str, base: str = "base") -> tuple[list[str], list[str]]:
    """Ids of the questions of `task` that `system` lost (only `base` solved them) and gained (only `system` did)."""
    solved = compute_answer_table(predictions[predictions["task"] == task], [system, base])
    ids = solved.index.get_level_values("question_id")
    return ids[solved[base] & ~solved[system]].tolist(), ids[solved[system] & ~solved[base]].tolist()


def compute_own_and_other(
    predictions: pd.DataFrame, own_tasks: Mapping[str, Sequence[str]], base: str = "base", seed: int = 0
) -> pd.DataFrame:
    """What each expert gained on the tasks it learned and lost on the others, against `base`.

    own_tasks: expert -> its tasks. `compare_systems` columns with part ("own" or "other") as the group; questions are
    pooled over the tasks of a part, the column regimes says which ways of scoring that pools.
    """
    frames = []
    for expert, tasks in own_tasks.items():
        part = np.where(predictions["task"].isin(list(tasks)), "own", "other")
        frames.append(compare_systems(predictions.assign(part=part), [(expert, base)], "part", seed))
    return pd.concat(frames, ignore_index=True) if frames else compare_systems(predictions.assign(part=""), [], "part")


def pivot_accuracies(accuracies: pd.DataFrame, systems: Sequence[str], tasks: Sequence[str]) -> NDArray[np.float64]:
    """Matrix [systems, tasks] of accuracies (from `compute_accuracies`), e.g. R of a sequence of training steps.

    Raises `NotFoundError` where a cell was never evaluated.
    """
    table = accuracies.set_index(["system", "task"])["accuracy"]
    matrix = np.empty((len(systems), len(tasks)))
    for i, system in enumerate(systems):
        for j, task in enumerate(tasks):
            if (system, task) not in table.index:
                raise NotFoundError(f"System {system!r} was not evaluated on task {task!r}; evaluate it first.")
            matrix[i, j] = table.loc[(system, task)]
    return matrix


def compute_average_accuracy(after: ArrayLike) -> float:
    """ACC of R [T, T]: mean accuracy over all tasks after the last step."""
    return float(_steps(after)[-1].mean())


def compute_backward_transfer(after: ArrayLike) -> float:
    """BWT of R [T, T]: negative where later steps cost earlier tasks. NaN for a single step."""
    matrix = _steps(after)
    return _mean(matrix[-1, :-1] - matrix.diagonal()[:-1])


def compute_forward_transfer(after: ArrayLike, base: ArrayLike) -> float:
    """FWT of R [T, T] and base accuracies [T]: what earlier steps gave a task not yet trained. NaN for one step."""
    matrix = _steps(after)
    return _mean(matrix.diagonal(offset=1) - np.asarray(base, dtype=float)[1:])


def compute_forgetting(after: ArrayLike) -> float:
    """F of R [T, T]: from the best accuracy before the last step down to the last. NaN for a single step."""
    matrix = _steps(after)
    if len(matrix) < 2:
        return float("nan")
    return _mean(matrix[:-1, :-1].max(axis=0) - matrix[-1, :-1])


def compute_intransigence(after: ArrayLike, mixed: ArrayLike) -> float:
    """I of R [T, T] and the mixed model's accuracies [T]: what training in order failed to learn at once."""
    return _mean(np.asarray(mixed, dtype=float) - _steps(after).diagonal())


def summarise_sequence(after: ArrayLike, base: ArrayLike | None = None, mixed: ArrayLike | None = None) -> pd.DataFrame:
    """The numbers of one training sequence: measure, value (share; NaN where undefined), formula.

    after: R [T, T], row i = after step i, columns in training order. FWT needs base [T], I needs mixed [T].
    """
    values = {
        "ACC": compute_average_accuracy(after),
        "BWT": compute_backward_transfer(after),
        "F": compute_forgetting(after),
    }
    if base is not None:
        values["FWT"] = compute_forward_transfer(after, base)
    if mixed is not None:
        values["I"] = compute_intransigence(after, mixed)
    return pd.DataFrame([{"measure": m, "value": values[m], "formula": FORMULAS[m]} for m in FORMULAS if m in values])


def _steps(after: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(after, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ConfigError(f"A training sequence needs as many steps as tasks; this matrix is {matrix.shape}.")
    return matrix


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
