"""Cluster: draw the map (UMAP in two dimensions) and find clusters (HDBSCAN).

The picture is for looking. Clusters are found on a second UMAP projection of the same vectors, into five dimensions and
packed tightly: on reasoning tasks both spaces serve equally well, but on overlapping natural question sets HDBSCAN on
the picture fell into two clusters with one seed and eighteen with another, while five dimensions gave the same answer.
"""

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import ClusterConfig
from metamoe_backend.embed import fetch_embedded_questions, stack_vectors
from metamoe_backend.errors import ConfigError
from metamoe_backend.workspace import cache_folder

if TYPE_CHECKING:
    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store

CLUSTER_DIMENSIONS = 5
MIN_SAMPLES = 5
"""HDBSCAN min_samples, where min_cluster_size allows it: smaller calls fewer questions noise."""
LEAST_QUESTIONS = 5
SILHOUETTE_SAMPLE = 5000
KEYWORDS, SAMPLES = 6, 5
STEPS = ("layout", "space", "clusters", "quality", "keywords")
"""What `compute` does, in this order; progress counts STEP_UNITS for each of them."""
STEP_UNITS = 100


@dataclass(frozen=True, slots=True)
class Clusters:
    """Groups of n points."""

    labels: np.ndarray
    """[n] int: 0 is the largest cluster, -1 is noise."""
    strengths: np.ndarray
    """[n] float: membership, 0 to 1."""
    dbcv: float | None
    """Density-based cluster validity, -1 to 1 (Moulavi 2014, as approximated by HDBSCAN); None without clusters."""


def prepare(store: "Store", config: ClusterConfig) -> "Inputs":
    """Questions with vectors: question_id, task, prompt, vector.

    Raises `NotFoundError` when something is not embedded yet, `ConfigError` when there are too few questions.
    """
    questions = fetch_embedded_questions(store, config.encoder, config.of, config.method, tuple(config.tasks))
    if len(questions) < LEAST_QUESTIONS:
        raise ConfigError(f"A map needs at least {LEAST_QUESTIONS} questions; import more than these {len(questions)}.")
    return {"questions": questions}


def compute(inputs: "Inputs", config: ClusterConfig, context: "Context") -> None:
    """Emit one map row, a map_point row for each question and a cluster row for each cluster."""
    questions = inputs["questions"]
    vectors = stack_vectors(questions["vector"])

    def tell(done: float) -> None:
        """Of the steps, `done` are done."""
        context.progress(int(done * STEP_UNITS), len(STEPS) * STEP_UNITS)

    tell(0)
    picture = compute_projection(vectors, 2, config.neighbours, config.min_dist, config.seed, tell)
    tell(1)
    space = compute_projection(
        vectors, CLUSTER_DIMENSIONS, config.neighbours, 0.0, config.seed, lambda share: tell(1 + share)
    )
    tell(2)
    clusters = compute_clusters(space, config.min_cluster_size)
    tell(3)
    quality = compute_quality(vectors, clusters, questions["task"].to_numpy(), config.seed)
    tell(4)
    _emit(context, config, questions, vectors, picture, clusters, quality)
    tell(5)


class _EpochReader(io.TextIOBase):
    """The file that UMAP writes its progress bar to: "12/200" is told as 0.06. What `tell` raises ends UMAP."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell

    def write(self, text: str) -> int:
        done, _, total = text.strip().partition("/")
        if total:
            self._tell(min(0.99, int(done) / int(total)))
        return len(text)


def compute_projection(
    vectors: np.ndarray,
    dimensions: int,
    neighbours: int,
    min_dist: float,
    seed: int,
    tell: Callable[[float], None] | None = None,
) -> np.ndarray:
    """UMAP coordinates [n, dimensions] of unit vectors [n, dim]; fewer dimensions where n is tiny. Same seed, same map.

    Neighbourhoods never ask for more questions than there are. tell: hears the share of the epochs that are done.
    """
    import umap

    n = len(vectors)
    dimensions = max(2, min(dimensions, n - 2))
    with warnings.catch_warnings():
        # UMAP tells that a seed means one thread and that parts of the graph are not connected: both as they should.
        warnings.simplefilter("ignore")
        projection = umap.UMAP(
            n_components=dimensions,
            n_neighbors=min(neighbours, n - 1),
            min_dist=min_dist,
            metric="cosine",
            init="spectral" if n > 4 * (dimensions + 1) else "random",
            random_state=seed,
            n_jobs=1,
            tqdm_kwds=None
            if tell is None
            else {
                "file": _EpochReader(tell),
                "bar_format": "{n}/{total}",
                "disable": False,
                "mininterval": 0.5,
            },
        ).fit_transform(vectors)
    return np.asarray(projection, dtype=np.float64)


def compute_clusters(points: np.ndarray, min_cluster_size: int) -> Clusters:
    """HDBSCAN on points [n, dimensions]; clusters are numbered by size."""
    import hdbscan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hdbscan.HDBSCAN(
            min_cluster_size=min_cluster_size,
            min_samples=min(MIN_SAMPLES, min_cluster_size, len(points) - 1),
            gen_min_span_tree=True,
            core_dist_n_jobs=1,
        ).fit(points)
        sizes = Counter(found.labels_[found.labels_ >= 0].tolist())
        dbcv = float(found.relative_validity_) if sizes else None
    by_size = sorted(sizes, key=lambda label: (-sizes[label], label))
    number = {label: place for place, label in enumerate(by_size)} | {-1: -1}
    labels = np.array([number[label] for label in found.labels_.tolist()], dtype=np.int64)
    return Clusters(labels, np.nan_to_num(found.probabilities_), dbcv if dbcv is None or np.isfinite(dbcv) else None)


def compute_quality(vectors: np.ndarray, clusters: Clusters, tasks: np.ndarray, seed: int) -> dict[str, float | None]:
    """noise_share, and with noise left out: nmi and ari against task names, silhouette (cosine, of the vectors).

    None where a measure means nothing: without clusters, with a single task, with a single cluster. The silhouette is
    taken over a sample of at most SILHOUETTE_SAMPLE questions.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    kept = clusters.labels >= 0
    labels, names = clusters.labels[kept], tasks[kept]
    quality: dict[str, float | None] = {"nmi": None, "ari": None, "silhouette": None}
    quality["noise_share"] = float(1 - kept.mean())
    if len(labels) and len(set(names)) > 1:
        quality["nmi"] = float(normalized_mutual_info_score(names, labels))
        quality["ari"] = float(adjusted_rand_score(names, labels))
    places = np.flatnonzero(kept)
    if len(places) > SILHOUETTE_SAMPLE:
        places = np.random.default_rng(seed).choice(places, SILHOUETTE_SAMPLE, replace=False)
    sampled = clusters.labels[places]
    if 1 < len(set(sampled.tolist())) < len(sampled):
        quality["silhouette"] = float(silhouette_score(vectors[places], sampled, metric="cosine"))
    return quality


