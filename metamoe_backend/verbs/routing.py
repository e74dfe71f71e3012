"""Verbs about what routers did and what else they could have done: activations, force."""

import argparse
from itertools import combinations

import pandas as pd

from metamoe_backend.errors import NotFoundError
from metamoe_backend.verbs.common import (
    Result,
    given,
    merge_settings,
    open_store,
    print_table,
    queue,
    rows_of,
    show_tables,
    wait_for,
)


def run_activations(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.routing import (
        DOMINANT_LOAD,
        RATERS,
        UNUSED_LOAD,
        compute_agreement,
        compute_coactivation,
        compute_confusion,
        compute_layer_entropy,
        compute_layer_use,
        compute_load,
        compute_skill_use,
        compute_token_entropy,
        compute_votes,
        find_collapse,
        find_collapsed_layers,
    )
    from metamoe_backend.store.experts import fetch_plan_entries, fetch_system_settings
    from metamoe_backend.store.results import (
        fetch_activations,
        fetch_gate_patterns,
        fetch_mixtures_with_activations,
        fetch_question_choices,
    )

    with open_store(options) as store:
        mixtures = fetch_mixtures_with_activations(store)
        if mixtures.empty:
            raise NotFoundError("No mixture has been evaluated yet; run `evaluate --system MIXTURE --task TASK`.")
        system = options.system or mixtures.sort_values("run_id")["system"].iloc[-1]
        activations = fetch_activations(store, system, options.task)
        if activations.empty:
            raise NotFoundError(f"Mixture {system!r} has no activations (there are: {', '.join(mixtures['system'])}).")
        plan = fetch_system_settings(store, system).get("plan")
        entries = fetch_plan_entries(store, plan) if plan else pd.DataFrame({"skill": [], "expert": []})
        patterns = fetch_gate_patterns(store, system, options.task)
        votes = compute_votes(fetch_question_choices(store, system, options.task), entries)
    load, use = compute_load(activations, "weight"), compute_layer_use(activations)
    raters = [rater for rater in RATERS if rater in set(votes["rater"])]
    confusions = [
        compute_confusion(votes, *pair)
        .set_axis(["says", "other_says", "questions"], axis=1)
        .assign(first=pair[0], second=pair[1])
        for pair in combinations(raters, 2)
    ]
    tables = {
        "layer_by_expert": use,
        "skill_by_expert": compute_skill_use(activations, entries, "weight"),
        "load": load,
        "layer_entropy": compute_layer_entropy(activations, "weight"),
        "token_entropy": pd.DataFrame([compute_token_entropy(patterns, len(load))]),
        "chosen_together": compute_coactivation(patterns, load["expert"].tolist()),
        "agreement": compute_agreement(votes),
        "confusion": pd.concat(confusions) if confusions else pd.DataFrame(),
        "warnings": find_collapse(load),
        "collapsed_layers": find_collapsed_layers(use),
    }
    thresholds = {"dominant_from": DOMINANT_LOAD, "unused_below_part_of_even": UNUSED_LOAD}
    return {"system": system, "thresholds": thresholds, **show_tables(options, tables)}


def run_force(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.results import fetch_counterfactuals

    values = given(options, "device") | {"system": options.system, "questions": options.question}
    with open_store(options) as store:
        run = queue(store, "force", merge_settings(values, options.set), options)
    wait_for(run)
    with open_store(options) as store:
        answers = fetch_counterfactuals(store, options.system, options.question)
    answers = answers[answers["run_id"] == run.run_id].drop(columns=["run_id", "system"])
    if not options.json:
        print_table(answers.drop(columns=["logliks"]))
    return {"run_id": run.run_id, "system": options.system, "answers": rows_of(answers)}
