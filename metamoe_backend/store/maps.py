"""Vectors, maps and clusters: reads."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from metamoe_backend.errors import NotFoundError
from metamoe_backend.store.connection import Store


def fetch_vectors(
    store: Store, encoder: str, of: str, question_ids: Sequence[str] | None = None, method: str | None = None
) -> pd.DataFrame:
    """question_id, text_hash, vector (unit, float32) of the newest embedding of each question.

    With `of` meta-question, only those embedded as meta-questions of `method`, where one is given. With `of` both, the
    vector of the question joined with that of its meta-question, for questions that have both.
    """
    if of == "both":
        sides = [fetch_vectors(store, encoder, side, question_ids, method) for side in ("question", "meta-question")]
        return _join_vectors(*sides)
    return store.frame(
        """
        SELECT question_id, text_hash, vector FROM embedding LEFT JOIN run USING (run_id)
        WHERE encoder = $encoder AND of = $of AND ($ids IS NULL OR question_id IN (SELECT unnest($ids)))
            AND ($method IS NULL OR of = 'question' OR coalesce(run.config ->> 'method', 'template') = $method)
        QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY run_id DESC) = 1
        ORDER BY question_id
        """,
        {
            "encoder": encoder,
            "of": of,
            "ids": None if question_ids is None else list(question_ids),
            "method": method,
        },
    )


def _join_vectors(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Unit vectors beside each other, as unit vectors again: their product is the mean of the two products."""
    joined = first.merge(second[["question_id", "vector"]], on="question_id", suffixes=("", "_second"))
    pairs = zip(joined["vector"], joined.pop("vector_second"), strict=True)
    return joined.assign(vector=[np.concatenate(pair) * np.float32(np.sqrt(0.5)) for pair in pairs])


def fetch_embedded(store: Store) -> pd.DataFrame:
    """What is embedded: encoder, of, questions, dim."""
    return store.frame(
        "SELECT encoder, of, count(DISTINCT question_id) AS questions, max(len(vector)) AS dim FROM embedding "
        "GROUP BY encoder, of ORDER BY encoder, of"
    )


def fetch_newest_embedding(store: Store, encoder: str, of: str) -> str | None:
    """The run that embedded last: as long as it is the same, the vectors are."""
    return store.value(
        "SELECT max(run_id) FROM embedding WHERE encoder = ? AND (of = ? OR ? = 'both')", [encoder, of, of]
    )


def fetch_maps(store: Store) -> pd.DataFrame:
    """All maps, newest first (rows.Map columns)."""
    return store.frame("SELECT * FROM map ORDER BY created_at DESC, map_id DESC")


def fetch_newest_map_id(store: Store) -> str | None:
    """The map that pages show unless another is chosen."""
    return store.value("SELECT map_id FROM map ORDER BY created_at DESC, map_id DESC LIMIT 1")


def require_map(store: Store, map_id: str | None) -> str:
    """`map_id` if it exists, else the newest map; raises `NotFoundError` where there is none."""
    if map_id is None:
        map_id = fetch_newest_map_id(store)
        if map_id is None:
            raise NotFoundError("There is no map yet; draw one on the Map page or with `cluster`.")
    elif store.value("SELECT 1 FROM map WHERE map_id = ?", [map_id]) is None:
        raise NotFoundError(f"Map {map_id!r} does not exist; leave it out to take the newest one.")
    return map_id


def fetch_map_points(store: Store, map_id: str) -> pd.DataFrame:
    """Everything a map can be coloured by, one row a point, in order of question_id; small enough for a million rows.

    question_id, x, y (float32), cluster (int32), strength (float32), task (category), skill (category, missing while
    unlabelled), labelled (by a person), confidence (float32: 1 for a label, the probability for a suggestion, NaN for
    neither).
    """
    points = store.frame(
        """
        SELECT point.question_id, x::FLOAT AS x, y::FLOAT AS y, cluster::INT AS cluster, strength::FLOAT AS strength,
            question.task, coalesce(label.skill, suggestion.skill) AS skill, label.skill IS NOT NULL AS labelled,
            (CASE WHEN label.skill IS NOT NULL THEN 1.0 ELSE suggestion.probability END)::FLOAT AS confidence
        FROM current_map_point AS point JOIN question USING (question_id)
        LEFT JOIN question_label AS label USING (question_id)
        LEFT JOIN current_suggestion AS suggestion USING (question_id)
        WHERE map_id = ? ORDER BY point.question_id
        """,
        [map_id],
    )
    return points.astype({"task": "category", "skill": "category"})


def fetch_map_texts(store: Store, map_id: str) -> pd.Series:
    """The prompt of each point, in the order of `fetch_map_points`."""
    return store.frame(
        "SELECT prompt FROM map_point AS point JOIN question USING (question_id) WHERE map_id = ? "
        "ORDER BY point.question_id",
        [map_id],
    )["prompt"]


def fetch_clusters(store: Store, map_id: str) -> pd.DataFrame:
    """Clusters of a map as they stand now, with what they hold.

    cluster, size, x, y (median), name (a person's, else NULL), keywords, samples, labelled, top_task, top_task_share,
    top_skill.
    """
    return store.frame(
        """
        WITH member AS (
            SELECT cluster, question.task, label.skill FROM current_map_point AS point
            JOIN question USING (question_id) LEFT JOIN question_label AS label USING (question_id)
            WHERE map_id = $map)
        SELECT cluster.* EXCLUDE (map_id), count(member.skill) AS labelled, mode(member.task) AS top_task,
            max(task_count.share) AS top_task_share, mode(member.skill) AS top_skill
        FROM current_cluster AS cluster JOIN member USING (cluster)
        JOIN (SELECT cluster, max(n) / sum(n) AS share FROM (
                SELECT cluster, task, count(*) AS n FROM member GROUP BY ALL) GROUP BY cluster) AS task_count
            USING (cluster)
        WHERE cluster.map_id = $map
        GROUP BY ALL ORDER BY cluster.cluster
        """,
        {"map": map_id},
    )


def fetch_cluster_question_ids(store: Store, map_id: str, cluster: int) -> list[str]:
    """Ids of a cluster's questions (-1: of the noise); raises `NotFoundError` when the map has no such cluster."""
    rows = store.cursor().execute(
        "SELECT question_id FROM current_map_point WHERE map_id = ? AND cluster = ? ORDER BY question_id",
        [map_id, cluster],
    )
    ids = [row[0] for row in rows.fetchall()]
    if not ids:
        there = store.cursor().execute("SELECT cluster FROM current_cluster WHERE map_id = ? ORDER BY 1", [map_id])
        named = ", ".join(str(row[0]) for row in there.fetchall()) or "none"
        raise NotFoundError(f"The map has no cluster {cluster} (it has {named}).")
    return ids


def is_changed(store: Store, map_id: str) -> bool:
    """Whether a person has put any question of the map into another cluster, and it still stands."""
    found = store.value("SELECT 1 FROM cluster_move WHERE map_id = ? AND retracted_by IS NULL LIMIT 1", [map_id])
    return found is not None
