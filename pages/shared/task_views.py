"""The parts of the Tasks page."""

import pandas as pd
import streamlit as st

from pages.shared.i18n import _
from pages.shared.layout import plain, question_text
from pages.shared.state import open_page, select
from pages.shared.tables import show_table

PREVIEWED = 5


def regime_name(regime: str) -> str:
    names = {
        "choices": _("options, log-likelihood"),
        "exact": _("generated, exact match"),
        "number": _("generated, last number"),
        "reasoning_gym": _("generated, own scorer"),
        "code": _("program, unit tests"),
    }
    return names.get(regime, regime)


def render_task_table(tasks: pd.DataFrame) -> str:
    """All tasks; returns the picked one (the first unless a row is picked)."""
    shown = tasks.assign(regime=tasks["regime"].map(regime_name), lengths=[list(map(int, x)) for x in tasks["lengths"]])
    picked = show_table(
        shown[["task", "train", "validation", "test", "lengths", "mean_characters", "regime", "source"]],
        "tasks_table",
        labels={
            "task": _("Task"),
            "train": _("Train"),
            "validation": _("Validation"),
            "test": _("Test"),
            "regime": _("Scored by"),
            "source": _("Source"),
        },
        formats={
            "lengths": st.column_config.BarChartColumn(
                _("Lengths"), help=_("Prompt lengths, shortest to longest"), width="small"
            ),
            "mean_characters": st.column_config.NumberColumn(_("Mean length, characters"), format="%.0f"),
        },
        select="single-row",
        height=min(560, 45 + 36 * len(shown)),
    )
    return str(picked["task"].iloc[0] if len(picked) else tasks["task"].iloc[0])


def render_preview(questions: pd.DataFrame, task: str) -> None:
    """Five questions of one task, drawn anew on request."""
    st.markdown(f"**{plain(task)}**")
    left, right = st.columns(2)
    with left:
        if st.button(_("Draw others"), key="tasks_draw", icon=":material/shuffle:"):
            st.session_state["tasks_seed"] = st.session_state.get("tasks_seed", 0) + 1
    with right:
        if st.button(_("See on the map"), key="tasks_map", icon=":material/scatter_plot:"):
            select(questions=questions["question_id"].tolist(), why=task)
            open_page("map")
    drawn = questions.sample(min(PREVIEWED, len(questions)), random_state=st.session_state.get("tasks_seed", 0))
    for row in drawn.itertuples():
        with st.container(border=True):
            question_text(row.prompt, key=f"tasks_{row.question_id}", question_id=row.question_id)
            if pd.api.types.is_list_like(row.choices):
                st.text(
                    " / ".join(f"[{choice}]" if n == row.gold else str(choice) for n, choice in enumerate(row.choices))
                )
            else:
                st.text(_("Answer: {answer}").format(answer=row.answer))
            st.caption(plain(row.split))
