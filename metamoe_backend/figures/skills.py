"""Figures about suggestions."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import finish, plain
from metamoe_backend.i18n import _

BINS = 40


def make_probability_figure(suggestions: pd.DataFrame, threshold: float, height: int = 200) -> go.Figure:
    """How certain the suggestions are, and where the threshold cuts.

    suggestions: skill, colour (#rrggbb), probability (0 to 1).
    """
    edges = np.linspace(0, 1, BINS + 1)
    figure = go.Figure()
    for (skill, colour), rows in suggestions.groupby(["skill", "colour"]):
        counts = np.histogram(rows["probability"], edges)[0]
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=1 / BINS,
                name=plain(skill, 28),
                marker={"color": colour},
                hovertemplate="%{x:.2f}: %{y}<extra>" + plain(skill, 28) + "</extra>",
            )
        )
    figure.add_vline(x=threshold, line={"width": 2, "dash": "dash", "color": "#d55e00"})
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(title=_("probability"), range=[0, 1])
    figure.update_yaxes(title=_("questions"))
    return finish(figure, height, legend=False)
