"""Meta-questions: each question with its particulars removed, so that questions needing the same skill read alike.

Two methods. template masks particulars by rules (see `masking`) and needs no model. llm asks one: a local base model,
or any server that speaks the OpenAI protocol. What was built from the same text by the same means is not built again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pandas as pd

from metamoe_backend.config import MetaQuestionConfig
from metamoe_backend.errors import ConfigError, NotFoundError, UnavailableError
from metamoe_backend.masking import VERSION as MASKING_VERSION
from metamoe_backend.masking import mask_question
from metamoe_backend.shards import cut_rows, number_blocks

if TYPE_CHECKING:
    import httpx
    import numpy as np
    from numpy.typing import NDArray

    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store

PROMPT = """\
Each question is followed by what it asks in general: one short sentence in the language of the question, without \
numbers, names, quotations or other particulars. Go on with the last one and write nothing else.

Question: Tom has 5 apples and buys 7 more. How many apples does he have now?
In general: How many things are there after some are added?

Question: What day of the week was October 28, 2022?
In general: Which day of the week was a given date?

Question: How many vowels are in "banana"?
In general: How many letters of a kind are in a given text?

Question: All cats are animals. Rex is a cat. Is Rex an animal? Answer Yes or No.
In general: Does a statement follow from the given statements?

Question: 把“苹果”这个词倒过来写。
In general: 把一个词倒过来写。

Question: Which gas do plants take in from the air?
In general: Which substance does a living thing take in?

Question: {question}
In general:"""
"""A text to be continued: asked as in a chat, the packaged model answers the question itself."""
PROMPT_VERSION = "2"
"""Raise it with every change of PROMPT: meta-questions are built anew then."""
KEY_VARIABLE = "METAMOE_LLM_API_KEY"
LONGEST_QUESTION = 6000
"""Characters of a question that a model is shown; the middle of a longer one is left out."""

_TEMPLATE_BATCH, _LOCAL_BATCH, _SERVER_BATCH = 500, 8, 16
_PARALLEL_REQUESTS = 4
_TRIES = 3
_TIMEOUT_S, _CONNECT_TIMEOUT_S, _PAUSE_S = 120.0, 5.0, 1.0

Build = Callable[[list[str]], list[str]]
"""Meta-questions of some questions, in order; an empty text where none came of it."""


def prepare(store: "Store", config: MetaQuestionConfig) -> "Inputs":
    """Questions still to build (question_id, prompt, source_hash) and how many are reused (one row).

    Raises `NotFoundError` for unknown tasks or an empty workspace, `ConfigError` for a prompt or an address of no use.
    """
    from metamoe_backend.store.questions import fetch_meta_questions, fetch_questions

    check_config(config)
    questions = fetch_questions(store, tuple(config.tasks))
    if questions.empty:
        raise NotFoundError("There are no questions yet; import some on the Tasks page or with `ingest`.")
    hashes = [hash_source(prompt, config) for prompt in questions["prompt"]]
    questions = questions[["question_id", "prompt"]].assign(source_hash=hashes)
    built = fetch_meta_questions(store, config.method, tuple(config.tasks))
    known = set(zip(built["question_id"], built["source_hash"], strict=True))
    is_known = [pair in known for pair in zip(questions["question_id"], hashes, strict=True)]
    pending = questions[~pd.Series(is_known, dtype=bool).to_numpy()].reset_index(drop=True)
    return {"questions": pending, "reused": pd.DataFrame({"reused": [sum(is_known)]})}


def compute(inputs: "Inputs", config: MetaQuestionConfig, context: "Context") -> None:
    """Emit a meta_question row for each pending question; progress carries `reused`.

    A question to which the model answers nothing gets no row, and the log says how many did: the next run asks again.
    What an earlier attempt of the same run built is not built again. Raises `UnavailableError` when the model or the
    server is not there.
    """
    from metamoe_backend.jobs.saved_parts import restore_parts, save_part

    questions = inputs["questions"].assign(block=_number_blocks(inputs["questions"], config))
    reused = float(inputs["reused"]["reused"].iloc[0])
    finished = restore_parts(context, ("meta_question",), ("question_id",))["question_id"]
    pending = questions[~questions["question_id"].isin(finished)]
    done, total, unanswered = len(questions) - len(pending), len(questions), 0
    context.progress(done, total, reused=reused)
    if len(pending):
        build = _open_builder(config)
        for _, batch in pending.groupby("block"):
            texts = build(batch["prompt"].tolist())
            rows = batch[["question_id", "source_hash"]].assign(method=config.method, text=texts)
            answered = rows[rows["text"] != ""]
            unanswered += len(rows) - len(answered)
            if len(answered):
                save_part(context, ("meta_question",), {"meta_question": answered})
            done += len(batch)
            context.progress(done, total, reused=reused)
    if unanswered:
        context.log(f"{unanswered} of {total} questions got no answer from {config.model}; the next run asks again.")


def cut(inputs: "Inputs", config: MetaQuestionConfig, shards: int) -> list["Inputs"]:
    """Inputs of at most so many runs, which give the rows of one; the first one reports what is reused."""
    questions, reused = inputs["questions"], inputs["reused"]
    parts = cut_rows(questions, _number_blocks(questions, config), shards)
    return [{"questions": part, "reused": reused if place == 0 else reused * 0} for place, part in enumerate(parts)]


def _number_blocks(questions: pd.DataFrame, config: MetaQuestionConfig) -> "NDArray[np.int64]":
    """Questions that are built together: a batch of the model's, or what a server is sent between two reports."""
    size = _LOCAL_BATCH if config.base_url is None else _SERVER_BATCH
    return number_blocks(questions["question_id"], _TEMPLATE_BATCH if config.method == "template" else size)


