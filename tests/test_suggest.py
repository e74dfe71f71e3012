"""Suggestions and frozen labellings: a few labels are enough, doubt is honest, people's words come first."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.config import FreezeConfig, SuggestConfig
from metamoe_backend.embed import hash_text, load_encoder
from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError
from metamoe_backend.launch import run_now
from metamoe_backend.skills import labelling
from metamoe_backend.skills.features import Features, make_features
from metamoe_backend.skills.labelling import select_items
from metamoe_backend.skills.queue import choose_next
from metamoe_backend.skills.suggest import Constraint, compute, fit_predict, prepare, rule_out, settle_votes
from metamoe_backend.store.skills import create_skill, fetch_labellings, label_questions, reject_suggestions
from tests.conftest import insert_questions, insert_rows
from tests.fake_encoder import FakeEncoder, install
from tests.recording import RecordingContext

ASKED = {
    "sums": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "How much is {a} plus {b} altogether?"),
    "letters": ("Spell {w} backward.", "How many letters has the word {w}?", "Which letter comes first in {w}?"),
    "dates": ("Which weekday is {a} March?", "How many days until {b} June?", "Is the year {a} a leap year?"),
}
NAMES = list(ASKED)


@pytest.fixture(scope="module")
def asked() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Vectors, texts and true classes of 40 questions a skill."""
    rng = np.random.default_rng(0)
    texts, classes = [], []
    for number, forms in enumerate(ASKED.values()):
        for i in range(40):
            word = "".join(rng.choice(list("abcdefgh"), 5))
            texts.append(forms[i % 3].format(a=rng.integers(2, 999), b=rng.integers(2, 99), w=word))
            classes.append(number)
    order = rng.permutation(len(texts))
    texts = [texts[i] for i in order]
    return FakeEncoder().encode(texts), texts, np.array(classes)[order]


@pytest.fixture(scope="module")
def features(asked) -> Features:
    vectors, texts, _ = asked
    return make_features(vectors, texts, 0)


def _draw(classes: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.full(len(classes), -1)
    for number in range(3):
        places = rng.choice(np.flatnonzero(classes == number), per_class, replace=False)
        labels[places] = number
    return labels


@pytest.mark.parametrize(("per_class", "least"), [(3, 0.67), (10, 0.97)])
def test_a_few_labels_are_enough(asked, features, per_class, least):
    _, _, classes = asked
    shares = []
    for seed in range(3):
        labels = _draw(classes, per_class, seed)
        found = fit_predict(features, labels, seed).argmax(axis=1)
        shares.append((found == classes)[labels < 0].mean())
    assert np.mean(shares) > least


def test_probabilities_are_probabilities_and_labels_stand(asked, features):
    _, _, classes = asked
    labels = _draw(classes, 4, 0)
    probabilities = fit_predict(features, labels, 0)
    assert probabilities.shape == (120, 3)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities >= 0).all()
    assert np.array_equal(probabilities[labels >= 0], np.eye(3)[labels[labels >= 0]])


def test_the_same_seed_gives_the_same_probabilities(asked, features):
    _, _, classes = asked
    labels = _draw(classes, 4, 0)
    assert np.array_equal(fit_predict(features, labels, 5), fit_predict(features, labels, 5))


def test_labels_without_meaning_leave_the_model_unsure(asked, features):
    _, _, classes = asked
    labels = _draw(classes, 12, 1)
    known = np.flatnonzero(labels >= 0)
    sure = fit_predict(features, labels, 0)[labels < 0].max(axis=1).mean()
    labels[known] = np.random.default_rng(3).permutation(labels[known])
    unsure = fit_predict(features, labels, 0)[labels < 0].max(axis=1).mean()
    assert sure > 0.9
    assert unsure < 0.6


def test_a_skill_labelled_by_the_dozen_does_not_swallow_the_others(asked, features):
    _, _, classes = asked
    shares = []
    for seed in range(4):
        labels = _draw(classes, 2, seed)
        labels[np.flatnonzero(classes == 0)[:30]] = 0
        found = fit_predict(features, labels, seed).argmax(axis=1)
        shares.append((found == 0)[(labels < 0) & (classes != 0)].mean())
    assert np.mean(shares) < 0.48, shares


