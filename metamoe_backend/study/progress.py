"""How far a study is: which of its steps are done, from the runs there are, and how long the others will take.

A step is the run of the same stage with the same settings, whoever started it and whatever it called its result: so
nothing runs twice, steps of equal content are one run, and what was trained by hand counts. Pure functions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pandas as pd

from metamoe_backend.config import StudyConfig, parse_config
from metamoe_backend.errors import ConfigError
from metamoe_backend.pipeline import STAGES
from metamoe_backend.study.recipe import Facts, Made, Selection, Step, list_steps

StepState = Literal["waiting", "ready", "queued", "running", "stopped", "failed", "finished"]
"""waiting: for what it needs. ready: could be started. The others: as its run stands."""
_ORDER = ("finished", "running", "queued", "stopped", "failed")
"""Of several runs of the same content the first of these counts; a cancelled one never does."""
_MADE_BY = ("train", "moe")
_UNTOLD = ("name", "device")
"""What a run's content does not depend on."""
_NEWEST = 8


@dataclass(frozen=True, slots=True)
class StepStatus:
    """How one step stands."""

    step: Step
    state: StepState
    run_id: str | None = None
    seconds: float | None = None
    """What it took, once it is finished."""
    left_s: float | None = None
    """How long it will take, where it is not: None where nothing of its kind has finished yet."""
    error: str | None = None
    same_as: str | None = None
    """The key of an earlier step that is the same run."""


@dataclass(frozen=True, slots=True)
class Look:
    """A study at one moment."""

    statuses: list[StepStatus]
    made: Mapping[str, Made]

    @property
    def own(self) -> list[StepStatus]:
        """Steps that are runs of their own."""
        return [status for status in self.statuses if status.same_as is None]

    @property
    def done(self) -> int:
        return sum(status.state == "finished" for status in self.own)

    @property
    def left(self) -> list[StepStatus]:
        return [status for status in self.own if status.state != "finished"]

    @property
    def active(self) -> list[StepStatus]:
        return [status for status in self.own if status.state in ("queued", "running")]

    @property
    def left_s(self) -> float:
        """Time left of the steps of which it can be told."""
        return sum(status.left_s or 0.0 for status in self.left)

    @property
    def untold(self) -> int:
        """Steps left of which it cannot."""
        return sum(status.left_s is None for status in self.left)


@lru_cache(maxsize=4096)
def _content(stage: str, config_json: str) -> str | None:
    try:
        config = parse_config(STAGES[stage].config, json.loads(config_json)).model_dump(mode="json")
    except (ConfigError, KeyError):
        return None  # a run of an older or a newer version, which no step is
    return json.dumps([stage, {name: value for name, value in config.items() if name not in _UNTOLD}], sort_keys=True)


def describe_content(step: Step) -> str | None:
    """What a step does, as text that is equal for equal work; None while its settings are not known."""
    return None if step.settings is None else _content(step.stage, json.dumps(step.settings, sort_keys=True))


