"""The runs of a study: which, in which order, with which settings, and what each depends on. Pure functions.

Settings name what earlier runs made (the chosen experts, a data selection, an adapter), so those of a step are known
once what it needs is done: `list_steps` is asked again with each new result. Two steps with the same settings are one
run, whoever wants it.

The systems of a target, in the words of METHODS section 1: the base model; each expert of the bank (their mean is the
random expert, their best on the test questions the paper's choice); one expert on the target's full train questions;
the best expert by the K shots; that expert tuned on K shots and selected data; mixed data; and mixtures of the N chosen
experts: uniform, Arrow, token top-k (experts and router trained on K shots and selected data), two-level.

Mixed data is one adapter with the parameters of N experts that first reads as many questions of all pool tasks as N
experts did, and then the same K shots and selected data as the tuned expert and the mixture: equal tokens, equal
parameters, and the same end, so what differs is whether the bank's knowledge lies in one adapter or in several.

The two-level mixture learns from the plan's questions of the chosen experts, since only a plan says which question
goes where: its task-level router and its token gates; the experts stay as they are. Without a plan over the bank there
is none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import pandas as pd

from metamoe_backend.config import OptimSettings, StudyConfig
from metamoe_backend.experts.selection import (
    CRITERIA,
    choose_by_one_criterion,
    choose_experts,
    measure_candidates,
    rank_candidates,
)

System = Literal[
    "base", "random", "best-on-test", "full", "best", "tuned", "mixed", "uniform", "arrow", "token", "two-level"
]
SYSTEMS: tuple[System, ...] = (
    "base", "random", "best-on-test", "full", "best", "tuned", "mixed", "uniform", "arrow", "token", "two-level",
)  # fmt: skip
"""Everything a study compares, in the order of its table."""
Data = Literal["similar and diverse", "similar", "random", "shots only"]
MOST_RANK = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recipe must know of the workspace."""

    train: Mapping[str, int]
    """Train questions by task."""
    test: Mapping[str, int]
    adapters: Mapping[str, Mapping[str, Any]]
    """Of the bank: rank, alpha, targets, trained_on (empty: unknown)."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What a selection of experts measured: rows.CandidateShot and rows.CandidatePair. Equal to itself alone."""

    shots: pd.DataFrame
    pairs: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Made:
    """What a finished step left behind."""

    run_id: str
    system: str | None = None
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the study."""

    key: str
    """Its place in the study, such as token:piqa."""
    stage: str
    target: str | None
    needs: tuple[str, ...]
    work: int
    """Questions read or answered: what its time grows with."""
    settings: dict[str, Any] | None
    """None until what it needs is done."""

    @property
    def kind(self) -> str:
        """Steps of one kind take the same time per unit of work; joining experts without training is one of its own."""
        joins = self.key.split(":")[0] in ("uniform", "arrow")
        return "join" if joins else self.stage


@dataclass(frozen=True, slots=True)
class Variant:
    """The mixture with one choice made otherwise. The group says which; empty: as the study has it."""

    k: int
    experts: int
    top_k: int
    criterion: str | None = None
    """Choose by this alone (one of `selection.CRITERIA`); None: accuracy, perplexity and diversity."""
    data: Data = "similar and diverse"
    group: str = ""
    value: str = ""

    @property
    def name(self) -> str:
        return "token" if not self.group else f"{self.group}={self.value}".replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A study, what is known of its workspace, and what it has made so far."""

    config: StudyConfig
    facts: Facts
    made: Mapping[str, Made] = field(default_factory=dict)

    @property
    def main(self) -> Variant:
        return Variant(self.config.k, self.config.experts, self.config.top_k)


def list_steps(config: StudyConfig, facts: Facts, made: Mapping[str, Made]) -> list[Step]:
    """All runs of the study in the order in which they are started; `made` by key of the finished ones."""
    recipe = Recipe(config, facts, made)
    steps = [_select(recipe, target) for target in config.targets]
    steps += [_select_data(recipe, target, recipe.main) for target in config.targets]
    bank = sorted({name for target in config.targets for name in list_candidates(config, facts, target)})
    steps.append(_evaluate(recipe, "evaluate:bank", None, (), ["base", *bank], len(bank) + 1, config.targets))
    steps.append(_train_mixed(recipe))
    steps += _embed(recipe)
    before = "evaluate:bank"
    for target in config.targets:
        own = [*_train_target(recipe, target), *_join(recipe, target)]
        steps += [*own, _evaluate_steps(recipe, f"evaluate:{target}", target, own, before, config.targets)]
        before = f"evaluate:{target}"
    for target in config.ablations:
        varied = list_variants(config)
        data = {step.key: step for v in varied for step in [_select_data(recipe, target, v)]}
        there = {step.key for step in steps}
        steps += [step for key, step in data.items() if key not in there]
        own = [_train_token(recipe, target, variant) for variant in varied]
        key = f"evaluate-ablations:{target}"
        steps += [*own, _evaluate_steps(recipe, key, target, own, before, [target])]
        before = key
    return steps


