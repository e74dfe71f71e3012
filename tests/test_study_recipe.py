"""The pure parts of a study: which runs there are, which of them are done, how long is left, and the table."""

import json
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from metamoe_backend.config import StudyConfig
from metamoe_backend.study.progress import Look, describe_steps, follow, match_runs, measure_rates
from metamoe_backend.study.recipe import (
    Facts,
    Made,
    Selection,
    Variant,
    choose_for,
    count_reads,
    find_best,
    list_steps,
    list_variants,
)
from metamoe_backend.study.table import ALL, Entry, compare, compute_forgetting, list_entries

BANK = ["a", "b", "c"]
CONFIG = StudyConfig(
    name="s", targets=["one", "two"], bank=BANK, pool_tasks=["pool"], k=4, draws=1, shortlist=3, experts=2, top_k=1,
    budget=6, mixed_limit=20, eval_limit=10, optim={"epochs": 2.0},
)  # fmt: skip
SHAPE = {"rank": 4, "alpha": 8.0, "targets": ["up_proj"]}
FACTS = Facts(
    train={"one": 20, "two": 30, "pool": 100},
    test={"one": 50, "two": 5, "pool": 0},
    adapters={"a": SHAPE | {"trained_on": ["one"]}, "b": SHAPE | {"trained_on": []}, "c": SHAPE | {"trained_on": []}},
)


def make_selection() -> Selection:
    """a is most often right, b reads with the least surprise, c is last in both; a and b are alike."""
    right = {"a": [1, 1, 1, 1], "b": [1, 1, 1, 0], "c": [0, 1, 0, 0]}
    nll = {"a": 4.0, "b": 1.0, "c": 9.0}
    shots = pd.DataFrame(
        [
            {
                "adapter": name,
                "draw": 0,
                "shot": shot,
                "nll": nll[name],
                "tokens": 2,
                "correct": bool(right[name][shot]),
            }
            for name in BANK
            for shot in range(4)
        ]
    )
    pairs = pd.DataFrame({"adapter": ["a", "a", "b"], "other": ["b", "c", "c"], "similarity": [0.9, 0.1, 0.2]})
    return Selection(shots, pairs.assign(raw_similarity=pairs["similarity"]))


def make_runs(*runs: tuple[str, str, dict[str, Any], str, int]) -> pd.DataFrame:
    """(run id, stage, settings, state, seconds) as rows.Run."""
    start = datetime(2026, 11, 21)
    rows = [
        {
            "run_id": run_id, "stage": stage, "name": run_id, "state": state, "config": json.dumps(config),
            "author": "ana", "created_at": start, "started_at": start, "ended_at": start + timedelta(seconds=seconds),
            "error": "why" if state == "failed" else None,
        }
        for run_id, stage, config, state, seconds in runs
    ]  # fmt: skip
    return pd.DataFrame(rows)


NO_SYSTEMS = pd.DataFrame({"run_id": [], "system": []}, dtype=object)


def test_settings_are_known_once_what_they_need_is_done() -> None:
    steps = {step.key: step for step in list_steps(CONFIG, FACTS, {})}
    known = {key for key, step in steps.items() if step.settings is not None}
    assert known == {
        "select:one", "select:two", "data:one", "data:two", "evaluate:bank", "mixed", "full:one", "full:two"
    }  # fmt: skip
    assert "two-level:one" not in steps, "no plan, no two-level mixture"
    made = {
        "select:one": Made("r1", selection=make_selection()),
        "data:one": Made("r2"),
        "mixed": Made("r3", "s.mixed"),
    }
    steps = {step.key: step for step in list_steps(CONFIG, FACTS, made)}
    token, tuned, mixed = (steps[f"{name}:one"].settings for name in ("token", "tuned", "mixed"))
    assert token is not None and tuned is not None and mixed is not None
    assert token["experts"] == choose_for(make_selection(), CONFIG, Variant(4, 2, 1))
    assert (token["data"], tuned["data"], mixed["data"]) == ("r2", "r2", "r2"), "all three end with the same rows"
    assert tuned["start_from"] == find_best(make_selection()) and tuned["lora"]["rank"] == 4
    assert mixed["start_from"] == "s.mixed" and mixed["lora"] == steps["mixed"].settings["lora"]
    assert mixed["lora"]["rank"] == 16 and mixed["lora"]["alpha"] / 16 == CONFIG.lora.alpha / CONFIG.lora.rank
    assert steps["token:two"].settings is None and steps["evaluate:one"].settings is None
    for step in steps.values():
        assert set(step.needs) <= set(steps)


def test_work_is_counted_in_questions() -> None:
    steps = {step.key: step.work for step in list_steps(CONFIG, FACTS, {})}
    assert steps["token:one"] == (4 + 6) * 2 and steps["mixed"] == 20 * 2 and steps["full:two"] == 30 * 2
    assert steps["evaluate:bank"] == 4 * (10 + 5), "two tasks, of one only five test questions are there"
    assert count_reads(CONFIG.optim.model_copy(update={"steps": 3, "batch_size": 8}), 5) == 15


