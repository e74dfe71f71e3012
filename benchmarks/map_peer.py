"""Clusters of 20,000 vectors of 384 dimensions: our UMAP and HDBSCAN against BERTopic with equal settings.

Both project to five dimensions (15 neighbours, cosine, seed 0), find clusters of at least 15 and draw keywords by
c-TF-IDF from the same texts. `picture` is what a map costs above that: the projection to two dimensions, which BERTopic
does not make. CPU seconds: on a busy machine the clock says nothing. BERTopic is no part of the requirements: put it
on the path (`pip install --target DIR --no-deps bertopic==0.17.4`, PYTHONPATH=DIR).
"""

import time
from collections.abc import Callable

import numpy as np
from timing import compare, parse_options, report

from metamoe_backend.mapping import compute_clusters, compute_keywords, compute_projection

N, QUICK_N, DIMENSIONS, GROUPS, ROUNDS = 20_000, 5_000, 384, 60, 3
WARM_UP_N = 4_500
"""From 4,096 vectors on UMAP finds neighbours in another way, which compiles for half a minute the first time."""
NEIGHBOURS, SMALLEST, SAMPLES = 15, 15, 5


def make_questions(n: int) -> tuple[np.ndarray, list[str]]:
    """Unit vectors [n, 384] of 60 groups, and a text for each that tells its group's words."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, GROUPS, n)
    vectors = rng.normal(size=(GROUPS, DIMENSIONS))[group] + 1.2 * rng.normal(size=(n, DIMENSIONS))
    words = np.array([f"word{chr(97 + a)}{chr(97 + b)}" for a in range(20) for b in range(20)])
    own = rng.integers(0, len(words), (GROUPS, 12))
    texts = [" ".join(words[[*rng.choice(own[g], 8), *rng.integers(0, len(words), 8)]]) for g in group]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), texts


def cluster_ours(vectors: np.ndarray, texts: list[str]) -> None:
    """What `cluster` does to find and describe clusters."""
    found = compute_clusters(compute_projection(vectors, 5, NEIGHBOURS, 0.0, 0), SMALLEST)
    compute_keywords(texts, found.labels)


def cluster_bertopic(vectors: np.ndarray, texts: list[str]) -> None:
    """The same by BERTopic's own pipeline."""
    from bertopic import BERTopic
    from hdbscan import HDBSCAN
    from umap import UMAP

    umap = UMAP(n_components=5, n_neighbors=NEIGHBOURS, min_dist=0.0, metric="cosine", random_state=0, n_jobs=1)
    hdbscan = HDBSCAN(
        min_cluster_size=SMALLEST, min_samples=SAMPLES, gen_min_span_tree=True, core_dist_n_jobs=1, prediction_data=True
    )
    BERTopic(umap_model=umap, hdbscan_model=hdbscan, embedding_model=None).fit_transform(texts, vectors)


def measure_cpu(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Compile on fewer questions first, then measure in turns."""
    options = parse_options(__doc__ or "")
    few, few_texts = make_questions(WARM_UP_N)
    cluster_ours(few, few_texts)
    cluster_bertopic(few, few_texts)
    vectors, texts = make_questions(QUICK_N if options.quick else N)
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: cluster_ours(vectors, texts),
        "bertopic": lambda: cluster_bertopic(vectors, texts),
        "picture": lambda: compute_projection(vectors, 2, NEIGHBOURS, 0.1, 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, call in sides.items():
            seconds[name].append(measure_cpu(call))
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    report(compare(seconds, "bertopic"), options)


if __name__ == "__main__":
    main()
