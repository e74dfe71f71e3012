"""The comparison that a study was made for, from the answers there are. Pure functions.

Every accuracy is at n questions: of a target the test questions that all its compared systems were asked. Rows of
several systems (the random expert) are the mean over them, question by question; their spread is the least and the
greatest accuracy. "all" pools the targets' questions, each target under its own systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from metamoe_backend.config import StudyConfig
from metamoe_backend.evaluate.intervals import compare_pair, compute_paired_difference, compute_wilson_interval
from metamoe_backend.study.recipe import SYSTEMS, Facts, Made, System, list_candidates, list_variants, name_systems

ALL = "all targets"
"""Stands in the target column where targets are pooled; no task can have this name, it has a space."""
REFERENCES: tuple[System, ...] = ("tuned", "mixed")
"""What every system is compared with: the best expert tuned, and mixed data."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row before it is computed: a system of a target, and the evaluated systems behind it."""

    target: str
    system: str
    names: list[str]
    note: str = ""
    """on-test: chosen on the test questions; own: an expert in it learnt from the target's own train questions."""


def list_entries(
    config: StudyConfig, facts: Facts, made: Mapping[str, Made], answers: pd.DataFrame, members: Mapping[str, list[str]]
) -> list[Entry]:
    """The rows of all targets that have answers.

    answers: bool, index (task, question_id), a column a system, NaN where it was not asked. members: experts of each
    mixture. The best expert on the test questions is chosen here, from these very answers: the paper's way, no result.
    """
    entries = []
    for target in config.targets:
        names = name_systems(config, facts, made, target)
        candidates = [name for name in list_candidates(config, facts, target) if _are_answered(answers, target, [name])]
        if candidates:
            accuracy = answers.loc[target, candidates].astype(float).mean()
            names["best-on-test"] = [str(accuracy.idxmax())]
        for system in SYSTEMS:
            if system in names and _are_answered(answers, target, names[system]):
                note = "on-test" if system == "best-on-test" else ""
                if system not in ("base", "random", "full", "mixed"):
                    behind = [member for name in _origins(names, system) for member in members.get(name, [name])]
                    owned = [name for name in behind if target in facts.adapters.get(name, {}).get("trained_on", [])]
                    note = " ".join(filter(None, [note, "own" if owned else ""]))
                entries.append(Entry(target, system, names[system], note))
    return entries


def list_ablation_entries(config: StudyConfig, made: Mapping[str, Made], answers: pd.DataFrame) -> list[Entry]:
    """The rows of the ablations; system is the variant's, such as K=5."""
    found = []
    for target in config.ablations:
        for variant in list_variants(config):
            step = made.get(f"{variant.name}:{target}")
            if step is not None and step.system is not None and _are_answered(answers, target, [step.system]):
                found.append(Entry(target, f"{variant.group} = {variant.value}", [step.system]))
    return found


def compare(entries: Sequence[Entry], answers: pd.DataFrame, references: Sequence[str] = REFERENCES) -> pd.DataFrame:
    """A row an entry, and a row a system over all targets where every target has it.

    target, system, names, note, accuracy, low, high (Wilson; NaN for a mean over systems), least, greatest (of several
    systems), n, and for each reference R: R_difference, R_low, R_high (paired bootstrap), R_p (exact McNemar; NaN for
    a mean over systems), NaN for the reference itself.
    """
    parts = {(entry.target, entry.system): _score(answers, entry) for entry in entries}
    notes = {(entry.target, entry.system): entry for entry in entries}
    rows = []
    for (target, system), scores in _with_pooled(parts).items():
        said = {word: None for each in entries if each.system == system for word in each.note.split()}
        entry = notes.get((target, system), Entry(target, system, [], " ".join(said)))
        row = {"target": target, "system": system, "names": entry.names, "note": entry.note, **_summarise(scores)}
        for reference in references:
            other = _with_pooled(parts).get((target, reference))
            row |= _difference(scores, other if system != reference else None, reference)
        rows.append(row)
    return pd.DataFrame(rows)