def hash_source(prompt: str, config: MetaQuestionConfig) -> str:
    """Hash of a question's text and everything that decides what is built from it."""
    if config.method == "template":
        means = [config.method, MASKING_VERSION]
    else:
        asked = config.prompt or f"version {PROMPT_VERSION}"
        means = [config.method, config.base_url or "", config.model, asked, str(config.max_tokens)]
    return hashlib.sha256(json.dumps([*means, prompt]).encode()).hexdigest()[:16]


def check_config(config: MetaQuestionConfig) -> None:
    """Raise `ConfigError` for a prompt without {question}, an address that is none, or no model."""
    if config.prompt is not None and "{question}" not in config.prompt:
        raise ConfigError("prompt: it must contain {question}, where the question is put in.")
    if config.base_url is not None and not config.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"base_url: {config.base_url!r} is no web address; write it like http://127.0.0.1:11434/v1.")
    if config.method == "llm" and not config.model.strip():
        raise ConfigError("model: name the model that builds, as its server or the hub calls it.")


def _open_builder(config: MetaQuestionConfig) -> Build:
    if config.method == "template":
        return lambda prompts: [mask_question(prompt) for prompt in prompts]
    if config.base_url is not None:
        return _open_server(config)
    return _open_local_model(config)


def _make_request_text(prompt: str, config: MetaQuestionConfig) -> str:
    if len(prompt) > LONGEST_QUESTION:
        half = LONGEST_QUESTION // 2
        prompt = f"{prompt[:half]} … {prompt[-half:]}"
    return (config.prompt or PROMPT).replace("{question}", prompt.strip())


def _clean_answer(answer: str) -> str:
    """The first line that says something, without a repeated lead-in or enclosing quotation marks."""
    for line in answer.strip().splitlines():
        text = line.strip().removeprefix("In general:").strip().strip('"“”').strip()
        if text:
            return text
    return ""


# ---- a local base model -----------------------------------------------------------------------------------------


def _open_local_model(config: MetaQuestionConfig) -> Build:
    import torch

    from metamoe_backend.models.base import load_base

    base = load_base(config.model, config.device)
    model: Any = base.model
    tokenizer: Any = base.tokenizer
    tokenizer.padding_side = "left"
    room = int(getattr(model.config, "max_position_embeddings", None) or 2048) - config.max_tokens

    def build(prompts: list[str]) -> list[str]:
        encoded = tokenizer(
            [_make_request_text(prompt, config) for prompt in prompts], return_tensors="pt", padding=True
        )
        tokens, mask = encoded["input_ids"][:, -room:], encoded["attention_mask"][:, -room:]
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens.to(base.device), attention_mask=mask.to(base.device), do_sample=False,
                max_new_tokens=config.max_tokens, pad_token_id=tokenizer.pad_token_id, stop_strings=["\n"],
                tokenizer=tokenizer,
            )  # fmt: skip
        answers = tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
        return [_clean_answer(answer) for answer in answers]

    return build


# ---- a server that speaks the OpenAI protocol -------------------------------------------------------------------


def ask_server(config: MetaQuestionConfig, texts: list[str]) -> list[str]:
    """The first line of the server's answer to `config.prompt` about each text; raises `UnavailableError`."""
    return _open_server(config)(texts)


def _open_server(config: MetaQuestionConfig) -> Build:
    import httpx

    key = os.environ.get(KEY_VARIABLE)
    client = httpx.Client(
        timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )

    def build(prompts: list[str]) -> list[str]:
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return list(pool.map(lambda prompt: _clean_answer(_ask(client, config, prompt)), prompts))

    return build


def _ask(client: "httpx.Client", config: MetaQuestionConfig, prompt: str) -> str:
    """The server's answer; tries again when it is busy. Raises `UnavailableError`."""
    request = {
        "model": config.model,
        "messages": [{"role": "user", "content": _make_request_text(prompt, config)}],
        "max_tokens": config.max_tokens,
        "temperature": 0,
    }
    address = f"{(config.base_url or '').rstrip('/')}/chat/completions"
    for reply in _post(client, address, request):
        if reply.status_code == 200:
            return _read_reply(reply, address)
        if reply.status_code in (401, 403):
            raise UnavailableError(
                f"{address} refused the key (status {reply.status_code}); set {KEY_VARIABLE} to a valid one."
            )
        if reply.status_code not in (429, 500, 502, 503, 504):
            raise UnavailableError(
                f"{address} refused the request (status {reply.status_code}: {reply.text[:120].strip()!r}); "
                f"check base_url and the model name {config.model!r}."
            )
    raise UnavailableError(f"{address} is overloaded (status {reply.status_code}, {_TRIES} tries); try again later.")


def _post(client: "httpx.Client", address: str, request: dict[str, Any]) -> Iterator["httpx.Response"]:
    """Replies to the same request sent up to three times, with a pause before each repetition."""
    import time

    import httpx

    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S * attempt)
        try:
            yield client.post(address, json=request)
        except httpx.TimeoutException:
            raise UnavailableError(
                f"{address} did not answer in time; check the server or build with --method template."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(
                f"{address} cannot be reached ({type(error).__name__}); start the server, correct base_url, or build "
                "with --method template."
            ) from None


def _read_reply(reply: "httpx.Response", address: str) -> str:
    try:
        return str(reply.json()["choices"][0]["message"]["content"] or "")
    except (ValueError, KeyError, IndexError, TypeError):
        raise UnavailableError(
            f"{address} did not answer in the OpenAI form ({reply.text[:120].strip()!r}); check base_url (it often "
            "ends in /v1)."
        ) from None
