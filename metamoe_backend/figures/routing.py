"""Router figures: layer x expert, skill x expert, one question token by token."""

import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import GREY, SEQUENTIAL, finish, make_cells_clickable, name_ticks, plain
from metamoe_backend.i18n import _

MOST_TEXTS = 10
"""Cells of a table of more experts than this are too small for their numbers; the pointer tells them."""


def make_layer_heatmap_figure(
    use: pd.DataFrame, experts: list[str], height: int = 380, value: str = "share"
) -> go.Figure:
    """Layer x expert: share of chosen gates, mean gate weight, or top-k share. use: `compute_layer_use` columns.

    x = layer, y = expert; the share is the source's figure (arXiv 2408.15915, figure 7): every chosen expert counts
    alike, also one chosen with hardly any weight. `value`: weight, share, or chosen. customdata: layer, expert, weight,
    share, the top-k share as text.
    """
    share = use.pivot(index="expert", columns="layer", values="share").reindex(experts)
    weight = use.pivot(index="expert", columns="layer", values="weight").reindex(experts)
    chosen = use.pivot(index="expert", columns="layer", values="chosen").reindex(experts)
    shown = {"share": share, "weight": weight, "chosen": chosen}[value]
    cells = [
        [
            [
                int(layer),
                expert,
                weight.loc[expert, layer],
                share.loc[expert, layer],
                _percent(chosen.loc[expert, layer]),
            ]
            for layer in share.columns
        ]
        for expert in experts
    ]
    titles = {"share": _("share"), "weight": _("gate"), "chosen": _("top-k share")}
    figure = go.Figure(
        go.Heatmap(
            z=shown.to_numpy(),
            x=[str(layer) for layer in share.columns],
            y=name_ticks(experts),
            customdata=cells,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=max(float(shown.max().max()), 1e-9),
            colorbar={"title": titles[value], "thickness": 10, "tickformat": ".0%"},
            hovertemplate=_(
                "layer %{x}, %{y}<br>mean gate %{customdata[2]:.3f}<br>share of chosen %{customdata[3]:.1%}<br>"
                "top-k share %{customdata[4]}"
            )
            + "<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("layer"), type="category", nticks=16)
    figure.update_yaxes(autorange="reversed")
    return make_cells_clickable(figure)


def make_skill_heatmap_figure(
    use: pd.DataFrame, experts: list[str], group: str = "skill", height: int = 380
) -> go.Figure:
    """Skill (or task) x expert: where questions were routed; a frame marks where the plan sends them.

    use: `compute_skill_use` columns. customdata: the group's value, expert.
    """
    routed = use.pivot(index=group, columns="expert", values="routed").reindex(columns=experts)
    lift = use.pivot(index=group, columns="expert", values="lift").reindex(columns=experts)
    n = use.groupby(group)["n"].max()
    rows = list(routed.index)
    figure = go.Figure(
        go.Heatmap(
            z=routed.to_numpy(),
            x=name_ticks(experts),
            y=[f"{tick} (n={n[row]})" for tick, row in zip(name_ticks(rows, 28), rows, strict=True)],
            customdata=[[[row, expert, lift.loc[row, expert]] for expert in experts] for row in rows],
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            text=[[f"{value:.0%}" if pd.notna(value) else "" for value in line] for line in routed.to_numpy()],
            texttemplate="%{text}",
            colorbar={"title": _("routed"), "thickness": 10, "tickformat": ".0%"},
            hovertemplate=_("%{y} → %{x}<br>routed %{z:.1%}, lift %{customdata[2]:.1f}") + "<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    for row in use[use["assigned"]].itertuples():
        if row.expert in experts:
            x, y = experts.index(row.expert), rows.index(getattr(row, group))
            box = {"x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.48, "y1": y + 0.48}
            figure.add_shape(type="rect", **box, line={"color": "#d55e00", "width": 3})
    finish(figure, height, legend=False)
    figure.update_yaxes(autorange="reversed")
    return make_cells_clickable(figure)


def make_coactivation_figure(pairs: pd.DataFrame, experts: list[str], height: int = 380) -> go.Figure:
    """Expert x expert: how often both were chosen for one token. pairs: `compute_coactivation` columns.

    The diagonal says how often each was chosen at all. customdata: expert, other, lift as text.
    """
    together = pairs.pivot(index="expert", columns="other", values="together").reindex(index=experts, columns=experts)
    lift = pairs.pivot(index="expert", columns="other", values="lift").reindex(index=experts, columns=experts)
    few = len(experts) <= MOST_TEXTS
    figure = go.Figure(
        go.Heatmap(
            z=together.to_numpy(),
            x=name_ticks(experts, 18),
            y=name_ticks(experts, 18),
            customdata=[
                [[one, other, "–" if one == other else _number(lift.loc[one, other])] for other in experts]
                for one in experts
            ],
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=max(float(together.max().max()), 1e-9),
            text=[[f"{value:.0%}" if few else "" for value in line] for line in together.to_numpy()],
            texttemplate="%{text}",
            colorbar={"title": _("together"), "thickness": 10, "tickformat": ".0%"},
            hovertemplate=_("%{y} and %{x}<br>%{z:.1%} of the gates, lift %{customdata[2]}") + "<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    finish(figure, height, legend=False)
    figure.update_xaxes(type="category")
    figure.update_yaxes(autorange="reversed", type="category")
    return make_cells_clickable(figure)


def make_confusion_figure(
    confusion: pd.DataFrame, experts: list[str], titles: tuple[str, str], height: int = 380
) -> go.Figure:
    """Questions by the experts that two raters name: the first down, the second across.

    confusion: `compute_confusion` columns (two raters, questions). titles: what the raters are called. customdata: the
    two experts.
    """
    first, second = confusion.columns[:2]
    table = confusion.pivot(index=first, columns=second, values="questions")
    table = table.reindex(index=experts, columns=experts).fillna(0).astype(int)
    few = len(experts) <= MOST_TEXTS
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(),
            x=name_ticks(experts, 18),
            y=name_ticks(experts, 18),
            customdata=[[[one, other] for other in experts] for one in experts],
            colorscale=SEQUENTIAL,
            zmin=0,
            text=[[f"{value:,}" if few else "" for value in line] for line in table.to_numpy()],
            texttemplate="%{text}",
            colorbar={"title": _("questions"), "thickness": 10},
            hovertemplate=f"{titles[0]}: %{{y}}<br>{titles[1]}: %{{x}}<br>n=%{{z:,}}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    finish(figure, height, legend=False)
    figure.update_xaxes(title=titles[1], type="category")
    figure.update_yaxes(title=titles[0], autorange="reversed", type="category")
    return make_cells_clickable(figure)


def _percent(share: float) -> str:
    return "–" if pd.isna(share) else f"{share:.1%}"


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}"


def make_token_figure(tokens: pd.DataFrame, experts: list[str], height: int = 300) -> go.Figure:
    """One question: token x expert, mean gate weight over layers. tokens: position, token, layer, expert, weight."""
    mean = tokens.groupby(["position", "token", "expert"], as_index=False)["weight"].mean()
    order = mean.drop_duplicates("position").sort_values("position")
    z = mean.pivot(index="expert", columns="position", values="weight").reindex(experts)
    figure = go.Figure(
        go.Heatmap(
            z=z.to_numpy(),
            x=order["position"].to_numpy(),
            y=name_ticks(experts),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            customdata=[[plain(token, 24) for token in order["token"]] for _ in experts],
            colorbar={"title": _("gate"), "thickness": 10},
            hovertemplate=_("token %{x} “%{customdata}”<br>%{y}: %{z:.2f}") + "<extra></extra>",
        )
    )
    finish(figure, height, legend=False)
    labels = [plain(token, 12) for token in order["token"]]
    figure.update_xaxes(tickvals=order["position"].to_numpy(), ticktext=labels, tickangle=-60)
    figure.update_yaxes(autorange="reversed")
    return figure


def make_question_layer_figure(tokens: pd.DataFrame, experts: list[str], height: int = 380) -> go.Figure:
    """One question: layer x expert, mean gate weight over its tokens."""
    mean = tokens.groupby(["layer", "expert"], as_index=False)["weight"].mean()
    z = mean.pivot(index="layer", columns="expert", values="weight").reindex(columns=experts)
    figure = go.Figure(
        go.Heatmap(
            z=z.to_numpy(),
            x=name_ticks(experts),
            y=[str(layer) for layer in z.index],
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar={"title": _("gate"), "thickness": 10},
            hovertemplate=_("layer %{y}, %{x}: %{z:.2f}") + "<extra></extra>",
        )
    )
    finish(figure, height, legend=False)
    figure.update_yaxes(title=_("layer"), type="category")
    return figure


def make_load_figure(load: pd.DataFrame, height: int = 220) -> go.Figure:
    """Load per expert (mean gate weight) with the even load as a line. load: expert, load, n."""
    figure = go.Figure(
        go.Bar(
            x=load["load"],
            y=name_ticks(load["expert"]),
            orientation="h",
            text=[f"{value:.0%}" for value in load["load"]],
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.add_vline(x=1 / max(len(load), 1), line={"dash": "dot", "width": 1, "color": GREY})
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("mean gate weight (dotted: even)"), tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return figure


def make_entropy_figure(entropy: pd.DataFrame, height: int = 220) -> go.Figure:
    """Entropy of expert use per layer (1 even, 0 one expert alone). entropy: `compute_layer_entropy` columns."""
    figure = go.Figure(
        go.Scatter(
            x=entropy["layer"],
            y=entropy["entropy"],
            customdata=entropy["nats"],
            mode="lines+markers",
            hovertemplate=_("layer %{x}: %{y:.2f}, %{customdata:.2f} nats") + "<extra></extra>",
        )
    )
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("layer"))
    figure.update_yaxes(title=_("entropy (1 even, 0 one expert)"), range=[0, 1.05])
    return figure