def test_a_plan_adds_two_levels_and_its_vectors_come_first() -> None:
    steps = {step.key: step for step in list_steps(CONFIG.model_copy(update={"plan": "p"}), FACTS, {})}
    assert steps["two-level:one"].needs == ("select:one", "embed")


def test_experts_of_the_target_can_be_left_out() -> None:
    config = CONFIG.model_copy(update={"own_experts": False, "pool_tasks": ["pool", "one"]})
    steps = {step.key: step.settings for step in list_steps(config, FACTS, {})}
    assert steps["select:one"]["candidates"] == ["b", "c"] and steps["select:two"]["candidates"] == BANK
    assert steps["data:one"]["tasks"] == ["pool"] and steps["data:two"]["tasks"] == ["pool", "one"]


def test_each_ablation_changes_one_choice() -> None:
    variants = {(v.group, v.value): v for v in list_variants(CONFIG)}
    selection = make_selection()
    assert choose_for(selection, CONFIG, variants["selection", "accuracy alone"]) == ["a", "b"]
    assert choose_for(selection, CONFIG, variants["selection", "without diversity"]) == ["a", "b"]
    assert choose_for(selection, CONFIG, variants["selection", "with diversity"]) == ["a", "b"]
    assert variants["K", "4"].k == 4 and ("N", "4") not in variants, "no more than the bank has"
    kept = Variant(4, 2, 1)
    for variant in variants.values():
        changed = [
            name
            for name in ("k", "experts", "top_k", "criterion", "data")
            if getattr(variant, name) != getattr(kept, name)
        ]
        assert len(changed) <= 1, variant
    steps = {
        step.key: step.settings for step in list_steps(CONFIG.model_copy(update={"ablations": ["one"]}), FACTS, {})
    }
    assert steps["data:one:K=4,shots-only"]["budget"] == 0 and steps["data:one:K=4,random"]["pick"] == "random"
    assert steps["data:one:K=4,similar"]["tau"] == 1.0 and steps["data:one"]["tau"] == CONFIG.tau


def test_steps_of_equal_content_are_one_run_whoever_made_it() -> None:
    """Both targets choose the same experts, so their uniform mixtures are one."""
    chosen = Made("x", selection=make_selection())
    steps = list_steps(CONFIG, FACTS, {"select:one": chosen, "select:two": chosen})
    uniform = next(step for step in steps if step.key == "uniform:two")
    by_hand = uniform.settings | {"name": "mine", "device": "cuda:0"}
    runs = make_runs(("r1", "moe", by_hand, "finished", 5))
    made = pd.DataFrame({"run_id": ["r1", "r1"], "system": ["mine", "mine-2"]})
    found = match_runs(steps, runs, made)
    assert set(found) == {"uniform:one", "uniform:two"} and found["uniform:one"]["system"] == "mine-2"
    statuses = {status.step.key: status for status in describe_steps(steps, found, "b", runs, {})}
    assert statuses["uniform:two"].same_as == "uniform:one" and statuses["uniform:one"].seconds == 5
    assert match_runs(steps, runs, NO_SYSTEMS) == {}, "its mixture was deleted"


def test_a_finished_run_counts_before_a_failed_one_and_a_cancelled_one_never() -> None:
    settings = next(step.settings for step in list_steps(CONFIG, FACTS, {}) if step.key == "data:one")
    runs = [("r1", "select-data", settings, "cancelled", 1), ("r2", "select-data", settings, "failed", 1)]
    steps, made, found = follow(CONFIG, FACTS, make_runs(*runs), NO_SYSTEMS, lambda _: make_selection())
    assert made == {} and found["data:one"]["run_id"] == "r2"
    runs += [("r3", "select-data", settings, "finished", 1), ("r4", "select-data", settings, "failed", 1)]
    steps, made, found = follow(CONFIG, FACTS, make_runs(*runs), NO_SYSTEMS, lambda _: make_selection())
    assert made == {"data:one": Made("r3")} and len(steps) > 10
    runs.append(("r5", "select-data", {"task": "one", "no such setting": 1}, "finished", 1))
    assert set(match_runs(steps, make_runs(*runs), NO_SYSTEMS)) == {"data:one"}


def test_the_time_left_grows_with_the_work() -> None:
    steps = list_steps(CONFIG, FACTS, {})
    full = next(step for step in steps if step.key == "full:one")
    runs = make_runs(("r1", "train", full.settings, "finished", 80))
    made = pd.DataFrame({"run_id": ["r1"], "system": ["s.one.full"]})
    found = match_runs(steps, runs, made)
    assert measure_rates(steps, found, CONFIG.base, runs) == {"train": 2.0}, "80 s for 20 questions read twice"
    look = Look(describe_steps(steps, found, CONFIG.base, runs, {}), {})
    left = {status.step.key: status.left_s for status in look.left}
    assert left["full:two"] == 120 and left["token:one"] is None and "full:one" not in left
    assert look.left_s == sum(value for value in left.values() if value) and look.untold == sum(
        v is None for v in left.values()
    )
    elsewhere = {"base": CONFIG.base, "limit": 10, "optim": {"epochs": 2.0, "batch_size": 4}}
    others = make_runs(
        ("r0", "train", elsewhere, "finished", 60), ("r2", "train", elsewhere | {"base": "x"}, "finished", 1)
    )
    assert measure_rates(steps, {}, CONFIG.base, others) == {"train": 3.0}, "trainings of other names tell, too"


