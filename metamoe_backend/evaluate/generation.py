"""Greedy generation in batches: left padding, key-value cache, rows leave the batch as soon as they are finished.

A system that reads every text twice (X-LoRA) has no cache: it reads the whole text for every token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamoe_backend.evaluate.batches import pad_left, plan_batches
from metamoe_backend.evaluate.loglikelihood import PromptWatcher

if TYPE_CHECKING:
    from metamoe_backend.models.systems import OpenSystem

_LAST_TOKENS = 8
"""How many tokens at the end are searched for the stop texts: none was not before them, or the row had stopped."""


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
    batch_tokens: int,
    routes: NDArray[np.float64] | None = None,
    watch: PromptWatcher | None = None,
) -> Iterator[tuple[list[int], list[str]]]:
    """Batch by batch: indices of prompts and the texts generated for them, cut at the stop.

    routes: one row a prompt for mixtures that route by question. watch: sees the gates of the pass over the prompts.
    """
    for rows in plan_batches([len(prompt) + stop.max_new_tokens for prompt in prompts], batch_tokens):
        batch_routes = None if routes is None else routes[rows]
        tokens = _generate_batch(system, tokenizer, [prompts[row] for row in rows], stop, batch_routes, rows, watch)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        yield rows, [stop.cut(text) for text in texts]


def _generate_batch(
    system: "OpenSystem",
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop: Stop,
    routes: NDArray[np.float64] | None,
    rows: list[int],
    watch: PromptWatcher | None,
) -> list[list[int]]:
    """Token ids generated for each prompt, without the end-of-text token."""
    import torch

    generated: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    with torch.inference_mode():
        output, read, mask = _read_prompts(system, prompts, routes, rows, watch)
        for _ in range(stop.max_new_tokens):
            chosen = output.logits[:, -1].argmax(-1)
            unfinished = []
            for place, (row, token) in enumerate(zip(running, chosen.tolist(), strict=True)):
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
    return generated


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
    rows: list[int],
    watch: PromptWatcher | None,
) -> tuple[Any, Any, Any]:
    """The pass over the prompts: the model's output with its cache, the tokens and the mask [batch, width]."""
    import torch

    system.set_routes(routes)
    device = system.model.device
    tokens = torch.from_numpy(pad_left(prompts, 0)).to(device)
    mask = torch.from_numpy(pad_left([[1] * len(prompt) for prompt in prompts], 0)).to(device)
    inputs = _make_inputs(tokens, mask) | {"use_cache": system.reads_once}
    if watch is None:
        return system.model(**inputs), tokens, mask
    with system.record() as gates:
        output = system.model(**inputs)
    width = tokens.shape[1]
    watch(gates, rows, [slice(width - len(prompt), width) for prompt in prompts])
    return output, tokens, mask


def _has_stopped(tokenizer: Any, tokens: Sequence[int], stop: Stop) -> bool:
    end = tokenizer.decode(tokens[-_LAST_TOKENS:])
    return any(text in end for text in stop.texts)