def match_runs(steps: Sequence[Step], runs: pd.DataFrame, systems: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The run of each step that has one, by key: rows.Run as a dict, and system (what it made, else None).

    A run whose adapter or mixture is gone does not count.
    """
    names = systems.sort_values("system", key=lambda column: column.map(lambda name: (len(name), name)))
    made = dict(zip(names["run_id"], names["system"], strict=True))
    found: dict[str, dict[str, Any]] = {}
    for row in runs.sort_values("run_id").to_dict("records"):
        run = {str(name): value for name, value in row.items()}
        run["system"] = made.get(run["run_id"]) if run["stage"] in _MADE_BY else None
        gone = run["state"] == "finished" and run["stage"] in _MADE_BY and run["system"] is None
        content = _content(run["stage"], run["config"])
        if content is None or gone or run["state"] not in _ORDER:
            continue
        there = found.get(content)
        if there is None or _ORDER.index(run["state"]) <= _ORDER.index(there["state"]):
            found[content] = run
    return {step.key: found[text] for step in steps if (text := describe_content(step)) is not None and text in found}


def follow(
    config: StudyConfig,
    facts: Facts,
    runs: pd.DataFrame,
    systems: pd.DataFrame,
    read_selection: Callable[[str], Selection],
) -> tuple[list[Step], dict[str, Made], dict[str, dict[str, Any]]]:
    """The steps with all settings that can be known by now, what the finished ones made, and the run of each."""
    made: dict[str, Made] = {}
    while True:
        steps = list_steps(config, facts, made)
        matched = match_runs(steps, runs, systems)
        done = [step for step in steps if step.key in matched and matched[step.key]["state"] == "finished"]
        if {step.key for step in done} == set(made):
            return steps, made, matched
        for step in done:
            if step.key not in made:
                run = matched[step.key]
                selection = read_selection(run["run_id"]) if step.stage == "select" else None
                made[step.key] = Made(run["run_id"], run["system"], selection)


def describe_steps(
    steps: Sequence[Step],
    matched: Mapping[str, Mapping[str, Any]],
    base: str,
    runs: pd.DataFrame,
    remaining: Mapping[str, float | None],
) -> list[StepStatus]:
    """How each step stands. remaining: seconds that running ones still need by their own word, by run id."""
    rates = measure_rates(steps, matched, base, runs)
    first: dict[str, str] = {}
    found = []
    for step in steps:
        run, content = matched.get(step.key), describe_content(step)
        same_as = None if content is None else first.setdefault(content, step.key)
        state: StepState = "waiting" if step.settings is None else "ready"
        seconds = left = None
        if run is not None:
            state = run["state"]
            seconds = _seconds(run) if state == "finished" else None
        if state != "finished":
            left = None if step.kind not in rates else rates[step.kind] * step.work
            own = remaining.get(str(run["run_id"])) if run is not None else None
            left = left if own is None else own
        run_id = None if run is None else str(run["run_id"])
        error = None if run is None or state != "failed" else run["error"]
        found.append(StepStatus(step, state, run_id, seconds, left, error, None if same_as == step.key else same_as))
    return found


def measure_rates(
    steps: Sequence[Step], matched: Mapping[str, Mapping[str, Any]], base: str, runs: pd.DataFrame
) -> dict[str, float]:
    """Seconds per unit of work, by kind of step, over the newest finished runs.

    Of a kind that the study has not finished yet, other trainings on the same base tell, whose settings say how many
    questions they read.
    """
    timings: dict[str, dict[str, tuple[int, float]]] = {}
    for step in steps:
        run = matched.get(step.key)
        seconds = _seconds(run) if run is not None and run["state"] == "finished" else None
        if run is not None and seconds is not None:
            timings.setdefault(step.kind, {})[str(run["run_id"])] = (step.work, seconds)
    others: dict[str, dict[str, tuple[int, float]]] = {}
    for run in runs[(runs["stage"] == "train") & (runs["state"] == "finished")].to_dict("records"):
        config, seconds = json.loads(run["config"]), _seconds(run)
        reads = _count_reads(config)
        if config.get("base") == base and reads and seconds is not None:
            others.setdefault("train", {})[str(run["run_id"])] = (reads, seconds)
    rates = {}
    for kind, of_runs in (others | timings).items():
        newest = [of_runs[run_id] for run_id in sorted(of_runs)[-_NEWEST:]]
        rates[kind] = sum(seconds for _, seconds in newest) / max(1, sum(work for work, _ in newest))
    return rates


def _count_reads(config: Mapping[str, Any]) -> int | None:
    """Questions that a training reads as far as its settings alone tell."""
    optim = config.get("optim") or {}
    if optim.get("steps") and optim.get("batch_size"):
        return int(optim["steps"] * optim["batch_size"])
    return round(config["limit"] * optim["epochs"]) if config.get("limit") and optim.get("epochs") else None


def _seconds(run: Mapping[str, Any]) -> float | None:
    if pd.isna(run["started_at"]) or pd.isna(run["ended_at"]):
        return None
    return float((pd.Timestamp(run["ended_at"]) - pd.Timestamp(run["started_at"])).total_seconds())
