"""Charts of a query's result, whatever its columns."""

from typing import Any, Literal, get_args

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from pandas.api import types

from metamoe_backend.figures.style import SEQUENTIAL, finish, plain
from metamoe_backend.skills.palette import PALETTE

ChartKind = Literal["bar", "line", "scatter", "histogram", "box", "heatmap"]
CHART_KINDS: tuple[ChartKind, ...] = get_args(ChartKind)
MAX_CHART_ROWS = 20_000
_HEIGHT = 440


def suggest_chart(frame: pd.DataFrame) -> tuple[ChartKind, str, str | None, str | None]:
    """A first (kind, x, y, colour) for a result with at least one column: what its column types speak for."""
    numbers = [name for name in frame if _is_number(frame[name])]
    others = [name for name in frame if name not in numbers and not _is_nested(frame[name])]
    if not numbers:
        return "histogram", (others or list(frame))[0], None, None
    if not others:
        return ("scatter", numbers[0], numbers[1], None) if len(numbers) > 1 else ("histogram", numbers[0], None, None)
    kind: ChartKind = "line" if types.is_datetime64_any_dtype(frame[others[0]]) else "bar"
    return kind, others[0], numbers[0], others[1] if len(others) > 1 else None


def make_query_figure(
    frame: pd.DataFrame, kind: ChartKind, x: str, y: str | None = None, colour: str | None = None
) -> go.Figure:
    """A chart of at most MAX_CHART_ROWS rows, drawn as they are: nothing is averaged behind one's back.

    Columns are named by `x`, `y` (not for a histogram) and `colour`; a heatmap needs a numeric `colour`.
    """
    columns = list(dict.fromkeys(name for name in (x, y, colour) if name is not None))
    shown = _as_plotted(frame.head(MAX_CHART_ROWS)[columns])
    common: dict[str, Any] = {
        "x": x,
        "color": colour,
        "color_discrete_sequence": list(PALETTE),
        "color_continuous_scale": SEQUENTIAL,
    }
    if kind == "heatmap":
        return _make_heatmap(shown, x, y, colour)
    if kind == "histogram":
        figure = px.histogram(shown, **_without_scale(common))
    elif kind == "box":
        figure = px.box(shown, y=y, **_without_scale(common))
    elif kind == "line":
        figure = px.line(shown, y=y, markers=len(shown) <= 200, **_without_scale(common))
    elif kind == "scatter":
        figure = px.scatter(shown, y=y, **common)
    else:
        figure = px.bar(shown, y=y, barmode="group", **common)
    return finish(figure, height=_HEIGHT, legend=colour is not None)


def _make_heatmap(frame: pd.DataFrame, x: str, y: str | None, colour: str | None) -> go.Figure:
    scale = {"colorscale": SEQUENTIAL, "colorbar": {"title": colour}}
    figure = go.Figure(
        go.Heatmap(x=frame[x], y=None if y is None else frame[y], z=None if colour is None else frame[colour], **scale)
    )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return finish(figure, height=_HEIGHT, legend=False)


def _without_scale(common: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common.items() if name != "color_continuous_scale"}


def _as_plotted(frame: pd.DataFrame) -> pd.DataFrame:
    """Text escaped (plotly reads a little HTML in labels), lists and structs as text, column names kept."""
    keep = {name: _is_number(frame[name]) or types.is_datetime64_any_dtype(frame[name]) for name in frame}
    return pd.DataFrame(
        {name: frame[name] if keep[name] else frame[name].map(lambda cell: plain(cell, 60)) for name in frame}
    )


def _is_number(column: "pd.Series[object]") -> bool:
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


def _is_nested(column: "pd.Series[object]") -> bool:
    return any(isinstance(cell, (list, dict)) for cell in column.head(20))
