"""Suggest: a skill for every question nobody has labelled, from a handful of labels.

Works on the original vectors, never on the picture, and on what unlabelled questions tell: the groups they form (see
`features`) and who lies near whom. docs/benchmarks.md says how many labels that saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from metamoe_backend.config import SuggestConfig
from metamoe_backend.embed import fetch_embedded_questions, stack_vectors
from metamoe_backend.errors import ConfigError
from metamoe_backend.one_thread import one_thread
from metamoe_backend.rows import Relation
from metamoe_backend.skills.features import Features, find_neighbours, make_features

if TYPE_CHECKING:
    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store

NEIGHBOURS = 10
TRUST_IN_NEIGHBOURS = 0.7
"""Share of a question's probabilities that comes from its neighbours, at each of SPREADING_STEPS."""
SPREADING_STEPS = 20
INVERSE_REGULARISATION = 160.0
"""Of the logistic regression (sklearn's C)."""
FOLDS = 5
_TEMPERATURES = np.geomspace(0.2, 5.0, 41)


@dataclass(frozen=True, slots=True)
class Constraint:
    """Two groups of questions need the same skill, or different ones."""

    relation: Relation
    first: np.ndarray
    """[k] int: places of the questions of one side."""
    second: np.ndarray


def prepare(store: "Store", config: SuggestConfig) -> "Inputs":
    """Questions (question_id, text, vector), standing labels (question_id, skill_id, skill, how, event_id), rejections
    (question_id, skill_id: suggestions that people refused) and constraints (relation, first_ids, second_ids).

    Raises `NotFoundError` when something is not embedded yet, `ConfigError` when fewer than two skills have labels.
    """
    from metamoe_backend.store.skills import fetch_constraints, fetch_labels, fetch_rejections

    labels = fetch_labels(store)[["question_id", "skill_id", "skill", "how", "event_id"]]
    rejections = fetch_rejections(store)[["question_id", "skill_id"]]
    _require_two_skills(labels)
    questions = fetch_readable(store, config)
    return {
        "questions": questions, "labels": labels, "rejections": rejections,
        "constraints": fetch_constraints(store)[["relation", "first_ids", "second_ids"]],
    }  # fmt: skip


def compute(inputs: "Inputs", config: SuggestConfig, context: "Context") -> None:
    """Emit a suggestion row for each question without a standing label."""
    questions = inputs["questions"]
    voted = settle_votes(inputs["labels"])
    classes = sorted(voted.unique())
    number = {skill_id: place for place, skill_id in enumerate(classes)}
    known = questions["question_id"].map(voted).map(number).fillna(-1).astype(int).to_numpy()
    context.progress(0, 1)
    features = make_features(stack_vectors(questions["vector"]), questions["text"].tolist(), config.seed)
    probabilities = fit_predict(features, known, config.seed, _find_constraints(inputs["constraints"], questions))
    is_free = ~questions["question_id"].isin(inputs["labels"]["question_id"]).to_numpy()
    if not is_free.any():
        context.log("Every question has a label; there is nothing to suggest.")
        context.progress(1, 1)
        return
    ids = questions["question_id"].to_numpy()[is_free]
    allowed, possible = rule_out(ids, probabilities[is_free], classes, inputs["rejections"])
    context.emit("suggestion", _make_rows(ids[possible], allowed[possible], classes))
    context.progress(1, 1)


def _find_constraints(constraints: pd.DataFrame, questions: pd.DataFrame) -> list[Constraint]:
    """Constraints by the questions' places; those that name no question here on one side are left out."""
    places = pd.Index(questions["question_id"])
    found = []
    for row in constraints.itertuples():
        sides = [places.get_indexer(list(ids)) for ids in (row.first_ids, row.second_ids)]
        first, second = (side[side >= 0] for side in sides)
        if len(first) and len(second):
            found.append(Constraint(row.relation, first, second))
    return found


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


def fit_predict(
    features: Features, labels: np.ndarray, seed: int, constraints: Sequence[Constraint] = ()
) -> np.ndarray:
    """Probabilities [n, classes] of n questions from the few that are labelled.

    labels: [n] int, the class from 0, or -1 for a question without a label; the classes are
    0 … classes-1, each with a label, at least two. A labelled question keeps its label with probability 1.

    Logistic regression, then label spreading (Zhou 2004) that starts from its probabilities instead of zeros and
    respects the constraints at each step; a temperature found by cross-validation over the labelled questions makes the
    result honest. Where too few labels allow no cross-validation it stays as it comes: rather too unsure.
    """
    places = np.flatnonzero(labels >= 0)
    spreading = _make_spreading(features, labels, constraints)
    spread = spreading.run(places, labels[places])
    temperature = _find_temperature(spreading, places, labels[places], seed)
    probabilities = _sharpen(spread, temperature)
    probabilities[places] = np.eye(spreading.classes)[labels[places]]
    return probabilities


