"""The map: one trace of points, or one picture of very many, so that pan, zoom, lasso and recolour stay quick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.raster import View, draw_points
from metamoe_backend.figures.style import GREY, SEQUENTIAL, finish, plain
from metamoe_backend.skills.palette import next_colour

MOST_POINTS = 50_000
"""Maps of more points are drawn as a picture."""
MOST_COLOURS = 60
"""Further groups take the colours of the first ones again: nobody tells more apart."""
MOST_NAMED = 11
"""Groups in the legend."""
LEGEND_COLUMNS, LEGEND_ROW = 3, 19
"""Entries beside each other on a page of usual width, and how high a row of them is, in pixels."""
NAME_LENGTH = 28
"""Signs of a name that stand on the map."""
_LEAST_WIDTH = 590
"""Pixels between the left and right edge of the map in a window 1280 wide."""
_SIGN_WIDTH, _WIDE_SIGN_WIDTH, _NAME_HEIGHT = 6.3, 11.5, 20
"""Of a name on the map, in pixels; Chinese signs are wide."""
_VALUE_STEPS = 64
Camera = View
"""What part of a map is in view: x from, x to, y from, y to."""


@dataclass(frozen=True, slots=True)
class Colouring:
    """What colour each of n points has, and what the colours mean."""

    codes: np.ndarray
    """[n] int16: place in `colours`."""
    colours: tuple[str, ...]
    """#rrggbb"""
    legend: tuple[tuple[str, str], ...] = ()
    """Escaped text and #rrggbb of each entry."""
    bar: str | None = None
    """Title of the colour bar, from 0 to 1."""


