"""The verb select-data: which rows of a pool to train on."""

import argparse

from metamoe_backend.launch import run_now
from metamoe_backend.store.data_selections import fetch_selected_rows
from metamoe_backend.verbs.common import (
    Result,
    given,
    merge_settings,
    open_store,
    parse_pairs,
    say,
    show_progress,
    write_csv,
)


def run_select_data(options: argparse.Namespace) -> Result:
    values = given(options, "task", "pool", "budget", "tau", "k", "encoder", "limit", "seed", "keep_good")
    values |= {"tasks": options.pool_task, "mapping": parse_pairs(options.map, "--map")}
    with open_store(options) as store:
        run = run_now(store, "select-data", merge_settings(values, options.set), options.by, show_progress)
        rows = fetch_selected_rows(store, run.run_id)
    if options.out:
        write_csv(options.out, rows)
    positions = {decision: part["position"].tolist() for decision, part in rows.groupby("decision", sort=False)}
    result = {
        "run_id": run.run_id,
        "selected": positions.get("selected", []),
        "dropped_similar": positions.get("similar", []),
        "dropped_leak": positions.get("leak", []),
        "counts": {
            "pool": int((rows["decision"] != "shot").sum()),
            "shots": len(positions.get("shot", [])),
            **{decision: len(positions.get(decision, [])) for decision in ("selected", "similar", "leak", "beyond")},
            "held_out": int(run.read_state().metrics["held_out"]),
        },
    }
    say(
        "{selected} of {pool} rows selected, {similar} dropped as similar, {leak} refused as leaks of "
        "{held_out} held-out questions.".format(**result["counts"])
    )
    return result
