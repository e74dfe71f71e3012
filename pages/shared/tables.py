"""Numbers in words, and tables whose rows can be picked."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import pandas as pd
import streamlit as st

from pages.shared.i18n import _


def percent(share: float | None, digits: int = 0) -> str:
    """0.621 as "62 %", which never breaks over two lines; a dash where there is nothing."""
    return "–" if share is None or pd.isna(share) else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def accuracy_text(accuracy: float | None, low: float, high: float, n: int) -> str:
    """An accuracy with its interval and n: "62 % (54 to 69), n=140". Shares lie in 0..1."""
    if accuracy is None or pd.isna(accuracy) or n == 0:
        return _("none, n=0")
    return _("{value} ({low} to {high}), n={n}").format(
        value=percent(accuracy), low=f"{100 * low:.0f}", high=f"{100 * high:.0f}", n=f"{n:,}"
    )


def difference_text(difference: float, low: float, high: float) -> str:
    """A difference of two shares in points: "+7 points (-1 to +15)"."""
    return _("{value} points ({low} to {high})").format(
        value=f"{100 * difference:+z.0f}", low=f"{100 * low:+z.0f}", high=f"{100 * high:+z.0f}"
    )


def p_text(p: float | None) -> str:
    """A p-value to three digits: "0.081", "<0.001"; a dash where there is none."""
    if p is None or pd.isna(p):
        return "–"
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def p_column() -> Any:
    """How a column of `p_text` is shown."""
    return st.column_config.TextColumn("p (McNemar)", alignment="right")


def duration_text(seconds: float | None) -> str:
    """8 s, 4 min, 1 h 20 min; a dash where it is not known."""
    if seconds is None or pd.isna(seconds):
        return "–"
    if seconds < 90:
        return _("{n} s").format(n=round(seconds))
    if seconds < 5400:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{hours} h {minutes} min").format(hours=int(seconds // 3600), minutes=int(seconds % 3600 // 60))


def show_table(
    frame: pd.DataFrame,
    key: str,
    *,
    labels: Mapping[str, str] | None = None,
    select: Literal["single-row", "multi-row"] | None = None,
    formats: Mapping[str, Any] | None = None,
    hide: Collection[str] = (),
    height: int | Literal["content"] | None = None,
    alt: str | None = None,
) -> pd.DataFrame:
    """Show a table; returns the rows that are picked (none where `select` is None).

    `labels` names columns, `formats` gives a `st.column_config` to some, `hide` leaves columns out of sight but in the
    returned rows.
    """
    config: dict[str, Any] = {column: st.column_config.Column(label) for column, label in (labels or {}).items()}
    config |= dict(formats or {}) | dict.fromkeys(hide)
    options: dict[str, Any] = {"hide_index": True, "column_config": config, "key": key, "alt": alt}
    if height is not None:
        options["height"] = height
    if select is None:
        st.dataframe(frame, **options)
        return frame.iloc[0:0]
    event = st.dataframe(frame, on_select="rerun", selection_mode=select, **options)
    # A pick made in an older, longer table may point past the end.
    return frame.iloc[[row for row in event.selection.rows if row < len(frame)]]
