"""Figures about the choice of training data."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import GREY, finish
from metamoe_backend.i18n import _

BINS = 50
DECISION_COLOURS = {"selected": "#0072b2", "similar": "#e69f00", "leak": "#d55e00", "beyond": GREY}


def decision_name(decision: str) -> str:
    """What was decided about a row, in a person's words."""
    names = {
        "shot": _("shot"),
        "selected": _("chosen"),
        "similar": _("too similar"),
        "leak": _("leak"),
        "beyond": _("beyond the budget"),
    }
    return names.get(decision, decision)


def make_score_figure(rows: pd.DataFrame, height: int = 260) -> go.Figure:
    """How many rows of a pool have which similarity to the K shots, by decision.

    rows: score (-1 to 1), decision (rows.Decision; shots are left out).
    """
    pool = rows[rows["decision"] != "shot"]
    edges = np.linspace(min(0.0, float(pool["score"].min())), 1, BINS + 1)
    figure = go.Figure()
    for decision, colour in DECISION_COLOURS.items():
        scores = pool.loc[pool["decision"] == decision, "score"]
        if scores.empty:
            continue
        name = decision_name(decision)
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=np.histogram(scores.clip(edges[0], 1), edges)[0],
                width=edges[1] - edges[0],
                name=f"{name}, n={len(scores):,}",
                marker={"color": colour},
                hovertemplate="%{x:.2f}: %{y}<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(title=_("largest cosine with a shot"))
    figure.update_yaxes(title=_("rows of the pool"))
    return finish(figure, height)
