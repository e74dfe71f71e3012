"""Clusters in people's hands: each act is one event, and taking it back leaves nothing behind."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from metamoe_backend.cli import main
from metamoe_backend.config import MetaQuestionConfig
from metamoe_backend.errors import ConflictError, NotFoundError, UnavailableError, UserError
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.skills.cluster_names import find_server, suggest_name
from metamoe_backend.skills.clusters import (
    absorb_map_noise,
    absorb_noise,
    merge_clusters,
    move_questions,
    rename_cluster,
    split_cluster,
    split_vectors,
)
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.store.maps import fetch_clusters, fetch_map_points, fetch_newest_map_id
from metamoe_backend.store.rebuild import rebuild
from metamoe_backend.workspace import Workspace


@pytest.fixture
def store(synthetic: Workspace):
    with Store.open(synthetic) as opened:
        yield opened


@pytest.fixture
def map_id(store: Store) -> str:
    found = fetch_newest_map_id(store)
    assert found is not None
    return found


def look(store: Store, map_id: str) -> tuple[dict, pd.DataFrame]:
    points = fetch_map_points(store, map_id)
    clusters = fetch_clusters(store, map_id).set_index("cluster")
    return dict(zip(points["question_id"], points["cluster"], strict=True)), clusters


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_name_stands_until_it_is_taken_back(store, map_id):
    event = rename_cluster(store, map_id, 2, "  sums of   numbers ", "ana")
    assert look(store, map_id)[1].loc[2, "name"] == "sums of numbers"
    rename_cluster(store, map_id, 2, "adding", "ana")
    undo(store, event, "ana")
    assert look(store, map_id)[1].loc[2, "name"] == "adding"
    rename_cluster(store, map_id, 2, "", "ana")
    assert look(store, map_id)[1]["name"].isna().all()
    with pytest.raises(UserError, match="at most 60"):
        rename_cluster(store, map_id, 2, "x" * 61, "ana")
    with pytest.raises(NotFoundError, match="no cluster 99"):
        rename_cluster(store, map_id, 99, "nothing", "ana")


def test_merged_clusters_hold_each_others_questions_and_undo_parts_them(store, map_id):
    before, clusters = look(store, map_id)
    event = merge_clusters(store, map_id, [1, 4], 2, "ana")
    after, merged = look(store, map_id)
    assert {id_ for id_, c in after.items() if c == 2} == {id_ for id_, c in before.items() if c in (1, 2, 4)}
    assert list(merged.index) == [0, 2, 3, 5, 6]
    assert merged.loc[2, "size"] == clusters.loc[[1, 2, 4], "size"].sum()
    assert len(merged.loc[2, "keywords"]) and set(merged.loc[2, "samples"]) <= {i for i, c in after.items() if c == 2}
    undo(store, event, "ana")
    restored, back = look(store, map_id)
    assert restored == before
    pd.testing.assert_frame_equal(back, clusters)
    with pytest.raises(ConflictError, match="into itself"):
        merge_clusters(store, map_id, [2], 2, "ana")


def test_done_again_and_rebuilt_the_clusters_are_the_same(store, map_id, synthetic):
    taken_back = undo(store, merge_clusters(store, map_id, [1], 0, "ana"), "ana")
    undo(store, taken_back, "ana")
    rename_cluster(store, map_id, 0, "two in one", "ana")
    split_cluster(store, map_id, 3, 2, "ana")
    points, clusters = look(store, map_id)
    assert clusters.loc[0, "name"] == "two in one" and 1 not in clusters.index
    store.close()
    rebuild(synthetic)
    with Store.open(synthetic) as again:
        rebuilt, same = look(again, map_id)
    assert rebuilt == points
    pd.testing.assert_frame_equal(same, clusters)


def test_a_cluster_falls_into_parts_and_the_largest_keeps_its_number(store, map_id):
    before, _ = look(store, map_id)
    split_cluster(store, map_id, 3, 3, "ana")
    after, clusters = look(store, map_id)
    parts = clusters.loc[[3, 7, 8], "size"]
    assert parts.sum() == sum(c == 3 for c in before.values()) and parts.max() == parts[3]
    assert all(after[id_] == cluster for id_, cluster in before.items() if cluster != 3)
    with pytest.raises(UserError, match="2 to 12"):
        split_cluster(store, map_id, 3, 1, "ana")


def test_selected_questions_move_to_a_cluster_to_noise_or_to_a_new_one(store, map_id):
    before, _ = look(store, map_id)
    ids = [id_ for id_, cluster in before.items() if cluster == 5][:6]
    move_questions(store, map_id, ids[:2], 0, "ana")
    move_questions(store, map_id, ids[2:4], -1, "ana")
    move_questions(store, map_id, ids[4:], None, "ana")
    after, clusters = look(store, map_id)
    assert [after[id_] for id_ in ids] == [0, 0, -1, -1, 7, 7]
    assert clusters.loc[7, "size"] == 2 and len(clusters.loc[7, "keywords"])
    with pytest.raises(ConflictError, match="lie there already"):
        move_questions(store, map_id, ids[:2], 0, "ana")


def test_noise_goes_where_most_of_its_neighbours_are(store, map_id):
    before, _ = look(store, map_id)
    noise = {id_ for id_, cluster in before.items() if cluster == -1}
    absorb_map_noise(store, map_id, "ana")
    after, _ = look(store, map_id)
    assert noise and all(after[id_] == cluster for id_, cluster in before.items() if cluster != -1)
    tasks = fetch_map_points(store, map_id).set_index("question_id")
    taken_in = tasks.loc[[id_ for id_ in noise if after[id_] != -1]]
    of_cluster = tasks[tasks["cluster"] != -1].groupby("cluster")["task"].agg(lambda task: task.mode()[0])
    assert len(taken_in) == len(noise)
    assert (taken_in["task"].astype(str) == taken_in["cluster"].map(of_cluster).astype(str)).all()
    with pytest.raises(ConflictError, match="no noise"):
        absorb_map_noise(store, map_id, "ana")


def test_noise_without_a_majority_stays_noise():
    vectors = unit(np.array([[1, 0], [0, 1], [1, 1], [1, 0.1]]))
    assert absorb_noise(vectors, np.array([0, 1, -1, -1]), neighbours=2).tolist() == [0, 1, -1, -1]
    assert absorb_noise(vectors, np.array([0, 1, -1, -1]), neighbours=1).tolist()[3] == 0
    assert absorb_noise(vectors, np.full(4, -1)).tolist() == [-1] * 4


def test_parts_that_are_there_are_found_without_being_told_how_many():
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(3, 8)))
    truth = np.repeat([0, 1, 2], [40, 30, 20])
    vectors = unit(centres[truth] + rng.normal(size=(90, 8)) * 0.05)
    assert split_vectors(vectors).tolist() == truth.tolist()
    assert not split_vectors(unit(np.ones((5, 3)))).any()


def run_verb(capsys: pytest.CaptureFixture[str], workspace: Workspace, *arguments: str) -> dict:
    capsys.readouterr()
    assert main(["--workspace", str(workspace.root), "clusters", *arguments, "--by", "ana", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_line_does_and_undoes_the_same(synthetic, capsys):
    before = run_verb(capsys, synthetic)
    assert [row["cluster"] for row in before["clusters"]] == list(range(7)) and before["event_id"] is None
    named = run_verb(capsys, synthetic, "rename", "--cluster", "2", "--name", "adding")
    assert named["clusters"][2]["name"] == "adding"
    merged = run_verb(capsys, synthetic, "merge", "--cluster", "1", "4", "--into", "2")
    assert [row["cluster"] for row in merged["clusters"]] == [0, 2, 3, 5, 6]
    assert run_verb(capsys, synthetic, "undo", "--event", merged["event_id"])["clusters"] == named["clusters"]
    assert len(run_verb(capsys, synthetic, "split", "--cluster", "3", "--parts", "2")["clusters"]) == 8
    assert main(["--workspace", str(synthetic.root), "clusters", "split", "--by", "ana"]) == 2
    assert "--cluster N" in capsys.readouterr().err


class _NamingServer(BaseHTTPRequestHandler):
    asked: ClassVar[list[dict]] = []
    answer = "adding numbers."

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = json.dumps({"choices": [{"message": {"content": f'"{self.answer}"\nBecause they add.'}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_language_model_that_was_used_before_proposes_a_name(store):
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _NamingServer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    assert find_server(store) is None
    config = MetaQuestionConfig(method="llm", model="namer", base_url=f"http://127.0.0.1:{listening.server_port}/v1")
    run = create_run(store.workspace, "meta-questions", "llm", config.model_dump(), "ana", {})
    ingest_run(store, run)
    server = find_server(store)
    assert server is not None
    assert suggest_name(server, ["sum", "plus"], ["What is 1+1?", "What is 2+2?"]) == "adding numbers"
    (asked,) = _NamingServer.asked
    said = asked["messages"][0]["content"]
    assert asked["model"] == "namer" and all(part in said for part in ("What is 1+1?", "What is 2+2?", "sum, plus"))
    _NamingServer.answer = "."
    with pytest.raises(UnavailableError, match="write one yourself"):
        suggest_name(server, ["sum"], ["What is 1+1?"])
    listening.shutdown()
