"""Router: which expert is used where?"""

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_plan_entries, fetch_system_settings, fetch_systems
from metamoe_backend.store.results import fetch_activations, fetch_mixtures_with_activations, fetch_routes
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, empty_state, page_header
from pages.shared.review_views import render_review_action
from pages.shared.router_agreement import (
    load_agreement,
    load_patterns,
    load_votes,
    render_agreement,
    render_together,
)
from pages.shared.router_views import (
    render_answer,
    render_clicked_cell,
    render_health,
    render_layer_heatmap,
    render_lower_cell,
    render_question,
    render_skill_heatmap,
)
from pages.shared.state import get_store, open_page, per_version


@per_version
def load_mixtures(store: Store) -> pd.DataFrame:
    return fetch_mixtures_with_activations(store)


@per_version
def load(store: Store, system: str, tasks: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    plan = fetch_system_settings(store, system).get("plan")
    entries = fetch_plan_entries(store, plan) if plan else pd.DataFrame({"skill": [], "expert": []})
    routes = fetch_routes(store, system)
    return fetch_activations(store, system, tasks), routes[routes["task"].isin(tasks)] if tasks else routes, entries


def render() -> None:
    action = page_header(_("Router"), _("How a mixture shares questions and tokens out over its experts."))
    with action:
        if st.button(_("Evaluate a mixture"), type="primary", key="router_evaluate", icon=":material/play_arrow:"):
            open_page("jobs")
    store = get_store()
    mixtures = load_mixtures(store)
    if mixtures.empty:
        empty_state(_("No mixture has been evaluated with its router recorded."), button=_("Go to Jobs"), page="jobs")
        return
    system, tasks = _choose(store, mixtures)
    activations, routes, plan = load(store, system, tasks)
    if activations.empty:
        empty_state(_("This mixture was not evaluated on these tasks."), button=_("Go to Jobs"), page="jobs")
        return
    systems = fetch_systems(store, [system])
    experts = list(systems["experts"].iloc[0]) if len(systems) else sorted(activations["expert"].unique())
    render_answer(activations, routes, plan, experts)
    canvas, inspector = canvas_and_inspector()
    with canvas:
        render_layer_heatmap(activations, experts)
        render_review_action(store, "router/layers", ["router_system", "router_tasks", "router_value"])
        render_skill_heatmap(activations, routes, plan, experts)
        render_review_action(store, "router/skills", ["router_system", "router_tasks", "router_group", "router_level"])
    with inspector:
        render_clicked_cell(store, system, tasks, routes)
        render_health(activations)
    pairs = tuple(zip(plan["skill"], plan["expert"], strict=True))
    votes = load_votes(store, system, tasks, pairs)
    left, right = st.columns(2, gap="medium")
    with left:
        render_together(load_patterns(store, system, tasks), experts)
        render_review_action(store, "router/pairs", ["router_system", "router_tasks"])
    with right:
        raters = render_agreement(votes, load_agreement(store, system, tasks, pairs), experts)
        render_review_action(store, "router/agreement", ["router_system", "router_tasks"])
    render_lower_cell(store, system, tasks, votes, raters)
    render_question(store, system, experts)


def _choose(store: Store, mixtures: pd.DataFrame) -> tuple[str, tuple[str, ...]]:
    left, right = st.columns([1, 2])
    with left:
        system = st.selectbox(_("Mixture"), mixtures["system"].tolist(), key="router_system", bind="query-params")
    every = sorted(load(store, system, ())[0]["task"].unique())
    with right:
        tasks = st.multiselect(_("Tasks"), every, key="router_tasks", placeholder=_("all tasks"), bind="query-params")
    return system, tuple(tasks)


render()