def test_one_label_a_skill_gives_no_false_certainty(asked, features):
    _, _, classes = asked
    probabilities = fit_predict(features, _draw(classes, 1, 0), 0)
    assert np.isfinite(probabilities).all()


@settings(max_examples=25)
@given(st.data())
def test_any_few_questions_can_be_suggested_for(data):
    n = data.draw(st.integers(3, 12))
    texts = data.draw(st.lists(st.text(max_size=20), min_size=n, max_size=n))
    labels = np.array([0, 1, *data.draw(st.lists(st.sampled_from([-1, -1, 0, 1]), min_size=n - 2, max_size=n - 2))])
    probabilities = fit_predict(make_features(FakeEncoder(dim=8).encode(texts), texts, 0), labels, 0)
    assert probabilities.shape == (n, 2)
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_numbers_do_not_count_as_words():
    vectors = np.ones((4, 3)) / np.sqrt(3)
    features = make_features(vectors, ["add 12 now", "add 7 now", "spell pear now", "spell fig now"], 0)
    assert np.allclose(features.joined[0], features.joined[1])
    assert not np.allclose(features.joined[0], features.joined[2])


def _find_forms(classes: np.ndarray, texts: list[str], word: str) -> np.ndarray:
    """Places of the questions of one wording."""
    return np.array([place for place, text in enumerate(texts) if word in text])


def test_a_wording_tied_to_a_labelled_question_follows_it_and_one_held_apart_does_not(asked, features):
    _, texts, classes = asked
    labels = _draw(classes, 1, 0)
    odd, tied = _find_forms(classes, texts, "leap year"), int(np.flatnonzero(labels == 0)[0])
    free = odd[labels[odd] < 0]
    shares = {}
    for relation in ("same", "different"):
        constraint = Constraint(relation, np.array([tied]), free)
        shares[relation] = fit_predict(features, labels, 0, [constraint])[free, 0].mean()
    without = fit_predict(features, labels, 0)[free, 0].mean()
    assert shares["same"] > 0.9 > without > shares["different"]


def test_constraints_carry_a_label_from_question_to_question(asked, features):
    _, _, classes = asked
    labels = _draw(classes, 2, 1)
    lone = np.flatnonzero((labels < 0) & (classes == 2))[:2]
    chain = [
        Constraint("same", np.flatnonzero(labels == 1)[:1], lone[:1]),
        Constraint("same", lone[:1], lone[1:]),
    ]
    probabilities = fit_predict(features, labels, 0, chain)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert probabilities[lone].argmax(axis=1).tolist() == [1, 1]


