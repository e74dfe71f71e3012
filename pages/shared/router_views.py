"""The parts of the Router page."""

from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.routing import (
    DOMINANT_LOAD,
    UNUSED_LOAD,
    compute_layer_entropy,
    compute_layer_use,
    compute_load,
    compute_skill_use,
    find_collapse,
    find_collapsed_layers,
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
from metamoe_backend.store.questions import fetch_prompts, fetch_questions
from metamoe_backend.store.results import (
    fetch_pair_questions,
    fetch_question_activations,
    fetch_token_activations,
    fetch_token_questions,
)
from pages.shared.charts import show_figure
from pages.shared.counterfactual_views import render_counterfactual
from pages.shared.i18n import _
from pages.shared.layout import answer_line, plain, question_text
from pages.shared.review_views import filter_words
from pages.shared.router_agreement import rater_name
from pages.shared.router_clicks import find_click, remember_click, render_questions
from pages.shared.state import get_selection, segment_in_address
from pages.shared.tables import percent


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


def render_layer_heatmap(activations: pd.DataFrame, experts: list[str]) -> None:
    """Layer x expert: mean gate weight, share of chosen gates, or top-k share."""
    st.markdown(_("**Layer × expert**"))
    use, height = compute_layer_use(activations), 150 + 34 * len(experts)
    names = filter_words()["router_value"]
    if use["chosen"].isna().any():
        del names["chosen"]  # recorded before the top-k share was kept
    value = segment_in_address(_("Value"), names, key="router_value", visible=False)
    figure = make_layer_heatmap_figure(use, experts, height, value)
    alt = _("Heatmap: how often each expert is chosen at each layer.")
    show_figure(figure, key="router_layers", alt=alt, select="points", on_select=remember_click("router_layers"))


def render_skill_heatmap(
    activations: pd.DataFrame, routes: pd.DataFrame, plan: pd.DataFrame, experts: list[str]
) -> None:
    """Skill or task x expert, at the question or the token level."""
    words = filter_words()
    if not len(routes):
        del words["router_level"]["question"]
    with st.container(horizontal=True):
        group = segment_in_address(_("Rows"), words["router_group"], key="router_group")
        level = segment_in_address(_("Level"), words["router_level"], key="router_level")
    use = _skill_use(activations, routes, plan, level, group)
    if use.empty:
        st.info(_("These questions have no skill yet."), icon=":material/label_off:")
        return
    columns = [*experts, "base"] if "base" in set(use["expert"]) else experts
    height = 120 + 36 * use[group].nunique()
    alt = _("Heatmap: where questions of each skill were routed; a frame marks where the plan assigns them.")
    figure = make_skill_heatmap_figure(use, columns, group, height)
    key = f"router_{group}_{level}"
    show_figure(figure, key=key, alt=alt, select="points", on_select=remember_click(key, "router_skills"))
    st.caption(_("A frame marks the expert that the plan assigns to the skill; 'base' means: no adapter."))


def render_clicked_cell(store: Store, system: str, tasks: tuple[str, ...], routes: pd.DataFrame) -> None:
    """Questions behind the cell of the upper heatmaps that was clicked last."""
    clicked = find_click("router_layers", "router_skills")
    if clicked is None:
        st.info(_("Click a cell of a heatmap to see its questions."), icon=":material/touch_app:")
        return
    heatmap, (row, expert) = clicked
    caption = _("Questions that use this expert most")
    if heatmap == "router_layers":
        title = _("Layer {layer}, expert {expert}").format(layer=row, expert=plain(expert))
        rows = fetch_question_activations(store, system, int(row), str(expert), tasks)
    else:
        title = f"{plain(row)} → {plain(expert)}"
        if len(routes):
            rows = routes[routes["expert"] == expert].rename(columns={"probability": "share"})
            rows = rows.sort_values("share", ascending=False, kind="stable")
            caption = _("Questions that the task router sends there most")
        else:
            rows = fetch_question_activations(store, system, None, str(expert), tasks, limit=10_000)
        rows = rows[(rows["skill"] == row) | (rows["task"] == row)].head(50)
        if "prompt" not in rows:
            rows = rows.assign(prompt=rows["question_id"].map(fetch_prompts(store, rows["question_id"].tolist())))
    render_questions(rows, title, caption, "cell")


def render_health(activations: pd.DataFrame) -> None:
    """Load per expert, entropy per layer, and a warning when the routing collapses."""
    load = compute_load(activations, "weight")
    texts = {
        "dominant": _("Expert {expert} takes nearly everything ({share}): the routing has collapsed."),
        "dead": _("Expert {expert} is dead: no token is ever sent to it."),
        "unused": _("Expert {expert} is hardly used ({share})."),
    }
    for row in find_collapse(load).itertuples():
        text = texts[row.problem].format(expert=plain(row.expert), share=percent(row.load))
        st.warning(text, icon=":material/warning:")
    collapsed = find_collapsed_layers(compute_layer_use(activations))
    if len(collapsed):
        st.warning(
            _("In {n} of {layers} layers one expert takes nearly everything: {named}.").format(
                n=len(collapsed), layers=activations["layer"].nunique(),
                named=", ".join(f"{row.layer} ({plain(row.expert, 24)})" for row in collapsed.head(6).itertuples()),
            ),
            icon=":material/warning:",
        )  # fmt: skip
    st.markdown(_("**Load per expert**"))
    show_figure(make_load_figure(load, 90 + 34 * len(load)), key="router_load", alt=_("Load per expert."))
    st.caption(
        _(
            "Warned of: at least {most} of the load on one expert, over all layers or in one; less than {least} of an even load."
        ).format(most=percent(DOMINANT_LOAD), least=percent(UNUSED_LOAD))
    )
    st.markdown(_("**Entropy per layer**"))
    show_figure(
        make_entropy_figure(compute_layer_entropy(activations, "weight")),
        key="router_entropy",
        alt=_("Entropy per layer."),
    )


def render_lower_cell(store: Store, system: str, tasks: tuple[str, ...], votes: pd.DataFrame, pair: Any) -> None:
    """Questions behind the cell of the lower heatmaps that was clicked last."""
    clicked = find_click("router_pairs", *(["router_confusion"] if pair else []))
    if clicked is None:
        return
    heatmap, (one, other) = clicked
    if heatmap == "router_pairs":
        rows = fetch_pair_questions(store, system, str(one), str(other), tasks)
        title = plain(one) if one == other else _("{one} and {other}").format(one=plain(one), other=plain(other))
        caption = _("Sampled questions by the share of their gates that chose this")
    else:
        wide = votes.pivot(index="question_id", columns="rater", values="expert")
        ids = wide.index[(wide[pair[0]] == one) & (wide[pair[1]] == other)].tolist()
        rows = fetch_questions(store, question_ids=ids)
        title = f"{rater_name(pair[0])}: {plain(one)}, {rater_name(pair[1])}: {plain(other)}"
        caption = _("Questions of this cell")
    render_questions(rows, title, caption, "lower")


def render_question(store: Store, system: str, experts: list[str]) -> None:
    """One question: its gates token by token where they were kept, and what each expert alone would answer."""
    st.subheader(_("One question, token by token"), anchor=False)
    sampled = fetch_token_questions(store, system)
    wanted = list(get_selection().questions[:1])
    others = [name for name in wanted if name not in set(sampled["question_id"])]
    questions = pd.concat([fetch_questions(store, question_ids=others), sampled], ignore_index=True)
    if questions.empty:
        st.info(_("No question of this mixture was recorded token by token."), icon=":material/inbox:")
        return
    ids = questions["question_id"].tolist()
    names = {row.question_id: f"{row.task}: {' '.join(row.prompt.split())[:110]}" for row in questions.itertuples()}
    chosen = [name for name in wanted if name in names]
    question_id = st.selectbox(
        _("Question"),
        ids,
        index=ids.index(chosen[0]) if chosen else 0,
        format_func=lambda question: names[question],
        key=f"router_question_{chosen[0] if chosen else ''}",
    )
    question = fetch_questions(store, question_ids=[question_id]).iloc[0]
    tokens = fetch_token_activations(store, system, question_id)
    question_text(question["prompt"], key=f"router_{question_id}", question_id=question_id)
    st.text(_("Right answer: {answer}").format(answer=question["answer"]))
    render_counterfactual(store, system, question.to_dict())
    if tokens.empty:
        st.info(_("This question is not in the sample that was recorded token by token."), icon=":material/inbox:")
    elif not (tokens["weight"] > 0).any():
        st.info(_("This question went to the bare base model: no expert was used."), icon=":material/block:")
    else:
        _render_tokens(tokens, experts)


def _render_tokens(tokens: pd.DataFrame, experts: list[str]) -> None:
    left, right = st.columns([3, 1], gap="medium")
    with left:
        figure = make_token_figure(tokens, experts, height=190 + 34 * len(experts))
        show_figure(figure, key="router_tokens", alt=_("Gate weight of each expert at each token, mean over layers."))
        st.caption(_("Mean gate weight over layers; tokens from left to right."))
    with right:
        figure = make_question_layer_figure(tokens, experts)
        show_figure(
            figure, key="router_question_layers", alt=_("Gate weight of each expert at each layer, this question.")
        )