def list_candidates(config: StudyConfig, facts: Facts, target: str) -> list[str]:
    """Adapters that may be chosen for a target."""
    return [name for name in config.bank if config.own_experts or target not in facts.adapters[name]["trained_on"]]


def list_variants(config: StudyConfig) -> list[Variant]:
    """The ablations: each choice at each of its values, the others as the study has them."""
    main = Variant(config.k, config.experts, config.top_k)

    def vary(group: str, values: Sequence[tuple[Any, dict[str, Any]]]) -> Iterator[Variant]:
        for value, change in values:
            kept = {name: getattr(main, name) for name in ("k", "experts", "top_k", "criterion", "data")} | change
            yield Variant(**kept, group=group, value=str(value))

    several = [n for n in sorted({2, 4, config.experts}) if n <= min(config.shortlist, len(config.bank))]
    per_token = [k for k in sorted({1, 2, config.top_k}) if k <= config.experts]
    alone = [name for name in CRITERIA if name != "diversity"]
    kinds: tuple[Data, ...] = ("shots only", "random", "similar", "similar and diverse")
    return [
        *vary("K", [(k, {"k": k}) for k in sorted({min(5, config.k), config.k})]),
        *vary("N", [(n, {"experts": n, "top_k": min(config.top_k, n)}) for n in several]),
        *vary("k", [(k, {"top_k": k}) for k in per_token]),
        *vary("selection", [(f"{name} alone", {"criterion": name}) for name in alone[:2]]),
        *vary("selection", [("without diversity", {"criterion": alone[2]}), ("with diversity", {})]),
        *vary("data", [(kind, {"data": kind}) for kind in kinds]),
    ]


def choose_for(selection: Selection, config: StudyConfig, variant: Variant) -> list[str]:
    """The experts that a variant joins, in gate order (by name: the same set is the same mixture)."""
    return list(_choose(selection, config.shortlist, variant.k, variant.experts, variant.criterion))


# Kept, both: a study is looked at every few seconds while it goes on, and its steps are listed again with each result.
@lru_cache(maxsize=1024)
def _choose(selection: Selection, shortlist: int, k: int, experts: int, criterion: str | None) -> tuple[str, ...]:
    ranking = rank_candidates(measure_candidates(selection.shots, k))
    if criterion is not None:
        alone = choose_by_one_criterion(ranking, selection.pairs, experts).set_index("criterion")["experts"]
        return tuple(sorted(alone[criterion]))
    return tuple(sorted(choose_experts(ranking, selection.pairs, shortlist, experts)))


@lru_cache(maxsize=128)
def find_best(selection: Selection) -> str:
    """The best expert by the K shots: least sum of the ranks by accuracy and by perplexity."""
    return str(rank_candidates(measure_candidates(selection.shots))["adapter"].iloc[0])


def name_systems(config: StudyConfig, facts: Facts, made: Mapping[str, Made], target: str) -> dict[System, list[str]]:
    """The evaluated systems behind each row of a target's table; the best on the test questions is the table's to find.

    Several names: their mean. A row whose system is not there yet is left out.
    """
    found: dict[System, list[str]] = {"base": ["base"], "random": list_candidates(config, facts, target)}
    selected = made.get(f"select:{target}")
    if selected is not None and selected.selection is not None:
        found["best"] = [find_best(selected.selection)]
    for system in ("full", "tuned", "mixed", "uniform", "arrow", "token", "two-level"):
        step = made.get(f"{system}:{target}")
        if step is not None and step.system is not None:
            found[system] = [step.system]
    return found


# ---- the steps ----------------------------------------------------------------------------------------------------


