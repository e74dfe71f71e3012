"""Greedy generation in batches: left padding, key-value cache, rows leave the batch as soon as they are finished.

A system that reads every text twice (X-LoRA) has no cache: it reads the whole text for every token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamoe_backend.evaluate.batches import BatchBudget, pad_left, plan_batches, run_batches
from metamoe_backend.evaluate.loglikelihood import PromptWatcher
from metamoe_backend.evaluate.shared_prefix import SharedPrefix, read_shared_prefix

if TYPE_CHECKING:
    from metamoe_backend.models.systems import OpenSystem

_LAST_TOKENS = 8
"""How many tokens at the end are searched for the stop texts: none was not before them, or the row had stopped."""
_PASS_SHARE = 1 / 8
"""As `batches.PASS_SHARE`: each token generated is a pass of its own, so batches are cut less."""


@dataclass(frozen=True, slots=True)
class Stop:
    """When an answer ends: at one of these tokens, at the first of these texts, or after so many tokens."""

    tokens: frozenset[int]
    texts: tuple[str, ...]
    max_new_tokens: int
    strip: bool = True
    """Take the white space around an answer away; in a program it means something."""

    def cut(self, text: str) -> str:
        """What stands before the first of the texts."""
        kept = min((text.partition(stop)[0] for stop in self.texts), key=len, default=text)
        return kept.strip() if self.strip else kept


def find_stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text tokens of the tokenizer and of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [tokenizer.eos_token_id, *several] if token is not None)


def iterate_outputs(
    system: "OpenSystem",
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop: Stop,
    batch_tokens: int | BatchBudget,
    routes: NDArray[np.float64] | None = None,
    watch: PromptWatcher | None = None,
) -> Iterator[tuple[list[int], list[str | None]]]:
    """Batch by batch: indices of prompts and the texts generated for them, cut at the stop; None where the model gave
    no numbers (NaN).

    routes: one row a prompt for mixtures that route by question. watch: sees the gates of the pass over the prompts.
    What all prompts begin with is read once (`shared_prefix`). A batch that memory does not hold is halved.
    """
    prefix = None if watch else read_shared_prefix(system, prompts, routes)

    def answer(rows: list[int]) -> list[list[int] | None]:
        batch_routes = None if routes is None else routes[rows]
        batch = [prompts[row] for row in rows]
        return _generate_batch(system, tokenizer, batch, stop, batch_routes, rows, watch, prefix)

    lengths = [len(prompt) + stop.max_new_tokens for prompt in prompts]
    for rows, tokens in run_batches(lengths, batch_tokens, answer, partial(plan_batches, pass_share=_PASS_SHARE)):
        texts = tokenizer.batch_decode([found or [] for found in tokens], skip_special_tokens=True)
        yield rows, [None if found is None else stop.cut(text) for found, text in zip(tokens, texts, strict=True)]


def _generate_batch(
    system: "OpenSystem",
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop: Stop,
    routes: NDArray[np.float64] | None,
    rows: list[int],
    watch: PromptWatcher | None,
    prefix: SharedPrefix | None,
) -> list[list[int] | None]:
    """Token ids generated for each prompt, without the end-of-text token; None where the model gave no numbers."""
    import torch

    generated: list[list[int]] = [[] for _ in prompts]
    without_numbers: set[int] = set()
    running = list(range(len(prompts)))
    with torch.inference_mode():
        output, read, mask, gates = _read_prompts(system, prompts, routes, watch is not None, prefix)
        for _ in range(stop.max_new_tokens):
            largest, chosen = output.logits[:, -1].max(-1)  # NaN where any logit is
            unfinished = []
            broken = largest.isnan().tolist()
            for place, (row, token) in enumerate(zip(running, chosen.tolist(), strict=True)):
                if broken[place]:
                    without_numbers.add(row)
                    continue
                if token in stop.tokens:
                    continue
                generated[row].append(token)
                if len(generated[row]) < stop.max_new_tokens and not _has_stopped(tokenizer, generated[row], stop):
                    unfinished.append(place)
            if not unfinished:
                break
            cache = output.past_key_values if system.reads_once else None
            if len(unfinished) < len(running):
                keep = torch.tensor(unfinished, device=chosen.device)
                if cache is not None:
                    cache.batch_select_indices(keep)
                chosen, read, mask = chosen[keep], read[keep], mask[keep]
                running = [running[place] for place in unfinished]
                system.set_routes(None if routes is None else routes[running])
            read = torch.cat([read, chosen[:, None]], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
            inputs = _make_inputs(read, mask, None if cache is None else 1)
            output = system.model(**inputs, past_key_values=cache, use_cache=system.reads_once)
    if watch is not None:  # at the end, so that a batch that is tried again is seen once
        width = max(len(prompt) for prompt in prompts)
        watch(gates, rows, [slice(width - len(prompt), width) for prompt in prompts])
    return [None if row in without_numbers else tokens for row, tokens in enumerate(generated)]


def _make_inputs(tokens: Any, mask: Any, new: int | None = None) -> dict[str, Any]:
    """Inputs of a pass over `tokens` [batch, width], or over the last `new` of them when a cache holds the rest."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    start = 0 if new is None else tokens.shape[1] - new
    return {
        "input_ids": tokens[:, start:],
        "attention_mask": mask,
        "position_ids": positions[:, start:],
        "logits_to_keep": 1,
    }


def _read_prompts(
    system: "OpenSystem",
    prompts: Sequence[Sequence[int]],
    routes: NDArray[np.float64] | None,
    record: bool,
    prefix: SharedPrefix | None,
) -> tuple[Any, Any, Any, Any]:
    """The pass over the prompts: the model's output with its cache, the tokens and the mask [batch, width], the gates.

    With a prefix, only what stands behind it is read, and padding stands between the two.
    """
    import torch

    system.set_routes(routes)
    device = system.model.device
    known = 0 if prefix is None else len(prefix.tokens)
    rest = [prompt[known:] for prompt in prompts]
    tokens = torch.from_numpy(pad_left(rest, 0)).to(device)
    mask = torch.from_numpy(pad_left([[1] * len(one) for one in rest], 0)).to(device)
    if prefix is not None:
        tokens = torch.cat([tokens.new_tensor(prefix.tokens).expand(len(prompts), -1), tokens], dim=1)
        mask = torch.cat([mask.new_ones(len(prompts), known), mask], dim=1)
    inputs = _make_inputs(tokens, mask, tokens.shape[1] - known) | {"use_cache": system.reads_once}
    if prefix is not None:
        inputs["past_key_values"] = prefix.make_cache(len(prompts))
    if not record:
        return system.model(**inputs), tokens, mask, None
    with system.record() as gates:
        output = system.model(**inputs)
    return output, tokens, mask, gates


def _has_stopped(tokenizer: Any, tokens: Sequence[int], stop: Stop) -> bool:
    end = tokenizer.decode(tokens[-_LAST_TOKENS:])
    return any(text in end for text in stop.texts)
