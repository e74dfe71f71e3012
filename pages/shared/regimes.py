"""By what answers are measured, and what stands beside a figure that pools tasks scored in different ways."""

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.answers import choose_way, find_cut, find_regimes, list_ways
from metamoe_backend.evaluate.metrics import choose_metric, list_metrics
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_predictions
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.review_views import filter_words
from pages.shared.state import per_version, select_in_address

AS_SCORED = "scored"
WIDTH = 420
"""Of a choice, in pixels."""


@per_version
def load_measured(store: Store, metric: str) -> pd.DataFrame:
    return choose_metric(fetch_predictions(store, options=True), metric).drop(columns=["logliks", "choices", "gold"])


def render_metric(store: Store, predictions: pd.DataFrame, key: str) -> pd.DataFrame:
    """A choice where stored answers can be measured otherwise; the answers that the chosen metric measures."""
    names = filter_words()[key]
    codes = [AS_SCORED, *list_metrics(predictions)]
    if len(codes) == 1:
        return predictions
    with st.container(width=WIDTH):
        chosen = select_in_address(_("Metric"), codes, key, lambda code: names[code])
    if chosen == AS_SCORED:
        return predictions
    measured = load_measured(store, chosen)
    left_out = sorted(set(predictions["task"]) - set(measured["task"]))
    if left_out:
        text = _("Not measured by it, and left out: {tasks}.")
        st.caption(text.format(tasks=plain(", ".join(left_out))))
    return measured


def render_way(predictions: pd.DataFrame, key: str) -> pd.DataFrame:
    """A choice where tasks were scored in several ways, which no figure mixes; the answers of the chosen one."""
    ways = list_ways(predictions)
    if not ways:
        return predictions
    chosen = st.selectbox(
        _("Scored as"),
        ways,
        key=key,
        help=_("Some tasks were scored in several ways, whose numbers cannot be compared."),
    )
    return choose_way(predictions, chosen)


def render_regimes(predictions: pd.DataFrame) -> None:
    """One sentence where "all tasks" pools ways of scoring; nothing where there is one way only."""
    regimes = find_regimes(predictions)
    if len(regimes) > 1:
        text = _("Where tasks are pooled, different ways of scoring are: {regimes}. Compare systems, not levels.")
        st.caption(text.format(regimes=plain(", ".join(regimes))))


def render_cut(predictions: pd.DataFrame) -> None:
    """One line per task with questions that are longer than the model reads; nothing where none is."""
    for row in find_cut(predictions).itertuples():
        st.caption(
            _(
                "{cut} of {n} questions of {task} are longer than the model reads: answered without their beginning (by "
                "{tokens} tokens at most) by {systems}."
            ).format(
                cut=row.cut, n=row.n, task=plain(str(row.task)), tokens=row.most_tokens,
                systems=plain(", ".join(row.systems)),
            )
        )  # fmt: skip
