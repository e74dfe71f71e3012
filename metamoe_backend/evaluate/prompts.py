"""What the model is shown: template, question, examples; and how a prompt and an option become tokens.

Conventions of lm-evaluation-harness (METHODS section 5): options are not shown, an option is scored as a space and its
text behind the prompt; examples stand before the question, each followed by a space and its answer (a program follows
at once and ends with [DONE]), a blank line between them.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.evaluate.programs import mark_end
from metamoe_backend.train.examples import join_answer, make_prompt

BLANK = "_"
"""What an option fills in a WinoGrande sentence."""
OPENING = "opening"
"""The key in a question's metadata of what stands before all examples."""
BENCHMARK = "benchmark"
"""The key of the benchmark that a question is of, where generated answers end by that benchmark's rule."""
BBH = "BBH"


def make_shown_text(
    template: str, prompt: str, shots: Sequence[tuple[str, str]] = (), metadata: str | None = None
) -> str:
    """The text before the answer. shots: (prompt, answer) of the examples, in order; an answer filled in is empty.
    metadata: the question's, which may hold an opening.

    Raises `ConfigError` if the template has no place for the question.
    """
    examples = [
        join_answer(make_prompt(template, shot), answer) if answer else make_prompt(template, shot)
        for shot, answer in shots
    ]
    opening = _find_in_metadata(metadata, OPENING)
    return "\n\n".join([*([opening] if opening else []), *examples, make_prompt(template, prompt)])


def make_continuation(option: str) -> str:
    """An option as the model would write it behind the prompt."""
    return f" {option}"


def hash_prompt(shown_text: str) -> str:
    """Hash of the text the model sees (16 hex digits)."""
    return hashlib.sha256(shown_text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw_shots(train: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` + 1 example questions of one task in a seeded order that does not depend on the order of the rows.

    One more than shown, so that a question that is an example itself can be left out: see `make_shots`.
    """
    ordered = train.sort_values("question_id", ignore_index=True)
    chosen = np.random.default_rng(seed).permutation(len(ordered))[: count + 1]
    return ordered.iloc[chosen].reset_index(drop=True)


def make_shots(drawn: pd.DataFrame, count: int, question_id: str) -> list[tuple[str, str]]:
    """(prompt, answer) of the first `count` drawn examples that are not the question itself."""
    others = drawn[drawn["question_id"] != question_id].head(count)
    return [_make_shot(row) for row in others.itertuples()]


def _make_shot(row: Any) -> tuple[str, str]:
    if row.regime == "code":
        return row.prompt, mark_end(row.answer, row.metadata)
    if row.regime == "choices" and has_blank(row.metadata):
        return row.prompt.replace(BLANK, row.answer), ""
    return row.prompt, row.answer


def has_blank(metadata: Any) -> bool:
    """Whether a question is a sentence with a blank that its options fill (WinoGrande)."""
    return _find_in_metadata(metadata, "blank") is not None


def is_of_bbh(metadata: Any) -> bool:
    """Whether a question is one of BBH."""
    return _find_in_metadata(metadata, BENCHMARK) == BBH


def _find_in_metadata(metadata: Any, key: str) -> Any:
    """What stands under a key of a question's metadata (JSON); None where there is none."""
    return json.loads(metadata).get(key) if isinstance(metadata, str) and f'"{key}"' in metadata else None


def encode_blank(tokenizer: Any, shown_text: str, option: str) -> tuple[list[int], int]:
    """As `encode_pair` for a sentence with a blank: the option stands in it, what follows is scored.

    Partial evaluation (Trinh and Le 2018, arXiv 1806.02847), as lm-evaluation-harness scores WinoGrande.
    """
    before, _, after = shown_text.rpartition(BLANK)
    return encode_pair(tokenizer, before + option, make_continuation(after.strip()))


def encode_prompt(tokenizer: Any, shown_text: str) -> list[int]:
    """Token ids of the text, with whatever the tokenizer puts before it; never empty."""
    tokens = _tokenize(tokenizer, shown_text).tolist()
    if tokens and tokens[-1] == tokenizer.eos_token_id and not shown_text.endswith(tokenizer.eos_token):
        tokens.pop()  # some tokenizers end every text: nothing could follow it
    if not tokens:
        tokens = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    return tokens


@lru_cache(maxsize=1 << 14)
def _tokenize(tokenizer: Any, text: str) -> NDArray[np.int32]:
    """Kept: a question's options share its prompt, and each system of a run reads the same texts again."""
    return np.asarray(tokenizer(text)["input_ids"], dtype=np.int32)


def encode_pair(tokenizer: Any, shown_text: str, continuation: str) -> tuple[list[int], int]:
    """Token ids of both texts together, and where the continuation starts (at least 1, before the end).

    The pair is tokenized as one text and cut after as many tokens as the prompt alone has, and spaces that end the
    prompt count to the continuation: lm-evaluation-harness, `TemplateLM._encode_pair`.
    """
    stripped = shown_text.rstrip()
    prompt = encode_prompt(tokenizer, stripped)
    whole = encode_prompt(tokenizer, shown_text + continuation)
    if not stripped or len(whole) <= len(prompt):
        whole = prompt + list(
            tokenizer(shown_text[len(stripped) :] + continuation, add_special_tokens=False)["input_ids"]
        )
    return whole, len(prompt)
