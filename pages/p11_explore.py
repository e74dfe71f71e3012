"""Explore: anything else? One SELECT at a time, on a copy that nothing here can change."""

import streamlit as st

from metamoe_backend.errors import QueryError
from metamoe_backend.store.console import QueryResult, run_query
from metamoe_backend.store.publishing import publish
from pages.shared.errors import error_boundary
from pages.shared.explore_examples import list_examples
from pages.shared.explore_reference import remember, render_reference
from pages.shared.explore_result import render_result
from pages.shared.i18n import _, ngettext
from pages.shared.layout import answer_line, canvas_and_inspector, page_header, plain
from pages.shared.state import get_store
from pages.shared.tables import duration_text

SQL = "explore_sql"
RESULT = "explore_result"
ROW_LIMITS = [100, 1_000, 10_000, 100_000]
TIME_LIMITS_S = [5, 20, 60, 300]


def use(sql: str) -> None:
    """Put a statement into the editor."""
    st.session_state[SQL] = sql


def run(sql: str, limit: int, timeout_s: int) -> None:
    """Run, and keep the result or what was wrong with the statement until the next one."""
    try:
        with st.spinner(_("Running, for at most {time} …").format(time=duration_text(timeout_s)), show_time=True):
            result = run_query(publish(get_store()), sql, limit=limit, timeout_s=timeout_s)
    except QueryError as error:
        st.session_state[RESULT] = (sql, error)
        remember(sql, _("failed"))
    else:
        st.session_state[RESULT] = (sql, result)
        remember(sql, count_text(len(result.rows)))


def count_text(n: int) -> str:
    return ngettext("{n} row", "{n} rows", n).format(n=f"{n:,}")


def render_limits() -> tuple[int, int]:
    with st.popover(_("Limits"), icon=":material/tune:"):
        limit = st.select_slider(
            _("Rows, at most"),
            ROW_LIMITS,
            1_000,
            format_func="{:,}".format,
            key="explore_limit",
            persist_state="session",
        )
        timeout_s = st.select_slider(
            _("Time, at most"),
            TIME_LIMITS_S,
            20,
            format_func=duration_text,
            key="explore_timeout",
            persist_state="session",
        )
        st.caption(_("A query that takes longer is ended, not left behind."))
    return limit, timeout_s


def render_answer(result: QueryResult) -> None:
    answer_line(_("{rows} in {time} s").format(rows=count_text(len(result.rows)), time=f"{result.elapsed_s:.3f}"))
    if result.truncated:
        st.caption(_("The result was cut at the limit; the exports have all rows."))


def render() -> None:
    action = page_header(
        _("Explore"), _("One SELECT at a time, on a read-only copy of the workspace: nothing here can change anything.")
    )
    with action:
        limit, timeout_s = render_limits()
        clicked = st.button(
            _("Run"), type="primary", icon=":material/play_arrow:", key="explore_run", shortcut="Mod+Enter"
        )
    answer = st.container()
    canvas, inspector = canvas_and_inspector()
    with canvas:
        st.session_state.setdefault(SQL, next(iter(list_examples().values())))
        sql = st.text_area(
            _("SQL"), key=SQL, height=150, on_change="ignore", persist_state="session", label_visibility="collapsed"
        )
        with error_boundary():
            if clicked:
                run(sql, limit, timeout_s)
            ran, result = st.session_state.get(RESULT, ("", None))
            if isinstance(result, QueryError):
                st.error(plain(result), icon=":material/error:")
            elif result is not None:
                with answer:
                    render_answer(result)
                render_result(ran, result)
    with inspector:
        render_reference(use)


render()
