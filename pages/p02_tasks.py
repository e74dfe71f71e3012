"""Tasks: what do we study?"""

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_questions, fetch_tasks
from pages.shared.i18n import _
from pages.shared.layout import answer_line, canvas_and_inspector, empty_state, page_header
from pages.shared.state import get_store, per_version
from pages.shared.task_import import open_import_dialog, render_import_result
from pages.shared.task_views import render_preview, render_task_table


@per_version
def load(store: Store) -> pd.DataFrame:
    return fetch_tasks(store)


@per_version
def load_questions(store: Store, task: str) -> pd.DataFrame:
    return fetch_questions(store, (task,))


def render() -> None:
    action = page_header(_("Tasks"), _("Sets of questions, each scored in one way."))
    with action:
        st.button(
            _("Import questions"),
            type="primary",
            key="tasks_import",
            icon=":material/upload:",
            on_click=lambda: st.session_state.update(tasks_importing=True),
        )
    if st.session_state.pop("tasks_importing", False):
        open_import_dialog()
    render_import_result()
    tasks = load(get_store())
    if tasks.empty:
        empty_state(
            _("No questions yet. Import a file, a hub data set, or let a generator make some."),
            button=_("Import questions"),
            on_click=lambda: st.session_state.update(tasks_importing=True),
        )
        return
    answer_line(
        _("{tasks} tasks with {questions} questions: {train} to train on, {test} held out.").format(
            tasks=len(tasks),
            questions=f"{int(tasks['questions'].sum()):,}",
            train=f"{int(tasks['train'].sum()):,}",
            test=f"{int(tasks['test'].sum()):,}",
        )
    )
    canvas, inspector = canvas_and_inspector()
    with canvas:
        task = render_task_table(tasks)
    with inspector:
        render_preview(load_questions(get_store(), task), task)


render()
