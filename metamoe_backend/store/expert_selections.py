"""Selections of experts: reads."""

import pandas as pd

from metamoe_backend.errors import NotFoundError
from metamoe_backend.store.connection import Store


def fetch_selections(store: Store) -> pd.DataFrame:
    """Finished selections, newest first: run_id, task, base, shots, draws, candidates, shortlist, experts, chosen (best
    first), author, created_at, config (JSON)."""
    return store.frame("""
        SELECT run_id, any_value(candidate.task) AS task, any_value(candidate.base) AS base,
            any_value(shots) AS shots, any_value(draws) AS draws, count(*) AS candidates,
            count(*) FILTER (shortlisted) AS shortlist, count(*) FILTER (chosen) AS experts,
            list(adapter ORDER BY rank_sum, perplexity, adapter) FILTER (chosen) AS chosen,
            any_value(run.author) AS author, any_value(run.created_at) AS created_at, any_value(run.config) AS config
        FROM candidate JOIN run USING (run_id) GROUP BY run_id ORDER BY run_id DESC
    """)


def fetch_candidates(store: Store, run_id: str) -> pd.DataFrame:
    """The ranking of a selection, best first: rows.Candidate columns, and trained_on (empty where unknown), sha256.

    sha256: of the adapter as it is in the bank now; NULL where it is gone. Raises `NotFoundError` for an unknown run.
    """
    found = store.frame(
        """
        SELECT candidate.*, adapter.trained_on, adapter.sha256
        FROM candidate LEFT JOIN adapter USING (adapter)
        WHERE candidate.run_id = ? ORDER BY rank_sum, perplexity, adapter
        """,
        [run_id],
    )
    if found.empty:
        raise NotFoundError(f"Run {run_id!r} chose no experts; name a run of `select` that has finished.")
    return found


def fetch_candidate_shots(store: Store, run_id: str) -> pd.DataFrame:
    """rows.CandidateShot columns and prompt, answer, explanation; by adapter, draw and shot."""
    return store.frame(
        """
        SELECT candidate_shot.*, prompt, answer, explanation
        FROM candidate_shot LEFT JOIN question USING (question_id)
        WHERE candidate_shot.run_id = ? ORDER BY adapter, draw, shot
        """,
        [run_id],
    )


def fetch_candidate_pairs(store: Store, run_id: str) -> pd.DataFrame:
    """rows.CandidatePair columns."""
    return store.frame("SELECT * FROM candidate_pair WHERE run_id = ? ORDER BY adapter, other", [run_id])
