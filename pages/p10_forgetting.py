"""Forgetting: what was lost for what was gained?"""

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.forgetting import find_own_tasks
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_adapters, fetch_systems
from metamoe_backend.store.results import fetch_predictions
from pages.shared.forgetting_predictors import render_predictors
from pages.shared.forgetting_sequences import render_sequences
from pages.shared.forgetting_views import (
    render_answer,
    render_cell,
    render_changed,
    render_matrix,
    render_own_and_other,
)
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, empty_state, page_header
from pages.shared.regimes import render_cut, render_metric, render_regimes, render_way
from pages.shared.review_views import render_review_action
from pages.shared.state import get_store, open_page, per_version

METRIC = "forgetting_metric"


@per_version
def load(store: Store) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return fetch_predictions(store), fetch_systems(store), fetch_adapters(store)


def render() -> None:
    action = page_header(
        _("Forgetting"), _("What each system gained and lost against the base model, on held-out questions.")
    )
    with action:
        if st.button(_("Evaluate more"), type="primary", key="forgetting_evaluate", icon=":material/play_arrow:"):
            open_page("jobs")
    predictions, systems, adapters = load(get_store())
    predictions = render_way(render_metric(get_store(), predictions, METRIC), "forgetting_way")
    if predictions.empty or "base" not in set(predictions["system"]):
        empty_state(
            _("Nothing to compare yet: evaluate the base model and at least one expert."),
            button=_("Go to Jobs"),
            page="jobs",
        )
        return
    evaluated = systems.loc[systems["system"].isin(predictions["system"]), "system"].tolist()
    render_answer(predictions, systems, adapters)
    canvas, inspector = canvas_and_inspector()
    with canvas:
        cell = render_matrix(predictions, evaluated)
        chosen = [METRIC] if METRIC in st.query_params else []
        render_review_action(get_store(), "forgetting/matrix", ["forgetting_view", *chosen])
    with inspector:
        render_cell(predictions, cell)
    render_changed(get_store(), predictions, cell)
    render_own_and_other(predictions, systems, adapters)
    render_regimes(predictions)
    render_cut(predictions)
    render_sequences(predictions, systems)
    render_predictors(predictions, systems, adapters, find_own_tasks(systems, adapters, set(evaluated)))


render()
