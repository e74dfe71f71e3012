"""What people do to clusters: name, merge and split them, move questions, let neighbours take in noise.

HDBSCAN's clusters are a proposal. Each function here works out what an act changes and records it as one event, which
can be taken back; the event holds the outcome, so that the same event always means the same clusters.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.errors import ConflictError, NotFoundError, UserError
from metamoe_backend.mapping import SAMPLES, compute_keywords
from metamoe_backend.skills.queue import NOISE
from metamoe_backend.store.events import record
from metamoe_backend.store.maps import (
    fetch_cluster_question_ids,
    fetch_clusters,
    fetch_map_points,
    fetch_maps,
    fetch_vectors,
)
from metamoe_backend.store.questions import fetch_questions

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

MOST_PARTS, LONGEST_NAME = 12, 60
NEIGHBOURS = 15
_TEXTS = 300
"""Questions of each cluster that its keywords are drawn from."""
_TRIED_PARTS = range(2, 7)
_SILHOUETTE_SAMPLE = 2000
_LARGE = 20_000
"""Clusters from this size on are split by mini-batches."""
_BLOCK = 64_000_000
"""Similarities held at a time."""


# ---- computing --------------------------------------------------------------------------------------------------


def split_vectors(vectors: np.ndarray, parts: int | None = None, seed: int = 0) -> np.ndarray:
    """k-means on unit vectors [n, dim]: the part [n] of each, 0 the largest.

    parts None: the number from 2 to 6 with the greatest mean silhouette (cosine) on a sample.
    """
    from sklearn.metrics import silhouette_score

    if parts is None:
        rng = np.random.default_rng(seed)
        sample = vectors[rng.permutation(len(vectors))[:_SILHOUETTE_SAMPLE]]
        tried = {}
        for count in _TRIED_PARTS:
            found = _find_parts(sample, count, seed) if count < len(sample) else np.zeros(len(sample))
            if 1 < len(np.unique(found)) < len(sample):
                tried[count] = silhouette_score(sample, found, metric="cosine")
        parts = max(tried, key=lambda count: tried[count], default=2)
    found = _find_parts(vectors, min(parts, len(vectors)), seed)
    _, places, sizes = np.unique(found, return_inverse=True, return_counts=True)
    return np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")[places]


def _find_parts(vectors: np.ndarray, parts: int, seed: int) -> np.ndarray:
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = MiniBatchKMeans if len(vectors) >= _LARGE else KMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal vectors make fewer parts than were asked for: as it should be
        return kind(n_clusters=parts, n_init=3, random_state=seed).fit_predict(vectors)


def absorb_noise(vectors: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """New labels [n]: noise (-1) goes to the cluster that more than half of its nearest clustered neighbours are of.

    vectors: unit, [n, dim]; nearness is their cosine. Noise without such a majority stays noise; so does everything
    where there is no cluster.
    """
    noise, members = np.flatnonzero(labels == NOISE), np.flatnonzero(labels != NOISE)
    after = labels.copy()
    if not len(noise) or not len(members):
        return after
    k = min(neighbours, len(members))
    block = max(1, _BLOCK // len(members))
    for start in range(0, len(noise), block):
        rows = noise[start : start + block]
        near = np.argpartition(-(vectors[rows] @ vectors[members].T), k - 1, axis=1)[:, :k]
        for row, found in zip(rows, labels[members[near]], strict=True):
            names, counts = np.unique(found, return_counts=True)
            if 2 * counts.max() > k:
                after[row] = names[counts.argmax()]
    return after


# ---- what people do ---------------------------------------------------------------------------------------------


def rename_cluster(store: "Store", map_id: str, cluster: int, name: str, by: str) -> str:
    """Give a cluster a name of its own, or, with an empty one, its keywords again; returns the event id."""
    before = describe_cluster(store, map_id, cluster)
    cleaned = " ".join(name.split())
    if len(cleaned) > LONGEST_NAME:
        raise UserError(f"A cluster's name has at most {LONGEST_NAME} characters; shorten it.")
    edits = [{"cluster": cluster, "name": cleaned}]
    return _record(store, "cluster_renamed", by, map_id, {}, edits, name=cleaned or "–", before=before)


def merge_clusters(store: "Store", map_id: str, clusters: Sequence[int], into: int, by: str) -> str:
    """Let cluster `into` take over the questions of others; returns the event id."""
    others = [cluster for cluster in dict.fromkeys(clusters) if cluster != into]
    if not others:
        raise ConflictError("A cluster cannot be merged into itself; choose another one.")
    said = " + ".join(describe_cluster(store, map_id, cluster) for cluster in others)
    moved = {id_: into for other in others for id_ in fetch_cluster_question_ids(store, map_id, other)}
    return _move(
        store, "clusters_merged", by, map_id, moved, **{"from": said, "into": describe_cluster(store, map_id, into)}
    )


def move_questions(store: "Store", map_id: str, question_ids: Sequence[str], into: int | None, by: str) -> str:
    """Put questions into another cluster of the map (-1: noise, None: a new one); returns the event id."""
    points = fetch_map_points(store, map_id)
    if into is None:
        into, said = _next_number(points), "+"
    else:
        said = "–" if into == NOISE else describe_cluster(store, map_id, into)
    known = points[points["question_id"].isin(question_ids) & (points["cluster"] != into)]
    if known.empty:
        raise ConflictError("These questions lie there already, or not on this map; select others.")
    moved = dict.fromkeys(known["question_id"], int(into))
    return _move(store, "questions_moved", by, map_id, moved, into=said)


def split_cluster(store: "Store", map_id: str, cluster: int, parts: int | None, by: str) -> str:
    """Find smaller groups in a cluster by its questions' vectors; the largest keeps the number. Returns the event id.

    parts None: as many as fit best, 2 to 6.
    """
    said = describe_cluster(store, map_id, cluster)
    if parts is not None and not 2 <= parts <= MOST_PARTS:
        raise UserError(f"A cluster is split into 2 to {MOST_PARTS} parts, not {parts}.")
    ids, vectors = _fetch_unit_vectors(store, map_id, fetch_cluster_question_ids(store, map_id, cluster))
    if len(ids) < 2:
        raise ConflictError(f"Cluster {said} has too few questions with vectors to be split; merge it instead.")
    found = split_vectors(vectors, parts)
    if not found.any():
        raise ConflictError(f"Cluster {said} does not fall into parts: its questions have the same vector.")
    first = _next_number(fetch_map_points(store, map_id)) - 1
    moved = {id_: first + int(part) for id_, part in zip(ids, found, strict=True) if part}
    return _move(store, "cluster_split", by, map_id, moved, **{"from": said})


def absorb_map_noise(store: "Store", map_id: str, by: str, neighbours: int = NEIGHBOURS) -> str:
    """Let the clusters take in the noise that lies among them, by nearest vectors; returns the event id."""
    points = fetch_map_points(store, map_id).set_index("question_id")
    if not (points["cluster"] == NOISE).any():
        raise ConflictError("This map has no noise.")
    ids, vectors = _fetch_unit_vectors(store, map_id, None)
    on_map = np.isin(ids, points.index)
    ids, vectors = ids[on_map], vectors[on_map]
    before = points["cluster"].reindex(ids).to_numpy()
    after = absorb_noise(vectors, before, neighbours)
    moved = dict(zip(ids[after != before], after[after != before].tolist(), strict=True))
    if not moved:
        raise ConflictError(
            "No question of the noise has most of its nearest neighbours in one cluster; it stays noise."
        )
    return _move(store, "noise_absorbed", by, map_id, moved)


def describe_cluster(store: "Store", map_id: str, cluster: int) -> str:
    """Number and name, as history tells it: "3: sums of numbers"; raises `NotFoundError` where there is none."""
    clusters = fetch_clusters(store, map_id).set_index("cluster")
    if cluster not in clusters.index:
        there = ", ".join(map(str, clusters.index)) or "none"
        raise NotFoundError(f"The map has no cluster {cluster} (it has {there}).")
    row = clusters.loc[cluster]
    return f"{cluster}: {make_name(row['name'], row['keywords'])}"


def make_name(name: str | None, keywords: Sequence[str]) -> str:
    """What a cluster is called: a person's name for it, else its two most telling words."""
    return name if isinstance(name, str) and name else " ".join(list(keywords)[:2])


