"""The comparison of a study as a figure."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import GREY, KIND_COLOURS, finish, plain
from metamoe_backend.i18n import _

_COLOURS = {
    **dict.fromkeys(("base", "random", "best-on-test"), GREY),
    **dict.fromkeys(("full", "best", "tuned"), KIND_COLOURS["expert"]),
    "mixed": KIND_COLOURS["mixed"],
}
"""Systems that are not here are mixtures. Grey: a floor, and what is no result."""


def make_study_figure(compared: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """Accuracy of the systems of one target with their intervals, the first row on top.

    compared: rows of one target of `study.table.compare`. names: what each system is called.
    """
    low = compared["low"].fillna(compared["least"])
    high = compared["high"].fillna(compared["greatest"])
    colours = [_COLOURS.get(system, KIND_COLOURS["moe"]) for system in compared["system"]]
    hollow = (compared["system"] == "best-on-test").tolist()
    figure = go.Figure()
    for row in range(len(compared)):
        accuracy = compared["accuracy"].iloc[row]
        figure.add_trace(
            go.Scatter(
                x=[100 * accuracy],
                y=[plain(names.get(compared["system"].iloc[row], compared["system"].iloc[row]), 60)],
                error_x={
                    "type": "data", "symmetric": False, "array": [100 * (high.iloc[row] - accuracy)],
                    "arrayminus": [100 * (accuracy - low.iloc[row])], "thickness": 2, "width": 5, "color": colours[row],
                },
                mode="markers",
                marker={"size": 11, "color": colours[row], "symbol": "circle-open" if hollow[row] else "circle"},
                customdata=[[f"{100 * low.iloc[row]:.0f} to {100 * high.iloc[row]:.0f}", int(compared["n"].iloc[row])]],
                hovertemplate=_("%{y}: %{x:.1f} % (%{customdata[0]}), n=%{customdata[1]}") + "<extra></extra>",
            )
        )  # fmt: skip
    finish(figure, height=60 + 30 * len(compared), legend=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title=_("accuracy in percent"))
    return figure
