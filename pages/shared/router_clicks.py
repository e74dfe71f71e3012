"""Which cell of which heatmap of the Router page was clicked last, and its questions."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from pages.shared.charts import clicked_points
from pages.shared.i18n import _
from pages.shared.state import open_page, select
from pages.shared.tables import show_table

Cell = tuple[str, tuple[Any, Any]]
"""Heatmap and the first two entries of the cell's customdata."""
_CELLS = "router_cells"


def remember_click(key: str, heatmap: str | None = None) -> Callable[[], None]:
    """What `show_figure` calls on a selection in the figure with this key: the newest click of each heatmap counts."""

    def remember() -> None:
        points = clicked_points(st.session_state.get(key))
        cells = {**st.session_state.get(_CELLS, {})}
        cells.pop(heatmap or key, None)
        if points and points[0].get("customdata"):
            cells[heatmap or key] = tuple(points[0]["customdata"][:2])
        st.session_state[_CELLS] = cells

    return remember


def find_click(*heatmaps: str) -> Cell | None:
    """The cell that was clicked last in any of these heatmaps."""
    cells = [(name, cell) for name, cell in st.session_state.get(_CELLS, {}).items() if name in heatmaps]
    return cells[-1] if cells else None


def render_questions(rows: pd.DataFrame, title: str, caption: str, key: str) -> None:
    """Questions of a cell; a picked one can be looked at below, or with all systems' answers. `title` is escaped."""
    st.markdown(f"**{title}**")
    st.caption(caption)
    columns = [column for column in ("question_id", "share", "prompt", "task") if column in rows]
    picked = show_table(
        rows[columns].head(50),
        f"router_{key}_questions",
        labels={"task": _("Task"), "prompt": _("Question")},
        formats={"share": st.column_config.ProgressColumn(_("Share"), min_value=0, max_value=1, format="%.2f")},
        hide=("question_id",),
        select="single-row",
        height=240,
    )
    if picked.empty:
        return
    ids = picked["question_id"].tolist()
    with st.container(horizontal=True):
        st.button(
            _("Look at it below"), key=f"router_{key}_below", icon=":material/south:",
            on_click=lambda: select(questions=ids, why=title),
        )  # fmt: skip
        if st.button(_("All answers to this question"), key=f"router_{key}_open"):
            select(questions=ids, why=title)
            open_page("outcomes")
