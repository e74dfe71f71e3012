"""The language of the person at the browser: chosen in the sidebar, kept in the URL, else what the browser asks for."""

import streamlit as st

from metamoe_backend.i18n import LANGUAGES, SOURCE_LANGUAGE, _, ask_language, ngettext

__all__ = ["_", "get_language", "ngettext", "render_language_choice", "use_language_of_session"]

_KEY = "lang"


def get_language() -> str:
    """Code of the language in use. Before the choice is drawn for the first time, the URL decides, then the browser."""
    chosen = st.session_state.get(_KEY) or st.query_params.get(_KEY)
    codes = {name: code for code, name in LANGUAGES.items()}
    return codes.get(chosen, _browser_language())


def _browser_language() -> str:
    locale = (st.context.locale or "").replace("-", "_").lower()
    return next((code for code in LANGUAGES if code[:2] == locale[:2]), SOURCE_LANGUAGE)


def use_language_of_session() -> None:
    """Let `_` ask this module. Outside a session (a test, a thread) it is English."""
    ask_language(lambda: get_language() if st.runtime.exists() else SOURCE_LANGUAGE)


def render_language_choice() -> None:
    st.selectbox(
        _("Language"),
        list(LANGUAGES.values()),
        index=list(LANGUAGES).index(_browser_language()),
        key=_KEY,
        bind="query-params",
    )
