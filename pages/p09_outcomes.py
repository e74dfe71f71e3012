"""Outcomes: does the mixture know more than its best expert?"""

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_systems
from metamoe_backend.store.results import fetch_predictions
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, empty_state, page_header
from pages.shared.outcome_questions import Chosen, render_question_list, render_side_by_side
from pages.shared.outcome_regret import render_regret, render_regret_by_expert
from pages.shared.outcome_views import (
    View,
    choose_view,
    render_answer,
    render_comparison,
    render_errors,
    render_intersections,
    render_outcome_bars,
    render_solver_bars,
)
from pages.shared.regimes import render_cut, render_metric, render_regimes, render_way
from pages.shared.review_views import filter_words, render_review_action
from pages.shared.state import get_selection, get_store, open_page, per_version, segment_in_address

FILTERS = ["outcomes_experts", "outcomes_show", "outcomes_by", "outcomes_mixture"]
METRIC = "outcomes_metric"
FIGURES = {"parts": render_outcome_bars, "solvers": render_solver_bars, "sets": render_intersections}


@per_version
def load(store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    return fetch_predictions(store), fetch_systems(store)


def list_filters() -> list[str]:
    """What a reviewer needs to see the same; the metric where it is not the usual one."""
    return [*FILTERS, *(name for name in (METRIC,) if name in st.query_params)]


def render() -> None:
    action = page_header(
        _("Outcomes"), _("Questions that all experts, some, or none of them solve, and what the mixture makes of them.")
    )
    with action:
        if st.button(_("Evaluate more"), type="primary", key="outcomes_evaluate", icon=":material/play_arrow:"):
            open_page("jobs")
    predictions, systems = load(get_store())
    selected = list(get_selection().questions)
    if predictions.empty:
        empty_state(_("Nothing has been evaluated yet."), button=_("Go to Jobs"), page="jobs")
        return
    predictions = render_metric(get_store(), predictions, METRIC)
    view = choose_view(render_way(predictions, "outcomes_way"), systems)
    if len(view.experts) >= 2:
        picked = render_view(view, selected)
    else:
        st.info(_("Outcomes compare experts with each other: choose at least two."), icon=":material/group:")
        picked = selected[0] if selected else None
    if picked:
        render_side_by_side(get_store(), picked)


def render_view(view: View, selected: list[str]) -> str | None:
    """The figure that is chosen and the questions behind what is clicked there; returns the question that is picked."""
    render_answer(view)
    show = segment_in_address(_("Show"), filter_words()["outcomes_show"], "outcomes_show", visible=False)
    if show == "regret":
        return render_regret_view(view)
    if show == "versus":
        compared = render_comparison(view)
        return render_question_list(view.predictions, compared, "outcomes_questions_versus") if compared else None
    canvas, inspector = canvas_and_inspector()
    with canvas:
        part, chosen = FIGURES[show](view)
        render_regimes(view.predictions)
        render_cut(view.predictions)
        render_review_action(get_store(), "outcomes/parts", list_filters())
    with inspector:
        errors = render_errors(view, part)
        render_review_action(get_store(), "outcomes/errors", list_filters())
    if selected and not chosen.clicked:
        chosen = Chosen(_("Selected questions ({n})").format(n=len(selected)), selected)
    return render_question_list(view.predictions, errors or chosen, f"outcomes_questions_{show}")


def render_regret_view(view: View) -> str | None:
    """What the mixture got wrong though an expert knew it."""
    expert = render_regret_by_expert(get_store(), view)
    picked = render_regret(get_store(), view, expert)
    render_review_action(get_store(), "outcomes/regret", list_filters())
    return picked


render()
