"""What there is to query: tables, views and their columns."""

import pandas as pd

from metamoe_backend.rows import TABLES
from metamoe_backend.store.connection import Store

VIEWS = {
    "current_meta_question": "The meta-question that counts: the newest build, corrected by the newest edit.",
    "current_map_point": "Where each question lies, in the cluster where HDBSCAN or, since, a person put it.",
    "current_cluster": "Clusters that have questions, as they stand now, with the name a person gave them.",
    "standing_label": "Each person's newest label that was not taken back.",
    "standing_rejection": "Refused suggestions that were not taken back.",
    "question_label": "One skill per question: what a person decided, else the newest standing label of anyone.",
    "current_suggestion": "What the newest suggestion run proposes for questions nobody has labelled or refused.",
    "current_prediction": "The newest answer of each system to each question, with its task and split.",
}


def describe_table(name: str) -> str:
    """What a row of a table or view is, in a sentence; empty for one that has no description."""
    if name in VIEWS:
        return VIEWS[name]
    return (TABLES[name].__doc__ or "").strip().splitlines()[0] if name in TABLES else ""


def fetch_schema(store: Store) -> pd.DataFrame:
    """table, kind (table or view), column, type, description; tables in pipeline order, then views.

    A view's column that is a table's column by name and type has that column's description.
    """
    frame = store.frame("""
        SELECT columns.table_name AS table, if(views.view_name IS NULL, 'table', 'view') AS kind,
            columns.column_name AS column, columns.data_type AS type,
            coalesce(columns.comment, described.comment, '') AS description
        FROM duckdb_columns() AS columns
        LEFT JOIN (SELECT view_name FROM duckdb_views() WHERE NOT internal) AS views ON view_name = columns.table_name
        LEFT JOIN (SELECT column_name, data_type, min(comment) AS comment FROM duckdb_columns()
                   WHERE NOT internal AND comment IS NOT NULL GROUP BY ALL HAVING count(DISTINCT comment) = 1)
            AS described USING (column_name, data_type)
        WHERE NOT columns.internal AND columns.table_name <> 'migration'
        ORDER BY columns.column_index
    """)
    order = {name: place for place, name in enumerate([*TABLES, *VIEWS])}
    places = frame["table"].map(order).fillna(len(order))
    return frame.iloc[places.argsort(kind="stable")].reset_index(drop=True)