def compute_forgetting(entries: Sequence[Entry], answers: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """What the systems of each target do on the other targets: what was lost for what was gained.

    target, system, accuracy, low, high, least, greatest, n on the other targets' questions, and base_difference,
    base_low, base_high, base_p, mixed_difference and so on. Over all targets the interval is a bootstrap's. Systems
    that were not asked there are left out. With one target the table is empty.
    """
    parts: dict[tuple[str, str], pd.DataFrame] = {}
    for entry in entries:
        others = [task for task in targets if task != entry.target and _are_answered(answers, task, entry.names)]
        if others:
            scored = [_score(answers, Entry(task, entry.system, entry.names)) for task in others]
            parts[entry.target, entry.system] = pd.concat(scored)
    parts |= _average(parts, targets)
    rows = []
    for (target, system), scores in parts.items():
        row = {"target": target, "system": system, **(_summarise(scores) if target != ALL else _summarise_mean(scores))}
        for reference in ("base", "mixed"):
            row |= _difference(scores, parts.get((target, reference)) if system != reference else None, reference)
        rows.append(row)
    return pd.DataFrame(rows)


def _average(
    parts: Mapping[tuple[str, str], pd.DataFrame], targets: Sequence[str]
) -> dict[tuple[str, str], pd.DataFrame]:
    """Each system over all targets: a question's score is the mean over the targets whose system was asked it.

    So every question counts once, though the systems of several targets were asked it.
    """
    found = {}
    for system in dict.fromkeys(system for _, system in parts):
        means = [parts[target, system].mean(axis=1) for target in targets if (target, system) in parts]
        if len(means) == len(targets) > 1:
            found[ALL, system] = pd.concat(means, axis=1).set_axis(range(len(means)), axis=1)
    return found


def _origins(names: Mapping[System, list[str]], system: System) -> list[str]:
    """Where to look for what a system learnt: the tuned expert learnt what the best one did."""
    return names.get("best", []) if system == "tuned" else names[system]


def _are_answered(answers: pd.DataFrame, task: str, names: Sequence[str]) -> bool:
    """Whether all these systems answered all the questions of a task."""
    if not set(names) <= set(answers.columns) or task not in answers.index.get_level_values(0):
        return False
    return bool(answers.loc[task][list(names)].notna().all(axis=None))


def _score(answers: pd.DataFrame, entry: Entry) -> pd.DataFrame:
    """[questions, systems] of one entry as numbers, index (task, question_id)."""
    part = answers.loc[answers.index.get_level_values(0) == entry.target, entry.names].astype(float)
    return part.set_axis(range(len(entry.names)), axis=1)


def _with_pooled(parts: Mapping[tuple[str, str], pd.DataFrame]) -> dict[tuple[str, str], pd.DataFrame]:
    """`parts`, and each system over all targets where all have it and as many systems stand behind it."""
    targets = list(dict.fromkeys(target for target, _ in parts))
    pooled = dict(parts)
    for system in dict.fromkeys(system for _, system in parts):
        of_system = [parts[target, system] for target in targets if (target, system) in parts]
        if len(targets) > 1 and len(of_system) == len(targets) and len({len(part.columns) for part in of_system}) == 1:
            pooled[ALL, system] = pd.concat(of_system)
    return pooled


def _summarise(scores: pd.DataFrame) -> dict[str, Any]:
    n, single = len(scores), scores.shape[1] == 1
    each = scores.mean()
    low, high = compute_wilson_interval(scores[0].sum(), n) if single else (np.nan, np.nan)
    return {
        "accuracy": float(each.mean()), "low": float(low), "high": float(high),
        "least": np.nan if single else float(each.min()), "greatest": np.nan if single else float(each.max()), "n": n,
    }  # fmt: skip


def _summarise_mean(scores: pd.DataFrame) -> dict[str, Any]:
    """As `_summarise`, of the mean score of each question, with a bootstrap interval over the questions."""
    mean = scores.mean(axis=1)
    found = compute_paired_difference(mean, np.zeros(len(mean)))
    values = {"accuracy": found.difference, "low": found.low, "high": found.high, "n": found.n}
    return values | {"least": np.nan, "greatest": np.nan}


def _difference(scores: pd.DataFrame, reference: pd.DataFrame | None, name: str) -> dict[str, float]:
    """Against the reference, on the questions of both."""
    keys = [f"{name}_{what}" for what in ("difference", "low", "high", "p")]
    if reference is None:
        return dict.fromkeys(keys, np.nan)
    common = scores.index.intersection(reference.index)
    ours, theirs = scores.loc[common], reference.loc[common]
    if ours.shape[1] == theirs.shape[1] == 1:
        pair = compare_pair(ours[0].to_numpy() == 1, theirs[0].to_numpy() == 1)
        return dict(zip(keys, (pair["difference"], pair["low"], pair["high"], pair["p"]), strict=True))
    mean = compute_paired_difference(ours.mean(axis=1), theirs.mean(axis=1))
    return dict(zip(keys, (mean.difference, mean.low, mean.high, np.nan), strict=True))
