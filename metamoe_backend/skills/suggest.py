"""Suggest: a skill for every question nobody has labelled, from a handful of labels.

Works on the original vectors, never on the picture. With 1 to 10 random labels a skill, joining the vectors with word
features helped more than any choice of classifier, and letting near neighbours vote added a little.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import SuggestConfig
from metamoe_backend.embed import fetch_embedded_questions, stack_vectors
from metamoe_backend.errors import ConfigError

if TYPE_CHECKING:
    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store

WORD_DIMENSIONS = 128
NEIGHBOURS = 10
TRUST_IN_NEIGHBOURS = 0.7
"""Share of a question's probabilities that comes from its neighbours, at each of SPREADING_STEPS."""
SPREADING_STEPS = 20
INVERSE_REGULARISATION = 160.0
"""Of the logistic regression on unit features (sklearn's C)."""
FOLDS = 5
_TEMPERATURES = np.geomspace(0.2, 5.0, 41)
_TOKEN = r"(?u)[^\W\d_\u3400-\u9fff]+|\d|[\u3400-\u9fff]"
"""Words and single Chinese characters; numbers are one token (see `_fold_numbers`). Signs are left out: they tell the
format of a data set rather than a skill."""


def prepare(store: "Store", config: SuggestConfig) -> "Inputs":
    """Questions (question_id, text, vector), standing labels (question_id, skill_id, skill, how, event_id) and
    rejections (question_id, skill_id): suggestions that people refused.

    Raises `NotFoundError` when something is not embedded yet, `ConfigError` when fewer than two skills have labels.
    """
    from metamoe_backend.store.skills import fetch_labels, fetch_rejections

    labels = fetch_labels(store)[["question_id", "skill_id", "skill", "how", "event_id"]]
    rejections = fetch_rejections(store)[["question_id", "skill_id"]]
    _require_two_skills(labels)
    questions = fetch_embedded_questions(store, config.encoder, config.of, config.method)
    questions["text"] = questions["prompt"] if config.of == "question" else _find_meta_texts(store, questions, config)
    return {"questions": questions[["question_id", "text", "vector"]], "labels": labels, "rejections": rejections}


def compute(inputs: "Inputs", config: SuggestConfig, context: "Context") -> None:
    """Emit a suggestion row for each question without a standing label."""
    questions = inputs["questions"]
    voted = settle_votes(inputs["labels"])
    classes = sorted(voted.unique())
    number = {skill_id: place for place, skill_id in enumerate(classes)}
    known = questions["question_id"].map(voted).map(number).fillna(-1).astype(int).to_numpy()
    context.progress(0, 1)
    probabilities = fit_predict(stack_vectors(questions["vector"]), questions["text"].tolist(), known, config.seed)
    is_free = ~questions["question_id"].isin(inputs["labels"]["question_id"]).to_numpy()
    if not is_free.any():
        context.log("Every question has a label; there is nothing to suggest.")
        context.progress(1, 1)
        return
    ids = questions["question_id"].to_numpy()[is_free]
    allowed, possible = rule_out(ids, probabilities[is_free], classes, inputs["rejections"])
    context.emit("suggestion", _make_rows(ids[possible], allowed[possible], classes))
    context.progress(1, 1)


def rule_out(
    ids: np.ndarray, probabilities: np.ndarray, classes: list[str], rejections: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes] without what people refused, summing to 1 again; which questions [n] have any left.

    rejections: question_id, skill_id.
    """
    rows = pd.Index(ids).get_indexer(rejections["question_id"])
    columns = pd.Index(classes).get_indexer(rejections["skill_id"])
    known = (rows >= 0) & (columns >= 0)
    allowed = probabilities.copy()
    allowed[rows[known], columns[known]] = 0.0
    left = allowed.sum(axis=1)
    return allowed / np.maximum(left, 1e-12)[:, None], left > 0


def settle_votes(labels: pd.DataFrame) -> pd.Series:
    """One skill_id for each question that people labelled themselves (index question_id).

    Where people disagree a decision counts, else the majority, and the newest label between equals. Accepted
    suggestions are left out: a model that learns from what it said itself only grows surer of it.
    """
    own = labels[labels["how"] != "accepted"]
    own = own.assign(decided=own["how"] == "decided")
    votes = own.groupby(["question_id", "skill_id"]).agg(
        decided=("decided", "max"), size=("event_id", "size"), newest=("event_id", "max")
    )
    decisive = (
        votes.reset_index()
        .sort_values(["question_id", "decided", "size", "newest"])
        .drop_duplicates("question_id", keep="last")
    )
    return decisive.set_index("question_id")["skill_id"]


def fit_predict(vectors: np.ndarray, texts: list[str], labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities [n, classes] of n questions from the few that are labelled.

    vectors: [n, dim], unit. labels: [n] int, the class from 0, or -1 for a question without a label; the classes are
    0 … classes-1, each with a label, at least two. A labelled question keeps its label with probability 1.

    Logistic regression on vectors joined with word features, then label spreading (Zhou 2004) that starts from its
    probabilities instead of zeros; a temperature found by cross-validation over the labelled questions makes the result
    honest. Where too few labels allow no cross-validation it stays as it comes: rather too unsure.
    """
    features = make_features(vectors, texts, seed)
    graph = _make_graph(features)
    places = np.flatnonzero(labels >= 0)
    classes = int(labels.max()) + 1
    spread = _spread(features, graph, places, labels[places], classes)
    temperature = _find_temperature(features, graph, places, labels[places], classes, seed)
    probabilities = _sharpen(spread, temperature)
    probabilities[places] = np.eye(classes)[labels[places]]
    return probabilities