def assign_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour (#rrggbb) for each name, the same for the same names in the same order."""
    colours = _first_colours(min(len(names), MOST_COLOURS))
    return {name: colours[number % MOST_COLOURS] for number, name in enumerate(names)}


@lru_cache(maxsize=MOST_COLOURS)
def _first_colours(count: int) -> tuple[str, ...]:
    colours: list[str] = []
    for _ in range(count):
        colours.append(next_colour(colours))
    return tuple(colours)


def colour_by_group(group: pd.Series, colours: Mapping[str, str]) -> Colouring:
    """Points coloured by a category: group [n], one category a point; a category without a colour is grey.

    The legend names the largest categories, those with a colour first.
    """
    groups = group.astype("category").cat.remove_unused_categories()
    codes = groups.cat.codes.to_numpy(np.int16)
    names = [str(name) for name in groups.cat.categories]
    counts = np.bincount(codes, minlength=len(names))
    order = sorted(range(len(names)), key=lambda code: (names[code] not in colours, -counts[code]))
    legend = [
        (f"{plain(names[code], 28)} ({counts[code]:,})", colours.get(names[code], GREY)) for code in order[:MOST_NAMED]
    ]
    if len(order) > MOST_NAMED:
        legend.append((f"… +{len(order) - MOST_NAMED}", GREY))
    return Colouring(codes, tuple(colours.get(name, GREY) for name in names), tuple(legend))


def colour_by_value(value: pd.Series, title: str) -> Colouring:
    """Points coloured by a number between 0 and 1 (a confidence); points without one (NaN) are grey."""
    steps = np.round(value.to_numpy(float) * (_VALUE_STEPS - 1))
    codes = np.where(np.isnan(steps), _VALUE_STEPS, np.nan_to_num(steps)).astype(np.int16)
    return Colouring(codes, (*_sequential_colours(), GREY), bar=plain(title))


@lru_cache(maxsize=1)
def _sequential_colours() -> tuple[str, ...]:
    from plotly.colors import sample_colorscale

    sampled = sample_colorscale(SEQUENTIAL, np.linspace(0, 1, _VALUE_STEPS), colortype="tuple")
    return tuple("#" + "".join(f"{round(255 * channel):02x}" for channel in colour) for colour in sampled)


def make_map_figure(
    points: pd.DataFrame,
    colouring: Colouring,
    names: pd.DataFrame | None = None,
    picked: np.ndarray | None = None,
    camera: Camera | None = None,
    point_size: float = 6.0,
    height: int = 560,
    dragmode: str = "lasso",
) -> go.Figure:
    """Points on the map; more than MOST_POINTS of them as one picture of what the camera sees.

    points: x, y, and hover (escaped text) where there is any. names: x, y, name of what stands on the map, the most
    important first: those that would cover one before them are left out. picked [n] bool: these stand out from all
    others. camera: show this part only, None: everything. Neither way does the number of groups matter: colours are
    codes, and the legend is made of empty traces. The figure does not say which point is which: who draws round some
    asks `skills.selection` what is inside.
    """
    figure = go.Figure()
    if len(points) > MOST_POINTS:
        _add_picture(figure, points, colouring, picked, camera or find_extent(points), point_size)
    else:
        _add_points(figure, points, colouring, picked, point_size)
    _add_legend(figure, colouring)
    shown = None if names is None else names[fits_beside(names, camera or find_extent(points), height)]
    _dress_map(figure, shown, height, dragmode)
    if camera:
        left, right, low, high = camera
        figure.update_xaxes(range=[left, right], autorange=False)
        figure.update_yaxes(range=[low, high], autorange=False)
    return figure


def find_extent(points: pd.DataFrame, margin: float = 0.03) -> Camera:
    """The part of a map that holds all points, and `margin` of its width and height on each side."""
    if points.empty:
        return (0.0, 1.0, 0.0, 1.0)
    (left, low), (right, high) = points[["x", "y"]].min(), points[["x", "y"]].max()
    dx, dy = margin * ((right - left) or 1.0), margin * ((high - low) or 1.0)
    return (float(left - dx), float(right + dx), float(low - dy), float(high + dy))


def fits_beside(names: pd.DataFrame, view: Camera, height: int) -> np.ndarray:
    """Which names [n] bool cover none of those kept before them, on a map `height` pixels high; names: x, y, name."""
    left, right, low, high = view
    pixel = max((right - left) / _LEAST_WIDTH, (high - low) / height)  # both axes have the same scale
    kept: list[tuple[float, float, float]] = []
    fits = []
    for row in names.itertuples():
        half = sum(
            _WIDE_SIGN_WIDTH if ord(sign) > 0x2E7F else _SIGN_WIDTH for sign in str(row.name)[:NAME_LENGTH]
        ) / 2 + 3  # fmt: skip
        x, y = row.x / pixel, row.y / pixel
        free = all(abs(x - a) >= half + b or abs(y - c) >= _NAME_HEIGHT for a, c, b in kept)
        fits.append(free)
        if free:
            kept.append((x, y, half))
    return np.array(fits, dtype=bool)


def _add_points(
    figure: go.Figure, points: pd.DataFrame, colouring: Colouring, picked: np.ndarray | None, point_size: float
) -> None:
    hover = points.get("hover")
    figure.add_trace(
        go.Scattergl(
            x=points["x"].to_numpy(np.float32),
            y=points["y"].to_numpy(np.float32),
            mode="markers",
            marker={
                "size": point_size,
                "color": colouring.codes,
                "cmin": -0.5,
                "cmax": max(len(colouring.colours), 1) - 0.5,
                "colorscale": _stepped_scale(colouring.colours),
                "opacity": 0.85,
            },
            text=hover,
            hovertemplate=None if hover is None else "%{text}<extra></extra>",
            hoverinfo="skip" if hover is None else None,
            selectedpoints=None if picked is None else np.flatnonzero(picked).astype(np.int32),
            showlegend=False,
            unselected={"marker": {"opacity": 0.15}},
        )
    )


def _add_picture(
    figure: go.Figure, points: pd.DataFrame, colouring: Colouring, picked: np.ndarray | None, view: Camera, size: float
) -> None:
    left, right, low, high = view
    picture = draw_points(
        points["x"].to_numpy(np.float32), points["y"].to_numpy(np.float32), colouring.codes, colouring.colours, view,
        spread=max(0, round((size - 2) / 4)), picked=picked,
    )  # fmt: skip
    figure.add_layout_image(
        source=picture, xref="x", yref="y", x=left, y=high, sizex=right - left, sizey=high - low, sizing="stretch",
        layer="below",
    )  # fmt: skip
    # Two corners nobody sees: the axes' reach when everything is shown, and something that a lasso can be drawn on.
    xs, ys = find_extent(points)[:2], find_extent(points)[2:]
    figure.add_trace(
        go.Scatter(x=xs, y=ys, mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False, name="")
    )


def _add_legend(figure: go.Figure, colouring: Colouring) -> None:
    for text, colour in colouring.legend:
        marker = {"size": 9, "color": colour}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=text, hoverinfo="skip"))
    if colouring.bar is not None:
        bar = {"title": colouring.bar, "thickness": 10, "len": 0.6}
        marker = {"color": [0], "colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "showscale": True, "colorbar": bar}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, name=""))


def mark_point(figure: go.Figure, x: float, y: float) -> go.Figure:
    """A ring around one place: where the question at hand lies."""
    ring = {"size": 20, "symbol": "circle-open", "line": {"width": 3}, "color": "#d55e00"}
    figure.add_trace(go.Scatter(x=[x], y=[y], mode="markers", marker=ring, showlegend=False, hoverinfo="skip", name=""))
    return figure


def highlight_points(figure: go.Figure, rows: Sequence[int]) -> go.Figure:
    """Let the points with these row numbers stand out from all others."""
    return figure.update_traces(selectedpoints=list(rows), selector={"type": "scattergl"})


def _dress_map(figure: go.Figure, names: pd.DataFrame | None, height: int, dragmode: str) -> None:
    if names is not None:
        for row in names.itertuples():
            figure.add_annotation(
                x=row.x, y=row.y, text=plain(row.name, NAME_LENGTH), showarrow=False, opacity=0.85,
                yanchor="bottom", yshift=8,
                font={"size": 11, "color": "white"}, bgcolor="#32363c", borderpad=2,  # readable on white and on black
            )  # fmt: skip
    rows = -(-sum(trace.showlegend is not False for trace in figure.data) // LEGEND_COLUMNS)
    finish(figure, height + LEGEND_ROW * rows)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(
        dragmode=dragmode,
        legend={"itemclick": False, "itemdoubleclick": False, "y": 0, "yanchor": "top"},  # it takes none of the map
        modebar={"orientation": "v"},  # beside the legend, not over it
    )


def _stepped_scale(colours: Sequence[str]) -> list[list[float | str]]:
    """A plotly colour scale with one flat step per colour."""
    n = max(len(colours), 1)
    steps: list[list[float | str]] = []
    for index, colour in enumerate(colours or [GREY]):
        steps += [[index / n, colour], [(index + 1) / n, colour]]
    return steps
