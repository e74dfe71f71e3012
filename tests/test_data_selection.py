"""Sim-Div: the same rows as by plain loops, in blocks of any size; rows that leak are refused with the question."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend import vector_cache
from metamoe_backend.config import SelectDataConfig, parse_config
from metamoe_backend.errors import ConfigError, InputError, NotFoundError, StopRequested
from metamoe_backend.experts import data_selection, select_data
from metamoe_backend.experts.data_selection import choose_diverse, find_nearest, rank_rows
from metamoe_backend.experts.leaks import find_leaks, split_words
from metamoe_backend.ingest import make_question_id
from metamoe_backend.launch import run_now
from metamoe_backend.store.connection import Store
from metamoe_backend.store.data_selections import (
    fetch_data_selections,
    fetch_selected_questions,
    fetch_selected_rows,
)
from metamoe_backend.store.rebuild import rebuild
from metamoe_backend.workspace import Workspace
from tests.fake_encoder import install
from tests.recording import RecordingContext

PROBE = Path(__file__).resolve().parents[1] / "data" / "probe"

# ---- the choice -------------------------------------------------------------------------------------------------

halves = st.lists(st.sampled_from([-0.5, 0.5]), min_size=4, max_size=4)
"""Unit vectors whose cosines (-1, -0.5, 0, 0.5, 1) every order of adding gives exactly: ties are real ties."""


def choose_slowly(vectors: np.ndarray, ranked: list[int], budget: int, tau: float, consider: int):
    kept, dropped = [], {}
    for place, row in enumerate(ranked):
        if place >= consider and len(kept) >= budget:
            break
        cosines = {other: float(vectors[other] @ vectors[row]) for other in kept}
        if cosines and max(cosines.values()) > tau:
            dropped[row] = (max(cosines, key=cosines.__getitem__), max(cosines.values()))
        else:
            kept.append(row)
    return kept[:budget], dropped


@given(
    rows=st.lists(halves, min_size=1, max_size=24),
    shots=st.lists(halves, min_size=1, max_size=4),
    budget=st.integers(1, 12),
    tau=st.sampled_from([0.0, 0.4, 0.9]),
    consider=st.integers(1, 24),
    block=st.integers(1, 7),
    unusable=st.sets(st.integers(0, 23)),
)
def test_the_choice_is_that_of_plain_loops(rows, shots, budget, tau, consider, block, unusable):
    vectors, guides = np.float32(rows), np.float32(shots)
    usable = [row for row in range(len(rows)) if row not in unusable]
    cosines = [[float(np.dot(row, shot)) for shot in shots] for row in rows]
    scores = [max(each) for each in cosines]
    in_order = sorted(usable, key=lambda row: (-scores[row], row))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_selection, "BLOCK", block)
        found, nearest = find_nearest(vectors, guides)
        ranked = rank_rows(found, np.isin(np.arange(len(rows)), usable))
        choice = choose_diverse(vectors, ranked, budget, tau, consider)
    assert found.tolist() == scores and nearest.tolist() == [each.index(max(each)) for each in cosines]
    assert ranked.tolist() == in_order
    kept, dropped = choose_slowly(vectors, in_order, budget, tau, consider)
    assert choice.selected.tolist() == kept
    assert choice.dropped.tolist() == list(dropped)
    assert list(zip(choice.better.tolist(), choice.similarity.tolist(), strict=True)) == list(dropped.values())


@given(seed=st.integers(0, 99), tau=st.floats(0.1, 0.95), budget=st.integers(1, 60))
def test_no_two_chosen_rows_are_nearer_than_tau_and_each_dropped_one_had_a_better_twin(seed, tau, budget):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(60, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = rng.normal(size=60).astype(np.float32)
    choice = choose_diverse(vectors, rank_rows(scores, np.ones(60, bool)), budget, tau, consider=10)
    among = vectors[choice.selected] @ vectors[choice.selected].T
    assert (among[~np.eye(len(among), dtype=bool)] <= tau + 1e-6).all()
    assert (choice.similarity > tau).all()
    assert (scores[choice.better] >= scores[choice.dropped]).all()
    assert not set(choice.selected) & set(choice.dropped)


def test_the_choice_is_refilled_beyond_the_considered_rows():
    copies = np.eye(4, dtype=np.float32)[[0, 0, 0, 0, 1, 1, 2, 3]]
    choice = choose_diverse(copies, np.arange(8), budget=3, tau=0.9, consider=2)
    assert choice.selected.tolist() == [0, 4, 6] and choice.dropped.tolist() == [1, 2, 3, 5]


def test_with_tau_one_nothing_is_dropped_and_with_too_few_rows_all_different_ones_are_chosen():
    copies = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    assert choose_diverse(copies, np.arange(3), 9, tau=1.0).selected.tolist() == [0, 1, 2]
    assert choose_diverse(copies, np.arange(3), 9, tau=0.9).selected.tolist() == [0, 2]
    nothing = choose_diverse(copies, np.arange(0), 9, tau=0.9)
    assert not len(nothing.selected) and not len(nothing.dropped)


# ---- leaks ------------------------------------------------------------------------------------------------------

QUESTIONS = [
    "Which of these gases is the most abundant one in the air that surrounds the Earth?",
    "Why does ice float?",
    "What is 5 - 3?",
    "植物进行光合作用时主要吸收什么气体?",
    "?!",
]


def leaks_of(*rows: str, share: float = 0.7, similarity: float = 1.01, cosines: np.ndarray | None = None):
    """By row: (question, first words of the reason). cosines: of each row with each question."""
    among = np.eye(len(QUESTIONS), dtype=np.float32)
    vectors = np.zeros((len(rows), len(QUESTIONS)), np.float32) if cosines is None else np.float32(cosines)
    found = find_leaks(rows, QUESTIONS, vectors, among, share, similarity)
    return {row: (leak.question, leak.reason.split()[0]) for row, leak in found.items()}


@pytest.mark.parametrize(
    ("row", "leak"),
    [
        ("which of these GASES is the most abundant one,\nin the air that surrounds the earth", (0, "asks")),
        ("WHY  does ice float", (1, "asks")),
        ("Ｗｈｙ does ice float？", (1, "asks")),
        ("What is 5 - 3 ?", (2, "asks")),
        ("What is 5 + 3?", None),  # a sign is no punctuation
        ("What is 5 - 31?", None),
        ("植物进行光合作用时,主要吸收什么气体", (3, "asks")),
        ("?!", (4, "asks")),
        ("??", None),  # nothing but punctuation is only the same if it is the same
        ("Q: Which of these gases is the most abundant one in the air that surrounds us? Say A, B or C.", (0, "has")),
        ("Choose one. Why does ice float? (A) It is light. (B) It is cold.", (1, "has")),
        ("请回答:植物进行光合作用时主要吸收什么气体?甲 氧气 乙 二氧化碳", (3, "has")),
        ("Which of these gases do plants need?", None),
        ("Why does wood float?", None),
    ],
)
def test_a_row_with_a_held_out_questions_words_leaks(row, leak):
    assert leaks_of(row) == ({0: leak} if leak else {})


def test_words_shared_by_many_questions_are_a_template_and_no_leak():
    template = "State the final answer to the following arithmetic problem and nothing else, please:"
    questions = [f"{template} {number} + {number * 7} =" for number in range(30)]
    rows = [f"{template} 900 + 17 =", f"{template} 4 + 28 ="]
    none = np.zeros((30, 2), np.float32)
    found = find_leaks(rows, questions, none[:2], none, 0.7, 1.01)
    assert {row: leak.question for row, leak in found.items()} == {1: 4}


def test_a_row_leaks_by_its_vector_and_the_words_come_first():
    cosines = [[0.1, 0.2, 0.96, 0.3, 0.0], [0.94, 0.0, 0.0, 0.0, 0.0], [0.99, 0.0, 0.0, 0.0, 0.0]]
    rows = ("What remains of five without three?", "What do we breathe?", "Why does ice float?")
    assert leaks_of(*rows, similarity=0.95, cosines=cosines) == {0: (2, "is"), 2: (1, "asks")}
    assert leaks_of(*rows, similarity=1.01, cosines=cosines) == {2: (1, "asks")}


def test_each_limit_can_be_switched_off_but_the_same_words_never_pass():
    row = "Q: Which of these gases is the most abundant one in the air that surrounds the Earth?"
    assert leaks_of(row) == {0: (0, "has")} and leaks_of(row, share=1.01) == {}
    assert leaks_of(QUESTIONS[0], share=1.01) == {0: (0, "asks")}


def test_without_held_out_questions_nothing_leaks():
    assert find_leaks(["a"], [], np.ones((1, 2), np.float32), np.ones((0, 2), np.float32), 0.7, 0.9) == {}


@given(st.text(max_size=80))
def test_words_do_not_depend_on_case_and_spacing(text):
    assert split_words(f" \n{text}\t") == split_words(text)
    assert split_words(text.casefold()) == split_words(text)


# ---- the stage --------------------------------------------------------------------------------------------------


@pytest.fixture
def probed(store: Store) -> Store:
    """The project's own questions: 60 to train on, 120 held out."""
    for split in ("train", "test"):
        source = str(PROBE / f"general_knowledge_{split}.jsonl")
        run_now(store, "ingest", {"source": source, "task": "knowledge", "split": split}, "ana")
    return store


