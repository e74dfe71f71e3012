"""Data selections: the rows a training reads, and what was decided about each row of a pool."""

import pandas as pd

from metamoe_backend.errors import NotFoundError
from metamoe_backend.ingest import make_question_id
from metamoe_backend.store.connection import Store


def fetch_data_selections(store: Store) -> pd.DataFrame:
    """Data selections, newest first: run_id, task, author, created_at, and rows per decision (rows.Decision)."""
    return store.frame("""
        SELECT run_id, any_value(chosen.task) AS task, any_value(author) AS author, any_value(created_at) AS created_at,
            count(*) FILTER (decision = 'shot') AS shot, count(*) FILTER (decision = 'selected') AS selected,
            count(*) FILTER (decision = 'similar') AS similar, count(*) FILTER (decision = 'leak') AS leak,
            count(*) FILTER (decision = 'beyond') AS beyond
        FROM selected_row AS chosen JOIN run USING (run_id) GROUP BY run_id ORDER BY run_id DESC
    """)


def require_data_selection(store: Store, run_id: str) -> None:
    """Raise `NotFoundError` unless this run is a data selection that has ended."""
    known = fetch_data_selections(store)["run_id"].tolist()
    if run_id not in known:
        there = ", ".join(known[:5]) if known else "none; choose data on the Experts page or with `select-data`"
        raise NotFoundError(f"Data selection {run_id!r} does not exist (there are: {there}).")


def fetch_selected_rows(store: Store, run_id: str) -> pd.DataFrame:
    """Rows of one selection (rows.SelectedRow columns): the shots, then the pool's by falling score.

    Raises `NotFoundError` for an unknown selection.
    """
    require_data_selection(store, run_id)
    return store.frame(
        "SELECT * FROM selected_row WHERE run_id = ? ORDER BY decision <> 'shot', score DESC, position", [run_id]
    )


def fetch_selected_questions(store: Store, run_id: str) -> pd.DataFrame:
    """What a training on the selection reads: the K shots, then the chosen rows, the most similar first.

    question_id, task, template (the target task's), prompt, answer, explanation. A shot keeps its question's id; a
    row's id is the hash of its content as a question of the target task. Raises `NotFoundError` for an unknown
    selection.
    """
    require_data_selection(store, run_id)
    rows = store.frame(
        """
        SELECT decision, nearest, chosen.task, template, prompt, answer, explanation
        FROM selected_row AS chosen JOIN task USING (task)
        WHERE chosen.run_id = ? AND decision IN ('shot', 'selected')
        ORDER BY decision <> 'shot', score DESC, position
        """,
        [run_id],
    )
    ids = [
        row.nearest if row.decision == "shot" else make_question_id(row.task, row.prompt, None, row.answer)
        for row in rows.itertuples()
    ]
    return rows.drop(columns=["decision", "nearest"]).assign(question_id=ids)[
        ["question_id", "task", "template", "prompt", "answer", "explanation"]
    ]