def find_central(vectors: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` vectors [n, dim] nearest to their mean, nearest first."""
    closeness = vectors @ vectors.mean(axis=0)
    return np.argsort(-closeness, kind="stable")[:count]


# ---- keywords ---------------------------------------------------------------------------------------------------

_CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff]+"
_CHINESE_STOP_TEXT = """
    一个 一些 一种 一共 什么 怎么 怎样 如何 多少 哪个 哪些 为什么 这个 那个 这些 那些 可以 我们 你们 他们 它们 自己
    没有 不是 就是 还是 但是 如果 因为 所以 以及 或者 并且 请问 下列 以下 下面 关于 其中 之间 需要 应该 是否
"""
_CHINESE_STOP_WORDS = frozenset(_CHINESE_STOP_TEXT.split())


def extract_words(text: str) -> list[str]:
    """Words that may tell one cluster from another: English of three letters or more, Chinese of two or more."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [word for word in re.findall(r"[a-z][a-z'-]+[a-z]", text.lower()) if word not in ENGLISH_STOP_WORDS]
    for run in re.findall(_CHINESE, text):
        words += [word for word in _chinese_tokenizer().cut(run) if len(word) > 1 and word not in _CHINESE_STOP_WORDS]
    return words


@lru_cache(maxsize=1)
def _chinese_tokenizer() -> Any:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    cache_folder().mkdir(parents=True, exist_ok=True)
    tokenizer.tmp_dir = str(cache_folder())  # its default is the world-writable /tmp, from where it would also read
    return tokenizer


def compute_keywords(texts: list[str], labels: np.ndarray, count: int = KEYWORDS) -> dict[int, list[str]]:
    """The most telling words of each cluster by class-based TF-IDF (Grootendorst 2022, arXiv 2203.05794, eq. 2).

    tf is the share of the cluster's questions that have the word, so that one long question does not decide.
    """
    found: dict[int, Counter[str]] = {label: Counter() for label in sorted(set(labels.tolist()) - {-1})}
    for text, label in zip(texts, labels.tolist(), strict=True):
        if label >= 0:
            found[label].update(set(extract_words(text)))
    overall: Counter[str] = Counter()
    for words in found.values():
        overall.update(words)
    average = overall.total() / max(1, len(found))
    keywords = {}
    for label, words in found.items():
        score = {word: n * np.log1p(average / overall[word]) for word, n in words.items()}
        keywords[label] = sorted(score, key=lambda word: (-score[word], word))[:count]
    return keywords


# ---- rows -------------------------------------------------------------------------------------------------------


def _emit(
    context: "Context",
    config: ClusterConfig,
    questions: pd.DataFrame,
    vectors: np.ndarray,
    picture: np.ndarray,
    clusters: Clusters,
    quality: dict[str, float | None],
) -> None:
    count = int(clusters.labels.max()) + 1
    settings = config.model_dump(include={"of", "encoder", "neighbours", "min_dist", "min_cluster_size", "seed"})
    row = {
        "map_id": context.run_id, **settings, "questions": len(questions), "clusters": count, **quality,
        "dbcv": clusters.dbcv, "created_at": context.created_at,
    }  # fmt: skip
    context.emit("map", pd.DataFrame([row]))
    points = pd.DataFrame(
        {
            "map_id": context.run_id, "question_id": questions["question_id"].to_numpy(), "x": picture[:, 0],
            "y": picture[:, 1], "cluster": clusters.labels, "strength": clusters.strengths,
        }
    )  # fmt: skip
    context.emit("map_point", points)
    if count:
        context.emit("cluster", _make_cluster_rows(context.run_id, questions, vectors, picture, clusters.labels))


def _make_cluster_rows(
    map_id: str, questions: pd.DataFrame, vectors: np.ndarray, picture: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    keywords = compute_keywords(questions["prompt"].tolist(), labels)
    ids = questions["question_id"].to_numpy()
    rows = []
    for label, words in keywords.items():
        members = np.flatnonzero(labels == label)
        x, y = np.median(picture[members], axis=0)
        central = members[find_central(vectors[members], SAMPLES)]
        rows.append(
            {
                "map_id": map_id, "cluster": label, "size": len(members), "x": float(x), "y": float(y),
                "keywords": words, "samples": ids[central].tolist(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
