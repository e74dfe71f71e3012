"""The K shots: the few questions of a task of interest that guide which experts and which data are chosen."""

import pandas as pd

from metamoe_backend.errors import ConfigError
from metamoe_backend.evaluate.prompts import draw_shots


def draw_k_shots(train: pd.DataFrame, task: str, k: int, seed: int) -> pd.DataFrame:
    """`k` of the training questions of one task in a seeded order; the first five of 50 are the five of K = 5.

    Raises `ConfigError` where the task has fewer.
    """
    if len(train) < k:
        raise ConfigError(
            f"k is {k}, but task {task!r} has {len(train)} train questions; lower k or ingest more with --split train."
        )
    return draw_shots(train, k - 1, seed)
