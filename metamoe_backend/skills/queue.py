"""What to label next, and what was already labelled nearby."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from metamoe_backend.config import NextConfig
from metamoe_backend.embed import stack_vectors
from metamoe_backend.one_thread import one_thread
from metamoe_backend.skills.features import BLOCK, Features, make_features
from metamoe_backend.skills.suggest import fetch_readable, fit_classifier, settle_votes

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

NOISE = -1
MOST_CANDIDATES = 3_000
"""Of a larger workspace so many questions, drawn at random, and the labelled ones are looked at."""

LABELS_PER_SKILL = 2
"""So many labels a skill found go to groups without any; only then to questions in doubt."""
LEAST_SPREAD = 8
"""Labels that go to groups without any in every case."""
NEAR_DUPLICATE = 0.95
"""Similarity from which a question teaches nothing that the other one has not taught."""
MOST_REFERENCES = 1_000
"""Questions that stand for all when doubt is summed up over neighbourhoods: bounds time and memory."""
KERNEL_POWER = 4
"""Of the similarity: how fast one question stops telling about another."""
MOST_LEARNED = 50
"""Labels a skill that doubt is computed from."""


def read_candidates(store: "Store", config: NextConfig) -> tuple[list[str], Features]:
    """Ids [n] of the questions that may come up, and those that say what is known, with their features.

    Raises `NotFoundError` when something is not embedded yet.
    """
    questions = fetch_readable(store, config, _draw_candidates(store, config.seed))
    features = make_features(stack_vectors(questions["vector"]), questions["text"].tolist(), config.seed)
    return questions["question_id"].tolist(), features


def _draw_candidates(store: "Store", seed: int) -> list[str] | None:
    """Ids of at most MOST_CANDIDATES labelled and as many other questions; None: all, where there are no more.

    Drawn before anything else is read: the vectors of a million questions take minutes.
    """
    from metamoe_backend.store.skills import fetch_question_states

    states = fetch_question_states(store)
    if len(states) <= MOST_CANDIDATES:
        return None
    parts = [group for _, group in states.groupby("labelled")["question_id"]]
    return [
        question_id
        for part in parts
        for question_id in part.sample(min(MOST_CANDIDATES, len(part)), random_state=seed).sort_index()
    ]


def find_next(store: "Store", ids: list[str], features: Features, count: int, seed: int) -> list[str]:
    """Ids of `count` questions nobody has labelled, the one that teaches most first (see `choose_next`).

    ids, features: from `read_candidates`, which may be older than the labels.
    """
    from metamoe_backend.store.skills import fetch_labels

    labels = fetch_labels(store)
    voted = settle_votes(labels)
    classes = pd.Index(sorted(voted.unique()))
    known = pd.Series(classes.get_indexer(voted), index=voted.index).reindex(ids).fillna(-1).astype(int).to_numpy()
    is_free = ~pd.Index(ids).isin(labels["question_id"])
    with one_thread():
        return [ids[place] for place in choose_next(features, known, count, seed, is_free)]


def choose_next(
    features: Features, labels: np.ndarray, count: int, seed: int, is_free: np.ndarray | None = None
) -> list[int]:
    """Places of `count` free questions in the order in which they teach most; fewer where fewer are left.

    labels: [n] int, the class from 0, or -1 for a question without a label to learn from. is_free: [n] bool, which
    questions may be chosen (default: those without a label).

    First, groups nobody has labelled, coarse groups before fine ones and large ones before small ones, the most typical
    question of each (TypiClust: Hacohen 2022). Once each skill found has LABELS_PER_SKILL labels on the average, the
    questions whose neighbourhoods hold most doubt (1 - margin: Settles 2009; facility location), rare neighbourhoods
    counting as much as crowded ones. Near-duplicates of what is labelled or chosen come last.
    """
    free = _Free(features, labels < 0 if is_free is None else is_free)
    known, found = int((labels >= 0).sum()), len(set(labels[labels >= 0].tolist()))
    chosen: list[int] = []
    if found < 2 or known < max(LEAST_SPREAD, LABELS_PER_SKILL * found):
        chosen = _spread_over_groups(features, free, count)
    if len(chosen) < count:
        chosen += _choose_doubtful(features, labels, free, chosen, count - len(chosen), seed)
    if len(chosen) < count:
        chosen += free.find_left(count - len(chosen), seed)
    return chosen


class _Free:
    """Which questions may still be chosen: neither labelled nor chosen nor a near-duplicate of those."""

    def __init__(self, features: Features, is_free: np.ndarray) -> None:
        self._joined = features.joined
        self.used = ~is_free
        self.similar = np.zeros(len(is_free), dtype=bool)
        labelled = np.flatnonzero(self.used)
        for start in range(0, len(labelled), BLOCK):
            self._mark_similar(labelled[start : start + BLOCK])

    def take(self, place: int) -> int:
        self.used[place] = True
        self._mark_similar(np.array([place]))
        return place

    def _mark_similar(self, places: np.ndarray) -> None:
        self.similar |= (self._joined @ self._joined[places].T >= NEAR_DUPLICATE).any(axis=1)

    def find_best(self, scores: np.ndarray, places: np.ndarray | None = None) -> int | None:
        """The place with the greatest score among `places` (default: all) that is free, or None."""
        places = np.arange(len(self.used)) if places is None else places
        allowed = ~(self.used | self.similar)[places]
        if not allowed.any():
            return None
        return int(places[np.argmax(np.where(allowed, scores, -np.inf))])

    def find_left(self, count: int, seed: int) -> list[int]:
        """Near-duplicates, in random order: all that is left."""
        left = np.flatnonzero(~self.used)
        return np.random.default_rng(seed).permutation(left)[:count].tolist()


def _spread_over_groups(features: Features, free: _Free, count: int) -> list[int]:
    chosen: list[int] = []
    for groups in features.groups:
        sizes = np.bincount(groups)
        for group in np.argsort(-sizes, kind="stable"):
            if len(chosen) == count:
                return chosen
            members = np.flatnonzero(groups == group)
            if not len(members) or free.used[members].any():
                continue
            typical = features.joined[members] @ features.joined[members].mean(axis=0)
            place = free.find_best(typical, members)
            if place is not None:
                chosen.append(free.take(place))
    return chosen


def _choose_doubtful(
    features: Features, labels: np.ndarray, free: _Free, before: list[int], count: int, seed: int
) -> list[int]:
    rng = np.random.default_rng(seed)
    n = len(labels)
    references = np.sort(rng.choice(n, min(n, MOST_REFERENCES), replace=False))
    nearness = np.clip(features.joined @ features.joined[references].T, 0, 1) ** KERNEL_POWER
    doubt = compute_doubt(features, labels, seed)[references] / nearness.sum(axis=0)
    for place in before:
        doubt *= 1 - np.minimum(nearness[place], 0.999)
    chosen: list[int] = []
    while len(chosen) < count:
        best = free.find_best(nearness @ doubt)
        if best is None:
            return chosen
        chosen.append(free.take(best))
        doubt = doubt * (1 - np.minimum(nearness[best], 0.999))
    return chosen


def compute_doubt(features: Features, labels: np.ndarray, seed: int) -> np.ndarray:
    """How undecided a classifier is about each question [n]: 1 minus the margin of its two best classes."""
    known = _thin_out(labels, seed)
    if len(set(labels[known].tolist())) < 2:
        return np.ones(len(labels))
    model = fit_classifier(features.columns[known], labels[known], max_iter=100)
    best = np.sort(model.predict_proba(features.columns), axis=1)
    return 1 - (best[:, -1] - best[:, -2])


def _thin_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """Places of at most MOST_LEARNED labels a class."""
    known = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    turn = pd.Series(labels[known]).groupby(labels[known]).cumcount().to_numpy()
    return np.sort(known[turn < MOST_LEARNED])


def order_queue(questions: pd.DataFrame) -> list[str]:
    """Ids of the unlabelled questions, the most useful first.

    questions: question_id, cluster (-1: none), strength (membership, may be NaN), labelled (bool), margin of the
    suggestion (NaN without one). Turn by turn each cluster gives one question, so that a few labels reach every group:
    within a cluster what has no suggestion first (most typical first: high strength), then the least certain
    suggestion (smallest margin: Settles 2009, margin sampling). Within a turn the smallest margin leads, then the
    cluster with the fewest labels; questions in no cluster come last.
    """
    labels = questions.groupby("cluster")["labelled"].sum()
    waiting = questions[~questions["labelled"].to_numpy(bool)]
    waiting = waiting.assign(
        sureness=waiting["margin"].astype(float).fillna(-1.0),
        untypical=-waiting["strength"].astype(float).fillna(0.0),
        noise=waiting["cluster"].eq(NOISE),
        labels=waiting["cluster"].map(labels),
    )
    waiting = waiting.sort_values(["cluster", "sureness", "untypical", "question_id"], kind="stable")
    waiting = waiting.assign(turn=waiting.groupby("cluster").cumcount())
    order = ["noise", "turn", "sureness", "labels", "cluster"]
    return waiting.sort_values(order, kind="stable")["question_id"].tolist()


def find_labelled_neighbours(
    vectors: pd.DataFrame, question_id: str, labels: pd.DataFrame, count: int = 3
) -> pd.DataFrame:
    """The labelled questions most like this one: question_id, skill, similarity (cosine, -1 to 1), nearest first.

    vectors: question_id, vector (unit length); labels: question_id, skill. Empty where the question has no vector.
    """
    known = vectors[vectors["question_id"].isin(labels["question_id"]) & vectors["question_id"].ne(question_id)]
    own = vectors.loc[vectors["question_id"].eq(question_id), "vector"]
    if own.empty or known.empty:
        return pd.DataFrame({"question_id": [], "skill": [], "similarity": []})
    similarity = np.stack(known["vector"].to_list()).astype(float) @ np.asarray(own.iloc[0], dtype=float)
    near = known[["question_id"]].assign(similarity=similarity)
    near = near.merge(labels[["question_id", "skill"]].drop_duplicates("question_id"), on="question_id")
    near = near.sort_values(["similarity", "question_id"], ascending=[False, True]).head(count)
    return near[["question_id", "skill", "similarity"]].reset_index(drop=True)
