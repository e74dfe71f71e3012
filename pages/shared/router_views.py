"""The parts of the Router page."""

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.routing import (
    compute_layer_entropy,
    compute_layer_use,
    compute_load,
    compute_skill_use,
    find_collapse,
)
from metamoe_backend.figures.routing import (
    make_entropy_figure,
    make_layer_heatmap_figure,
    make_load_figure,
    make_question_layer_figure,
    make_skill_heatmap_figure,
    make_token_figure,
)
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_question_activations, fetch_token_activations, fetch_token_questions
from pages.shared.charts import clicked_points, show_figure
from pages.shared.i18n import _
from pages.shared.layout import answer_line, plain, question_text
from pages.shared.state import get_selection, open_page, select
from pages.shared.tables import percent, show_table


def _skill_use(
    activations: pd.DataFrame, routes: pd.DataFrame, plan: pd.DataFrame, level: str, group: str
) -> pd.DataFrame:
    """Skill (or task) x expert at the question level (routes) or the token level (activations)."""
    by_group = plan if group == "skill" else plan.iloc[0:0]
    if level == "question":
        return compute_skill_use(routes, by_group, value="probability", group=group)
    return compute_skill_use(activations, by_group, value="weight", group=group)


def render_answer(activations: pd.DataFrame, routes: pd.DataFrame, plan: pd.DataFrame, experts: list[str]) -> None:
    """Who carries the tokens, and whether the best-matched skill goes where the plan says."""
    load = compute_load(activations, "weight").sort_values("load", ascending=False)
    first = load.iloc[0]
    sentences = [
        _("Expert {expert} carries {share} of the gate weight (even would be {even}).").format(
            expert=plain(first["expert"]), share=percent(first["load"]), even=percent(1 / max(len(load), 1))
        )
    ]
    frame = routes if len(routes) else activations
    use = _skill_use(activations, routes, plan, "question" if len(routes) else "token", "skill")
    assigned = use[use["assigned"] & use["expert"].isin([*experts, "base"])]
    if len(frame) and len(assigned):
        best = assigned.sort_values("routed", ascending=False).iloc[0]
        hits = (assigned["routed"] * assigned["n"]).sum() / assigned["n"].sum()
        sentences.append(
            _(
                "Questions go where the plan sends them with {hits}; '{skill}' most of all: {share} to '{expert}' (lift {lift}, n={n})."
            ).format(
                hits=percent(hits),
                skill=plain(best["skill"]),
                share=percent(best["routed"]),
                expert=plain(best["expert"]),
                lift=f"{best['lift']:.1f}",
                n=int(best["n"]),
            )
        )
    answer_line(" ".join(sentences))


def render_layer_heatmap(activations: pd.DataFrame, experts: list[str]) -> tuple[int, str] | None:
    """Layer x expert; returns the clicked (layer, expert)."""
    st.markdown(_("**Layer × expert**"))
    names = {"weight": _("Mean gate weight"), "share": _("Share of chosen gates")}
    value = st.segmented_control(
        _("Value"),
        list(names),
        default="weight",
        format_func=names.get,
        key="router_value",
        bind="query-params",
        label_visibility="collapsed",
    )
    use, height = compute_layer_use(activations), 150 + 34 * len(experts)
    figure = make_layer_heatmap_figure(use, experts, height, value or "weight")
    alt = _("Heatmap: how often each expert is chosen at each layer.")
    points = clicked_points(show_figure(figure, key="router_layers", alt=alt, select="points"))
    if points and points[0].get("customdata"):
        layer, expert = points[0]["customdata"][:2]
        return int(layer), str(expert)
    return None


def render_skill_heatmap(
    activations: pd.DataFrame, routes: pd.DataFrame, plan: pd.DataFrame, experts: list[str]
) -> tuple[str, str] | None:
    """Skill or task x expert, at the question or the token level; returns the clicked (skill, expert)."""
    left, right = st.columns(2)
    levels = ["question", "token"] if len(routes) else ["token"]
    with left:
        group = st.segmented_control(
            _("Rows"),
            ["skill", "task"],
            default="skill",
            format_func={"skill": _("Skills"), "task": _("Tasks")}.get,
            key="router_group",
            bind="query-params",
        )
    with right:
        level = st.segmented_control(
            _("Level"),
            levels,
            default=levels[0],
            format_func={"question": _("Per question (probability)"), "token": _("Per token (gate weight)")}.get,
            key="router_level",
            bind="query-params",
        )
    group, level = group or "skill", level or levels[0]
    use = _skill_use(activations, routes, plan, level, group)
    if use.empty:
        st.info(_("These questions have no skill yet."), icon=":material/label_off:")
        return None
    columns = [*experts, "base"] if "base" in set(use["expert"]) else experts
    height = 120 + 36 * use[group].nunique()
    alt = _("Heatmap: where questions of each skill were routed; a frame marks where the plan assigns them.")
    figure = make_skill_heatmap_figure(use, columns, group, height)
    points = clicked_points(show_figure(figure, key=f"router_{group}_{level}", alt=alt, select="points"))
    st.caption(_("A frame marks the expert that the plan assigns to the skill; 'base' means: no adapter."))
    if points and points[0].get("customdata"):
        return str(points[0]["customdata"][0]), str(points[0]["customdata"][1])
    return None


