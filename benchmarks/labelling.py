"""How many labels a skill takes: questions chosen by `next` against random ones, and what meta-questions add.

Pools of questions, the name of the data set being the skill: the seven sets of the bank, the six of the evaluation, 30
reasoning-gym generators, and all of these together. After L labels a skill (L times the number of skills in all, given
by an oracle), accuracy over the questions without a label: `next_L` asks for them in rounds with `next` and has
`suggest` answer; `random_L` draws as many uniformly and fits a logistic regression on the MiniLM vectors; `suggest_L`
has `suggest` answer on the same draws, reading meta-questions in `suggest_L_meta`, both vectors beside each other in
`suggest_L_both` and their mean in `suggest_L_mean`. `ece_L`: expected calibration error of `next_L`, and before
calibration (`raw`). `near`: share of the ten nearest vectors that need the same skill; `nmi` and `ari`: of the clusters
that `cluster` finds. Median over the seeds of the mean over the pools; `POOL/…` of one pool.

`--candidates N`: how many questions `next` draws and looks at; fewer than a pool has tell what drawing costs.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from timing import make_parser, report

from metamoe_backend.config import ClusterConfig, IngestConfig
from metamoe_backend.embed import hash_text, load_encoder
from metamoe_backend.ingest.stage import read_preview
from metamoe_backend.mapping import CLUSTER_DIMENSIONS, Clusters, compute_clusters, compute_projection, compute_quality
from metamoe_backend.masking import mask_question
from metamoe_backend.skills.features import Features, find_neighbours, make_features
from metamoe_backend.skills.queue import MOST_CANDIDATES, choose_next
from metamoe_backend.skills.suggest import fit_predict, spread_labels

LABELS = (1, 3, 5, 10)
ROUND, ROUND_ALL = 10, 20
"""Questions asked for at a time, in a pool and in all pools together."""
ROWS, ROWS_GENERATED = 150, 40
"""Questions of each file and of each generator."""
SEEDS, SEEDS_ALL = 5, 2
BINS = 10
NEAREST = 10
GENERATORS = (
    "ab", "aiw", "base_conversion", "binary_alternation", "chain_sum", "coin_flip", "countdown",
    "decimal_arithmetic", "emoji_mystery", "fraction_simplification", "game_of_life_halting", "group_anagrams",
    "isomorphic_strings", "knight_swap", "lcm", "letter_jumble", "manipulate_matrix", "modulo_grid",
    "number_filtering", "number_sorting", "path_star", "pool_matrix", "products", "quantum_lock", "rectangle_count",
    "sentence_reordering", "simple_geometry", "spell_backward", "string_manipulation", "sudoku",
)  # fmt: skip
"""Every third of the generators in alphabetical order, but for those whose own answers do not score 1."""

ALL = "all"
PARTS = ("next", "readings")

Scores = dict[str, list[float]]
"""Of a pool: values by figure, one a seed."""
Note = Callable[[str, float], None]
Reading = tuple[np.ndarray, list[str]]
"""Unit vectors [n, dim] and texts."""


def main() -> None:
    """Measure every pool, print a table of each, and report the figures."""
    options = parse_options()
    pools = read_pools(options)
    frame = pd.concat([pool.assign(pool=name) for name, pool in pools.items()], ignore_index=True)
    frame["meta"] = [mask_question(text) for text in frame["text"]]
    encoded = encode([*frame["text"], *frame["meta"]], options.cache)
    found: dict[str, Scores] = {}
    for name in [*pools, ALL] if len(pools) > 1 else pools:
        part = frame if name == ALL else frame[frame["pool"] == name]
        found[name] = measure_pool(name, part.reset_index(drop=True), encoded, options)
    report(summarise(found), options)


def measure_pool(name: str, frame: pd.DataFrame, encoded: dict[str, np.ndarray], options: argparse.Namespace) -> Scores:
    """The figures of one pool that were asked for, printed as well. frame: pool, skill, text, meta."""
    readings, skills = make_readings(frame, encoded), number_skills(frame)
    seeds = min(1 if options.quick else options.seeds, SEEDS_ALL if name == ALL else SEEDS)
    scores: Scores = {}
    if options.only in (None, "next"):
        size = ROUND_ALL if name == ALL else ROUND
        scores |= measure_next(readings["question"], skills, seeds, size, options.candidates)
    if options.only in (None, "readings"):
        scores |= measure_readings(readings, skills, seeds)
    print(f"{name}: {len(frame)} questions, {skills.max() + 1} skills, {seeds} seeds")
    for figure, values in scores.items():
        print(f"  {figure}: {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})", flush=True)
    return scores


def number_skills(frame: pd.DataFrame) -> np.ndarray:
    """Skills [n] from 0. frame: pool, skill."""
    return pd.factorize(frame["pool"] + "/" + frame["skill"])[0]


def parse_options() -> argparse.Namespace:
    """--data and --cache beside the options of every script."""
    parser = make_parser(__doc__ or "")
    parser.add_argument(
        "--data", type=Path, help="folder with bank/*.tsv and eval/*.jsonl; without it only the generators are measured"
    )
    parser.add_argument("--cache", type=Path, help="folder where vectors are kept between runs")
    parser.add_argument("--only", choices=PARTS, help="one part of the figures")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"at most {SEEDS}")
    parser.add_argument("--candidates", type=int, default=MOST_CANDIDATES, help="questions that `next` looks at")
    return parser.parse_args()


def summarise(found: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Figures by name: first over the pools, all together left out, then of each pool."""
    alone = [scores for name, scores in found.items() if name != ALL]
    over = {figure: np.mean([scores[figure] for scores in alone], axis=0).tolist() for figure in alone[0]}
    figures = over | {f"{name}/{figure}": values for name, scores in found.items() for figure, values in scores.items()}
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
        for name, values in figures.items()
    }


