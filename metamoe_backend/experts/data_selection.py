"""Sim-Div data selection (arXiv 2408.15915, Algorithm 2): rows near the K shots of a task, and not near each other.

All functions work on unit vectors, [n, dim] float32, and never hold an n x n matrix: products are taken in blocks.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 2048
"""Rows of one side of a product: at most BLOCK x BLOCK similarities are in memory."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows were chosen, and which were dropped for which. All numbers are row numbers of the vectors."""

    selected: np.ndarray
    """int64, the most similar to the shots first."""
    dropped: np.ndarray
    """int64, rows too similar to a better one."""
    better: np.ndarray
    """int64 like `dropped`: the kept row each is most similar to."""
    similarity: np.ndarray
    """float32 like `dropped`: how similar."""


def find_nearest(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine of each row and any of the others [n] float32, and which other [n] int64 (ties: the first).

    With no others the cosine is -inf and the other 0.
    """
    best = np.full(len(rows), -np.inf, dtype=np.float32)
    which = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        here = slice(start, start + BLOCK)
        for first in range(0, len(others), BLOCK):
            cosines = rows[here] @ others[first : first + BLOCK].T
            found = cosines.argmax(axis=1)
            cosine = cosines[np.arange(len(cosines)), found]
            better = cosine > best[here]
            which[here][better] = found[better] + first
            best[here][better] = cosine[better]
    return best, which


def rank_rows(scores: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Numbers of the usable rows, the highest score first; of equal ones the earlier row."""
    rows = np.flatnonzero(usable)
    return rows[np.argsort(-scores[rows], kind="stable")]


def choose_diverse(vectors: np.ndarray, ranked: np.ndarray, budget: int, tau: float, consider: int = 1000) -> Choice:
    """The `budget` best rows no two of which are more similar than `tau`.

    ranked: row numbers, the best first. Each row in turn is dropped if its cosine with a kept, better row is above tau,
    so of each such pair the one less similar to the shots goes, and a row that is dropped takes no other with it. So
    many of the best rows as `consider` says are compared in any case, more of them until the budget is filled. With
    tau = 1 nothing is dropped.
    """
    if tau >= 1:
        return Choice(ranked[:budget], *_no_drops())
    kept: list[int] = []
    dropped: list[tuple[int, int, float]] = []
    for start in range(0, len(ranked), BLOCK):
        block = ranked[start : start + BLOCK]
        part = vectors[block]
        cosine, which = _nearest_kept(part, vectors, kept)
        within = part @ part.T
        for row, number in enumerate(block):
            if start + row >= consider and len(kept) >= budget:
                return _make_choice(kept, dropped, budget)
            if cosine[row] > tau:
                dropped.append((int(number), int(which[row]), float(cosine[row])))
                continue
            kept.append(int(number))
            nearer = within[row] > cosine
            cosine[nearer], which[nearer] = within[row][nearer], number
    return _make_choice(kept, dropped, budget)


def _nearest_kept(part: np.ndarray, vectors: np.ndarray, kept: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Like `find_nearest` among the kept rows, which are gathered block by block, too."""
    best = np.full(len(part), -np.inf, dtype=np.float32)
    which = np.zeros(len(part), dtype=np.int64)
    for first in range(0, len(kept), BLOCK):
        numbers = np.asarray(kept[first : first + BLOCK])
        cosine, found = find_nearest(part, vectors[numbers])
        better = cosine > best
        best[better], which[better] = cosine[better], numbers[found[better]]
    return best, which


def _make_choice(kept: list[int], dropped: list[tuple[int, int, float]], budget: int) -> Choice:
    selected = np.asarray(kept[:budget], dtype=np.int64)
    if not dropped:
        return Choice(selected, *_no_drops())
    numbers, better, similarity = zip(*dropped, strict=True)
    return Choice(selected, np.asarray(numbers), np.asarray(better), np.asarray(similarity, dtype=np.float32))


def _no_drops() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
