"""From questions to batches: prompts, token ids with the loss on the answer only, and the order of training.

A batch is a dict of tensors: input_ids [B, T] int64, padded on the right (causal attention never looks there, so no
attention mask is needed); real [B, T] bool, true on tokens that are not padding; predicts [B, T] bool, true where the
next token belongs to the answer; targets [N] int64, those next tokens; extra [B, E] float32, where examples carry one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metamoe_backend.errors import ConfigError

if TYPE_CHECKING:
    import torch

POOL_BATCHES = 8
"""Batches that are drawn together and cut by length: little padding, while every batch stays a random mixture."""
MOST_HELD_BACK = 256
"""Held-back questions are read several times in a run; more of them would cost time and tell little."""

Batch = dict[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Example:
    """One question as token ids; the loss counts from `answer_start` on. `extra` is a vector a model hook may want."""

    tokens: np.ndarray
    answer_start: int
    extra: np.ndarray | None = None


def make_prompt(template: str, prompt: str) -> str:
    """The text the model is shown. Replaces `{prompt}` only, so braces in a question stay as they are.

    Raises `ConfigError` if the template has no place for the question.
    """
    if "{prompt}" not in template:
        raise ConfigError(
            f"The template {template[:80]!r} has no {{prompt}}; write {{prompt}} where the question goes."
        )
    return template.replace("{prompt}", prompt)


def join_answer(prompt: str, answer: str) -> str:
    """The answer behind its prompt: after a space, or at once where the prompt ends with white space."""
    return f"{prompt}{answer}" if prompt[-1:].isspace() else f"{prompt} {answer}"


def make_examples(
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_tokens: int,
    extras: np.ndarray | None = None,
) -> list[Example]:
    """Token ids of prompt, answer and end of text, cut on the left to `max_tokens` (a leading BOS is kept).

    `prompts` come from `make_prompt`; `extras` is [questions, E]. An answer longer than `max_tokens` keeps its end.
    """
    if not len(prompts):
        return []
    shown = tokenizer(list(prompts))["input_ids"]
    whole = tokenizer([join_answer(*pair) for pair in zip(prompts, answers, strict=True)])["input_ids"]
    examples = []
    for index, (before, tokens) in enumerate(zip(shown, whole, strict=True)):
        start = _common_length(before, tokens)
        if tokens[-1] != tokenizer.eos_token_id:
            tokens = [*tokens, tokenizer.eos_token_id]
        cut = max(0, len(tokens) - max_tokens)
        bos = cut > 0 and tokens[0] == tokenizer.bos_token_id and tokens[0] != tokenizer.eos_token_id
        kept = [tokens[0], *tokens[cut + 1 :]] if bos else tokens[cut:]
        extra = None if extras is None else np.asarray(extras[index], dtype=np.float32)
        examples.append(Example(np.asarray(kept, dtype=np.int32), max(1, start - cut), extra))
    return examples


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with: a tokenizer may join the end of the prompt with the answer."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def hold_back(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split `count` questions into (training, held-back) indices, at random; at most 256 are held back."""
    held = min(math.floor(count * share), MOST_HELD_BACK)
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def count_steps(count: int, steps: int | None, epochs: float, batch_size: int) -> int:
    """Optimizer steps: `steps`, or as many as `epochs` passes over `count` questions take."""
    return steps or max(1, math.ceil(count * epochs / min(batch_size, count)))


def plan_batches(lengths: np.ndarray, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Which example goes into which step: int32 [steps, min(batch_size, examples)], fixed by the seed.

    Pass after pass over the shuffled examples; within a pool of `POOL_BATCHES` batches, examples of like length are
    put together and the batches shuffled again. Every example comes up equally often, give or take one.
    """
    count = len(lengths)
    size = min(batch_size, count)
    rng = np.random.default_rng([seed, 0])
    passes = math.ceil(steps * size / count)
    stream = np.concatenate([rng.permutation(count) for _ in range(passes)])[: steps * size].astype(np.int32)
    planned = []
    for start in range(0, len(stream), POOL_BATCHES * size):
        pool = stream[start : start + POOL_BATCHES * size]
        batches = pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, size)
        planned.append(rng.permutation(batches))
    return np.concatenate(planned)


def sorted_batches(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """All examples once, longest first, for evaluation: the batch that needs most memory comes first."""
    ordered = sorted(examples, key=lambda example: -len(example.tokens))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def compute_padding_share(lengths: np.ndarray, planned: np.ndarray) -> float:
    """Share of a plan's token places that hold padding, 0 to 1."""
    rows = lengths[planned]
    return float(1 - rows.sum() / (rows.max(axis=1) * planned.shape[1]).sum())


def collate(examples: Iterable[Example], pad_token: int) -> Batch:
    """Put examples together as one batch (see the module's docstring for the tensors)."""
    import torch

    rows = list(examples)
    width = max(len(row.tokens) for row in rows)
    input_ids = np.full((len(rows), width), pad_token, dtype=np.int64)
    predicts = np.zeros((len(rows), width), dtype=bool)
    real = np.zeros((len(rows), width), dtype=bool)
    for index, row in enumerate(rows):
        length = len(row.tokens)
        input_ids[index, :length] = row.tokens
        real[index, :length] = True
        predicts[index, row.answer_start - 1 : length - 1] = True
    targets = np.concatenate([row.tokens[row.answer_start :] for row in rows]).astype(np.int64)
    batch = {"input_ids": input_ids, "real": real, "predicts": predicts, "targets": targets}
    if rows[0].extra is not None:
        batch["extra"] = np.stack([row.extra for row in rows if row.extra is not None])
    return {name: torch.from_numpy(array) for name, array in batch.items()}
