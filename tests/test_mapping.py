"""The map: groups that are there are found, tiny inputs work, the same seed draws the same map."""

from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from metamoe_backend.config import ClusterConfig
from metamoe_backend.errors import ConfigError, NotFoundError, StopRequested
from metamoe_backend.mapping import (
    Clusters,
    compute,
    compute_clusters,
    compute_keywords,
    compute_projection,
    compute_quality,
    extract_words,
    find_central,
    prepare,
)
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_map_points, fetch_map_texts, fetch_newest_map_id
from metamoe_backend.store.questions import fetch_questions
from metamoe_backend.store.skills import fetch_question_labels
from tests.conftest import insert_questions, insert_rows
from tests.recording import RecordingContext

SIZES = {"sums": 40, "islands": 30, "clocks": 20}
WORDS = {"sums": "add these numbers", "islands": "count the islands", "clocks": "钟表上的时间是几点"}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def questions() -> pd.DataFrame:
    """Three groups of 40, 30 and 20 questions, far apart, in mixed order."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 24))
    rows = []
    for number, (task, size) in enumerate(SIZES.items()):
        vectors = _unit(centres[number] + rng.normal(scale=0.2, size=(size, 24)))
        rows += [
            {"question_id": f"{task}-{i}", "task": task, "prompt": f"{WORDS[task]} {i}", "vector": vector}
            for i, vector in enumerate(vectors)
        ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1).reset_index(drop=True)


@pytest.fixture(scope="module")
def drawn(questions, tmp_path_factory) -> RecordingContext:
    context = RecordingContext(tmp_path_factory.mktemp("map"), run_id="map-1")
    compute({"questions": questions}, ClusterConfig(min_cluster_size=8, seed=3), context)
    return context


def test_groups_that_are_there_are_found_and_numbered_by_size(drawn, questions):
    points = drawn.rows("map_point").set_index("question_id").loc[questions["question_id"]]
    assert np.isfinite(points[["x", "y"]].to_numpy()).all()
    assert points["strength"].between(0, 1).all()
    for number, (task, size) in enumerate(SIZES.items()):
        found = points["cluster"][(questions["task"] == task).to_numpy()]
        assert found.isin([number, -1]).all()
        assert (found == number).sum() > 0.9 * size


def test_the_map_says_how_good_it_is(drawn):
    row = drawn.rows("map").iloc[0]
    assert (row["map_id"], row["run_id"], row["questions"], row["clusters"]) == ("map-1", "map-1", 90, 3)
    assert (row["encoder"], row["of"], row["min_cluster_size"], row["seed"]) == ("minilm", "question", 8, 3)
    assert row["created_at"] == datetime(2026, 11, 21)
    assert row["nmi"] == pytest.approx(1)
    assert row["ari"] == pytest.approx(1)
    assert 0.5 < row["silhouette"] <= 1
    assert 0 < row["dbcv"] <= 1
    assert row["noise_share"] < 0.1


def test_clusters_have_a_place_keywords_and_central_samples(drawn, questions):
    clusters = drawn.rows("cluster").set_index("cluster")
    points = drawn.rows("map_point")
    assert clusters["size"].sum() == (points["cluster"] >= 0).sum()
    assert set(clusters.loc[0, "keywords"]) == {"add", "numbers"}
    assert "islands" in clusters.loc[1, "keywords"]
    assert "时间" in clusters.loc[2, "keywords"]
    mine = points[points["cluster"] == 1]
    assert clusters.loc[1, "x"] == pytest.approx(mine["x"].median())
    assert len(clusters.loc[1, "samples"]) == 5
    assert all(sample.startswith("islands") for sample in clusters.loc[1, "samples"])


def test_progress_ends_at_its_total(drawn):
    assert drawn.reports[-1][:2] == (500, 500)
    done = [report[0] for report in drawn.reports]
    assert done == sorted(done)
    assert len([n for n in done if 0 < n < 100]) > 0 and len([n for n in done if 100 < n < 200]) > 0


def test_who_cancels_while_umap_computes_is_heard(questions, tmp_path):
    def lose_patience(done: int) -> None:
        if 0 < done < 100:
            raise StopRequested(save=False)

    context = RecordingContext(tmp_path, act=lose_patience)
    with pytest.raises(StopRequested):
        compute({"questions": questions}, ClusterConfig(min_cluster_size=8), context)
    assert context.reports[-1][0] < 100
    assert not context.emitted


def test_the_same_seed_draws_the_same_map(questions):
    vectors = np.stack(questions["vector"])
    one, same, other = (compute_projection(vectors, 2, 10, 0.1, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("n", [5, 6, 9, 14])
def test_fewer_questions_than_neighbours_still_make_a_map(n, tmp_path):
    rng = np.random.default_rng(n)
    frame = pd.DataFrame(
        {
            "question_id": [f"q{i}" for i in range(n)], "task": "t", "prompt": "12",
            "vector": list(_unit(rng.normal(size=(n, 8)))),
        }
    )  # fmt: skip
    context = RecordingContext(tmp_path)
    compute({"questions": frame}, ClusterConfig(neighbours=15, min_cluster_size=15), context)
    row = context.rows("map").iloc[0]
    assert (row["clusters"], row["noise_share"]) == (0, 1.0)
    assert row[["nmi", "ari", "dbcv", "silhouette"]].isna().all()
    assert len(context.rows("map_point")) == n
    assert "cluster" not in context.emitted


def test_equal_vectors_fall_together():
    vectors = np.repeat(_unit(np.random.default_rng(0).normal(size=(3, 8))), [20, 30, 25], axis=0)
    clusters = compute_clusters(compute_projection(vectors, 5, 10, 0.0, 0), 10)
    groups = [set(part.tolist()) for part in np.split(clusters.labels, [20, 50])]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert groups[1] == {0}


def test_noise_is_left_out_of_the_quality():
    vectors = _unit(np.array([[1, 0.1], [1, 0.0], [0, 1.0], [0.1, 1], [1, 1]]))
    clusters = Clusters(np.array([0, 0, 1, 1, -1]), np.ones(5), 0.5)
    quality = compute_quality(vectors, clusters, np.array(["a", "a", "b", "b", "a"]), seed=0)
    assert quality["noise_share"] == pytest.approx(0.2)
    assert quality["nmi"] == pytest.approx(1)
    assert quality["ari"] == pytest.approx(1)
    mixed = compute_quality(vectors, clusters, np.array(["a", "b", "a", "b", "a"]), seed=0)
    assert mixed["nmi"] == pytest.approx(0, abs=1e-9)
    assert mixed["ari"] < 0


def test_one_task_or_one_cluster_has_no_agreement_to_measure():
    vectors = _unit(np.ones((4, 3)))
    one_task = compute_quality(vectors, Clusters(np.array([0, 0, 1, 1]), np.ones(4), None), np.array(["a"] * 4), 0)
    assert (one_task["nmi"], one_task["ari"]) == (None, None)
    one_cluster = compute_quality(vectors, Clusters(np.zeros(4, int), np.ones(4), None), np.array(list("abab")), 0)
    assert one_cluster["silhouette"] is None


def test_keywords_are_what_sets_a_cluster_apart():
    texts = ["sort the words", "sort the letters", "count the words", "count the letters", "noise noise noise"]
    keywords = compute_keywords(texts, np.array([0, 0, 1, 1, -1]), count=1)
    assert keywords == {0: ["sort"], 1: ["count"]}


def test_words_of_both_languages_are_found_without_stop_words_and_numbers():
    assert extract_words("What is the probability of 12 heads?") == ["probability", "heads"]
    assert extract_words("下列哪个苹果最便宜") == ["苹果", "便宜"]
    assert extract_words("12 + 3 =") == []


def test_the_most_central_come_first():
    vectors = _unit(np.array([[1, 0], [1, 0.5], [1, 1.0], [0, 1]]))
    assert find_central(vectors, 2).tolist() == [2, 1]


def test_what_is_missing_is_told_with_the_command(store):
    with pytest.raises(NotFoundError, match="no questions yet"):
        prepare(store, ClusterConfig())
    ids = insert_questions(store, 6)
    with pytest.raises(NotFoundError, match=r"6 of 6 questions have .* embed --encoder minilm --of question"):
        prepare(store, ClusterConfig())
    frame = pd.DataFrame({"question_id": ids, "encoder": "minilm", "of": "question", "text_hash": ids})
    insert_rows(store, "embed", embedding=frame.assign(vector=[np.eye(6)[i] for i in range(6)]))
    assert prepare(store, ClusterConfig())["questions"]["question_id"].tolist() == ids
    insert_questions(store, 2, task="two")
    with pytest.raises(NotFoundError, match="2 of 8"):
        prepare(store, ClusterConfig())
    assert len(prepare(store, ClusterConfig(tasks=["toy"]))["questions"]) == 6


def test_too_few_questions_are_told(store):
    ids = insert_questions(store, 3)
    frame = pd.DataFrame({"question_id": ids, "encoder": "minilm", "of": "question", "text_hash": ids})
    insert_rows(store, "embed", embedding=frame.assign(vector=[np.eye(3)[i] for i in range(3)]))
    with pytest.raises(ConfigError, match="at least 5"):
        prepare(store, ClusterConfig())


def test_points_come_with_what_they_can_be_coloured_by(synthetic):
    with Store.open(synthetic) as store:
        map_id = fetch_newest_map_id(store)
        points = fetch_map_points(store, map_id)
        labels = fetch_question_labels(store).set_index("question_id")
        texts = fetch_questions(store).set_index("question_id")
        assert points["question_id"].is_monotonic_increasing
        known = labels.reindex(points["question_id"])
        assert points["skill"].astype(object).tolist() == known["skill"].tolist()
        assert points["confidence"].to_numpy() == pytest.approx(known["probability"].to_numpy(), nan_ok=True)
        assert fetch_map_texts(store, map_id).tolist() == texts.loc[points["question_id"], "prompt"].tolist()
