"""Which rows go through the model together, and rows of unequal length as one array."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metamoe_backend.errors import UnavailableError

CPU_BATCH_TOKENS = 4096
MOST_BATCH_TOKENS = 131_072

PASS_SHARE = 1 / 64
"""What a pass costs beside its tokens, as a share of the budget: 64 tokens on a CPU.

So much padding at least must be saved by cutting a batch in two. On 100 rows each of ARC-Easy, PiQA, BoolQ and
OpenBookQA padding is 6 % of the real tokens (12 rows: 14 %), in passes of 390 to 1,000 tokens, which keep a processor
busy.
"""


def plan_batches(lengths: Sequence[int], batch_tokens: int, pass_share: float = PASS_SHARE) -> list[list[int]]:
    """Indices of rows per batch, longest first: rows x longest row stays within `batch_tokens` (but one row at least).

    Cut where padded tokens and passes together cost least (shortest path over the rows by length). Longest first, so
    that a batch that does not fit in memory fails at the start.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    longest = np.array([lengths[row] for row in order], dtype=np.float64)
    costs, starts = np.zeros(len(order) + 1), np.zeros(len(order), dtype=np.int64)
    first = 0
    for end in range(1, len(order) + 1):
        while first < end - 1 and (end - first) * longest[first] > batch_tokens:
            first += 1  # too far away for this end, and for all later ones
        found = costs[first:end] + np.arange(end - first, 0, -1) * longest[first:end]
        starts[end - 1] = end - 1 - found[::-1].argmin()  # of equals, the one that leaves more to the batches before
        costs[end] = found.min() + pass_share * batch_tokens
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[starts[end - 1] : end])
        end = int(starts[end - 1])
    return batches[::-1]


def fill_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """As `plan_batches` where a pass is a single row without padding: its tokens, not its shape, are the budget."""
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or lengths[row] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(row)
        room -= lengths[row]
    return batches


@dataclass(slots=True)
class BatchBudget:
    """Padded tokens of a pass, as many as memory was found to hold so far."""

    tokens: int
    log: Callable[[str], None] = lambda _: None
    """Told each time a batch did not fit."""


Result = TypeVar("Result")
Plan = Callable[[Sequence[int], int], list[list[int]]]
"""Rows per batch from their lengths and a budget of tokens."""


def run_batches(
    lengths: Sequence[int],
    batch_tokens: int | BatchBudget,
    run: Callable[[list[int]], Result],
    plan: Plan = plan_batches,
) -> Iterator[tuple[list[int], Result]]:
    """Rows per batch (as `plan` cuts them) and what `run` makes of them.

    Where memory does not hold a batch, the budget is halved for it and all that follow. Raises `UnavailableError` where
    it does not hold one row.
    """
    budget = batch_tokens if isinstance(batch_tokens, BatchBudget) else BatchBudget(batch_tokens)
    waiting = plan(lengths, budget.tokens)
    while waiting:
        rows = waiting[0]
        found, fits = _try(run, rows)
        if fits:
            waiting.pop(0)
            yield rows, found
            continue
        longest = max(lengths[row] for row in rows)
        if len(rows) == 1:
            raise UnavailableError(
                f"Memory does not hold a pass over one question of {longest} tokens; free memory, or take a smaller "
                "model or dtype bfloat16."
            )
        budget.tokens = sum(lengths[row] for row in rows) // 2
        budget.log(
            f"{len(rows)} rows of up to {longest} tokens did not fit in memory; passes hold {budget.tokens} now."
        )
        left = [row for batch in waiting for row in batch]
        planned = plan([lengths[row] for row in left], budget.tokens)
        waiting = [[left[place] for place in batch] for batch in planned]


def _try(run: Callable[[list[int]], Result], rows: list[int]) -> tuple[Any, bool]:
    """What `run` makes of the rows, and whether memory held it."""
    try:
        return run(rows), True
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Only here, where the error and what its frames held is gone.
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, False


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    said = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "can't allocate memory" in said
        or "not enough memory" in said
    )


def find_batch_tokens(model: Any) -> int:
    """Padded tokens that a pass may have: as many as half the free memory of a GPU seems to hold, 4096 on a CPU.

    An estimate (cache, hidden states, a quarter of the logits); `run_batches` halves it where it is wrong.
    """
    import torch

    if model.device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
    numbers = 2 * config.num_hidden_layers * heads * width + 6 * (config.hidden_size + inner)
    needed = numbers * model.dtype.itemsize + config.vocab_size
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(np.clip(free // 2 // needed, CPU_BATCH_TOKENS, MOST_BATCH_TOKENS))


def pad_left(rows: Sequence[Sequence[int] | NDArray[np.int64]], filler: int) -> NDArray[np.int64]:
    """Rows as one array [rows, longest], each at the right end, `filler` before it."""
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, width - len(row) :] = row
    return padded