def _select(recipe: Recipe, target: str) -> Step:
    config = recipe.config
    candidates = list_candidates(config, recipe.facts, target)
    settings = {
        "task": target, "k": config.k, "draws": config.draws, "shortlist": config.shortlist,
        "experts": config.experts, "candidates": candidates, "base": config.base, "device": config.device,
        "max_new_tokens": config.max_new_tokens, "seed": config.seed,
    }  # fmt: skip
    drawn = min(config.k * config.draws, recipe.facts.train[target])
    return Step(f"select:{target}", "select", target, (), len(candidates) * drawn, settings)


def _data_key(recipe: Recipe, target: str, variant: Variant) -> str:
    same = (variant.k, variant.data) == (recipe.main.k, recipe.main.data)
    return f"data:{target}" if same else f"data:{target}:K={variant.k},{variant.data.replace(' ', '-')}"


def _select_data(recipe: Recipe, target: str, variant: Variant) -> Step:
    config = recipe.config
    pool = [task for task in config.pool_tasks if config.own_experts or task != target]
    budget = 0 if variant.data == "shots only" else config.budget
    settings = {
        "task": target, "tasks": pool, "budget": budget, "k": variant.k, "encoder": config.encoder,
        "seed": config.seed, "pick": "random" if variant.data == "random" else "similar",
        "tau": config.tau if variant.data == "similar and diverse" else 1.0,
    }  # fmt: skip
    work = sum(recipe.facts.train[task] for task in pool)
    return Step(_data_key(recipe, target, variant), "select-data", target, (), work, settings)


def _embed(recipe: Recipe) -> list[Step]:
    """The vectors that every target's task-level router learns from, once for all."""
    config = recipe.config
    if config.plan is None:
        return []
    work = sum(recipe.facts.train[task] + recipe.facts.test[task] for task in config.pool_tasks)
    settings = {"encoder": config.encoder, "tasks": config.pool_tasks}
    return [Step("embed", "embed", None, (), work, settings)]


def _train_mixed(recipe: Recipe) -> Step:
    """The bank's knowledge in one adapter, with the parameters of N."""
    config = recipe.config
    rows = min(config.mixed_limit or 10**9, sum(recipe.facts.train[task] for task in config.pool_tasks))
    settings = {
        "kind": "mixed", "name": _name(config, "mixed"), "tasks": config.pool_tasks, "limit": config.mixed_limit,
        "base": config.base, "device": config.device, "lora": _widen(config), "optim": _optim(config),
    }  # fmt: skip
    return Step("mixed", "train", None, (), count_reads(config.optim, rows), settings)


def _train_target(recipe: Recipe, target: str) -> list[Step]:
    """The adapters of a target: on its full train questions, and both that are tuned on K shots and selected data."""
    config, made, select, data = recipe.config, recipe.made, f"select:{target}", _data_key(recipe, target, recipe.main)
    common = {"base": config.base, "device": config.device, "optim": _optim(config)}
    full = {
        "kind": "expert", "name": _name(config, "full", target), "tasks": [target], "limit": config.full_limit,
        "lora": config.lora.model_dump(mode="json"), **common,
    }  # fmt: skip
    reads = count_reads(config.optim, min(config.full_limit or 10**9, recipe.facts.train[target]))
    steps = [Step(f"full:{target}", "train", target, (), reads, full)]
    reads = count_reads(config.optim, config.k + config.budget)
    tuned = mixed = None
    selection = _selection(recipe, target)
    if data in made and selection is not None:
        best = find_best(selection)
        tuned = {
            "kind": "expert", "name": _name(config, "tuned", target), "data": made[data].run_id, "start_from": best,
            "lora": _like(config, recipe.facts.adapters[best]), **common,
        }  # fmt: skip
    if data in made and "mixed" in made:
        mixed = {
            "kind": "mixed", "name": _name(config, "mixed", target), "data": made[data].run_id,
            "start_from": made["mixed"].system, "lora": _widen(config), **common,
        }  # fmt: skip
    steps.append(Step(f"tuned:{target}", "train", target, (select, data), reads, tuned))
    steps.append(Step(f"mixed:{target}", "train", target, ("mixed", data), reads, mixed))
    return steps


