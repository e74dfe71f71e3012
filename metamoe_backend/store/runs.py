"""Runs and their metrics: reads."""

import pandas as pd

from metamoe_backend.store.connection import Store


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
