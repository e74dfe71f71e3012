"""Verbs that bring questions in and look at them: ingest, meta-questions, embed, cluster, clusters."""

import argparse

import pandas as pd

from metamoe_backend.config import IngestConfig
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.launch import run_now
from metamoe_backend.verbs.common import (
    Result,
    count_emitted,
    count_reused,
    given,
    merge_settings,
    open_store,
    parse_pairs,
    queue,
    rows_of,
    say,
    show_progress,
    take_in,
    wait_for,
    write_csv,
)


def run_ingest(options: argparse.Namespace) -> Result:
    from metamoe_backend.ingest.stage import RejectedRowsError, make_task_name
    from metamoe_backend.stage import NOTE

    values = {
        **given(options, "source", "task", "split", "limit", "seed", "choices", "keep_good", "template"),
        "mapping": parse_pairs(options.map, "--map"),
        "options": parse_pairs(options.option, "--option"),
    }
    with open_store(options) as store:
        try:
            run = run_now(store, "ingest", values, options.by, show_progress)
        except RejectedRowsError as error:
            if options.rejected:
                write_csv(options.rejected, pd.DataFrame(error.rejected)[["line", "reason", "text"]])
            raise
        rejected = store.frame("SELECT line, reason, text FROM rejected_row WHERE run_id = ?", [run.run_id])
        if options.rejected:
            write_csv(options.rejected, rejected)
    result = {
        "task": make_task_name(run.parse_config(IngestConfig)),
        "added": count_emitted(run, "question"),
        "duplicates": int(run.read_state().metrics.get("duplicates", 0)),
        "rejected": len(rejected),
    }
    say("{task}: {added} questions added, {duplicates} duplicates, {rejected} rejected.".format(**result))
    for line in run.read_log().splitlines():
        if NOTE in line:
            say(line)
    return result


def run_meta_questions(options: argparse.Namespace) -> Result:
    values = given(options, "method", "model", "base_url", "device", "shards") | {"tasks": options.task}
    run = _run_here_or_launch(options, "meta-questions", merge_settings(values, options.set))
    result = {"built": count_emitted(run, "meta_question"), "reused": count_reused(run)}
    say("{built} meta-questions built, {reused} reused.".format(**result))
    return result


def _run_here_or_launch(options: argparse.Namespace, stage: str, values: Result) -> RunFolder:
    """Run a stage in this process, or as a job (as several) where a person asks for what only a job has."""
    if options.on is None and not options.after and not {"device", "shards"} & set(values):
        with open_store(options) as store:
            return run_now(store, stage, values, options.by, show_progress)
    with open_store(options) as store:
        run = queue(store, stage, values, options)
    wait_for(run)
    take_in(options)
    return run


def run_embed(options: argparse.Namespace) -> Result:
    values = given(options, "encoder", "of", "method", "device", "shards") | {"tasks": options.task}
    run = _run_here_or_launch(options, "embed", values)
    with open_store(options) as store:
        dim = store.value(
            "SELECT max(len(vector)) FROM embedding WHERE encoder = ? AND of = ?", [options.encoder, options.of]
        )
    result = {"embedded": count_emitted(run, "embedding"), "reused": count_reused(run), "dim": dim}
    say("{embedded} embedded, {reused} reused, {dim} dimensions.".format(**result))
    return result


def run_cluster(options: argparse.Namespace) -> Result:
    values = given(options, "encoder", "of", "method", "min_cluster_size", "neighbours", "seed")
    values["tasks"] = options.task
    with open_store(options) as store:
        run = run_now(store, "cluster", merge_settings(values, options.set), options.by, show_progress)
        row = store.frame("SELECT map_id, clusters, noise_share, nmi, ari FROM map WHERE run_id = ?", [run.run_id])
    result = rows_of(row)[0]
    say("{clusters} clusters, noise {noise_share:.1%}, NMI to task names {nmi}, ARI {ari}.".format(**result))
    return result
