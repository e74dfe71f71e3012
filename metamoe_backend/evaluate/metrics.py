"""Other measures of answers that are stored: no model runs again for them.

Without one of these, answers count as they were scored: options by their log-likelihood (lm-evaluation-harness's acc),
numbers by the last one in the output (its flexible extraction).
"""

from collections.abc import Callable
from typing import Any

import pandas as pd

from metamoe_backend.errors import NotFoundError
from metamoe_backend.evaluate.answering import find_gold
from metamoe_backend.evaluate.scorers import score_choices_by_length, score_number


def _score_by_length(row: Any) -> tuple[int, str, float]:
    options = list(row.choices)
    choice, score = score_choices_by_length(row.logliks, options, find_gold(row))
    return choice, options[choice], score


def _score_strictly(row: Any) -> tuple[None, str, float]:
    return None, row.output, score_number(row.output, row.answer, "strict")


METRICS: dict[str, tuple[str, Callable[[Any], tuple[int | None, str, float]]]] = {
    "acc_norm": ("choices", _score_by_length),
    "strict": ("number", _score_strictly),
}
"""By name, the regime it measures and what it makes of an answer: choice, output, score.

acc_norm: log-likelihood over the option's length in characters. strict: the number after `#### ` (METHODS section 5).
"""


def list_metrics(predictions: pd.DataFrame) -> list[str]:
    """The metrics that measure any of the answers."""
    return [metric for metric in METRICS if _find_measured(predictions, metric).any()]


def choose_metric(predictions: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The answers that `metric` measures, measured by it; the others are left out, so that no table has two metrics.

    predictions: of `fetch_predictions` with options. The metric stands in regime ("choices, acc_norm"), beside which no
    other metric is compared (`answers.require_one_regime`). Raises `NotFoundError` where it measures none of them.
    """
    measured = predictions[_find_measured(predictions, metric)]
    if metric == "acc_norm":
        measured = measured[measured["logliks"].map(pd.api.types.is_list_like)]
    if measured.empty:
        regime = METRICS[metric][0]
        raise NotFoundError(f"No answer here was scored by {regime}, which {metric} measures; leave the metric out.")
    score = METRICS[metric][1]
    choices, outputs, scores = zip(*(score(row) for row in measured.itertuples()), strict=True)
    return measured.assign(
        choice=pd.array(list(choices), dtype="Int64"),
        output=list(outputs),
        score=list(scores),
        correct=[one == 1.0 for one in scores],
        regime=measured["regime"] + f", {metric}",
    )


def _find_measured(predictions: pd.DataFrame, metric: str) -> pd.Series:
    return predictions["regime"].str.split(",").str[0].eq(METRICS[metric][0])