# ---- questions --------------------------------------------------------------------------------------------------


def read_pools(options: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Per pool the distinct questions of its sets: skill, text."""
    rows, generated = (40, 10) if options.quick else (ROWS, ROWS_GENERATED)
    sources = {name: read_prompts(f"reasoning_gym:{name}", generated) for name in GENERATORS}
    return read_files(options, rows) | {"reasoning-gym": _make_pool(sources)}


def read_files(options: argparse.Namespace, rows: int) -> dict[str, pd.DataFrame]:
    """The pools that lie in files; without --data none."""
    pools: dict[str, pd.DataFrame] = {}
    for name in ("bank", "eval"):
        paths = sorted((options.data / name).iterdir()) if options.data else []
        if paths:
            pools[name] = _make_pool({path.stem: read_sample(path, rows) for path in paths})
    return pools


def _make_pool(sources: dict[str, list[str]]) -> pd.DataFrame:
    rows = [(skill, text) for skill, texts in sources.items() for text in texts]
    return pd.DataFrame(rows, columns=["skill", "text"]).drop_duplicates("text", ignore_index=True)


def read_sample(path: Path, rows: int) -> list[str]:
    """Prompts of `rows` random lines of a file, as `ingest` reads them."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text("\n".join(random.Random(0).sample(lines, min(rows, len(lines)))) + "\n", encoding="utf-8")
        return read_prompts(str(copy), rows)


def read_prompts(source: str, rows: int) -> list[str]:
    """Prompts of the first rows of a source."""
    return read_preview(IngestConfig(source=source), rows).rows["prompt"].tolist()


def encode(texts: Sequence[str], cache: Path | None) -> dict[str, np.ndarray]:
    """MiniLM vector of each text."""
    path = cache / "minilm.parquet" if cache else None
    kept: dict[str, np.ndarray] = {}
    if path and path.exists():
        stored = pd.read_parquet(path)
        kept = dict(zip(stored["text_hash"], stored["vector"], strict=True))
    missing = sorted({text for text in texts if hash_text(text) not in kept}, key=len)
    for start in range(0, len(missing), 256):
        chunk = missing[start : start + 256]
        kept |= dict(zip(map(hash_text, chunk), load_encoder("minilm").encode(chunk), strict=True))
    if path and missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"text_hash": list(kept), "vector": list(kept.values())}).to_parquet(path)
    return {text: np.asarray(kept[hash_text(text)], dtype=np.float32) for text in texts}


# ---- measures ---------------------------------------------------------------------------------------------------


def measure_next(reading: Reading, skills: np.ndarray, seeds: int, size: int, candidates: int) -> Scores:
    """Labels that `next` asks for among so many candidates against random ones; how honest the probabilities are."""
    vectors, texts = reading
    note, scores = make_notebook()
    for seed in range(seeds):
        features = make_features(vectors, texts, seed)
        order = np.random.default_rng(seed).permutation(len(skills))
        asked = draw_features(reading, features, seed, candidates)
        for labels, count in label_in_rounds(*asked, skills, seed, size):
            accuracy, error, error_raw = score_suggestions(features, labels, skills, seed)
            note(f"next_{count}", accuracy)
            note(f"ece_{count}_raw", error_raw)
            note(f"ece_{count}", error)
            drawn = give_labels(skills, order[: (labels >= 0).sum()])
            note(f"random_{count}", score_baseline(vectors, drawn, skills))
            note(f"suggest_{count}", score_suggestions(features, drawn, skills, seed)[0])
    return scores


