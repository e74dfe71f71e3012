"""The Explore page's canvas below the editor: rows, chart, export."""

import tempfile
from pathlib import Path
from typing import Literal

import pandas as pd
import streamlit as st

from metamoe_backend.store.console import QueryResult, as_frame, export_query
from metamoe_backend.store.publishing import publish
from pages.shared.charts import show_figure
from pages.shared.i18n import _
from pages.shared.state import get_store
from pages.shared.tables import show_table

_EXPORT_BYTES = 200 * 2**20


def render_result(sql: str, result: QueryResult) -> None:
    frame = as_frame(result)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        view = st.segmented_control(
            _("View"), ["table", "chart"], default="table", format_func=_view_name, key="explore_view",
            label_visibility="collapsed", required=True,
        )  # fmt: skip
        with st.container(horizontal=True, width="content"):
            _render_download(sql, "csv", "CSV")
            _render_download(sql, "parquet", "Parquet")
    if view == "chart" and len(frame.columns) and len(frame):
        _render_chart(frame)
    else:
        show_table(frame, key="explore_rows", height=440, alt=_("Rows of the last query"))


def _view_name(view: str) -> str:
    return {"table": _("Table"), "chart": _("Chart")}[view]


def _render_download(sql: str, kind: Literal["csv", "parquet"], name: str) -> None:
    store = get_store()

    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"rows.{kind}"
            export_query(publish(store), sql, target, kind, max_bytes=_EXPORT_BYTES)
            return target.read_bytes()

    st.download_button(
        name,
        make,
        file_name=f"metamoe.{kind}",
        key=f"explore_export_{kind}",
        icon=":material/download:",
        on_click="ignore",
        help=_("All rows of this statement, beyond the row limit, up to 200 MB."),
    )


def _render_chart(frame: pd.DataFrame) -> None:
    from metamoe_backend.figures.explore import CHART_KINDS, MAX_CHART_ROWS, make_query_figure, suggest_chart

    kind, x, y, colour = suggest_chart(frame)
    columns = list(frame.columns)
    shape = "-".join(columns)  # other columns, other choices
    with st.container(horizontal=True):
        kind = st.selectbox(
            _("Kind"), CHART_KINDS, CHART_KINDS.index(kind), key=f"explore_kind_{shape}", format_func=_kind_name
        )
        x = st.selectbox(_("Across"), columns, columns.index(x), key=f"explore_x_{shape}")
        if kind != "histogram":
            y = st.selectbox(_("Up"), columns, columns.index(y or x), key=f"explore_y_{shape}")
        colour = st.selectbox(
            _("Colour"),
            columns,
            None if colour is None else columns.index(colour),
            key=f"explore_colour_{shape}",
            placeholder=_("one colour"),
        )
    if kind == "heatmap" and (colour is None or not pd.api.types.is_numeric_dtype(frame[colour])):
        st.caption(_("A heatmap needs a column of numbers as its colour."))
        return
    figure = make_query_figure(frame, kind, x, None if kind == "histogram" else y, colour)
    show_figure(figure, key="explore_chart", alt=_("{kind} of the last query").format(kind=_kind_name(kind)))
    if len(frame) > MAX_CHART_ROWS:
        st.caption(_("The chart shows the first {n} rows.").format(n=f"{MAX_CHART_ROWS:,}"))


def _kind_name(kind: str) -> str:
    return {
        "bar": _("Bars"),
        "line": _("Lines"),
        "scatter": _("Scatter"),
        "histogram": _("Histogram"),
        "box": _("Boxes"),
        "heatmap": _("Heatmap"),
    }[kind]