def make_features(vectors: np.ndarray, texts: list[str], seed: int) -> np.ndarray:
    """Unit vectors beside unit word features [n, dim + up to WORD_DIMENSIONS]: TF-IDF of words and pairs, then SVD.

    The words of unlabelled questions take part too. Texts without any word leave the vectors alone.
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


def _make_graph(features: np.ndarray) -> Any:
    """Symmetrically normalised neighbour graph, sparse [n, n]; weights are cosines to the fourth power."""
    from scipy.sparse import csr_matrix, diags
    from sklearn.neighbors import NearestNeighbors

    n = len(features)
    count = min(NEIGHBOURS, n - 1)
    distances, near = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(features).kneighbors()
    weights = np.clip(1 - distances, 0, 1) ** 4
    rows = np.repeat(np.arange(n), count)
    graph = csr_matrix((weights.ravel(), (rows, near.ravel())), shape=(n, n))
    graph = graph.maximum(graph.T)
    scale = diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-9)))
    return scale @ graph @ scale


def _spread(features: np.ndarray, graph: Any, places: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities [n, classes] before calibration, from the labels at `places`."""
    from sklearn.linear_model import LogisticRegression

    found = np.unique(labels)
    # A person who labels a whole cluster at once does not say that this skill is more frequent than others.
    model = LogisticRegression(C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=1000)
    model.fit(features[places], labels)
    start = np.zeros((len(features), classes))
    start[:, found] = model.predict_proba(features)
    start[places] = np.eye(classes)[labels]
    current = start
    for _ in range(SPREADING_STEPS):
        current = TRUST_IN_NEIGHBOURS * (graph @ current) + (1 - TRUST_IN_NEIGHBOURS) * start
    return current / current.sum(axis=1, keepdims=True)


def _find_temperature(
    features: np.ndarray, graph: Any, places: np.ndarray, labels: np.ndarray, classes: int, seed: int
) -> float:
    """The temperature that makes held-out labels most probable, each class weighing the same.

    1 where a class has fewer than two labels.
    """
    from sklearn.model_selection import StratifiedKFold

    sizes = np.bincount(labels, minlength=classes)
    least = int(sizes.min())
    if least < 2:
        return 1.0
    folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=seed)
    held_out = np.zeros((len(labels), classes))
    for fit, test in folds.split(places, labels):
        held_out[test] = _spread(features, graph, places[fit], labels[fit], classes)[places[test]]
    own = np.arange(len(labels)), labels
    weights = 1 / sizes[labels]
    losses = [-np.average(np.log(_sharpen(held_out, float(t))[own]), weights=weights) for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _sharpen(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities to the power 1/temperature, summing to 1 again: below 1 surer, above 1 less sure."""
    logs = np.log(np.maximum(probabilities, 1e-9)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _make_rows(question_ids: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    order = np.argsort(-probabilities, axis=1, kind="stable")
    rows = np.arange(len(order))
    best, second = probabilities[rows, order[:, 0]], probabilities[rows, order[:, 1]]
    names = np.array(classes, dtype=object)
    return pd.DataFrame(
        {
            "question_id": question_ids, "skill_id": names[order[:, 0]], "probability": best,
            "runner_up": names[order[:, 1]], "margin": best - second,
        }
    )  # fmt: skip


def _require_two_skills(labels: pd.DataFrame) -> None:
    skills = sorted(labels.loc[labels["how"] != "accepted", "skill"].unique())
    if not skills:
        raise ConfigError("No question is labelled yet; label a few questions of at least two skills first.")
    if len(skills) == 1:
        raise ConfigError(
            f"Only the skill {skills[0]!r} has labels; label a few questions of at least one other skill."
        )


def _find_meta_texts(store: "Store", questions: pd.DataFrame, config: SuggestConfig) -> list[str]:
    """The present meta-question of each question, by the method whose vectors are read."""
    from metamoe_backend.store.questions import fetch_meta_questions

    built = fetch_meta_questions(store, config.method).set_index("question_id")["text"]
    return questions["question_id"].map(built).tolist()
