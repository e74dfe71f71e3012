"""What all prompts of a task begin with (its examples) is read once: keys and values that every batch then attends to.

Not where tokens before the question depend on it: a mixture that routes by question, a system that reads twice. Nor
where gates are recorded, which count all tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from metamoe_backend.models.systems import OpenSystem

LEAST_TOKENS = 32
"""A shorter beginning is not worth a pass of its own."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Token ids, and per layer keys and values [1, heads, tokens, width]."""

    tokens: list[int]
    layers: list[tuple[Any, Any]]

    def make_cache(self, rows: int) -> Any:
        """A cache that holds the prefix for each of `rows` rows, and takes in what is read behind it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def make_passing_cache(self, rows: int) -> "PassingCache":
        """A cache for one pass: it shows the prefix and keeps nothing of what is read behind it."""
        return PassingCache(self, rows)


@dataclass(frozen=True, slots=True)
class PassingCache:
    """What a model asks of a key-value cache (transformers' `Cache`), for one pass."""

    prefix: SharedPrefix
    rows: int

    def get_seq_length(self, _layer: int = 0) -> int:
        """Tokens that were read before."""
        return len(self.prefix.tokens)

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Keys and values of prefix and pass together."""
        import torch

        before = (kept.expand(self.rows, -1, -1, -1) for kept in self.prefix.layers[layer])
        joined = [torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True)]
        return joined[0], joined[1]


def read_shared_prefix(
    system: "OpenSystem", prompts: Sequence[Sequence[int]], routes: NDArray[np.float64] | None
) -> SharedPrefix | None:
    """Read what all `prompts` begin with, but for at least one token of each; None where that is not worth it."""
    if routes is not None or not system.reads_once or len(prompts) < 2:
        return None
    shared = min(count_shared(prompts), min(len(prompt) for prompt in prompts) - 1)
    return _read(system, list(prompts[0][:shared])) if shared >= LEAST_TOKENS else None


def count_shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    first, last = min(rows, key=list), max(rows, key=list)  # what the two have in common, all between them have
    for index, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return index
    return min(len(first), len(last))


def _read(system: "OpenSystem", tokens: list[int]) -> SharedPrefix | None:
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    system.set_routes(None)
    with torch.inference_mode():
        inputs = torch.tensor([tokens], device=system.model.device)
        cache = system.model(input_ids=inputs, use_cache=True, logits_to_keep=1).past_key_values
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer] if type(cache) is DynamicCache else []
    if not layers or len(layers) < len(cache.layers):
        return None  # such as a sliding window, which forgets the beginning
    return SharedPrefix(tokens, [(layer.keys, layer.values) for layer in layers])
