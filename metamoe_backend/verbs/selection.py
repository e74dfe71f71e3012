"""The verb select: experts of the bank for a task."""

import argparse

import pandas as pd

from metamoe_backend.verbs.common import (
    Result,
    given,
    merge_settings,
    open_store,
    print_table,
    queue,
    rows_of,
    say,
    split_names,
    take_in,
    wait_for,
)

RUNNERS_UP = 5


def run_select(options: argparse.Namespace) -> Result:
    from metamoe_backend.experts.selection import (
        choose_by_one_criterion,
        choose_experts,
        compute_stability,
        rank_subsets,
    )
    from metamoe_backend.store.expert_selections import (
        fetch_candidate_pairs,
        fetch_candidate_shots,
        fetch_candidates,
    )

    values = given(options, "task", "k", "shortlist", "experts", "draws", "base", "split", "device", "seed")
    values |= {"candidates": split_names(options.candidates)} if options.candidates else {}
    with open_store(options) as store:
        run = queue(store, "select", merge_settings(values, options.set), options)
    wait_for(run)
    take_in(options)
    with open_store(options) as store:
        ranking = fetch_candidates(store, run.run_id).drop(columns=["run_id", "sha256"])
        pairs, shots = fetch_candidate_pairs(store, run.run_id), fetch_candidate_shots(store, run.run_id)
    shortlist, experts = int(ranking["shortlisted"].sum()), int(ranking["chosen"].sum())
    chosen = ranking.loc[ranking["chosen"], "adapter"].tolist()
    subsets = rank_subsets(ranking, pairs, shortlist, experts)
    alone = choose_by_one_criterion(ranking, pairs, experts)
    stability = compute_stability(shots, pairs, shortlist, experts, chosen)
    if not options.json:
        _print(ranking, subsets, alone, stability)
    say(f"Run {run.run_id}: chosen {', '.join(chosen)}.")
    return {
        "chosen": chosen,
        "ranking": rows_of(ranking),
        "run_id": run.run_id,
        "subsets": rows_of(subsets.head(1 + RUNNERS_UP)),
        "alone": {row.criterion: row.experts for row in alone.itertuples()},
        "published_variant": choose_experts(ranking, pairs, shortlist, experts, "raw_similarity") or None,
        "stability": rows_of(stability),
    }


def _print(ranking: pd.DataFrame, subsets: pd.DataFrame, alone: pd.DataFrame, stability: pd.DataFrame) -> None:
    hidden = ["task", "base", "adapter_hash", "shots", "draws", "trained_on"]
    for title, frame in (
        ("candidates", ranking.drop(columns=hidden)),
        ("sets, best first", subsets.head(1 + RUNNERS_UP)),
        ("by one criterion alone", alone),
        ("from fewer shots and from each draw", stability),
    ):
        print(f"\n{title}")
        print_table(frame)
