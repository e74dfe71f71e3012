"""Outcomes: who solves which questions, and how often each system errs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.evaluate.answers import ALL_TASKS
from metamoe_backend.evaluate.outcomes import BEST_SINGLE, MAJORITY, NO_SKILL
from metamoe_backend.figures.style import GREY, KIND_COLOURS, OUTCOME_COLOURS, SEQUENTIAL, finish, name_ticks, plain
from metamoe_backend.i18n import _

WIDE_ROW, NARROW_ROW, MOST_WIDE_ROWS = 34, 19, 12
"""Height of a system's row in pixels; that of many systems, and how many are few."""


def make_outcomes_figure(counts: pd.DataFrame, group: str = "task", height: int = 380) -> go.Figure:
    """Stacked bar per task or skill. counts: `count_outcomes` columns. customdata: group, outcome, questions."""
    names = {"all-correct": _("all correct"), "mixed": _("mixed"), "all-incorrect": _("all incorrect")}
    return _stack_bars(counts, group, "outcome", names, OUTCOME_COLOURS, height)


def make_solvers_figure(counts: pd.DataFrame, group: str = "task", height: int = 380) -> go.Figure:
    """Stacked bar per task or skill: how many experts solve a question. counts: `count_solvers` columns.

    customdata: group, number of experts, questions.
    """
    from plotly.colors import sample_colorscale

    numbers = sorted(counts["correct_experts"].unique())
    colours = sample_colorscale(SEQUENTIAL, np.linspace(0, 1, max(len(numbers), 2)))[: len(numbers)]
    names = {number: str(number) for number in numbers}
    figure = _stack_bars(counts, group, "correct_experts", names, dict(zip(numbers, colours, strict=True)), height)
    return figure.update_layout(legend_title_text=_("experts that solve it:"))


def _stack_bars(
    counts: pd.DataFrame, group: str, value: str, names: Mapping, colours: Mapping, height: int
) -> go.Figure:
    """counts: `group`, `value`, questions, share."""
    groups = list(dict.fromkeys(counts[group]))
    labels = {ALL_TASKS: _("all tasks"), NO_SKILL: _("no skill")}
    figure = go.Figure()
    for code, colour in colours.items():
        part = counts[counts[value] == code].set_index(group).reindex(groups)
        questions = part["questions"].fillna(0).astype(int)
        figure.add_trace(
            go.Bar(
                y=name_ticks([labels.get(name, name) for name in groups], 32),
                x=part["share"],
                orientation="h",
                name=names[code],
                marker_color=colour,
                customdata=[
                    [name, code if isinstance(code, str) else int(code), int(n)]
                    for name, n in zip(groups, questions, strict=True)
                ],
                text=[int(n) if n else "" for n in questions],
                textangle=0,
                hovertemplate="%{y}: " + names[code] + " – %{customdata[2]} (%{x:.0%})<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack", uniformtext={"minsize": 9, "mode": "hide"})
    finish(figure, height)
    figure.update_xaxes(title=_("share of questions (numbers: questions)"), tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    return figure


def make_error_figure(errors: pd.DataFrame, kinds: dict[str, str]) -> go.Figure:
    """Error rate of each system on one part, with Wilson intervals, the lowest at the top; the oracle as a line.

    errors: system, role, errors, error_rate, low, high, n (one group of `compute_error_rates`). kinds: system to kind.
    customdata: system, n, errors.
    """
    shown = errors[errors["system"] != "oracle"].sort_values("error_rate")
    names = {BEST_SINGLE: _("best single expert"), MAJORITY: _("majority vote")}
    figure = go.Figure(
        go.Scatter(
            x=shown["error_rate"],
            y=name_ticks([names.get(system, system) for system in shown["system"]], 28),
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
            customdata=[[row.system, int(row.n), int(row.errors)] for row in shown.itertuples()],
            hovertemplate=_("%{y}: %{x:.0%} wrong, %{customdata[2]} of %{customdata[1]}") + "<extra></extra>",
        )
    )
    oracle = errors[errors["system"] == "oracle"]
    if len(oracle):
        figure.add_vline(
            x=float(oracle["error_rate"].iloc[0]), line={"dash": "dot", "color": GREY}, annotation_text=_("oracle"),
            annotation_position="top",
        )  # fmt: skip
    row = WIDE_ROW if len(shown) <= MOST_WIDE_ROWS else NARROW_ROW
    finish(figure, 70 + row * len(shown), legend=False)
    figure.update_xaxes(title=_("error rate, 95 % interval"), tickformat=".0%", range=[-0.02, 1.02], nticks=5)
    figure.update_yaxes(range=[len(shown) - 0.4, -0.6], tickmode="linear")  # every system by name, the best one first
    return figure.update_layout(margin_t=24)  # for the oracle's name


def make_intersections_figure(intersections: pd.DataFrame, systems: Sequence[str], height: int = 420) -> go.Figure:
    """Who solves what: a bar for each set of systems, and below it a dot for each system of the set.

    intersections: solvers, questions, share, n (`count_intersections`), in the order drawn. Beside each system stands
    how many questions it solves in all of them. customdata: place of the set in `intersections`, its solvers in words.
    """
    from plotly.subplots import make_subplots

    places = list(range(len(intersections)))
    names = list(systems)
    solvers = intersections["solvers"].tolist()
    questions = intersections["questions"].tolist()
    words = [plain(", ".join(each) or _("nobody"), 120) for each in solvers]
    custom = [[place, word] for place, word in zip(places, words, strict=True)]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.6, 0.4])
    bars = go.Bar(
        x=places, y=questions, customdata=custom, marker_color=KIND_COLOURS["expert"],
        text=[f"{n}" for n in questions], textposition="outside", cliponaxis=False,
        constraintext="none", textangle=0, textfont={"size": 11},
        hovertemplate=_("%{customdata[1]}: %{y} questions") + "<extra></extra>",
    )  # fmt: skip
    figure.add_trace(bars, row=1, col=1)
    lines: list[tuple[int | None, int | None]] = []
    for place, each in zip(places, solvers, strict=True):
        rows = [row for row, name in enumerate(names) if name in each]
        if rows:
            lines += [(place, min(rows)), (place, max(rows)), (None, None)]
    joined = go.Scatter(
        x=[x for x, _y in lines], y=[y for _x, y in lines], mode="lines",
        line={"color": KIND_COLOURS["expert"], "width": 2}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_trace(joined, row=2, col=1)
    cells = [
        (place, row, name in each)
        for place, each in zip(places, solvers, strict=True)
        for row, name in enumerate(names)
    ]
    dots = go.Scatter(
        x=[place for place, _row, _in in cells],
        y=[row for _place, row, _in in cells],
        mode="markers",
        marker={
            "size": 11,
            "color": [KIND_COLOURS["expert"] if there else GREY for _place, _row, there in cells],
            "opacity": [1.0 if there else 0.3 for _place, _row, there in cells],
        },
        customdata=[custom[place] for place, _row, _in in cells],
        hovertemplate="%{customdata[1]}<extra></extra>",
    )
    figure.add_trace(dots, row=2, col=1)
    totals = [sum(n for n, each in zip(questions, solvers, strict=True) if name in each) for name in names]
    finish(figure, height, legend=False)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(title=_("questions"), rangemode="tozero", row=1, col=1)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[f"{name} ({total})" for name, total in zip(name_ticks(names), totals, strict=True)],
        range=[len(names) - 0.5, -0.5], showgrid=False, zeroline=False, row=2, col=1,
    )  # fmt: skip
    return figure.update_layout(margin_t=28, bargap=0.35)