# ---- the table ----------------------------------------------------------------------------------------------------


def make_answers() -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples([*(("one", f"o{n}") for n in range(4)), *(("two", f"t{n}") for n in range(4))])
    return pd.DataFrame(
        {
            "base": [0, 0, 0, 1, 1, 1, 0, 0], "a": [1, 1, 1, 0, 0, 0, 0, 0], "b": [1, 0, 0, 0, 1, 1, 1, 0],
            "m1": [1, 1, 1, 1, 1, 0, 0, 0], "x1": [1, 1, 0, 0, 0, 0, 0, 0],
            "m2": [0, 0, 0, 1, 1, 1, 1, 1], "x2": [0, 0, 0, 0, 1, 1, 1, 0],
            "half": [1, 1, 1, 1, np.nan, np.nan, np.nan, np.nan],
        },
        index=index, dtype=float,
    )  # fmt: skip


ENTRIES = [
    Entry("one", "base", ["base"]), Entry("one", "random", ["a", "b"]), Entry("one", "tuned", ["a"]),
    Entry("one", "mixed", ["x1"]), Entry("one", "token", ["m1"]), Entry("two", "base", ["base"]),
    Entry("two", "random", ["a", "b"]), Entry("two", "tuned", ["b"]), Entry("two", "mixed", ["x2"]),
    Entry("two", "token", ["m2"]),
]  # fmt: skip


def test_the_table_by_hand() -> None:
    table = compare(ENTRIES, make_answers()).set_index(["target", "system"])
    token = table.loc[("one", "token")]
    assert token["accuracy"] == 1.0 and token["n"] == 4 and 0 < token["low"] < 1 == token["high"]
    assert token["tuned_difference"] == 0.25 and token["tuned_p"] == 1.0 and token["mixed_difference"] == 0.5
    assert np.isnan(table.loc[("one", "mixed"), "mixed_difference"]), "nothing is compared with itself"
    random = table.loc[("one", "random")]
    assert (random["accuracy"], random["least"], random["greatest"]) == (0.5, 0.25, 0.75)
    assert np.isnan(random["low"]) and random["tuned_difference"] == -0.25 and np.isnan(random["tuned_p"])
    pooled = table.loc[(ALL, "token")]
    assert pooled["accuracy"] == 1.0 and pooled["n"] == 8 and pooled["mixed_difference"] == 1.0 - 5 / 8


def test_forgetting_is_what_happens_on_the_other_targets() -> None:
    table = compute_forgetting(ENTRIES, make_answers(), ["one", "two"]).set_index(["target", "system"])
    assert table.loc[("one", "token"), "accuracy"] == 0.25 and table.loc[("one", "token"), "n"] == 4
    assert table.loc[("one", "token"), "base_difference"] == -0.25
    assert table.loc[("one", "token"), "mixed_difference"] == 0.25
    assert table.loc[("two", "token"), "base_difference"] == 0.0
    assert table.loc[(ALL, "token"), "n"] == 8 and table.loc[(ALL, "token"), "base_difference"] == -0.125
    assert compute_forgetting([Entry("one", "token", ["half"])], make_answers(), ["one", "two"]).empty
    assert compute_forgetting(ENTRIES[:5], make_answers(), ["one"]).empty


def test_what_was_chosen_on_the_test_set_or_taught_by_it_is_marked() -> None:
    made = {
        "select:one": Made("r", selection=make_selection()),
        "token:one": Made("r", "m1"),
        "uniform:one": Made("r", "m2"),
    }
    answers = make_answers().assign(c=0.0)
    entries = list_entries(CONFIG, FACTS, made, answers, {"m1": ["a", "b"], "m2": ["b", "c"]})
    notes = {entry.system: (entry.names, entry.note) for entry in entries if entry.target == "one"}
    assert notes["best-on-test"] == (["a"], "on-test own") and notes["random"] == (BANK, "")
    assert notes["token"] == (["m1"], "own") and notes["uniform"] == (["m2"], "")
    assert notes["best"][0] == [find_best(make_selection())]
    missing = list_entries(CONFIG, FACTS, made, answers.drop(columns=["m1"]), {})
    assert "token" not in {entry.system for entry in missing}, "what was not evaluated has no row"


@pytest.mark.parametrize("target", ["one", "two"])
def test_the_best_on_the_test_questions_is_found_per_target(target: str) -> None:
    entries = list_entries(CONFIG, FACTS, {}, make_answers().assign(c=0.0), {})
    best = next(entry for entry in entries if entry.target == target and entry.system == "best-on-test")
    assert best.names == [{"one": "a", "two": "b"}[target]]