def measure_readings(readings: dict[str, Reading], skills: np.ndarray, seeds: int) -> Scores:
    """What questions, meta-questions and both tell: `suggest` on random draws, neighbours and clusters."""
    note, scores = make_notebook()
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(skills))
        for name, reading in readings.items():
            features = make_features(*reading, seed)
            for count in LABELS:
                drawn = give_labels(skills, order[: count * (int(skills.max()) + 1)])
                note(f"suggest_{count}_{name}", score_suggestions(features, drawn, skills, seed)[0])
    for name, (vectors, _) in readings.items():
        places = find_neighbours(vectors, NEAREST)[1]
        scores[f"near_{name}"] = [float((skills[places] == skills[:, None]).mean())] * seeds
        for seed in range(seeds):
            quality = compute_quality(vectors, find_clusters(vectors, seed), skills, 0)
            for figure in ("nmi", "ari"):
                note(f"{figure}_{name}", quality[figure] or 0.0)
    return scores


def make_notebook() -> tuple[Note, Scores]:
    """A function that adds the next seed's value to a figure, and the figures."""
    scores: Scores = {}
    return lambda figure, value: scores.setdefault(figure, []).append(value), scores


def draw_features(reading: Reading, features: Features, seed: int, candidates: int) -> tuple[Features, np.ndarray]:
    """Features and places of the questions that `next` looks at before the first label."""
    vectors, texts = reading
    if len(texts) <= candidates:
        return features, np.arange(len(texts))
    places = np.sort(np.random.default_rng(seed).choice(len(texts), candidates, replace=False))
    return make_features(vectors[places], [texts[place] for place in places], seed), places


def make_readings(frame: pd.DataFrame, encoded: dict[str, np.ndarray]) -> dict[str, Reading]:
    """What can be read of the questions: of the question, of its meta-question, both side by side, and their mean."""
    columns = {"question": frame["text"].tolist(), "meta": frame["meta"].tolist()}
    vectors = {name: np.stack([encoded[text] for text in texts]) for name, texts in columns.items()}
    both = [f"{question}\n{meta}" for question, meta in zip(*columns.values(), strict=True)]
    readings = {name: (vectors[name], texts) for name, texts in columns.items()}
    joined, means = np.hstack(list(vectors.values())) / np.sqrt(2), sum(vectors.values())
    return readings | {"both": (joined, both), "mean": (means / np.linalg.norm(means, axis=1, keepdims=True), both)}


def find_clusters(vectors: np.ndarray, seed: int) -> Clusters:
    """Clusters as `cluster` finds them by default, with this seed."""
    settings = ClusterConfig()
    space = compute_projection(vectors, CLUSTER_DIMENSIONS, settings.neighbours, 0.0, seed)
    return compute_clusters(space, settings.min_cluster_size)


def label_in_rounds(
    features: Features, places: np.ndarray, skills: np.ndarray, seed: int, size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (labels [n], L) for each L of LABELS, as a person comes by them who asks `next` for `size` at a time.

    features: of the questions at `places`, among which `next` chooses.
    """
    labels, kinds = np.full(len(skills), -1), int(skills.max()) + 1
    for count in LABELS:
        while (missing := count * kinds - int((labels >= 0).sum())) > 0:
            chosen = places[choose_next(features, labels[places], min(size, missing), seed)]
            labels[chosen] = skills[chosen]
        yield labels.copy(), count


def give_labels(skills: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Labels [n]: the skill at these places, -1 elsewhere."""
    labels = np.full(len(skills), -1)
    labels[places] = skills[places]
    return labels


def _renumber(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skills that have labels, and the labels as numbers of these."""
    found, numbers = np.unique(labels[labels >= 0], return_inverse=True)
    renumbered = np.full(len(labels), -1)
    renumbered[labels >= 0] = numbers
    return found, renumbered


def score_suggestions(
    features: Features, labels: np.ndarray, skills: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """Over the questions without a label: accuracy of the suggestions, calibration error after and before calibration.

    Expected calibration error (Guo 2017) over BINS bins of the greatest probability.
    """
    found, renumbered = _renumber(labels)
    free = labels < 0
    if len(found) < 2:
        accuracy = float((skills[free] == found[0]).mean())
        return accuracy, 1 - accuracy, 1 - accuracy
    accuracies, errors = [], []
    for probabilities in (fit_predict(features, renumbered, seed), spread_labels(features, renumbered)):
        sure = probabilities[free].max(axis=1)
        hit = found[probabilities[free].argmax(axis=1)] == skills[free]
        bins = np.minimum((sure * BINS).astype(int), BINS - 1)
        accuracies.append(float(hit.mean()))
        errors.append(float(sum(abs((hit - sure)[bins == number].sum()) for number in range(BINS)) / len(sure)))
    return accuracies[0], errors[0], errors[1]


def score_baseline(vectors: np.ndarray, labels: np.ndarray, skills: np.ndarray) -> float:
    """As `score_suggestions`, by a logistic regression on the vectors alone."""
    known, free = labels >= 0, labels < 0
    if len(set(labels[known].tolist())) < 2:
        return float((skills[free] == labels[known][0]).mean())
    model = LogisticRegression(C=160.0, max_iter=1000).fit(vectors[known], labels[known])
    return float((model.predict(vectors[free]) == skills[free]).mean())


if __name__ == "__main__":
    main()
