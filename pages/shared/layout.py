"""The frame every page fills: title and action, the answer, canvas and inspector, and what an empty page says."""

from collections.abc import Callable
from typing import Any, NoReturn

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.shared.errors import guarded
from pages.shared.filters import look_for_similar
from pages.shared.i18n import _
from pages.shared.state import open_page
from pages.shared.text import plain

__all__ = [
    "answer_line",
    "canvas_and_inspector",
    "confirm",
    "empty_state",
    "page_header",
    "plain",
    "question_text",
    "render_undo",
]

_UNDO = "undo"
_SAID = "said"
"""What the next run says."""
_CLAMP_CHARACTERS, _CLAMP_LINES = 280, 6


def page_header(title: str, caption: str) -> DeltaGenerator:
    """Title, one caption line, and at the right of the title the place for the primary action, which is returned."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(title, anchor=False, width="content")
        action = st.container(horizontal=True, horizontal_alignment="right", width="content")
    st.caption(caption)
    return action


def answer_line(text: str) -> None:
    """The answer to the page's question in a sentence. Text from data must come through `plain`."""
    st.subheader(text, anchor=False)


def canvas_and_inspector() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Two thirds for the figure, one third for what was clicked."""
    canvas, inspector = st.columns([2, 1], gap="medium")
    return canvas, inspector


def empty_state(
    text: str,
    button: str | None = None,
    page: str | None = None,
    on_click: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    icon: str = ":material/inbox:",
) -> bool:
    """What is missing, and the button that makes it (goes to `page`, or calls `on_click`). Returns whether clicked."""
    clicked = False
    with st.container(border=True, horizontal_alignment="center", gap="small"):
        st.space("small")
        st.markdown(f"{icon} {text}", width="content", text_alignment="center")
        if button:
            action = guarded(on_click) if on_click else None
            clicked = st.button(button, type="primary", key=f"empty_{page or button}", on_click=action, args=args)
        st.space("small")
    if clicked and page:
        open_page(page)
    return clicked


def question_text(text: str, key: str, question_id: str | None = None) -> None:
    """Text from data, as it is: never Markdown. Long text is cut until one asks for all of it.

    Where it is a question, a button beside it shows what is like it.
    """
    if question_id is None:
        _render_text(text, key)
        return
    with st.container(horizontal=True, vertical_alignment="top", gap="small"):
        with st.container(gap="xsmall"):
            _render_text(text, key)
        if st.button("", key=f"like_{key}", icon=":material/join_inner:", type="tertiary", help=_("Similar to this")):
            look_for_similar(question_id)


def _render_text(text: str, key: str) -> None:
    short = _clamp(text)
    if short == text:
        st.text(text, width="stretch")
        return
    place = st.empty()
    whole = st.toggle(_("Show all"), key=f"whole_{key}", value=False)
    place.text(text if whole else short, width="stretch")


def _clamp(text: str) -> str:
    lines = text.splitlines()
    short = "\n".join(lines[:_CLAMP_LINES])
    if len(short) > _CLAMP_CHARACTERS:
        short = short[:_CLAMP_CHARACTERS].rsplit(" ", 1)[0]
    return text if short == text or len(short) >= len(text.rstrip()) else short.rstrip() + " …"


def confirm(message: str, undo: Callable[[], Any] | None = None) -> None:
    """Say what was stored, and offer to take it back. May be called from a callback or the page."""
    st.toast(message, icon=":material/check:")
    st.session_state[_UNDO] = (message, undo) if undo else None


def confirm_and_rerun(message: str, undo: Callable[[], Any] | None = None) -> NoReturn:
    """`confirm`, and draw the page again: the next run says it, for Streamlit may drop what one says before a rerun."""
    st.session_state[_SAID] = message
    st.session_state[_UNDO] = (message, undo) if undo else None
    st.rerun()


def render_undo() -> None:
    """The last thing that was stored, with its Undo, until the person acts on it or stores something else."""
    said = st.session_state.pop(_SAID, None)
    if said is not None:
        st.toast(said, icon=":material/check:")
    place = st.container()  # there or not, it takes one place: what follows stays where it is, and is not sent again
    kept = st.session_state.get(_UNDO)
    if not kept:
        return
    message, undo = kept

    def take_back() -> None:
        st.session_state[_UNDO] = None
        undo()
        st.toast(_("Taken back."), icon=":material/undo:")

    def dismiss() -> None:
        st.session_state[_UNDO] = None

    with place.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(message, width="content")
        st.button(_("Undo"), key="undo_last", icon=":material/undo:", type="tertiary", on_click=guarded(take_back))
        st.button(_("Dismiss"), key="undo_dismiss", icon=":material/close:", type="tertiary", on_click=dismiss)
