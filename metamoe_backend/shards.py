"""Cutting a stage's work into shards: runs of their own whose rows together are those of one run.

What is dealt out is blocks: questions that are computed together, in the same batches, whether one run does all blocks
or each shard does some. So the values are the same to the last bit, not nearly.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def number_blocks(keys: pd.Series, size: int) -> NDArray[np.int64]:
    """The block of each row, from 0: `size` different keys make a block, in order of their first row."""
    codes, _ = pd.factorize(keys)
    return codes.astype(np.int64) // size


def deal_out(sizes: Sequence[int], shards: int, kinds: Sequence[Sequence[object]] = ()) -> list[int]:
    """The shard of each item, from 0: the largest first, each to the shard that has least so far.

    Of shards that have as much, the one gets it that has fewest items of the same kind, by the first of `kinds` (each
    as long as `sizes`), then by the next, then the one of the lowest number. The fullest shard has at most the largest
    item more than the emptiest.
    """
    load, seen = [0] * shards, [Counter[tuple[int, object]]() for _ in range(shards)]
    owners = [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        own_kinds = [(place, kind[item]) for place, kind in enumerate(kinds)]
        ranks = [(load[shard], *(seen[shard][kind] for kind in own_kinds), shard) for shard in range(shards)]
        owners[item] = owner = min(ranks)[-1]
        load[owner] += sizes[item]
        seen[owner].update(own_kinds)
    return owners


def cut_rows(frame: pd.DataFrame, blocks: NDArray[np.int64], shards: int) -> list[pd.DataFrame]:
    """The rows of each shard, in order; no more shards than blocks, and one (empty) where there is no row."""
    if frame.empty:
        return [frame]
    sizes = np.bincount(blocks).tolist()
    owners = np.asarray(deal_out(sizes, min(shards, len(sizes))))
    return [frame[owners[blocks] == shard].reset_index(drop=True) for shard in range(int(owners.max()) + 1)]
