"""What is known of questions before anybody labels one: meaning, words, and which groups they lie in.

Measured with three random labels a skill on seven natural question sets: vectors alone .57, joined with words .70, with
the groups as well .85 (docs/benchmarks.md). The groups carry what unlabelled questions teach: of a question's group one
label may be enough.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from metamoe_backend.one_thread import one_thread

WORD_DIMENSIONS = 128
COARSEST, FINEST = 10, 160
"""Groups at the coarsest and the finest scale; each scale has twice as many as the one before."""
QUESTIONS_PER_GROUP = 10
"""On the average, at least: small workspaces have fewer scales."""
SOFTNESS = 1 / 12
"""A group that is so much farther away than the nearest one counts 1/e as much."""
MOST_FITTED = 10_000
"""Groups are found on a sample of so many questions, which bounds time and memory."""
BLOCK = 2_000
"""Questions compared with all others at a time."""
_TOKEN = r"(?u)[^\W\d_\u3400-\u9fff]+|\d|[\u3400-\u9fff]"
"""Words and single Chinese characters; numbers are one token (see `_fold_numbers`). Signs are left out: they tell the
format of a data set rather than a skill."""


@dataclass(frozen=True, slots=True)
class Features:
    """Of n questions, in order."""

    joined: np.ndarray
    """[n, dim] float32, unit: vectors beside words. Its products are similarities, -1 to 1."""
    groups: np.ndarray
    """[scales, n] int: the group of each question, from the coarsest scale to the finest."""
    columns: np.ndarray
    """[n, dim + groups of all scales] float32: what a classifier learns from."""


def make_features(vectors: np.ndarray, texts: list[str], seed: int) -> Features:
    """Features of questions with these unit vectors [n, dim] and texts. The same seed gives the same features."""
    with one_thread():
        parts = _join_words(vectors, texts, seed)
        joined = (parts / np.linalg.norm(parts, axis=1, keepdims=True)).astype(np.float32)
        found = [_find_groups(joined, count, seed) for count in _scales(len(joined))]
    groups = np.stack([distances.argmin(axis=1) for distances in found])
    return Features(joined, groups, np.hstack([parts, *map(_make_memberships, found)]).astype(np.float32))


def find_neighbours(joined: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and places [n, count] of the questions most like each one, itself left out; in no order."""
    count = min(count, len(joined) - 1)
    similarities, places = [], []
    for start, block in _compare_blockwise(joined):
        rows = np.arange(len(block))
        block[rows, start + rows] = -2.0
        near = np.argpartition(-block, count - 1, axis=1)[:, :count].copy()  # a view would keep all n columns
        similarities.append(np.take_along_axis(block, near, axis=1))
        places.append(near)
    return np.concatenate(similarities), np.concatenate(places)


def _compare_blockwise(joined: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(joined), BLOCK):
        yield start, joined[start : start + BLOCK] @ joined.T


def _join_words(vectors: np.ndarray, texts: list[str], seed: int) -> np.ndarray:
    """Unit vectors beside unit word features [n, dim + up to WORD_DIMENSIONS]: TF-IDF of words and pairs, then SVD.

    Texts without any word leave the vectors alone.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    plain = normalize(vectors)
    counter = TfidfVectorizer(
        preprocessor=_fold_numbers, token_pattern=_TOKEN, ngram_range=(1, 2), sublinear_tf=True, max_features=50_000
    )
    if not any(re.search(_TOKEN, _fold_numbers(text)) for text in texts):
        return plain
    words = counter.fit_transform(texts)
    dimensions = min(WORD_DIMENSIONS, words.shape[0] - 1, words.shape[1] - 1)
    if dimensions < 2:
        return plain
    with np.errstate(invalid="ignore"):  # equal texts have no variance to explain
        reduced = TruncatedSVD(dimensions, random_state=seed).fit_transform(words)
    return np.hstack([plain, normalize(reduced)])


def _fold_numbers(text: str) -> str:
    return re.sub(r"\d+(?:[.,]\d+)*", "0", text.lower())


def _scales(n: int) -> list[int]:
    """Numbers of groups, coarse to fine."""
    most = min(FINEST, max(n // QUESTIONS_PER_GROUP, 1))
    coarsest = min(COARSEST, most)
    return [coarsest * 2**step for step in range(8) if coarsest * 2**step <= most]


def _find_groups(joined: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Distances [n, count] to the centres of `count` groups (k-means)."""
    import warnings

    from sklearn.cluster import KMeans

    sample = joined
    if len(joined) > MOST_FITTED:
        sample = joined[np.random.default_rng(seed).choice(len(joined), MOST_FITTED, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal questions make fewer groups than asked for: as it should be
        return KMeans(count, n_init=1, max_iter=30, random_state=seed).fit(sample).transform(joined)


def _make_memberships(distances: np.ndarray) -> np.ndarray:
    """How much each question belongs to each group [n, groups], as a unit vector."""
    nearness = np.exp((distances.min(axis=1, keepdims=True) - distances) / SOFTNESS)
    return nearness / np.linalg.norm(nearness, axis=1, keepdims=True)