def _join(recipe: Recipe, target: str) -> list[Step]:
    """The mixtures of a target."""
    config, selection = recipe.config, _selection(recipe, target)
    chosen = None if selection is None else choose_for(selection, config, recipe.main)

    def join(mode: str, work: int, *needs: str, **settings: Any) -> Step:
        values = None
        if chosen is not None and all(need in recipe.made for need in needs):
            values = _moe(config, mode, target, chosen) | {"top_k": recipe.main.top_k, "mode": mode} | settings
        return Step(f"{mode}:{target}", "moe", target, (f"select:{target}", *needs), work, values)

    # Nothing is learnt from these questions; a mixture must name some, and the same ones let targets share it.
    untaught = {"tasks": config.pool_tasks[:1], "train": "none"}
    steps = [
        join("uniform", 1, **untaught), join("arrow", 1, **untaught), _train_token(recipe, target, recipe.main),
    ]  # fmt: skip
    if config.plan is not None:
        rows = config.k + config.budget
        taught = {"plan": config.plan, "train": "router", "limit": rows, "encoder": config.encoder}
        steps.append(join("two-level", count_reads(config.optim, rows), "embed", **taught))
    return steps


def _train_token(recipe: Recipe, target: str, variant: Variant) -> Step:
    """Token top-k of the chosen experts, trained with them on K shots and selected data: the method itself."""
    config, data = recipe.config, _data_key(recipe, target, variant)
    selection, settings = _selection(recipe, target), None
    if selection is not None and data in recipe.made:
        settings = _moe(config, variant.name, target, choose_for(selection, config, variant)) | {
            "mode": "token", "top_k": variant.top_k, "train": "router+experts", "data": recipe.made[data].run_id,
        }  # fmt: skip
    budget = 0 if variant.data == "shots only" else config.budget
    reads = count_reads(config.optim, variant.k + budget)
    return Step(f"{variant.name}:{target}", "moe", target, (f"select:{target}", data), reads, settings)


def _evaluate_steps(
    recipe: Recipe, key: str, target: str, steps: Sequence[Step], before: str, tasks: Sequence[str]
) -> Step:
    """Evaluate what `steps` make; after `before`, so that what they share is answered once."""
    made = [recipe.made[step.key].system for step in steps if step.key in recipe.made]
    systems = list(dict.fromkeys(name for name in made if name is not None)) if len(made) == len(steps) else None
    return _evaluate(recipe, key, target, (*(step.key for step in steps), before), systems, len(steps), tasks)


def _evaluate(
    recipe: Recipe,
    key: str,
    target: str | None,
    needs: tuple[str, ...],
    systems: list[str] | None,
    count: int,
    tasks: Sequence[str],
) -> Step:
    config = recipe.config
    asked = sum(min(config.eval_limit or 10**9, recipe.facts.test[task]) for task in tasks)
    settings = {
        "systems": systems, "tasks": list(tasks), "limit": config.eval_limit, "device": config.device,
        "dtype": config.optim.dtype, "max_new_tokens": config.max_new_tokens, "activations": config.activations,
        "seed": config.seed,
    }  # fmt: skip
    ready = systems is not None and all(need in recipe.made for need in needs)
    return Step(key, "evaluate", target, needs, asked * count, settings if ready else None)


# ---- settings -----------------------------------------------------------------------------------------------------


def count_reads(optim: OptimSettings, rows: int) -> int:
    """Questions that a training reads, one counted as often as it comes up."""
    return optim.steps * min(optim.batch_size, rows) if optim.steps else max(1, round(rows * optim.epochs))


def _selection(recipe: Recipe, target: str) -> Selection | None:
    made = recipe.made.get(f"select:{target}")
    return None if made is None else made.selection


def _moe(config: StudyConfig, what: str, target: str, experts: list[str]) -> dict[str, Any]:
    return {
        "name": _name(config, what, target), "experts": experts, "base": config.base, "device": config.device,
        "optim": _optim(config),
    }  # fmt: skip


def _optim(config: StudyConfig) -> dict[str, Any]:
    return config.optim.model_dump(mode="json")


def _like(config: StudyConfig, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of an adapter that is trained further."""
    shape = {"rank": int(adapter["rank"]), "alpha": float(adapter["alpha"]), "targets": list(adapter["targets"])}
    return config.lora.model_dump(mode="json") | shape


def _widen(config: StudyConfig) -> dict[str, Any]:
    """One adapter with the parameters of N experts and the same scale alpha / r."""
    rank = min(MOST_RANK, config.lora.rank * config.experts)
    return config.lora.model_dump(mode="json") | {"rank": rank, "alpha": config.lora.alpha * rank / config.lora.rank}


def _name(config: StudyConfig, what: str, target: str = "") -> str:
    """Of an adapter or mixture: study, target and system; at most 64 letters, digits and the like."""
    parts = [config.name, target.replace("/", "."), what]
    return ".".join(part for part in parts if part).replace("=", "-")[:64]
