"""Meta-questions: what is asked in general?"""

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_meta_questions, fetch_tasks
from pages.shared.i18n import _
from pages.shared.layout import answer_line, canvas_and_inspector, empty_state, page_header
from pages.shared.meta_question_build import open_build_dialog, render_builds
from pages.shared.meta_question_views import (
    choose_rows,
    describe_answer,
    render_comparison,
    render_editor,
    render_pairs,
)
from pages.shared.state import get_store, per_version


@per_version
def load(store: Store) -> pd.DataFrame:
    return fetch_meta_questions(store)


@per_version
def load_tasks(store: Store) -> list[str]:
    return fetch_tasks(store)["task"].tolist()


def ask_to_build() -> None:
    st.session_state["meta_building"] = True


def render() -> None:
    action = page_header(
        _("Meta-questions"), _("Each question without its particulars, so that questions needing one skill read alike.")
    )
    store = get_store()
    tasks = load_tasks(store)
    if not tasks:
        empty_state(_("There are no questions to build from yet."), button=_("Import questions"), page="tasks")
        return
    with action:
        st.button(_("Build"), type="primary", key="meta_build", icon=":material/abc:", on_click=ask_to_build)
    if st.session_state.pop("meta_building", False):
        open_build_dialog(tasks)
    render_builds(store)
    built = load(store)
    if built.empty:
        empty_state(
            _("No meta-question is built yet. The template method needs no model and takes seconds."),
            button=_("Build meta-questions"),
            on_click=ask_to_build,
        )
        return
    answer = st.container()
    of_method, shown = choose_rows(built)
    with answer:
        answer_line(describe_answer(of_method))
    canvas, inspector = canvas_and_inspector()
    with canvas:
        picked = render_pairs(shown)
    with inspector:
        render_editor(store, of_method, picked)
    render_comparison(store)


render()
