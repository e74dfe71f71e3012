"""What outlives one page: the open workspace, who I am, and the selection that follows a person from page to page."""

import functools
import getpass
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from metamoe_backend.errors import NotFoundError
from metamoe_backend.late_rows import watch_for_notes
from metamoe_backend.selections import read_questions, save_questions
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace, find_workspace
from pages.shared.i18n import _, ngettext
from pages.shared.text import plain

P = ParamSpec("P")
R = TypeVar("R")

_SELECTION = "selection"
_PERSON = "me"
_QUESTIONS_IN_URL = 30
"""Longer selections are kept in the workspace and named by their hash."""
_KEEP: Any = object()


@st.cache_resource(show_spinner=False)
def _open_store(root: str) -> Store:
    store = Store.open(find_workspace(root), "the dashboard")
    watch_for_notes(store)  # runs that wait for others go on with no page open, too
    return store


def get_workspace() -> Workspace:
    return Workspace(find_workspace().root.resolve())


def get_store() -> Store:
    """The one open store of this process. Raises `BusyError` while another process holds the workspace."""
    return _open_store(str(get_workspace().root))


def per_version(function: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[Store, P], R]:
    """Cache what `function(store, …)` returns until the store is written. Arguments are hashable; copies come back."""
    return _cached(function, functools.partial(st.cache_data, max_entries=64))


def per_version_shared(function: Callable[Concatenate[Store, P], R]) -> Callable[Concatenate[Store, P], R]:
    """As `per_version`, for what is too large to copy: everybody gets the same object, and nobody changes it."""
    return _cached(function, functools.partial(st.cache_resource, max_entries=4))


