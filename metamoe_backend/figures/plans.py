"""What a plan looks like: how many questions each expert gets, and of which skills."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from metamoe_backend.figures.style import GREY, finish, name_ticks, plain
from metamoe_backend.i18n import _


def make_plan_figure(
    counts: Mapping[str, int],
    assignments: Mapping[str, str],
    experts: Sequence[str],
    colours: Mapping[str, str],
    names: Mapping[str, str],
) -> go.Figure:
    """One bar an expert, one piece a skill in the skill's colour.

    counts: skill to questions; assignments: skill to expert; experts: in order, those without a skill too; colours:
    skill to #rrggbb; names: words for experts that are not called by their name (base).
    """
    figure = go.Figure()
    rows = name_ticks([names.get(expert, expert) for expert in experts])
    for skill, expert in assignments.items():
        if expert not in experts:
            continue
        values = [counts.get(skill, 0) if each == expert else None for each in experts]
        figure.add_trace(
            go.Bar(
                y=rows,
                x=values,
                orientation="h",
                name=plain(skill, 32),
                marker_color=colours.get(skill, GREY),
                text=[plain(skill, 20) if value else "" for value in values],
                insidetextanchor="middle",
                cliponaxis=False,
                hovertemplate=f"{plain(skill)}: " + "%{x:,}<extra>%{y}</extra>",
            )
        )
    figure.update_layout(barmode="stack", bargap=0.3)
    finish(figure, height=60 + 38 * max(2, len(experts)), legend=False)
    figure.update_xaxes(title=_("training questions"), rangemode="tozero")
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=rows)
    return figure
