"""Runs, their metrics, what they made and what used it: reads."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from metamoe_backend.store.connection import Store

NAMING = ("experts", "systems", "system", "candidates", "start_from", "data")
"""Settings that name systems, or (`data`) a run."""


def fetch_runs(store: Store, stages: tuple[str, ...] = ()) -> pd.DataFrame:
    """Runs, newest first (rows.Run columns); stages empty means all."""
    return store.frame(
        "SELECT * FROM run WHERE len($stages) = 0 OR list_contains($stages, stage) ORDER BY run_id DESC",
        {"stages": list(stages)},
    )


def fetch_metrics(store: Store, run_id: str) -> pd.DataFrame:
    """step, name, value of one ended run, in order."""
    return store.frame("SELECT step, name, value FROM metric WHERE run_id = ? ORDER BY step, name", [run_id])


def fetch_pipeline_counts(store: Store) -> dict[str, int]:
    """How far the workspace is: one count per noun of the pipeline."""
    return (
        store.frame("""
        SELECT
            (SELECT count(*) FROM task) AS tasks,
            (SELECT count(*) FROM question) AS questions,
            (SELECT count(DISTINCT question_id) FROM meta_question) AS meta_questions,
            (SELECT count(DISTINCT question_id) FROM embedding) AS embedded,
            (SELECT count(*) FROM map) AS maps,
            (SELECT clusters FROM map ORDER BY created_at DESC LIMIT 1) AS clusters,
            (SELECT count(*) FROM skill WHERE merged_into IS NULL) AS skills,
            (SELECT count(*) FROM question_label) AS labels,
            (SELECT count(*) FROM current_suggestion) AS suggestions,
            (SELECT count(*) FROM labelling) AS labellings,
            (SELECT count(*) FROM plan) AS plans,
            (SELECT count(*) FROM system WHERE kind = 'expert') AS experts,
            (SELECT count(*) FROM system WHERE kind = 'moe') AS mixtures,
            (SELECT count(DISTINCT system) FROM prediction) AS systems_evaluated,
            (SELECT count(*) FROM prediction) AS predictions,
            (SELECT count(*) FROM review) AS reviews
        """)
        .fillna(0)
        .astype(int)
        .iloc[0]
        .to_dict()
    )


def fetch_losses(store: Store) -> dict[str, list[float]]:
    """Training loss of every ended run that reported one, in order of steps: run id to values."""
    rows = store.cursor().execute(
        "SELECT run_id, list(value ORDER BY step) FROM metric WHERE name = 'loss' GROUP BY run_id"
    )
    return dict(rows.fetchall())


def fetch_products(store: Store, run_id: str) -> dict[str, int]:
    """Rows that a run has brought into each table."""
    rows = store.cursor().execute(
        "SELECT target, sum(rows)::BIGINT FROM part WHERE run_id = ? GROUP BY target ORDER BY target", [run_id]
    )
    return dict(rows.fetchall())


def fetch_made_systems(store: Store, run_id: str) -> list[str]:
    """Experts, mixtures and other systems that a run has made."""
    rows = store.cursor().execute("SELECT system FROM system WHERE run_id = ? ORDER BY system", [run_id])
    return [row[0] for row in rows.fetchall()]


def fetch_uses(store: Store, run_id: str) -> pd.DataFrame:
    """run_id, stage, name of the runs whose settings name what a run has made, or the run itself; newest first."""
    made = {run_id, *fetch_made_systems(store, run_id)}
    later = store.frame("SELECT run_id, stage, name, config FROM run WHERE run_id > ? ORDER BY run_id DESC", [run_id])
    used = [bool(made & set(_named_in(json.loads(config)))) for config in later["config"]]
    return later.loc[used, ["run_id", "stage", "name"]].reset_index(drop=True)


def _named_in(config: dict[str, Any]) -> Iterator[str]:
    for setting in NAMING:
        value = config.get(setting)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from value