@pytest.mark.model
def test_skills_of_chinese_and_mixed_questions_are_told_apart():
    lines = (Path(__file__).parent / "data" / "chinese_questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = pd.DataFrame(map(json.loads, lines))
    texts, classes = rows["question"].tolist(), pd.factorize(rows["skill"])[0]
    features = make_features(load_encoder("e5").encode(texts), texts, 0)
    labels = np.full(len(classes), -1)
    while (labels >= 0).sum() < 25:
        chosen = choose_next(features, labels, 5, 0)
        labels[chosen] = classes[chosen]
    assert set(labels[labels >= 0]) == set(range(5))
    found = fit_predict(features, labels, 0).argmax(axis=1)
    assert (found == classes)[labels < 0].mean() > 0.85


# ---- the stage --------------------------------------------------------------------------------------------------


def _labels(*rows: tuple[str, str, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["question_id", "skill_id", "how"])
    return frame.assign(skill=frame["skill_id"], event_id=[f"{number:04d}" for number in range(len(rows))])


NONE = pd.DataFrame({"question_id": [], "skill_id": []})
FREE = pd.DataFrame({"relation": [], "first_ids": [], "second_ids": []})


def test_what_was_refused_is_ruled_out():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    refused = pd.DataFrame([("q1", "a"), ("q3", "a"), ("q3", "b"), ("q3", "c"), ("elsewhere", "a"), ("q2", "gone")])
    refused.columns = ["question_id", "skill_id"]
    allowed, possible = rule_out(np.array(["q1", "q2", "q3"]), probabilities, ["a", "b", "c"], refused)
    assert np.allclose(allowed[:2], [[0, 2 / 3, 1 / 3], [0.5, 0.3, 0.2]])
    assert possible.tolist() == [True, True, False]
    untouched, _ = rule_out(np.array(["q1", "q2", "q3"]), probabilities, ["a", "b", "c"], NONE)
    assert np.allclose(untouched, probabilities)


def test_a_decision_outweighs_the_majority():
    rows = (("q1", "a", "question"), ("q1", "b", "decided"), ("q1", "a", "question"))
    assert settle_votes(_labels(*rows)).to_dict() == {"q1": "b"}
    nothing = pd.DataFrame({"question_id": [], "skill": [], "probability": []})
    assert select_items(_labels(*rows), nothing, 1.0)["skill"].tolist() == ["b"]


def test_the_majority_decides_and_the_newest_between_equals():
    voted = settle_votes(
        _labels(
            ("q1", "a", "question"), ("q1", "b", "lasso"), ("q1", "a", "question"), ("q2", "a", "question"),
            ("q2", "b", "cluster"), ("q3", "b", "accepted"),
        )
    )  # fmt: skip
    assert voted.to_dict() == {"q1": "a", "q2": "b"}


def test_every_unlabelled_question_gets_a_suggestion_with_its_runner_up(asked, tmp_path):
    vectors, texts, classes = asked
    ids = np.array([f"q{number}" for number in range(len(texts))])
    questions = pd.DataFrame({"question_id": ids, "text": texts, "vector": list(vectors)})
    known = np.flatnonzero(_draw(classes, 5, 0) >= 0)
    free = np.setdiff1d(np.arange(len(ids)), known)
    rows = [(ids[i], NAMES[classes[i]], "question") for i in known] + [(ids[free[0]], "sums", "accepted")]
    context = RecordingContext(tmp_path)
    compute(
        {"questions": questions, "labels": _labels(*rows), "rejections": NONE, "constraints": FREE},
        SuggestConfig(),
        context,
    )
    found = context.rows("suggestion")
    assert set(found["question_id"]) == set(ids[free[1:]])
    assert (found["skill_id"] != found["runner_up"]).all()
    assert found["probability"].between(1 / 3, 1).all()
    assert found["margin"].between(0, 1).all()
    truth = dict(zip(ids, classes, strict=True))
    right = found["skill_id"] == [NAMES[truth[question]] for question in found["question_id"]]
    assert right.mean() > 0.8


def test_where_all_is_labelled_nothing_is_suggested(tmp_path):
    texts = ["add", "spell", "sum"]
    questions = pd.DataFrame(
        {"question_id": ["a", "b", "c"], "text": texts, "vector": list(FakeEncoder().encode(texts))}
    )
    labels = _labels(("a", "x", "file"), ("b", "y", "file"), ("c", "x", "file"))
    context = RecordingContext(tmp_path)
    compute(
        {"questions": questions, "labels": labels, "rejections": NONE, "constraints": FREE}, SuggestConfig(), context
    )
    assert not context.emitted
    assert context.messages == ["Every question has a label; there is nothing to suggest."]


def _embed(store, ids: list[str], of: str = "question", text: str = "x") -> None:
    frame = pd.DataFrame({"question_id": ids, "encoder": "minilm", "of": of, "text_hash": hash_text(text)})
    insert_rows(store, "embed", embedding=frame.assign(vector=[np.eye(4)[i % 4] for i in range(len(ids))]))


def test_what_is_missing_is_told_in_a_sentence(store):
    ids = insert_questions(store, 4)
    with pytest.raises(ConfigError, match="No question is labelled yet"):
        prepare(store, SuggestConfig())
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids[:1], "ana", "question")
    label_questions(store, dates, ids[1:2], "ana", "accepted")
    with pytest.raises(ConfigError, match="Only the skill 'sums' has labels"):
        prepare(store, SuggestConfig())
    label_questions(store, dates, ids[2:3], "ana", "lasso")
    with pytest.raises(NotFoundError, match="embed --encoder minilm"):
        prepare(store, SuggestConfig())
    _embed(store, ids)
    inputs = prepare(store, SuggestConfig())
    assert inputs["questions"].columns.tolist() == ["question_id", "text", "vector"]
    assert inputs["questions"]["text"].tolist() == [f"What is {n} plus {n}?" for n in range(4)]
    assert len(inputs["labels"]) == 3
    reject_suggestions(store, {ids[3]: dates}, "ana")
    assert prepare(store, SuggestConfig())["rejections"].to_numpy().tolist() == [[ids[3], dates]]


def test_meta_questions_are_read_by_the_method_that_was_asked_for(store, monkeypatch):
    encoder = install(monkeypatch)
    ids = insert_questions(store, 3)
    for number, skill in enumerate(["sums", "dates"]):
        label_questions(store, create_skill(store, skill, "ana"), [ids[number]], "ana", "question")
    texts = {"llm": "Which sum?", "template": "What is [number]?"}
    for method, text in texts.items():
        rows = pd.DataFrame({"question_id": ids, "method": method, "text": text, "source_hash": method})
        insert_rows(store, "meta-questions", meta_question=rows)
        run_now(store, "embed", {"of": "meta-question", "method": method}, "ana")
    for method, text in texts.items():
        questions = prepare(store, SuggestConfig(of="meta-question", method=method))["questions"]
        assert questions["text"].tolist() == [text] * 3
        assert np.allclose(np.stack(questions["vector"]), encoder.encode([text] * 3))
    with pytest.raises(NotFoundError, match="embed --encoder minilm --of question` and"):
        prepare(store, SuggestConfig(of="both"))
    run_now(store, "embed", {"of": "question"}, "ana")
    both = prepare(store, SuggestConfig(of="both", method="llm"))["questions"]
    prompts = [f"What is {number} plus {number}?" for number in range(3)]
    assert both["text"].tolist() == [f"{prompt}\n{texts['llm']}" for prompt in prompts]
    joined = np.hstack([encoder.encode(prompts), encoder.encode([texts["llm"]] * 3)]) / np.sqrt(2)
    assert np.allclose(np.stack(both["vector"]), joined, atol=1e-6)


# ---- freezing ---------------------------------------------------------------------------------------------------


def test_people_come_first_and_only_sure_suggestions_are_taken_in():
    labels = _labels(("q1", "a", "question"), ("q1", "b", "question"), ("q2", "a", "accepted"))
    suggestions = pd.DataFrame(
        {"question_id": ["q1", "q3", "q4"], "skill": ["a", "c", "c"], "probability": [0.99, 0.8, 0.79]}
    )
    items = select_items(labels, suggestions, 0.8).set_index("question_id")
    assert items["skill"].to_dict() == {"q1": "b", "q2": "a", "q3": "c"}
    assert items["source"].to_dict() == {"q1": "label", "q2": "label", "q3": "suggestion"}
    assert items["probability"].to_dict() == {"q1": 1.0, "q2": 1.0, "q3": 0.8}
    assert len(select_items(labels, suggestions, 1.01)) == 2


def test_a_labelling_is_frozen_once(store, tmp_path):
    config = FreezeConfig(labelling="v1", threshold=0.6)
    ids = insert_questions(store, 4)
    with pytest.raises(ConfigError, match="Nothing is labelled yet"):
        labelling.prepare(store, config)
    sums, dates = create_skill(store, "sums", "ana"), create_skill(store, "dates", "ana")
    label_questions(store, sums, ids[:2], "ana", "question")
    label_questions(store, dates, ids[1:2], "ben", "question")
    suggested = pd.DataFrame({"question_id": ids[2:], "skill_id": [sums, dates], "probability": [0.7, 0.5]})
    insert_rows(store, "suggest", suggestion=suggested.assign(runner_up=[dates, sums], margin=[0.4, 0.0]))
    context = RecordingContext(tmp_path)
    labelling.compute(labelling.prepare(store, config), config, context)
    head, items = context.rows("labelling"), context.rows("labelling_item")
    assert head.loc[0, ["labelling", "labels", "suggestions", "author"]].tolist() == ["v1", 2, 1, "ana"]
    assert (head.loc[0, "threshold"], head.loc[0, "created_at"]) == (0.6, datetime(2026, 11, 21))
    assert items[["question_id", "skill"]].to_numpy().tolist() == [
        [ids[0], "sums"],
        [ids[1], "dates"],
        [ids[2], "sums"],
    ]
    insert_rows(store, "freeze", labelling=head.drop(columns="run_id"), labelling_item=items)
    assert fetch_labellings(store)["labelling"].tolist() == ["v1"]
    with pytest.raises(ConflictError, match="'v1' exists already"):
        labelling.prepare(store, config)
