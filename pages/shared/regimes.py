"""What stands beside a figure that pools tasks scored in different ways."""

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.answers import choose_way, find_regimes, list_ways
from pages.shared.i18n import _
from pages.shared.layout import plain


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