def read_probe(split: str) -> list[dict]:
    path = PROBE / f"general_knowledge_{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_pool(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows), encoding="utf-8")
    return path


def select_rows(store: Store, **values) -> tuple[str, pd.DataFrame]:
    run = run_now(store, "select-data", {"task": "knowledge", "k": 20, **values}, "ana")
    return run.run_id, fetch_selected_rows(store, run.run_id)


def test_a_pool_with_the_test_set_inside_it_loses_every_such_row(probed, tmp_path, monkeypatch):
    install(monkeypatch, dim=512)
    held_out = [(row["query"], row["choices"][row["gold"]]) for row in read_probe("test")]
    innocent = [(row["query"], row["choices"][row["gold"]]) for row in read_probe("train")]
    dressed = [
        (f"Please choose the right answer. Question: {q.upper()} Options: yes, no, perhaps", "perhaps")
        for q, _ in held_out
    ]
    pool = write_pool(tmp_path / "pool.jsonl", [*held_out, *innocent, *dressed])
    _, rows = select_rows(probed, pool=str(pool), budget=200, leak_similarity=1.01)
    by_position = rows[rows["decision"] != "shot"].set_index("position").sort_index()
    exact, copies = by_position.loc[:119], by_position.loc[180:]
    assert (exact["decision"] == "leak").all()
    ids = dict(probed.frame("SELECT prompt, question_id FROM question WHERE split = 'test'").to_numpy())
    assert exact["other"].tolist() == [ids[prompt] for prompt in exact["prompt"]]
    assert exact["reason"].unique().tolist() == [
        "It asks the same, word for word, as a held-out question of knowledge."
    ]
    short = copies.index[[len(split_words(q)) < 4 for q, _ in held_out]]
    assert (copies.drop(short)["decision"] == "leak").all() and len(short) == 4
    assert (by_position.loc[120:179, "decision"] != "leak").sum() >= 58