def render_clicked_cell(
    store: Store, system: str, cell: tuple[int, str] | None, skill_cell: tuple[str, str] | None
) -> None:
    """Questions behind the clicked cell."""
    if cell is None and skill_cell is None:
        st.info(_("Click a cell of a heatmap to see its questions."), icon=":material/touch_app:")
        return
    layer, expert = cell if cell else (None, skill_cell[1] if skill_cell else None)
    title = _("Layer {layer}, expert {expert}").format(layer=layer, expert=plain(expert)) if cell else ""
    rows = fetch_question_activations(store, system, layer, None if expert == "base" else expert)
    if not cell and skill_cell:
        rows = rows[(rows["skill"] == skill_cell[0]) | (rows["task"] == skill_cell[0])]
        title = f"{plain(skill_cell[0])} → {plain(skill_cell[1])}"
    st.markdown(f"**{title}**")
    st.caption(_("Questions that use this expert most"))
    picked = show_table(
        rows[["question_id", "task", "prompt", "share"]].head(50),
        "router_cell_questions",
        labels={"task": _("Task"), "prompt": _("Question")},
        formats={"share": st.column_config.ProgressColumn(_("Share"), min_value=0, max_value=1, format="%.2f")},
        hide=("question_id",),
        select="single-row",
        height=240,
    )
    if len(picked):
        ids = picked["question_id"].tolist()
        if st.button(_("All answers to this question"), key="router_open_question"):
            select(questions=ids, why=title)
            open_page("outcomes")


def render_health(activations: pd.DataFrame) -> None:
    """Load per expert, entropy per layer, and a warning when the routing collapses."""
    load = compute_load(activations, "weight")
    for row in find_collapse(load).itertuples():
        text = (
            _("Expert {expert} takes nearly everything ({share}): the routing has collapsed.")
            if row.problem == "dominant"
            else _("Expert {expert} is hardly used ({share}).")
        )
        st.warning(text.format(expert=plain(row.expert), share=percent(row.load)), icon=":material/warning:")
    st.markdown(_("**Load per expert**"))
    show_figure(make_load_figure(load, 90 + 34 * len(load)), key="router_load", alt=_("Load per expert."))
    st.markdown(_("**Entropy per layer**"))
    show_figure(
        make_entropy_figure(compute_layer_entropy(activations, "weight")),
        key="router_entropy",
        alt=_("Entropy per layer."),
    )


def render_token_strip(store: Store, system: str, experts: list[str]) -> None:
    """One question token by token, from the sample whose gates were kept."""
    st.subheader(_("One question, token by token"), anchor=False)
    questions = fetch_token_questions(store, system)
    if questions.empty:
        st.info(_("No question of this mixture was recorded token by token."), icon=":material/inbox:")
        return
    ids = questions["question_id"].tolist()
    names = {row.question_id: f"{row.task}: {' '.join(row.prompt.split())[:110]}" for row in questions.itertuples()}
    chosen = [question for question in get_selection().questions if question in names]
    question_id = st.selectbox(
        _("Question"),
        ids,
        index=ids.index(chosen[0]) if chosen else 0,
        format_func=lambda question: names[question],
        key=f"router_question_{chosen[0] if chosen else ''}",
    )
    row = questions[questions["question_id"] == question_id].iloc[0]
    tokens = fetch_token_activations(store, system, question_id)
    if not (tokens["weight"] > 0).any():
        st.info(_("This question went to the bare base model: no expert was used."), icon=":material/block:")
        question_text(row["prompt"], key=f"router_{question_id}", question_id=question_id)
        return
    left, right = st.columns([3, 1], gap="medium")
    with left:
        question_text(row["prompt"], key=f"router_{question_id}", question_id=question_id)
        figure = make_token_figure(tokens, experts, height=190 + 34 * len(experts))
        show_figure(figure, key="router_tokens", alt=_("Gate weight of each expert at each token, mean over layers."))
        st.caption(_("Mean gate weight over layers; tokens from left to right."))
    with right:
        figure = make_question_layer_figure(tokens, experts)
        show_figure(
            figure, key="router_question_layers", alt=_("Gate weight of each expert at each layer, this question.")
        )
