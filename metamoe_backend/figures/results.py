"""Outcomes, forgetting, training curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.evaluate.outcomes import BEST_SINGLE, MAJORITY
from metamoe_backend.figures.style import (
    DIVERGING,
    GREY,
    KIND_COLOURS,
    OUTCOME_COLOURS,
    SEQUENTIAL,
    finish,
    make_cells_clickable,
    plain,
)
from metamoe_backend.i18n import _

RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Runs that are compared, in the order they were chosen."""


def make_outcomes_figure(counts: pd.DataFrame, height: int = 380) -> go.Figure:
    """Stacked bar per task. counts: `count_outcomes` columns. customdata: task, outcome, questions."""
    tasks = list(dict.fromkeys(counts["task"]))
    names = {"all-correct": _("all correct"), "mixed": _("mixed"), "all-incorrect": _("all incorrect")}
    figure = go.Figure()
    for outcome, colour in OUTCOME_COLOURS.items():
        part = counts[counts["outcome"] == outcome].set_index("task").reindex(tasks)
        figure.add_trace(
            go.Bar(
                y=[plain(task, 32) for task in tasks],
                x=part["share"],
                orientation="h",
                name=names[outcome],
                marker_color=colour,
                customdata=[
                    [task, outcome, int(n)] for task, n in zip(tasks, part["questions"].fillna(0), strict=True)
                ],
                text=[int(q) if q else "" for q in part["questions"].fillna(0)],
                hovertemplate="%{y}: " + names[outcome] + " %{customdata[2]} (%{x:.0%})<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack")
    finish(figure, height)
    figure.update_xaxes(title=_("share of questions (numbers: questions)"), tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    return figure


def make_error_figure(errors: pd.DataFrame, kinds: dict[str, str], height: int = 380) -> go.Figure:
    """Error rate of each system on one part, with Wilson intervals; the oracle as a line.

    errors: system, role, error_rate, low, high, n (one task of `compute_error_rates`). kinds: system to its kind.
    """
    shown = errors[errors["system"] != "oracle"].sort_values("error_rate")
    names = {BEST_SINGLE: _("best single expert"), MAJORITY: _("majority vote")}
    figure = go.Figure(
        go.Scatter(
            x=shown["error_rate"],
            y=[plain(names.get(system, system), 28) for system in shown["system"]],
            mode="markers",
            marker={
                "size": 11,
                "color": [KIND_COLOURS.get(kinds.get(name, ""), "#56b4e9") for name in shown["system"]],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (shown["high"] - shown["error_rate"]).to_numpy(),
                "arrayminus": (shown["error_rate"] - shown["low"]).to_numpy(),
                "color": GREY,
            },
            customdata=shown[["n"]].to_numpy(),
            hovertemplate=_("%{y}: %{x:.0%} wrong, n=%{customdata[0]}") + "<extra></extra>",
        )
    )
    oracle = errors[errors["system"] == "oracle"]
    if len(oracle):
        figure.add_vline(x=float(oracle["error_rate"].iloc[0]), line={"dash": "dot"}, annotation_text=_("oracle"))
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("error rate, 95 % interval"), tickformat=".0%", range=[-0.02, 1.02])
    return figure


def make_difference_figure(
    differences: pd.DataFrame,
    systems: Sequence[str],
    tasks: Sequence[str],
    limit: float | None = None,
    height: int = 420,
) -> go.Figure:
    """Systems x tasks: accuracy minus the reference's, in points; diverging, centred at 0. A dot marks "shown".

    differences: system, task, difference, low, high, n, shown (`compute_differences_to_base`). limit: the colour
    scale's end, the same in figures that are compared. customdata: system, task.
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
                texts.append(f"{100 * row['difference']:+.0f}" + (" •" if row["shown"] else ""))
                cells.append([system, task, f"{100 * row['low']:+.0f} to {100 * row['high']:+.0f}", int(row["n"])])
            else:
                texts.append("")
                cells.append([system, task, _("not evaluated"), 0])
        text.append(texts)
        custom.append(cells)
    figure = go.Figure(
        go.Heatmap(
            z=100 * found.to_numpy(float),
            x=[plain(task, 26) for task in tasks],
            y=[plain(system, 26) for system in systems],
            colorscale=DIVERGING,
            zmid=0,
            zmin=-100 * limit,
            zmax=100 * limit,
            text=text,
            texttemplate="%{text}",
            customdata=custom,
            colorbar={"title": _("points"), "thickness": 10},
            hovertemplate=_("%{y} on %{x}: %{z:+.1f} points (%{customdata[2]}), n=%{customdata[3]}")
            + "<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    finish(figure, height, legend=False)
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(autorange="reversed")
    return make_cells_clickable(figure)


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
            x=[plain(task, 26) for task in tasks],
            y=[plain(system, 26) for system in systems],
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
    finish(figure, height, legend=False)
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(autorange="reversed")
    return make_cells_clickable(figure)


def make_curves_figure(curves: pd.DataFrame, title: str, height: int = 280, log: bool = False) -> go.Figure:
    """Lines over steps. curves: step, value, name."""
    figure = go.Figure()
    for name, part in curves.groupby("name", sort=False):
        line = {"dash": "dot"} if "eval" in str(name) else {}
        figure.add_trace(
            go.Scatter(
                x=part["step"], y=part["value"], mode="lines+markers", name=plain(name, 40), line=line, marker_size=4
            )
        )
    finish(figure, height)
    figure.update_xaxes(title=_("step"), rangemode="tozero")
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