def test_rows_come_with_decision_reason_and_nearest_shot_and_are_trained_on(probed, tmp_path, monkeypatch):
    install(monkeypatch)
    shots = probed.frame("SELECT question_id, prompt, answer FROM question WHERE split = 'train'")
    rows = [
        ("Which planet is known as the red planet of our sky?", "Mars"),
        ("Which planet is known as the red planet of our sky?", "Mars"),
        ("What sound does a happy cat make at home?", "It purrs"),
        ("Name the tool with which a carpenter drives nails.", "A hammer"),
        *zip(shots["prompt"], shots["answer"], strict=True),
    ]
    run_id, chosen = select_rows(probed, pool=str(write_pool(tmp_path / "p.jsonl", rows)), budget=2, guard="task")
    count = chosen["decision"].value_counts()
    assert count["shot"] == 20 and count["selected"] == 2
    guides = chosen[chosen["decision"] == "shot"]
    assert guides["score"].eq(1).all() and guides["position"].tolist() == list(range(20))
    pool = chosen[chosen["decision"] != "shot"]
    assert pool["nearest"].isin(guides["nearest"]).all() and len(pool) == len(rows)
    twins = pool[pool["reason"] == "It is one of the K shots already."]
    assert sorted(twins["other"]) == sorted(guides["nearest"]) and (twins["decision"] == "similar").all()
    assert pool.loc[pool["decision"] == "beyond", "reason"].str.contains("budget of 2 rows").all()
    questions = fetch_selected_questions(probed, run_id)
    assert list(questions) == ["question_id", "task", "template", "prompt", "answer", "explanation"]
    assert questions["question_id"].tolist()[:20] == guides["nearest"].tolist()
    assert set(questions["question_id"].iloc[:20]) <= set(shots["question_id"])
    last = questions.iloc[-1]
    assert last["question_id"] == make_question_id("knowledge", last["prompt"], None, last["answer"])
    assert questions["template"].unique().tolist() == ["Question: {prompt}\nAnswer:"]
    overview = fetch_data_selections(probed).iloc[0]
    assert overview["run_id"] == run_id and overview["selected"] == 2 and overview["similar"] == count["similar"]


