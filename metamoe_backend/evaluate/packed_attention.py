"""Questions one behind the other in a single row, so that no layer computes padding: each attends to itself only.

All that a transformer does to a token by itself (most of its work) needs no rows; attention alone must know where a
question ends. So it is done tile by tile: a tile is one question, or some short ones with a mask between them. On a
processor, where a tile more costs little; a GPU would rather have rows of one length.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

NAME = "metamoe_packed"
"""Under which transformers finds `_attend`."""
LEAST_TOKENS = 96
"""Questions are joined to a tile until it has so many tokens: below, a call costs more than what the mask hides."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens `start` to `end` of the row, and the mask [end - start, known + end - start] that is added to their
    scores; None where each sees all tokens before it."""

    start: int
    end: int
    mask: "Tensor | None"


def can_pack(model: Any) -> bool:
    """Whether the model runs on a processor and lets its attention be replaced (transformers' AttentionInterface)."""
    return (
        model.device.type == "cpu"
        and getattr(model, "_supports_attention_backend", False)
        and not model.config.sub_configs
        and model.config._attn_implementation == "sdpa"
    )


def make_tiles(seen: Sequence[NDArray[np.bool_]], known: int, dtype: Any) -> list[Tile]:
    """Tiles of questions in a row. seen: per question [tokens, tokens], which tokens each of its tokens sees.

    All see the `known` tokens of a shared prefix. dtype: the model's.
    """
    tiles = []
    start, first = 0, 0
    sizes = [len(own) for own in seen]
    for place, _ in enumerate(seen):
        size = sum(sizes[first : place + 1])
        if size >= LEAST_TOKENS or place + 1 == len(seen):
            tiles.append(Tile(start, start + size, _make_mask(seen[first : place + 1], known, dtype)))
            start, first = start + size, place + 1
    return tiles


def _make_mask(seen: Sequence[NDArray[np.bool_]], known: int, dtype: Any) -> "Tensor | None":
    import torch

    if len(seen) == 1 and known == 0 and np.array_equal(seen[0], np.tri(len(seen[0]), dtype=bool)):
        return None
    size = sum(map(len, seen))
    allowed = np.zeros((size, known + size), dtype=bool)
    allowed[:, :known] = True
    at = 0
    for own in seen:
        allowed[at : at + len(own), known + at : known + at + len(own)] = own
        at += len(own)
    return make_additive(allowed, dtype, torch.device("cpu"))


def make_additive(allowed: NDArray[np.bool_], dtype: Any, device: Any) -> "Tensor":
    """0 where a token may look, the dtype's least number elsewhere."""
    import torch

    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(torch.from_numpy(~allowed).to(device), torch.finfo(dtype).min)


@contextmanager
def attend_by_tiles(model: Any) -> Iterator[None]:
    """Inside, the model takes one row [1, tokens] and `tiles=` instead of a mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attend(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    _mask: "Tensor | None",
    *,
    tiles: Sequence[Tile],
    **kwargs: Any,
) -> tuple["Tensor", None]:
    """transformers' attention by `scaled_dot_product_attention`, tile by tile. Queries [1, heads, tokens, width]."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    known = key.shape[2] - query.shape[2]
    found = []
    for tile in tiles:
        keys, values = (_take(whole, known, tile) for whole in (key, value))
        mask = None if tile.mask is None else tile.mask[None, None]
        found.append(
            sdpa_attention_forward(module, query[:, :, tile.start : tile.end], keys, values, mask, **kwargs)[0]
        )
    return torch.cat(found, dim=1), None


def _take(whole: "Tensor", known: int, tile: Tile) -> "Tensor":
    import torch

    own = whole[:, :, known + tile.start : known + tile.end]
    return torch.cat([whole[:, :, :known], own], dim=2) if known else own