def fit_classifier(columns: np.ndarray, labels: np.ndarray, max_iter: int = 1000) -> Any:
    """Logistic regression that maps columns [n, dim] to the classes in labels [n]; each class weighs the same."""
    from sklearn.linear_model import LogisticRegression

    # A person who labels a whole cluster at once does not say that this skill is more frequent than others.
    model = LogisticRegression(C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=max_iter)
    with one_thread():
        return model.fit(columns, labels)


def _make_graph(joined: np.ndarray) -> Any:
    """Symmetrically normalised neighbour graph, sparse [n, n]; weights are cosines to the fourth power."""
    from scipy.sparse import csr_matrix, diags

    similarities, near = find_neighbours(joined, NEIGHBOURS)
    n, count = near.shape
    weights = np.clip(similarities, 0, 1) ** 4
    graph = csr_matrix((weights.ravel(), (np.repeat(np.arange(n), count), near.ravel())), shape=(n, n))
    graph = graph.maximum(graph.T)
    scale = diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1e-9)))
    return scale @ graph @ scale


@dataclass(frozen=True, slots=True)
class _Spreading:
    """What spreads from labels to all questions: everything but the labels."""

    columns: np.ndarray
    graph: Any
    classes: int
    constraints: Sequence[Constraint]

    def run(self, places: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] before calibration, from the labels at `places`."""
        model = fit_classifier(self.columns[places], labels)
        start = np.zeros((len(self.columns), self.classes))
        start[:, model.classes_] = model.predict_proba(self.columns)
        start[places] = np.eye(self.classes)[labels]
        current = start
        for _ in range(SPREADING_STEPS):
            current = TRUST_IN_NEIGHBOURS * (self.graph @ current) + (1 - TRUST_IN_NEIGHBOURS) * start
            if self.constraints:
                current[places] = start[places]
                current = _respect(self.constraints, current)
        return current / current.sum(axis=1, keepdims=True)


def _make_spreading(features: Features, labels: np.ndarray, constraints: Sequence[Constraint]) -> _Spreading:
    return _Spreading(features.columns, _make_graph(features.joined), int(labels.max()) + 1, constraints)


def spread_labels(features: Features, labels: np.ndarray, constraints: Sequence[Constraint] = ()) -> np.ndarray:
    """As `fit_predict`, before calibration."""
    places = np.flatnonzero(labels >= 0)
    return _make_spreading(features, labels, constraints).run(places, labels[places])


def _respect(constraints: Sequence[Constraint], probabilities: np.ndarray) -> np.ndarray:
    """Each side takes the other's mean probabilities as evidence for a skill (same) or against it (different)."""
    current = probabilities / probabilities.sum(axis=1, keepdims=True)
    for constraint in constraints:
        sides = [constraint.first, constraint.second]
        means = [current[side].mean(axis=0) for side in sides]
        for side, mean in zip(sides, reversed(means), strict=True):
            evidence = mean if constraint.relation == "same" else 1 - mean
            weighed = current[side] * np.maximum(evidence, 1e-6)
            current[side] = weighed / np.maximum(weighed.sum(axis=1, keepdims=True), 1e-12)
    return current


def _find_temperature(spreading: _Spreading, places: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The temperature that makes held-out labels most probable, each class weighing the same.

    1 where a class has fewer than two labels.
    """
    from sklearn.model_selection import StratifiedKFold

    sizes = np.bincount(labels, minlength=spreading.classes)
    least = int(sizes.min())
    if least < 2:
        return 1.0
    folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=seed)
    held_out = np.zeros((len(labels), spreading.classes))
    for fit, test in folds.split(places, labels):
        held_out[test] = spreading.run(places[fit], labels[fit])[places[test]]
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


def fetch_readable(store: "Store", config: SuggestConfig, question_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """What can be learned from, of these questions (default: all): question_id, text, vector.

    Raises `NotFoundError` when something is not embedded.
    """
    questions = fetch_embedded_questions(store, config.encoder, config.of, config.method, question_ids=question_ids)
    questions["text"] = questions["prompt"]
    if config.of != "question":
        metas = pd.Series(_find_meta_texts(store, questions, config), index=questions.index)
        questions["text"] = metas if config.of == "meta-question" else questions["prompt"] + "\n" + metas
    return questions[["question_id", "text", "vector"]]


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