def test_of_two_equal_rows_the_later_is_dropped_and_says_for_which(probed, tmp_path, monkeypatch):
    install(monkeypatch)
    twins = [("Which tall animal eats leaves from high trees?", "giraffe")] * 2
    _, rows = select_rows(probed, pool=str(write_pool(tmp_path / "p.jsonl", twins)), budget=5)
    pool = rows[rows["decision"] != "shot"].sort_values("position")
    assert pool["decision"].tolist() == ["selected", "similar"]
    assert (
        pool["other"].isna().iloc[0]
        and pool["other"].iloc[1] == "row 0"
        and "1.00, above tau = 0.9" in pool["reason"].iloc[1]
    )


def test_the_pool_may_be_tasks_of_the_workspace(synthetic, monkeypatch):
    install(monkeypatch)
    with Store.open(synthetic) as store:
        values = {"task": "chain_sum", "tasks": ["leg_counting", "chain_sum"], "k": 5, "budget": 6, "guard": "task"}
        run = run_now(store, "select-data", values | {"leak_similarity": 1.01, "leak_ngrams": 1.01}, "ana")
        rows = fetch_selected_rows(store, run.run_id)
        train = store.frame("SELECT prompt FROM question WHERE split = 'train'")["prompt"]
        assert (rows["decision"] != "shot").sum() == 60 and rows["prompt"].isin(train).all()
        assert (rows["decision"] == "selected").sum() == 6
        before = sorted(map(str, store.cursor().execute("SELECT * FROM selected_row").fetchall()))
    rebuild(synthetic)
    with Store.open(synthetic) as store:
        assert sorted(map(str, store.cursor().execute("SELECT * FROM selected_row").fetchall())) == before


def test_all_tasks_or_only_the_target_are_guarded(synthetic, tmp_path, monkeypatch):
    install(monkeypatch)
    with Store.open(synthetic) as store:
        prompts = store.frame("SELECT prompt FROM question WHERE split = 'test' AND task = 'leg_counting'")["prompt"]
        pool = str(write_pool(tmp_path / "p.jsonl", [(prompt, "4") for prompt in prompts]))
        values = {"task": "chain_sum", "pool": pool, "k": 5, "leak_similarity": 1.01, "leak_ngrams": 1.01}
        for guard, refused in (("all", 30), ("task", 0)):
            run = run_now(store, "select-data", values | {"guard": guard}, "ana")
            assert (fetch_selected_rows(store, run.run_id)["decision"] == "leak").sum() == refused


