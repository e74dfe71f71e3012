"""What stands beside a figure that pools tasks scored in different ways."""

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.answers import find_regimes
from pages.shared.i18n import _
from pages.shared.layout import plain


def render_regimes(predictions: pd.DataFrame) -> None:
    """One sentence where "all tasks" pools ways of scoring; nothing where there is one way only."""
    regimes = find_regimes(predictions)
    if len(regimes) > 1:
        text = _("Where tasks are pooled, different ways of scoring are: {regimes}. Compare systems, not levels.")
        st.caption(text.format(regimes=plain(", ".join(regimes))))
