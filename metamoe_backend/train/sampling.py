"""Which questions to train on when not all are wanted: evenly over experts, skills and tasks, by the seed."""

import hashlib
from collections.abc import Sequence

import pandas as pd


def balanced_sample(
    questions: pd.DataFrame, limit: int | None, seed: int, by: Sequence[str] = ("expert", "skill", "task")
) -> pd.DataFrame:
    """At most `limit` rows of `questions` (columns question_id and `by`), in their order.

    The limit is shared evenly over the values of `by[0]`, each share evenly over `by[1]`, and so on; what a small
    group cannot use goes to the others. Within a group a question's rank depends on the seed and its id alone, so the
    questions of a mixture of experts are those that the experts themselves would get.
    """
    if limit is None or len(questions) <= limit:
        return questions.reset_index(drop=True)
    chosen = sorted(_choose(_rank(questions, seed), limit, list(by)))
    return questions.iloc[chosen].reset_index(drop=True)


def take_part(questions: pd.DataFrame, start: float, end: float, seed: int) -> pd.DataFrame:
    """The rows of `questions` (columns question_id, task) between the shares `start` and `end` of each task's draw.

    Parts that do not overlap share no question, and parts that join leave none out: 0 to a and a to 1 are everything.
    """
    ranked = _rank(questions, seed).sort_values("_rank")
    place = ranked.groupby("task").cumcount()
    size = ranked.groupby("task")["task"].transform("size")
    kept = ranked.index[(place >= (size * start).round()) & (place < (size * end).round())]
    return questions.iloc[sorted(kept)].reset_index(drop=True)


def _rank(questions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`questions`, numbered from 0, with `_rank`: an order that depends on the seed and each question's id alone."""
    ranks = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in questions["question_id"]]
    return questions.reset_index(drop=True).assign(_rank=ranks)


def share_evenly(sizes: Sequence[int], total: int) -> list[int]:
    """Split `total` over groups of these sizes: as even as they allow, never more than a group has."""
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    for done, index in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[index] = min(sizes[index], left // (len(sizes) - done))
        left -= shares[index]
    return shares


def _choose(ranked: pd.DataFrame, limit: int, by: list[str]) -> list[int]:
    if not by:
        return ranked.sort_values("_rank").index[:limit].tolist()
    groups = [group for _, group in ranked.groupby(by[0], sort=True, dropna=False)]
    shares = share_evenly([len(group) for group in groups], limit)
    return [row for group, share in zip(groups, shares, strict=True) for row in _choose(group, share, by[1:])]
