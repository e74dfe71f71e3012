"""What all figures share: colours with a meaning, margins, and hover text that cannot carry markup."""

import html
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import plotly.graph_objects as go

SEQUENTIAL = "Cividis"
DIVERGING = "RdBu"
"""Red below 0, blue above: told apart by every kind of colour vision. Always centred at 0."""
GREY = "#9aa0a6"
"""Noise and unlabelled questions."""
OUTCOME_COLOURS = {"all-correct": "#0072b2", "mixed": "#e69f00", "all-incorrect": "#9aa0a6"}
KIND_COLOURS = {"base": "#9aa0a6", "expert": "#0072b2", "mixed": "#cc79a7", "moe": "#d55e00"}


def finish(figure: go.Figure, height: int | None = None, legend: bool = True) -> go.Figure:
    """Margins that leave the room to the data, and a legend above the plot."""
    figure.update_layout(
        margin={"l": 8, "r": 8, "t": 28 if legend else 8, "b": 8},
        showlegend=legend,
        legend={"orientation": "h", "traceorder": "normal", "y": 1.0, "yanchor": "bottom", "x": 0, "title": None},
        height=height,
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def plain(text: Any, limit: int = 160) -> str:
    """Text from data for hovers and ticks: plotly reads a little HTML there, so it is escaped, and cut at `limit`."""
    text = " ".join(str(text).split())
    return html.escape(text if len(text) <= limit else text[: limit - 1] + "…", quote=False)


def name_ticks(names: Iterable[str], limit: int = 24) -> list[str]:
    """Names as ticks, cut in the middle where long; no two are alike, for alike ticks are one.

    What would be alike is cut at the beginning, up to where the names part; what still is, is numbered.
    """
    whole = list(names)
    cut = [_cut(name, limit) for name in whole]
    for tick in [tick for tick, n in Counter(cut).items() if n > 1]:
        alike = [place for place, each in enumerate(cut) if each == tick]
        letters = zip(*(whole[place] for place in alike), strict=False)
        shared = sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, letters))
        for place in alike:
            cut[place] = "…" + _cut(whole[place][shared:], limit - 1)
    counts = Counter(cut)
    return [
        plain(tick if counts[tick] == 1 else f"{tick} ({cut[: place + 1].count(tick)})", limit + 6)
        for place, tick in enumerate(cut)
    ]


def _cut(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2 - 1) :]}"


def wrapped(text: Any, width: int = 60, lines: int = 4) -> str:
    """Escaped text for hovers, broken into lines of about `width` characters."""
    import textwrap

    found = textwrap.wrap(" ".join(str(text).split()), width) or [""]
    shown = found[:lines]
    if len(found) > lines:
        shown[-1] += " …"
    return "<br>".join(html.escape(line, quote=False) for line in shown)


def make_cells_clickable(figure: go.Figure) -> go.Figure:
    """Lay an invisible point on every cell of the figure's heatmap: plotly selects points, but never cells.

    The points carry the cells' customdata, which may be of any length, and the heatmap's hover text.
    """
    heatmap = figure.data[0]
    cells = [
        (x, y, [*custom, value])
        for y, values, customs in zip(heatmap.y, heatmap.z, heatmap.customdata, strict=True)
        for x, value, custom in zip(heatmap.x, values, customs, strict=True)
    ]
    template = heatmap.hovertemplate
    if cells:
        template = template.replace("%{z", f"%{{customdata[{len(cells[0][2]) - 1}]")
    invisible = {"marker": {"opacity": 0}}
    figure.add_trace(
        go.Scatter(
            x=[x for x, _, _ in cells],
            y=[y for _, y, _ in cells],
            customdata=[custom for _, _, custom in cells],
            mode="markers",
            marker={"size": 30, "symbol": "square", "opacity": 0},
            selected=invisible,
            unselected=invisible,
            hovertemplate=template,
            showlegend=False,
        )
    )
    heatmap.hoverinfo, heatmap.hovertemplate = "skip", None
    return figure.update_layout(hoverdistance=60)
