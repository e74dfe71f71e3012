"""How every figure is drawn: the theme's fonts and colours, a download button, no logo, a stable key."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:
    import plotly.graph_objects as go


def show_figure(
    figure: "go.Figure",
    key: str,
    alt: str,
    *,
    select: str | Iterable[str] | None = None,
    on_select: Callable[[], None] | None = None,
    height: int | None = None,
    scroll_zoom: bool = False,
) -> Any:
    """Draw a figure; with `select` ("points", "box", "lasso", or several) the page reruns on each selection.

    `on_select` is called before that rerun; the event then stands in `st.session_state[key]`. `alt` says what the
    figure shows to people who do not see it. With `scroll_zoom` the wheel zooms instead of moving the page. Returns the
    selection event, None without `select`.
    """
    config = {
        "displaylogo": False,
        "displayModeBar": "hover",
        "scrollZoom": scroll_zoom,
        "toImageButtonOptions": {"format": "png", "filename": key, "scale": 2},
        "modeBarButtonsToRemove": ["autoScale2d"] if select else ["autoScale2d", "select2d", "lasso2d"],
    }
    options: dict[str, Any] = {"key": key, "alt": alt, "config": config}
    if height is not None:
        options["height"] = height
    if select is None:
        st.plotly_chart(figure, **options)
        return None
    modes = (select,) if isinstance(select, str) else tuple(select)
    return st.plotly_chart(figure, on_select=on_select or "rerun", selection_mode=modes, **options)


def clicked_points(event: Any) -> list[dict[str, Any]]:
    """The selected points of an event of `show_figure`: x, y, customdata and so on; empty when nothing is selected."""
    return list(event.selection.points) if event and event.selection else []
