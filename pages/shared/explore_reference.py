"""The Explore page's inspector: what there is to query, queries to start from, and what was asked before."""

from collections.abc import Callable
from datetime import datetime

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.schema import describe_table, fetch_schema
from pages.shared.explore_examples import list_examples
from pages.shared.i18n import _
from pages.shared.state import get_store, per_version
from pages.shared.text import plain

HISTORY = "explore_history"
_KEPT = 30
_TABLES_HEIGHT = 600
"""Pixels of the list of tables, which scrolls in itself: the result below the editor stays in sight."""
Use = Callable[[str], None]


def remember(sql: str, outcome: str) -> None:
    """Put a statement at the top of the history of this session."""
    entry = (sql, outcome, datetime.now().strftime("%H:%M"))
    others = [kept for kept in st.session_state.get(HISTORY, []) if kept[0] != sql]
    st.session_state[HISTORY] = [entry, *others][:_KEPT]


def render_reference(use: Use) -> None:
    """Three tabs; `use(sql)` is called to put a statement into the editor."""
    tables, examples, history = st.tabs(
        [_("Tables"), _("Examples"), _("History")], on_change="rerun", key="explore_tabs"
    )
    if tables.open:
        with tables:
            _render_tables(use)
    if examples.open:
        with examples:
            for number, (title, sql) in enumerate(list_examples().items()):
                _render_statement(title, sql, f"example_{number}", use)
    if history.open:
        with history:
            entries = st.session_state.get(HISTORY, [])
            if not entries:
                st.caption(_("Statements you run stand here until you close the browser tab."))
            for number, (sql, outcome, at) in enumerate(entries):
                _render_statement(f"{at} · {outcome} · {' '.join(sql.split())[:60]}", sql, f"history_{number}", use)


def _render_statement(title: str, sql: str, key: str, use: Use) -> None:
    with st.expander(plain(title), type="compact", on_change="rerun", key=f"explore_{key}") as box:
        if box.open:
            st.code(sql, language="sql", wrap_lines=True)
            st.button(_("Use"), key=f"explore_use_{key}", icon=":material/edit:", on_click=use, args=(sql,))


@per_version
def load_schema(store: Store) -> pd.DataFrame:
    return fetch_schema(store)


def _render_tables(use: Use) -> None:
    schema = load_schema(get_store())
    wanted = st.text_input(
        _("Find a table or column"),
        type="search",
        live=True,
        key="explore_find",
        placeholder=_("prompt, label, skill …"),
    )
    with st.container(height=_TABLES_HEIGHT, border=False, gap="xsmall"):
        _render_found(schema, wanted, use)


def _render_found(schema: pd.DataFrame, wanted: str, use: Use) -> None:
    for (name, kind), columns in schema.groupby(["table", "kind"], sort=False):
        text = " ".join([name, *columns["column"], *columns["description"]])
        if wanted and wanted.lower() not in text.lower():
            continue
        icon = ":material/visibility:" if kind == "view" else ":material/table:"
        with st.expander(plain(name), icon=icon, type="compact", on_change="rerun", key=f"explore_table_{name}") as box:
            if box.open:
                _render_table(name, columns, use)


def _render_table(name: str, columns: pd.DataFrame, use: Use) -> None:
    description = describe_table(name)
    if description:
        st.caption(plain(_(description)))
    lines = [
        f"- **{plain(row.column)}** :gray[{plain(row.type)}]"
        + (f"  \n{plain(_(row.description))}" if row.description else "")
        for row in columns.itertuples()
    ]
    st.markdown("\n".join(lines))
    st.button(
        _("Show rows"),
        key=f"explore_rows_{name}",
        icon=":material/edit:",
        on_click=use,
        args=(f'SELECT *\nFROM "{name}"\nLIMIT 100',),
    )
