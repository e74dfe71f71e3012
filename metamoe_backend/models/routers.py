"""The task-level router: from a question's vector to the probability of each expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metamoe_backend.one_thread import one_thread

STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularisation C that are tried; vectors have length 1, so the right one is larger than usual."""
FOLDS = 5


@dataclass
class TaskRouter:
    """Multinomial logistic regression: p = softmax(W v + b)."""

    names: list[str]
    """Experts in gate order, then `base` where the router may send a question to the bare base model."""
    weight: np.ndarray
    """W [len(names), dimension], float32."""
    bias: np.ndarray
    """b [len(names)], float32."""

    def compute_probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """[n, dimension] -> [n, len(names)], float32; every row sums to 1."""
        scores = vectors.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        odds = np.exp(scores)
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class FittedRouter:
    """A task router and what it would have said of each training question without having seen it."""

    router: TaskRouter
    unseen: np.ndarray
    """[n, len(names)]: each row from a router trained on the other folds; in-sample where a class has one question."""
    accuracy: float | None
    """Share of questions whose most probable expert is the right one, out of fold; None where in-sample."""
    log_loss: float | None
    """Mean of -log p(right expert) in nats, out of fold."""


def fit_task_router(vectors: np.ndarray, targets: Sequence[str], names: Sequence[str], seed: int) -> FittedRouter:
    """Teach the router which expert each question goes to; `vectors` [n, dimension], `targets` the n right names.

    The regularisation is the one with the least out-of-fold log loss. The out-of-fold probabilities are what a mixture
    should be trained under: the router's word on questions it has learnt by heart is surer than on new ones.
    """
    labels = np.array([list(names).index(target) for target in targets])
    smallest = int(np.bincount(labels, minlength=len(names)).min())
    if smallest == 0:
        missing = [
            name for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True) if not count
        ]
        raise ValueError(f"no question teaches the router these names: {missing}")
    if len(names) == 1:
        router = TaskRouter(list(names), np.zeros((1, vectors.shape[1]), np.float32), np.zeros(1, np.float32))
        return FittedRouter(router, router.compute_probabilities(vectors), 1.0, 0.0)
    if smallest == 1:
        router = _fit(vectors, labels, list(names), 10.0)
        return FittedRouter(router, router.compute_probabilities(vectors), None, None)
    best: tuple[float, float, np.ndarray] | None = None
    for strength in STRENGTHS:
        unseen = _predict_unseen(vectors, labels, list(names), strength, min(FOLDS, smallest), seed)
        loss = float(-np.log(np.maximum(unseen[np.arange(len(labels)), labels], 1e-12)).mean())
        if best is None or loss < best[0]:
            best = (loss, strength, unseen)
    assert best is not None
    accuracy = float((best[2].argmax(axis=1) == labels).mean())
    return FittedRouter(_fit(vectors, labels, list(names), best[1]), best[2], accuracy, best[0])


def _predict_unseen(
    vectors: np.ndarray, labels: np.ndarray, names: list[str], strength: float, folds: int, seed: int
) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold

    unseen = np.zeros((len(labels), len(names)), np.float32)
    for learnt, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(vectors, labels):
        unseen[held] = _fit(vectors[learnt], labels[learnt], names, strength).compute_probabilities(vectors[held])
    return unseen


def _fit(vectors: np.ndarray, labels: np.ndarray, names: list[str], strength: float) -> TaskRouter:
    from sklearn.linear_model import LogisticRegression

    with one_thread():
        model: Any = LogisticRegression(C=strength, max_iter=2000).fit(vectors.astype(np.float64), labels)
    weight, bias = model.coef_, model.intercept_
    if len(names) == 2:  # scikit-learn keeps one row, the second class's log odds
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    return TaskRouter(names, weight.astype(np.float32), bias.astype(np.float32))