# ---- one event --------------------------------------------------------------------------------------------------


def _move(store: "Store", kind: str, by: str, map_id: str, moved: dict[str, int], **said: str) -> str:
    """Record moves (question_id: cluster), and what the clusters they touch are about from then on."""
    points = fetch_map_points(store, map_id).set_index("question_id")
    before = points["cluster"].copy()
    points.loc[list(moved), "cluster"] = np.array(list(moved.values()), dtype=np.int32)
    changed = set(points.loc[list(moved), "cluster"]) | set(before.loc[list(moved)])
    edits = _describe_clusters(store, points, changed - {NOISE})
    return _record(store, kind, by, map_id, moved, edits, **said)


def _record(
    store: "Store", kind: str, by: str, map_id: str, moved: dict[str, int], edits: list[dict[str, Any]], **said: str
) -> str:
    payload = {"map_id": map_id, "question_ids": list(moved), "clusters": list(moved.values()), "edits": edits, **said}
    return record(store, kind, by, payload)


def _describe_clusters(store: "Store", points: pd.DataFrame, changed: set[int]) -> list[dict[str, Any]]:
    """Keywords and central samples of the changed clusters. points: x, y, cluster by question_id.

    Keywords compare all clusters, each by at most _TEXTS of its questions: more would only take longer.
    """
    clustered = points[points["cluster"] != NOISE]
    drawn = clustered.sample(frac=1, random_state=0).groupby("cluster").head(_TEXTS)
    texts = fetch_questions(store, question_ids=drawn.index.tolist()).set_index("question_id")["prompt"]
    keywords = compute_keywords(texts.reindex(drawn.index).tolist(), drawn["cluster"].to_numpy())
    edits = []
    for cluster in sorted(changed & set(keywords)):
        members = clustered.loc[clustered["cluster"] == cluster, ["x", "y"]]
        distance = ((members - members.median()) ** 2).sum(axis=1)
        samples = distance.nsmallest(SAMPLES).index.tolist()
        edits.append({"cluster": int(cluster), "keywords": keywords[cluster], "samples": samples})
    return edits


def _fetch_unit_vectors(store: "Store", map_id: str, ids: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Question ids [n] and the vectors [n, dim] that the map was drawn from."""
    maps = fetch_maps(store).set_index("map_id")
    found = fetch_vectors(store, maps.loc[map_id, "encoder"], maps.loc[map_id, "of"], ids)
    if found.empty:
        raise NotFoundError("The vectors of this map are not in this workspace any more; embed its questions again.")
    return found["question_id"].to_numpy(dtype=object), np.stack(found["vector"].tolist()).astype(np.float32)


def _next_number(points: pd.DataFrame) -> int:
    return int(points["cluster"].max()) + 1
