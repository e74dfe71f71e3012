"""The parts of the Meta-questions page: which rows, the pairs, one pair with its history, and the methods compared."""

from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import (
    edit_meta_question,
    fetch_meta_question_history,
    fetch_meta_questions,
    fetch_questions,
)
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm_and_rerun, plain, question_text
from pages.shared.marking import mark_differences
from pages.shared.state import get_person, get_selection, get_store, open_page, per_version, select
from pages.shared.tables import accuracy_text, show_table

PAIRS_PER_PAGE = 8
_PICKED = "meta_picked"


def method_name(method: str) -> str:
    names = {"template": _("Template"), "llm": _("Language model"), "question": _("The questions as they stand")}
    return names.get(method, method)


def describe_answer(rows: pd.DataFrame) -> str:
    return _("{built} meta-questions built, {distinct} distinct, {edited} edited by hand.").format(
        built=f"{len(rows):,}", distinct=f"{rows['text'].nunique():,}", edited=f"{int(rows['edited'].sum()):,}"
    )


def choose_rows(built: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows of the chosen method and tasks, and those that also fit the search."""
    methods = sorted(built["method"].unique(), reverse=True)
    selected = set(get_selection().questions)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        method = st.segmented_control(
            _("Method"), methods, default=methods[0], format_func=method_name, key="meta_method", required=True
        )
        tasks = st.multiselect(
            _("Tasks"), sorted(built["task"].unique()), key="meta_tasks", placeholder=_("all tasks"), width=260
        )
        search = st.text_input(
            _("Search"), key="meta_search", placeholder=_("in questions and meta-questions"), bind="query-params"
        )
        only_edited = st.toggle(_("Edited only"), key="meta_edited")
        only_selected = bool(selected) and st.toggle(_("Selected only"), key="meta_selected", value=True)
    rows = built[built["method"] == method]
    rows = rows[rows["task"].isin(tasks)] if tasks else rows
    return rows, filter_rows(rows, search or "", only_edited, selected if only_selected else set())


def filter_rows(rows: pd.DataFrame, search: str, only_edited: bool, ids: set[str]) -> pd.DataFrame:
    """Rows that contain every word of the search, in either text, whatever the case."""
    text = (rows["prompt"] + "\n" + rows["text"]).str.casefold()
    fits = pd.Series(True, index=rows.index)
    for word in search.casefold().split():
        fits &= text.str.contains(word, regex=False)
    if only_edited:
        fits &= rows["edited"]
    if ids:
        fits &= rows["question_id"].isin(ids)
    return rows[fits]


def render_pairs(rows: pd.DataFrame) -> Any:
    """Question and meta-question side by side, a few at a time; returns the picked row (None where there is none)."""
    if rows.empty:
        st.info(_("No meta-question fits; change the search or the tasks."), icon=":material/search_off:")
        return None
    pages = -(-len(rows) // PAIRS_PER_PAGE)
    # A key of its own per number of pages: a page that is no longer there cannot stay chosen.
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.caption(ngettext("{n} question", "{n} questions", len(rows)).format(n=f"{len(rows):,}"), width="content")
        number = st.pagination(pages, key=f"meta_page_{pages}") if pages > 1 else 1
    shown = rows.iloc[(number - 1) * PAIRS_PER_PAGE : number * PAIRS_PER_PAGE]
    if st.session_state.get(_PICKED) not in set(rows["question_id"]):
        st.session_state[_PICKED] = shown["question_id"].iloc[0]
    for row in shown.itertuples():
        _render_pair(row)
    return next(rows[rows["question_id"] == st.session_state[_PICKED]].itertuples())


def _render_pair(row: Any) -> None:
    is_picked = st.session_state[_PICKED] == row.question_id
    with st.container(border=True, gap="xsmall"):
        left, right, end = st.columns([10, 10, 1], gap="medium", vertical_alignment="top")
        with left:
            question_text(row.prompt, key=f"meta_{row.question_id}", question_id=row.question_id)
        with right:
            st.markdown(mark_differences(row.prompt, row.text, limit=600))
            if row.edited:
                st.badge(_("edited"), icon=":material/edit:", color="violet")
        with end:
            st.button(
                "",
                key=f"meta_open_{row.question_id}",
                icon=":material/chevron_right:",
                type="primary" if is_picked else "tertiary",
                help=_("Look at this one and edit it"),
                on_click=lambda: st.session_state.update({_PICKED: row.question_id}),
            )
        st.caption(plain(row.task))


def render_editor(store: Store, rows: pd.DataFrame, row: Any) -> None:
    """One pair in full: its text to edit, who reads alike, and what was changed before."""
    if row is None:
        return
    with st.container(border=True):
        st.caption(_("{task}, by {method}").format(task=plain(row.task), method=method_name(row.method)))
        question_text(row.prompt, key=f"meta_whole_{row.question_id}", question_id=row.question_id)
        st.markdown(mark_differences(row.prompt, row.text))
        _render_form(store, row)
        _render_alike(rows, row)
        _render_history(store, row)


def _render_form(store: Store, row: Any) -> None:
    # The key follows the stored text, so that an edit or its undo shows in the field.
    key = f"meta_text_{row.question_id}_{row.method}_{hash(row.text)}"
    with st.form(f"form_{key}", border=False):
        text = st.text_area(_("Edit the meta-question"), value=row.text, key=key, height=110, max_chars=4000)
        if st.form_submit_button(_("Save"), icon=":material/save:"):
            event = edit_meta_question(store, row.question_id, row.method, text, get_person())
            confirm_and_rerun(_("Meta-question stored."), undo=lambda: undo(get_store(), event, get_person()))


def _render_alike(rows: pd.DataFrame, row: Any) -> None:
    alike = rows.loc[rows["text"] == row.text, "question_id"].tolist()
    if len(alike) < 2:
        st.caption(_("No other question reads like this."))
        return
    others = len(alike) - 1
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            ngettext("{n} other question reads the same.", "{n} other questions read the same.", others).format(
                n=f"{others:,}"
            ),
            width="content",
        )
        if st.button(_("See on the map"), key="meta_map", icon=":material/scatter_plot:", type="tertiary"):
            select(questions=alike, why=row.text[:40])
            open_page("map")


def _render_history(store: Store, row: Any) -> None:
    edits = fetch_meta_question_history(store, row.question_id)
    edits = edits[edits["method"] == row.method]
    with st.expander(_("History ({n})").format(n=len(edits) + 1), icon=":material/history:"):
        for edit in edits.itertuples():
            st.caption(
                _("{person}, {time} UTC").format(person=plain(edit.author), time=f"{edit.made_at:%Y-%m-%d %H:%M}")
            )
            st.text(edit.text)
            st.button(
                _("Undo"),
                key=f"meta_undo_{edit.event_id}",
                icon=":material/undo:",
                type="tertiary",
                on_click=guarded(lambda event=edit.event_id: undo(get_store(), event, get_person())),
            )
        st.caption(_("as built by {method}").format(method=method_name(row.method)))
        st.text(row.built_text)


@per_version
def load_comparison(store: Store) -> pd.DataFrame:
    from metamoe_backend.meta_question_quality import compare_methods

    return compare_methods(fetch_meta_questions(store), fetch_questions(store))


def render_comparison(store: Store) -> None:
    """The methods beside each other, and beside the questions as they stand."""
    st.subheader(_("Which method tells skills apart?"), anchor=False)
    with st.spinner(_("Comparing …")):
        frame = load_comparison(store)
    shown = frame.assign(
        method=frame["method"].map(method_name),
        accuracy=[
            accuracy_text(row.accuracy, row.low, row.high, int(row.built - row.labels)) for row in frame.itertuples()
        ],
    )
    show_table(
        shown[["method", "built", "distinct", "edited", "nmi", "accuracy"]],
        "meta_comparison",
        labels={
            "method": _("Method"),
            "built": _("Questions, n"),
            "distinct": _("Distinct texts"),
            "edited": _("Edited"),
        },
        formats={
            "nmi": st.column_config.NumberColumn(
                _("NMI to tasks"),
                format="%.2f",
                help=_("Normalised mutual information of “reads the same” and “is of the same task”, 0 to 1."),
            ),
            "accuracy": st.column_config.TextColumn(
                _("Task told from few labels"),
                help=_("Logistic regression on words, 5 labels a task; mean and 95 % range of 10 random draws."),
            ),
        },
    )
    st.caption(
        _("Fewer distinct texts at a higher NMI: the particulars are gone and the kind of question is still there.")
    )