def test_rows_that_their_source_holds_out_are_refused(probed, tmp_path, monkeypatch):
    install(monkeypatch)
    path = tmp_path / "p.csv"
    path.write_text("question,answer,split\nHow wide is a door?,a metre,test\nHow thick is a wall?,a foot,train\n")
    mapping = {"prompt": "question", "answer": "answer", "split": "split"}
    _, rows = select_rows(probed, pool=str(path), mapping=mapping)
    pool = rows[rows["decision"] != "shot"].set_index("position")
    assert pool.loc[0, "decision"] == "leak" and pool.loc[0, "reason"] == "Its source counts it to the test split."
    assert pool.loc[1, "decision"] == "selected"


def test_bad_rows_are_refused_with_the_file_or_set_aside_if_one_says_so(probed, tmp_path, monkeypatch):
    install(monkeypatch)
    path = write_pool(tmp_path / "p.jsonl", [("How wide is a door?", "a metre"), ("How high?", "")])
    with pytest.raises(InputError, match="1 of 2 rows of p.jsonl cannot be used"):
        select_rows(probed, pool=str(path))
    assert fetch_data_selections(probed).empty
    run_id, rows = select_rows(probed, pool=str(path), keep_good=True)
    assert (rows["decision"] == "selected").sum() == 1
    assert probed.value("SELECT count(*) FROM rejected_row WHERE run_id = ?", [run_id]) == 1


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"task": "nobody", "pool": "p"}, NotFoundError, "Task 'nobody' does not exist"),
        ({"tasks": ["nobody"]}, NotFoundError, "Task 'nobody' does not exist"),
        ({"pool": "/nowhere/p.jsonl"}, InputError, "cannot be read"),
        ({"pool": "empty"}, InputError, "empty.jsonl is empty"),
        ({"pool": "picture"}, InputError, "has the suffix '.png'"),
        ({"pool": "p", "k": 61}, ConfigError, "k is 61, but task 'knowledge' has 60 train questions"),
        ({}, ConfigError, "name either a file"),
        ({"pool": "p", "tasks": ["knowledge"]}, ConfigError, "name either a file"),
        ({"pool": "p", "budget": -1}, ConfigError, "budget"),
        ({"pool": "p", "tau": 1.5}, ConfigError, "tau"),
        ({"tasks": ["held_out_only"]}, NotFoundError, "held_out_only have no train questions"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence_and_no_run(probed, tmp_path, monkeypatch, values, error, sentence):
    install(monkeypatch)
    source = str(PROBE / "general_knowledge_test.jsonl")
    run_now(probed, "ingest", {"source": source, "task": "held_out_only", "split": "test"}, "ana")
    files = {
        "p": write_pool(tmp_path / "p.jsonl", [("How wide is a door?", "a metre")]),
        "empty": write_pool(tmp_path / "empty.jsonl", []),
        "picture": write_pool(tmp_path / "p.png", [("a", "b")]),
    }
    values = values | ({"pool": str(files.get(values["pool"], values["pool"]))} if "pool" in values else {})
    runs = sorted(probed.workspace.runs.iterdir())
    with pytest.raises(error, match=sentence) as raised:
        select_rows(probed, **values)
    assert "\n" not in str(raised.value)
    assert sorted(probed.workspace.runs.iterdir()) == runs


def test_a_selection_nobody_made_is_not_found(probed):
    for fetch in (fetch_selected_rows, fetch_selected_questions):
        with pytest.raises(NotFoundError, match="Data selection 'x' does not exist"):
            fetch(probed, "x")


# ---- stopping, going on, and not embedding twice ----------------------------------------------------------------


def test_a_stopped_selection_goes_on_where_it_was_and_a_second_one_embeds_nothing(probed, tmp_path, monkeypatch):
    encoder = install(monkeypatch)
    monkeypatch.setattr(vector_cache, "CHUNK", 16)
    pool = write_pool(tmp_path / "p.jsonl", [(f"How many legs have {n} cows?", str(4 * n)) for n in range(60)])
    config = parse_config(SelectDataConfig, {"task": "knowledge", "pool": str(pool), "k": 20, "budget": 9})
    inputs = select_data.prepare(probed, config)

    def stop_in_the_middle(done: int) -> None:
        if 90 <= done < 200:
            raise StopRequested(save=True)

    stopped = RecordingContext(tmp_path / "w", act=stop_in_the_middle)
    with pytest.raises(StopRequested):
        select_data.compute(inputs, config, stopped)
    assert not stopped.emitted and len(encoder.encoded) == 96
    resumed = RecordingContext(tmp_path / "w")
    select_data.compute(inputs, config, resumed)
    assert len(encoder.encoded) == len(set(encoder.encoded)) == 200
    again = RecordingContext(tmp_path / "w")
    select_data.compute(inputs, config, again)
    assert len(encoder.encoded) == 200
    pd.testing.assert_frame_equal(again.rows("selected_row"), resumed.rows("selected_row"))
    done, total, metrics = resumed.reports[-1]
    assert done == total and metrics["held_out"] == 120 and sum(metrics.values()) == 180


def test_the_choice_does_not_depend_on_what_was_embedded_before(tmp_path, monkeypatch):
    install(monkeypatch, "minilm", "e5")
    texts = ["add", "sort", "add", "", "count"]
    fresh = vector_cache.embed_texts(texts, "minilm", tmp_path / "a")
    vector_cache.embed_texts(texts[3:], "minilm", tmp_path / "b")
    vector_cache.embed_texts(texts, "e5", tmp_path / "b")
    assert np.array_equal(vector_cache.embed_texts(texts, "minilm", tmp_path / "b"), fresh)
    assert fresh.shape == (5, 48) and np.array_equal(fresh[0], fresh[2])
    assert vector_cache.embed_texts([], "minilm", tmp_path / "b").shape == (0, 48)


def test_a_damaged_part_or_one_of_another_width_is_embedded_anew(tmp_path, monkeypatch):
    install(monkeypatch)
    first = vector_cache.embed_texts(["a", "b"], "minilm", tmp_path)
    (part,) = tmp_path.glob("*/*.npz")
    part.write_bytes(part.read_bytes()[:60])
    assert np.array_equal(vector_cache.embed_texts(["a", "b"], "minilm", tmp_path), first)
    install(monkeypatch, dim=7)
    assert vector_cache.embed_texts(["a", "b"], "minilm", tmp_path).shape == (2, 7)


def test_the_command_says_positions_and_writes_the_table(probed, tmp_path, monkeypatch, capsys):
    from metamoe_backend import cli

    install(monkeypatch)
    test = read_probe("test")[0]["query"]
    rows = [("Which tall animal eats leaves from high trees?", "giraffe")] * 2 + [(test, "Green"), ("Is it so?", "no")]
    pool, out = write_pool(tmp_path / "p.jsonl", rows), tmp_path / "out.csv"
    root = probed.workspace.root
    probed.close()
    words = ["select-data", "--task", "knowledge", "--pool", pool, "--budget", "1", "--tau", "0.9", "--k", "10"]
    assert cli.main(["--workspace", str(root), *map(str, words), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert {len(result["selected"]), len(result["dropped_similar"])} == {1} and result["dropped_leak"] == [2]
    assert result["counts"]["pool"] == 4 and result["counts"]["held_out"] == 120 and result["counts"]["shots"] == 10
    assert "1 of 4 rows selected" in said.err
    written = pd.read_csv(out)
    assert len(written) == 14 and set(written["decision"]) == {"shot", "selected", "similar", "leak", "beyond"}
    with Store.open(Workspace(root)) as store:
        assert len(fetch_selected_questions(store, result["run_id"])) == 11
    assert cli.main(["--workspace", str(root), *map(str, words[:-1]), "61"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
