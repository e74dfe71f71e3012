"""The map: one trace, whatever the number of groups, so that lasso and recolour stay quick."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import GREY, SEQUENTIAL, finish, plain
from metamoe_backend.skills.palette import next_colour

MOST_COLOURS = 60
"""Further groups take the colours of the first ones again: nobody tells more apart."""
Camera = tuple[float, float, float, float]
"""What part of a map is in view: x from, x to, y from, y to."""


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


def make_map_figure(
    points: pd.DataFrame,
    group: pd.Series,
    colours: Mapping[str, str],
    names: pd.DataFrame | None = None,
    point_size: float = 6.0,
    height: int = 560,
    dragmode: str = "lasso",
) -> go.Figure:
    """Points coloured by a category.

    points: x, y, question_id and hover (escaped text). group: one category a point. colours: category to #rrggbb
    (missing: grey, last in the legend). names: x, y, name of what stands on the map. The trace's customdata is the row
    number in `points`; one trace only: colours are codes on a stepped scale, and the legend is made of empty traces.
    """
    categories = [str(name) for name in pd.unique(group)]
    codes = pd.Categorical(group.astype(str), categories=categories).codes.astype(np.int16)
    scale = _stepped_scale([colours.get(name, GREY) for name in categories])
    figure = go.Figure()
    figure.add_trace(
        go.Scattergl(
            x=points["x"].to_numpy(np.float32),
            y=points["y"].to_numpy(np.float32),
            mode="markers",
            marker={
                "size": point_size,
                "color": codes,
                "cmin": -0.5,
                "cmax": max(len(categories), 1) - 0.5,
                "colorscale": scale,
                "opacity": 0.85,
            },
            customdata=np.arange(len(points), dtype=np.int32),
            text=points["hover"] if "hover" in points and len(points) <= 20_000 else None,
            hovertemplate="%{text}<extra></extra>" if len(points) <= 20_000 else None,
            showlegend=False,
            unselected={"marker": {"opacity": 0.15}},
        )
    )
    counts = group.astype(str).value_counts()
    for name in sorted(categories, key=lambda name: (name not in colours, -counts[name])):
        marker = {"size": 9, "color": colours.get(name, GREY)}
        label = f"{plain(name, 28)} ({counts[name]})"
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=label, hoverinfo="skip"))
    return _dress_map(figure, names, height, dragmode)


def make_value_map_figure(
    points: pd.DataFrame,
    value: pd.Series,
    title: str,
    names: pd.DataFrame | None = None,
    point_size: float = 6.0,
    height: int = 560,
    dragmode: str = "lasso",
) -> go.Figure:
    """Points coloured by a number between 0 and 1 (a confidence); points without one are grey."""
    known = value.notna().to_numpy()
    figure = go.Figure()
    figure.add_trace(
        go.Scattergl(
            x=points["x"].to_numpy(np.float32),
            y=points["y"].to_numpy(np.float32),
            mode="markers",
            marker={
                "size": point_size,
                "color": np.where(known, value.fillna(0).to_numpy(float), np.nan),
                "colorscale": SEQUENTIAL,
                "cmin": 0,
                "cmax": 1,
                "colorbar": {"title": plain(title), "thickness": 10, "len": 0.6},
                "opacity": 0.85,
            },
            customdata=np.arange(len(points), dtype=np.int32),
            text=points.get("hover"),
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            unselected={"marker": {"opacity": 0.15}},
        )
    )
    return _dress_map(figure, names, height, dragmode)


def mark_point(figure: go.Figure, x: float, y: float) -> go.Figure:
    """A ring around one place: where the question at hand lies."""
    ring = {"size": 20, "symbol": "circle-open", "line": {"width": 3}, "color": "#d55e00"}
    figure.add_trace(go.Scatter(x=[x], y=[y], mode="markers", marker=ring, showlegend=False, hoverinfo="skip", name=""))
    return figure


def highlight_points(figure: go.Figure, rows: Sequence[int]) -> go.Figure:
    """Let the points with these row numbers stand out from all others."""
    return figure.update_traces(selectedpoints=list(rows), selector={"type": "scattergl"})


def set_camera(figure: go.Figure, camera: Camera) -> go.Figure:
    """Show this part of the map only."""
    left, right, low, high = camera
    figure.update_xaxes(range=[left, right], autorange=False)
    return figure.update_yaxes(range=[low, high], autorange=False)


def _dress_map(figure: go.Figure, names: pd.DataFrame | None, height: int, dragmode: str) -> go.Figure:
    if names is not None:
        for row in names.itertuples():
            figure.add_annotation(
                x=row.x, y=row.y, text=plain(row.name, 28), showarrow=False, opacity=0.85,
                yanchor="bottom", yshift=8,
                font={"size": 11, "color": "white"}, bgcolor="#32363c", borderpad=2,  # readable on white and on black
            )  # fmt: skip
    finish(figure, height)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(
        dragmode=dragmode,
        legend={"itemclick": False, "itemdoubleclick": False},
        modebar={"orientation": "v"},  # beside the legend, not over it
    )
    return figure


def _stepped_scale(colours: list[str]) -> list[list[float | str]]:
    """A plotly colour scale with one flat step per colour."""
    n = max(len(colours), 1)
    steps: list[list[float | str]] = []
    for index, colour in enumerate(colours or [GREY]):
        steps += [[index / n, colour], [(index + 1) / n, colour]]
    return steps
