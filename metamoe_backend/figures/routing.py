"""Router figures: layer x expert, skill x expert, one question token by token."""

import pandas as pd
import plotly.graph_objects as go

from metamoe_backend.figures.style import SEQUENTIAL, finish, make_cells_clickable, plain
from metamoe_backend.i18n import _


def make_layer_heatmap_figure(
    use: pd.DataFrame, experts: list[str], height: int = 380, value: str = "share"
) -> go.Figure:
    """Layer x expert: share of chosen gates, or mean gate weight. use: layer, expert, share, weight, n.

    x = layer, y = expert; the share is the source's figure (arXiv 2408.15915, figure 7): every chosen expert counts
    alike, also one chosen with hardly any weight. customdata: layer, expert, weight, share.
    """
    share = use.pivot(index="expert", columns="layer", values="share").reindex(experts)
    weight = use.pivot(index="expert", columns="layer", values="weight").reindex(experts)
    shown = {"share": share, "weight": weight}[value]
    cells = [
        [[int(layer), expert, weight.loc[expert, layer], share.loc[expert, layer]] for layer in share.columns]
        for expert in experts
    ]
    figure = go.Figure(
        go.Heatmap(
            z=shown.to_numpy(),
            x=[str(layer) for layer in share.columns],
            y=[plain(expert, 24) for expert in experts],
            customdata=cells,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=max(float(shown.max().max()), 1e-9),
            colorbar={"title": _("share") if value == "share" else _("gate"), "thickness": 10, "tickformat": ".0%"},
            hovertemplate=_("layer %{x}, %{y}<br>share %{customdata[3]:.1%}<br>mean gate %{customdata[2]:.3f}")
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
            x=[plain(expert, 24) for expert in experts],
            y=[f"{plain(row, 28)} (n={n[row]})" for row in rows],
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


def make_token_figure(tokens: pd.DataFrame, experts: list[str], height: int = 300) -> go.Figure:
    """One question: token x expert, mean gate weight over layers. tokens: position, token, layer, expert, weight."""
    mean = tokens.groupby(["position", "token", "expert"], as_index=False)["weight"].mean()
    order = mean.drop_duplicates("position").sort_values("position")
    z = mean.pivot(index="expert", columns="position", values="weight").reindex(experts)
    figure = go.Figure(
        go.Heatmap(
            z=z.to_numpy(),
            x=order["position"].to_numpy(),
            y=[plain(expert, 24) for expert in experts],
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
            x=[plain(expert, 24) for expert in experts],
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
            y=[plain(expert, 24) for expert in load["expert"]],
            orientation="h",
            text=[f"{value:.0%}" for value in load["load"]],
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.add_vline(x=1 / max(len(load), 1), line={"dash": "dot", "width": 1})
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("mean gate weight (dotted: even)"), tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return figure


def make_entropy_figure(entropy: pd.DataFrame, height: int = 220) -> go.Figure:
    """Entropy of expert use per layer (1 even, 0 one expert alone). entropy: layer, entropy, n."""
    figure = go.Figure(
        go.Scatter(
            x=entropy["layer"],
            y=entropy["entropy"],
            mode="lines+markers",
            hovertemplate=_("layer %{x}: %{y:.2f}") + "<extra></extra>",
        )
    )
    finish(figure, height, legend=False)
    figure.update_xaxes(title=_("layer"))
    figure.update_yaxes(title=_("entropy (1 even, 0 one expert)"), range=[0, 1.05])
    return figure
