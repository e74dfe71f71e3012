"""Outcomes: does the mixture know more than its best expert?"""

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_systems
from metamoe_backend.store.results import fetch_predictions
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, empty_state, page_header
from pages.shared.outcome_views import (
    choose_experts,
    render_answer,
    render_errors,
    render_outcome_bars,
    render_question_list,
    render_side_by_side,
)
from pages.shared.regimes import render_regimes
from pages.shared.review_views import render_review_action
from pages.shared.state import get_selection, get_store, open_page, per_version


@per_version
def load(store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    return fetch_predictions(store), fetch_systems(store)


def render() -> None:
    action = page_header(
        _("Outcomes"), _("Questions that all experts, some, or none of them solve, and what the mixture makes of them.")
    )
    with action:
        if st.button(_("Evaluate more"), type="primary", key="outcomes_evaluate", icon=":material/play_arrow:"):
            open_page("jobs")
    predictions, systems = load(get_store())
    selected = get_selection().questions
    if predictions.empty:
        empty_state(_("Nothing has been evaluated yet."), button=_("Go to Jobs"), page="jobs")
        return
    experts = choose_experts(predictions, systems)
    if len(experts) >= 2:
        render_answer(predictions, systems, experts)
        canvas, inspector = canvas_and_inspector()
        with canvas:
            part = render_outcome_bars(predictions, experts)
            render_regimes(predictions)
            render_review_action(get_store(), "outcomes/parts", ["outcomes_experts"])
        with inspector:
            render_errors(predictions, systems, experts, part)
            render_review_action(get_store(), "outcomes/errors", ["outcomes_experts"])
        question_ids = render_question_list(predictions, experts, part, selected)
    else:
        st.info(_("Outcomes compare experts with each other: choose at least two."), icon=":material/group:")
        question_ids = list(selected)
    if question_ids:
        render_side_by_side(get_store(), question_ids[0])


render()
