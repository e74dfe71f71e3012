"""Forgetting and training curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import (
    DIVERGING,
    SEQUENTIAL,
    finish,
    make_cells_clickable,
    name_ticks,
    plain,
)
from metamoe_backend.i18n import _

LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9aa0a6")
"""Told apart by every kind of colour vision (Okabe and Ito), as the skills' palette."""
RUN_COLOURS = LINE_COLOURS[:4]
"""Runs that are compared, in the order they were chosen."""


def make_difference_figure(
    differences: pd.DataFrame,
    systems: Sequence[str],
    tasks: Sequence[str],
    limit: float | None = None,
    height: int = 420,
) -> go.Figure:
    """Systems x tasks: accuracy minus the reference's, in points; diverging, centred at 0.

    A star marks what is significant after correction over the matrix, a dot what only its own interval shows.
    differences: `compute_differences_to_base`. limit: the colour scale's end, the same in figures that are compared.
    customdata: system, task.
    """
    table = differences.set_index(["system", "task"])
    found = table["difference"].unstack("task").reindex(index=systems, columns=tasks)
    limit = limit or max(0.1, float(np.nanmax(np.abs(found.to_numpy()))) if found.notna().any().any() else 0.1)
    text, custom = [], []
    for system in systems:
        texts, cells = [], []
        for task in tasks:
            if (system, task) in table.index:
                row = table.loc[(system, task)]
                mark = " *" if row["significant"] else " •" if row["shown"] else ""
                texts.append(f"{100 * row['difference']:+z.0f}{mark}")
                interval = f"{100 * row['low']:+z.0f} to {100 * row['high']:+z.0f}"
                cells.append([system, task, interval, int(row["n"]), f"{row['p']:.2g}", f"{row['p_holm']:.2g}"])
            else:
                texts.append("")
                cells.append([system, task, _("not evaluated"), 0, "–", "–"])
        text.append(texts)
        custom.append(cells)
    figure = go.Figure(
        go.Heatmap(
            z=100 * found.to_numpy(float),
            x=name_ticks(tasks, 26),
            y=name_ticks(systems, 26),
            colorscale=DIVERGING,
            zmid=0,
            zmin=-100 * limit,
            zmax=100 * limit,
            text=text,
            texttemplate="%{text}",
            customdata=custom,
            colorbar={"title": _("points"), "thickness": 10},
            hovertemplate=_("%{y} on %{x}: %{z:+.1f} points (%{customdata[2]}), n=%{customdata[3]}")
            + "<br>"
            + _("McNemar p = %{customdata[4]}, after Holm's correction %{customdata[5]}")
            + "<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    return _finish_matrix(figure, systems, tasks, height)


def _finish_matrix(figure: go.Figure, systems: Sequence[str], tasks: Sequence[str], height: int) -> go.Figure:
    """Cells that can be clicked and reach to the axes, the first system at the top."""
    finish(figure, height, legend=False)
    make_cells_clickable(figure)
    figure.update_xaxes(tickangle=-35, range=[-0.5, len(tasks) - 0.5])
    return figure.update_yaxes(range=[len(systems) - 0.5, -0.5])


def make_accuracy_figure(
    accuracies: pd.DataFrame, systems: Sequence[str], tasks: Sequence[str], height: int = 420
) -> go.Figure:
    """Systems x tasks: accuracy in percent. accuracies: `compute_accuracies` columns. customdata: system, task."""
    table = accuracies.set_index(["system", "task"])
    found = table["accuracy"].unstack("task").reindex(index=systems, columns=tasks)
    low = table["low"].unstack("task").reindex(index=systems, columns=tasks).to_numpy(float)
    high = table["high"].unstack("task").reindex(index=systems, columns=tasks).to_numpy(float)
    n = table["n"].unstack("task").reindex(index=systems, columns=tasks).fillna(0).to_numpy(int)
    custom = [
        [
            [system, task, f"{100 * low[i, j]:.0f} to {100 * high[i, j]:.0f}", int(n[i, j])]
            for j, task in enumerate(tasks)
        ]
        for i, system in enumerate(systems)
    ]
    values = 100 * found.to_numpy(float)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=name_ticks(tasks, 26),
            y=name_ticks(systems, 26),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=100,
            text=[["" if np.isnan(value) else f"{value:.0f}" for value in line] for line in values],
            texttemplate="%{text}",
            customdata=custom,
            colorbar={"title": "%", "thickness": 10},
            hovertemplate=_("%{y} on %{x}: %{z:.1f} % (%{customdata[2]}), n=%{customdata[3]}") + "<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    return _finish_matrix(figure, systems, tasks, height)


def make_sequence_figure(
    accuracies: pd.DataFrame, steps: Sequence[str], labels: Sequence[str], before: str | None = None, height: int = 300
) -> go.Figure:
    """Accuracy over the steps of a training sequence, a line for what each step taught; its own step is a large dot.

    accuracies: `compute_sequence_accuracies` columns. labels: what each step taught. before: the system before the
    first step (drawn at 0). Bars are 95 % intervals.
    """
    cells = accuracies.set_index(["system", "task"])
    systems = ([before] if before else []) + list(steps)
    first = 0 if before else 1
    figure = go.Figure()
    for number, label in enumerate(labels, start=1):
        line = cells.loc[[(system, label) for system in systems]]
        places = list(range(first, first + len(systems)))
        colour = LINE_COLOURS[(number - 1) % len(LINE_COLOURS)]
        shift = (number - (len(labels) + 1) / 2) * 0.04  # so that intervals stand beside each other
        figure.add_trace(
            go.Scatter(
                x=[place + shift for place in places],
                y=100 * line["accuracy"],
                mode="lines+markers",
                name=plain(f"{number}. {label}", 32),
                line={"color": colour},
                marker={"size": [13 if place == number else 6 for place in places]},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": (100 * (line["high"] - line["accuracy"])).to_numpy(),
                    "arrayminus": (100 * (line["accuracy"] - line["low"])).to_numpy(),
                    "thickness": 1,
                    "width": 2,
                },
                customdata=[[plain(system, 32), int(n)] for system, n in zip(systems, line["n"], strict=True)],
                hovertemplate="%{fullData.name}, %{customdata[0]}: %{y:.1f} %, n=%{customdata[1]}<extra></extra>",
            )
        )
    finish(figure, height)
    names = {0: _("0 (base)")} | {place: str(place) for place in range(1, len(steps) + 1)}
    shown = range(first, len(steps) + 1)
    figure.update_xaxes(title=_("step"), tickvals=list(shown), ticktext=[names[place] for place in shown])
    figure.update_yaxes(title=_("accuracy, %"), range=[0, 103])
    return figure


def make_curves_figure(
    curves: pd.DataFrame, title: str, height: int = 280, log: bool = False, along: str | None = None
) -> go.Figure:
    """Lines over steps, or over what `along` says. curves: step, value, name."""
    figure = go.Figure()
    for name, part in curves.groupby("name", sort=False):
        line = {"dash": "dot"} if "eval" in str(name) else {}
        figure.add_trace(
            go.Scatter(
                x=part["step"], y=part["value"], mode="lines+markers", name=plain(name, 40), line=line, marker_size=4
            )
        )
    finish(figure, height)
    figure.update_xaxes(title=along or _("step"), rangemode="tozero")
    figure.update_yaxes(title=title, type="log" if log else "linear")
    return figure


def make_run_comparison_figure(curves: pd.DataFrame, title: str, height: int = 280) -> go.Figure:
    """Losses of several runs over steps: one colour a run, held-back loss dotted. curves: run, name, step, value."""
    figure = go.Figure()
    for index, (run, of_run) in enumerate(curves.groupby("run", sort=False)):
        for name, part in of_run.groupby("name", sort=False):
            held_back = "eval" in str(name)
            figure.add_trace(
                go.Scatter(
                    x=part["step"],
                    y=part["value"],
                    mode="lines+markers",
                    name=plain(f"{run}: {name}", 48),
                    line={"dash": "dot" if held_back else "solid", "color": RUN_COLOURS[index % len(RUN_COLOURS)]},
                    marker_size=4,
                )
            )
    finish(figure, height)
    figure.update_xaxes(title=_("step"), rangemode="tozero")
    figure.update_yaxes(title=title)
    return figure
