"""How alike adapters are, and how the choice of experts moves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from metamoe_backend.experts.similarity import Tree
from metamoe_backend.figures.style import DIVERGING, GREY, SEQUENTIAL, finish, make_cells_clickable, name_ticks
from metamoe_backend.i18n import _

_TEXT_UP_TO = 16
"""Adapters up to which the cells have room for their numbers."""


def make_likeness_figure(
    similarity: pd.DataFrame, tree: Tree, counts: pd.DataFrame | None = None, height: int = 380
) -> go.Figure:
    """Square heatmap of adapters in the order of `tree`, which is drawn at its right.

    similarity: a symmetric table, -1 to 1, NaN where it is not defined. counts: questions behind each value, where
    there are any. customdata: adapter, other, n.
    """
    square = similarity.loc[tree.order, tree.order]
    values = square.to_numpy(float)
    n = None if counts is None else counts.loc[tree.order, tree.order].to_numpy(int)
    places = list(range(len(tree.order)))
    custom = [
        [[one, two, 0 if n is None else int(n[i, j])] for j, two in enumerate(tree.order)]
        for i, one in enumerate(tree.order)
    ]
    few = len(places) <= _TEXT_UP_TO
    hover = "%{customdata[0]}, %{customdata[1]}: %{z:.3f}" + ("" if n is None else ", n=%{customdata[2]}")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, column_widths=[0.8, 0.2], horizontal_spacing=0.01)
    figure.add_trace(
        go.Heatmap(
            z=values,
            x=places,
            y=places,
            colorscale=DIVERGING,
            zmid=0,
            zmin=-1,
            zmax=1,
            text=[["" if np.isnan(value) else f"{value:.2f}" for value in line] for line in values] if few else None,
            texttemplate="%{text}" if few else None,
            customdata=custom,
            colorbar={"title": _("cosine") if n is None else "κ", "thickness": 10, "x": 1.01},
            hovertemplate=hover + "<extra></extra>",
            xgap=1,
            ygap=1,
        ),
        row=1,
        col=1,
    )
    make_cells_clickable(figure)
    lines: tuple[list[float | None], list[float | None]] = ([], [])
    for leaf_places, distances in zip(tree.places, tree.distances, strict=True):
        lines[0].extend([*distances, None])
        lines[1].extend([*leaf_places, None])
    figure.add_trace(
        go.Scatter(x=lines[0], y=lines[1], mode="lines", line={"color": GREY, "width": 1.5}, hoverinfo="skip"),
        row=1,
        col=2,
    )
    finish(figure, height, legend=False)
    names = name_ticks(tree.order)
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": names, "showgrid": False, "zeroline": False}
    figure.update_xaxes(**ticks, tickangle=-35 if few else -90, row=1, col=1)
    figure.update_xaxes(title=_("1 − likeness"), rangemode="tozero", zeroline=False, nticks=3, row=1, col=2)
    figure.update_yaxes(**ticks, range=[len(places) - 0.5, -0.5], row=1, col=1)
    figure.update_yaxes(showgrid=False, zeroline=False, row=1, col=2)
    return figure


def make_layer_similarity_figure(layers: pd.DataFrame, overall: float, height: int = 240) -> go.Figure:
    """Cosine of two adapters' weight changes over layers, with their mean. layers: layer, similarity."""
    figure = go.Figure(
        go.Scatter(
            x=layers["layer"],
            y=layers["similarity"],
            mode="lines+markers",
            line={"color": "#0072b2"},
            hovertemplate=_("layer %{x}: %{y:.3f}") + "<extra></extra>",
        )
    )
    figure.add_hline(y=overall, line={"dash": "dot", "color": GREY})
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("layer"))
    lowest = float(layers["similarity"].min()) if len(layers) else 0.0
    figure.update_yaxes(title=_("cosine"), range=[min(0.0, lowest) - 0.05, 1.05])
    return figure


def make_choice_figure(shares: pd.DataFrame, chosen: Sequence[str], draws: int, height: int = 320) -> go.Figure:
    """Adapters x K: in which share of the draws each is chosen from the first K shots alone.

    shares: index adapters, columns K, 0 to 1 (`count_choices`). chosen: marked with a star.
    """
    values = shares.to_numpy(float)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[f"K = {k}" for k in shares.columns],
            y=[
                ("★ " if name in chosen else "") + tick
                for name, tick in zip(shares.index, name_ticks(shares.index), strict=True)
            ],
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            text=[[f"{round(value * draws)}/{draws}" for value in line] for line in values],
            texttemplate="%{text}",
            colorbar={"title": _("share of draws"), "thickness": 10, "tickformat": ".0%"},
            hovertemplate=_("%{y} at %{x}: chosen in %{text} draws") + "<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    finish(figure, height, legend=False)
    figure.update_yaxes(autorange="reversed")
    return figure
