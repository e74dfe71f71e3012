"""Reviews: reads, and leaving one."""

import pandas as pd

from metamoe_backend.errors import ConfigError
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record

REVIEWED_STAGES = ("train", "moe", "evaluate")
"""Runs of these stages await an advisor's verdict."""


def fetch_reviews(store: Store, target_kind: str | None = None, target: str | None = None) -> pd.DataFrame:
    """Comments and verdicts, newest first (rows.Review columns)."""
    return store.frame(
        "SELECT * FROM review WHERE ($kind IS NULL OR target_kind = $kind) AND ($target IS NULL OR target = $target) "
        "ORDER BY event_id DESC",
        {"kind": target_kind, "target": target},
    )


def fetch_review_feed(store: Store) -> pd.DataFrame:
    """Everything an advisor may review, what awaits a verdict first.

    target_kind (run or expert), target, title, stage, made_at, verdict (the newest, NULL while awaited), comments.
    Experts are listed for adapters of the bank; finished train, moe and evaluate runs as runs.
    """
    return store.frame(
        """
        WITH target AS (
            SELECT 'run' AS target_kind, run_id AS target, stage || ' ' || name AS title, stage,
                coalesce(ended_at, created_at) AS made_at
            FROM run WHERE list_contains($stages, stage) AND state IN ('finished', 'stopped')
            UNION ALL SELECT 'expert', adapter, 'expert ' || adapter, source, created_at FROM adapter
            UNION ALL SELECT DISTINCT 'chart', target, target, 'chart', min(made_at) FROM review
                WHERE target_kind = 'chart' GROUP BY target)
        SELECT target.*, arg_max(review.verdict, review.event_id) FILTER (review.verdict IS NOT NULL) AS verdict,
            count(review.event_id) AS comments
        FROM target LEFT JOIN review ON review.target_kind = target.target_kind AND review.target = target.target
        GROUP BY ALL ORDER BY 6 IS NOT NULL, target.made_at DESC
        """,
        {"stages": list(REVIEWED_STAGES)},
    )


def leave_review(store: Store, target_kind: str, target: str, verdict: str | None, comment: str, by: str) -> str:
    """Leave a comment or a verdict (approve, question, reject); returns the event id."""
    if target_kind not in ("run", "expert", "chart") or verdict not in (None, "approve", "question", "reject"):
        raise ConfigError(
            "A review is on a run, an expert or a chart, with the verdict approve, question, reject or none."
        )
    return record(
        store,
        "review",
        by,
        {"target_kind": target_kind, "target": target, "verdict": verdict, "comment": comment},
    )