def _cached(
    function: Callable[Concatenate[Store, P], R], cache: Callable[..., Any]
) -> Callable[Concatenate[Store, P], R]:
    def fetch(_store: Store, key: tuple[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:  # noqa: ARG001
        return function(_store, *args, **kwargs)

    # The cache is named after file and function: every page calls itself __main__. (`wraps` would also lend it the
    # signature, and `store` cannot be hashed.)
    fetch.__qualname__ = f"{function.__code__.co_filename}:{function.__qualname__}"
    cached = cache(fetch, show_spinner=False)

    @functools.wraps(function)
    def inner(store: Store, *args: P.args, **kwargs: P.kwargs) -> R:
        return cached(store, (str(store.workspace.root), store.version), args, kwargs)

    return inner


def get_person() -> str:
    """Who is at the browser."""
    return (st.session_state.get(_PERSON) or "").strip() or _default_person()


def _default_person() -> str:
    return os.environ.get("METAMOE_PERSON") or getpass.getuser()


def render_person() -> None:
    st.text_input(
        _("I am"),
        value=_default_person(),
        key=_PERSON,
        bind="query-params",
        max_chars=64,
        help=_("Stands beside your labels, plans and reviews."),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person is looking at. Empty parts are not selected."""

    questions: tuple[str, ...] = ()
    run: str | None = None
    expert: str | None = None
    why: str = ""
    """Where the questions came from, in the person's words: cluster 3, mixed outcome …"""
    address: str | None = None
    """The questions as they stand in the address: set by `select`, once, for they may be many."""


def get_selection() -> Selection:
    return st.session_state.get(_SELECTION, Selection())


def select(
    questions: Iterable[str] = _KEEP, run: str | None = _KEEP, expert: str | None = _KEEP, why: str = ""
) -> None:
    """Change the parts that are named; the rest stays."""
    selection = get_selection()
    if questions is not _KEEP:
        ids = tuple(dict.fromkeys(questions))
        selection = replace(selection, questions=ids, why=why, address=_address_of(ids))
    if run is not _KEEP:
        selection = replace(selection, run=run)
    if expert is not _KEEP:
        selection = replace(selection, expert=expert)
    st.session_state[_SELECTION] = selection
    _write_to_url(selection)


def clear_selection(part: str | None = None) -> None:
    """Forget one part (questions, run or expert) or everything."""
    if part in (None, "questions"):
        select(questions=())
    if part in (None, "run"):
        select(run=None)
    if part in (None, "expert"):
        select(expert=None)


def went_through_history() -> bool:
    """Whether this run answers the browser's Back or Forward: then the address says what is wanted."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def restore_selection() -> None:
    """Take the selection from the address if it names one, else put the session's there. Before the page runs."""
    wanted = {name: st.query_params.get(name) for name in ("questions", "run", "expert")}
    if not any(wanted.values()) and not went_through_history():
        _write_to_url(get_selection())
        return
    if wanted == _as_url(get_selection()):
        return
    try:
        questions = _questions_of(wanted["questions"])
    except NotFoundError as error:
        st.warning(plain(error))
        questions = ()
    select(questions=questions, run=wanted["run"], expert=wanted["expert"])


def _questions_of(text: str | None) -> Sequence[str]:
    if not text:
        return ()
    if text.startswith("@"):
        return read_questions(get_workspace(), text[1:])
    return text.split(",")


def _address_of(ids: Sequence[str]) -> str | None:
    text = ",".join(ids) if len(ids) <= _QUESTIONS_IN_URL else "@" + save_questions(get_workspace(), ids)
    return text or None


def _as_url(selection: Selection) -> dict[str, str | None]:
    return {"questions": selection.address, "run": selection.run, "expert": selection.expert}


def _write_to_url(selection: Selection) -> None:
    for name, value in _as_url(selection).items():
        if value is None:
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != value:
            st.query_params[name] = value


def render_selection_chips() -> None:
    """One chip a selected part; a click takes it away."""
    selection = get_selection()
    chips = []
    if selection.questions:
        n = len(selection.questions)
        text = ngettext("{n} question", "{n} questions", n).format(n=f"{n:,}")
        chips.append(("questions", f"{text} ({plain(selection.why)})" if selection.why else text))
    if selection.run:
        chips.append(("run", _("run {name}").format(name=plain(selection.run))))
    if selection.expert:
        chips.append(("expert", _("expert {name}").format(name=plain(selection.expert))))
    if not chips:
        return
    with st.container(horizontal=True, gap="xsmall"):
        for part, label in chips:
            st.button(
                label,
                key=f"selection_{part}",
                icon=":material/close:",
                icon_position="right",
                help=_("Remove from the selection"),
                on_click=clear_selection,
                args=(part,),
            )


def open_page(name: str, **choices: str) -> NoReturn:
    """Go to a page by its word in the address (overview, tasks, map …); the selection goes along.

    choices: what else stands in the address there, such as the part of the page that is open.
    """
    params = {key: value for key, value in _as_url(get_selection()).items() if value} | choices
    st.switch_page(st.session_state["pages"][name], query_params=params)


def select_in_address(label: str, codes: Sequence[str], key: str, format_func: Callable[[str], str]) -> str:
    """A selectbox whose choice stands in the address by its code, not by its (translated) text; the first is the default.

    `bind="query-params"` would write what the person reads: another language could not open the link.
    """
    wanted = _restore_choice(codes, key)
    return _keep_choice(st.selectbox(label, codes, format_func=format_func, key=key), codes, key, wanted)


def segment_in_address(label: str, names: Mapping[str, str], key: str, visible: bool = True) -> str:
    """As `select_in_address`, with all choices in sight. names: what each code is called."""
    codes = list(names)
    wanted = _restore_choice(codes, key)
    if st.session_state.get(key) not in codes:
        st.session_state[key] = codes[0]  # the choice is not offered here, such as for another mixture
    chosen = st.segmented_control(
        label, codes, format_func=names.get, key=key, required=True,
        label_visibility="visible" if visible else "collapsed",
    )  # fmt: skip
    return _keep_choice(chosen, codes, key, wanted)


def _restore_choice(codes: Sequence[str], key: str) -> str | None:
    wanted = st.query_params.get(key)
    if key not in st.session_state and wanted in codes:
        st.session_state[key] = wanted
    return wanted


def _keep_choice(chosen: str, codes: Sequence[str], key: str, wanted: str | None) -> str:
    if chosen == codes[0]:
        st.query_params.pop(key, None)
    elif wanted != chosen:
        st.query_params[key] = chosen
    return chosen
