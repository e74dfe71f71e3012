"""The frame around the pages: selection, errors, plain text, numbers in words."""

import logging
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest

from metamoe_backend.errors import NotFoundError
from metamoe_backend.selections import read_questions, save_questions
from metamoe_backend.workspace import Workspace
from pages.shared import state
from pages.shared.layout import _clamp
from pages.shared.tables import accuracy_text, difference_text, duration_text, percent
from pages.shared.text import plain


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60))
def test_text_from_data_is_never_markup(text: str) -> None:
    html = (
        MarkdownIt("js-default", {"html": True, "linkify": False})
        .enable(["strikethrough", "table"])
        .render(f"x {plain(text)}")
    )
    shown = html.removeprefix("<p>").removesuffix("</p>\n")
    assert "<" not in shown
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown.split() == ["x", *text.split()]


@pytest.mark.parametrize("text", [":material/home:", ":red[x]", "$a$", "![a](http://x)", "~~a~~", "- a", "1. a", "# a"])
def test_streamlits_own_marks_are_escaped_too(text: str) -> None:
    assert plain(text).replace("\\", "") == text
    assert all(plain(text)[place - 1] == "\\" for place, sign in enumerate(plain(text)) if sign in ":[]$!~#-.")


def test_text_is_cut_where_asked() -> None:
    assert plain("a" * 50, 10) == "a" * 9 + "…"


def test_long_questions_are_clamped() -> None:
    assert _clamp("short") == "short"
    assert _clamp("word " * 200).endswith(" …") and len(_clamp("word " * 200)) < 300
    assert _clamp("\n".join("abcdefghij")).count("\n") == 5


def test_numbers_in_words() -> None:
    assert accuracy_text(0.621, 0.541, 0.692, 140) == "62\N{NO-BREAK SPACE}% (54 to 69), n=140"
    assert accuracy_text(None, 0.0, 1.0, 0) == "none, n=0"
    assert difference_text(0.07, -0.01, 0.15) == "+7 points (-1 to +15)"
    assert [percent(0.5), percent(None), percent(float("nan"))] == ["50\N{NO-BREAK SPACE}%", "–", "–"]
    assert [duration_text(s) for s in (8, 240, 4800, 7260, None)] == ["8 s", "4 min", "80 min", "2 h 1 min", "–"]


def test_long_selections_are_kept_by_their_content(workspace: Workspace) -> None:
    ids = [f"q{number}" for number in range(5000)]
    name = save_questions(workspace, ids)
    assert save_questions(workspace, ids) == name
    assert read_questions(workspace, name) == ids
    for bad in ("../../metamoe", "0" * 16, ""):
        with pytest.raises(NotFoundError):
            read_questions(workspace, bad)


def run_script(script: str, monkeypatch: pytest.MonkeyPatch, root: Path, **params: str) -> AppTest:
    monkeypatch.setenv("METAMOE_WORKSPACE", str(root))
    app = AppTest.from_string(script, default_timeout=60)
    for name, value in params.items():
        app.query_params[name] = value
    return app.run()


def address(app: AppTest, name: str) -> str:
    value = app.query_params[name]
    return value if isinstance(value, str) else value[0]


SELECTING = """
import streamlit as st
from pages.shared.state import get_selection, render_selection_chips, restore_selection, select
restore_selection()
if st.button("many", key="many"):
    select(questions=[f"q{n}" for n in range(100)], why="cluster *3*")
if st.button("expert", key="expert"):
    select(expert="arith")
render_selection_chips()
st.text(str(len(get_selection().questions)))
"""


def test_the_selection_lives_in_the_address(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    app = run_script(SELECTING, monkeypatch, workspace.root, questions="a,b", run="r1")
    assert app.text[0].value == "2"
    assert [button.label for button in app.button if button.key.startswith("selection")] == ["2 questions", "run r1"]
    app.button(key="many").click().run()
    assert address(app, "questions").startswith("@")
    app.button(key="expert").click().run()
    assert (address(app, "expert"), address(app, "run")) == ("arith", "r1")
    shared = run_script(SELECTING, monkeypatch, workspace.root, questions=address(app, "questions"))
    assert shared.text[0].value == "100"
    app.button(key="selection_questions").click().run()
    assert "questions" not in app.query_params and app.text[0].value == "0"


def test_an_address_with_a_selection_nobody_kept_says_so(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    app = run_script(SELECTING, monkeypatch, workspace.root, questions="@" + "0" * 16)
    assert "select the questions anew" in app.warning[0].value.replace("\\", "")
    assert app.text[0].value == "0"


FAILING = """
import streamlit as st
from metamoe_backend.errors import InputError
from pages.shared.errors import error_boundary, guarded
def fail(kind):
    raise InputError("Row 3 has *no* answer; add one.") if kind == "user" else RuntimeError("secret /path")
st.button("callback", key="callback", on_click=guarded(fail), args=("user",))
st.button("bug", key="bug")
st.button("page", key="page")
with error_boundary():
    st.text("drawn before")
    if st.session_state.bug: fail("bug")
    if st.session_state.page: fail("user")
"""


def test_a_mistake_is_a_sentence_and_a_bug_a_reference(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = run_script(FAILING, monkeypatch, workspace.root)
    assert not app.error
    for key in ("page", "callback"):
        app.button(key=key).click().run()
        assert app.error[0].value == plain("Row 3 has *no* answer; add one.") and not app.exception
        assert app.text[0].value == "drawn before"
    assert not app.run().error
    with caplog.at_level(logging.ERROR, "metamoe.dashboard"):
        app.button(key="bug").click().run()
    assert "secret" not in app.error[0].value and not app.exception
    reference = app.error[0].value.split()[-1].rstrip(".")
    assert reference in caplog.text and "secret /path" in caplog.text


CACHED = """
import streamlit as st
from pages.shared.state import get_store, per_version
@per_version
def count(store, table, *, twice=False):
    st.session_state.setdefault("calls", []).append(table)
    return store.value(f"SELECT count(*) FROM {table}")
store = get_store()
if st.button("write", key="write"):
    with store.transaction() as cursor:
        cursor.execute("INSERT INTO metric VALUES ('r', 1, 'loss', 0.5)")
st.text(f"{count(store, 'metric')} {count(store, 'skill')} {len(st.session_state.calls)}")
"""


def test_what_is_read_is_kept_until_the_store_is_written(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        app = run_script(CACHED, monkeypatch, workspace.root)
        assert app.text[0].value == "0 0 2"
        assert app.run().text[0].value == "0 0 2"
        app.button(key="write").click().run()
        assert app.text[0].value == "1 0 4"
    finally:
        state._open_store(str(workspace.root.resolve())).close()
        state._open_store.clear()


UNDOING = """
import streamlit as st
from pages.shared.errors import error_boundary, guarded
from pages.shared.layout import confirm, render_undo
with error_boundary():
    render_undo()
    def take_back():
        st.session_state["taken back"] = True
    st.button("label", key="label", on_click=guarded(lambda: confirm("Labelled 3 questions", take_back)))
    st.text(str(st.session_state.get("taken back", False)))
"""


def test_what_was_stored_can_be_taken_back(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    app = run_script(UNDOING, monkeypatch, workspace.root)
    assert not app.caption
    app.button(key="label").click().run()
    assert app.toast[0].value == app.caption[0].value == "Labelled 3 questions"
    app.button(key="undo_last").click().run()
    assert app.text[0].value == "True" and not app.caption and not app.exception


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_both_looks_can_be_read(mode: str) -> None:
    theme = tomllib.loads(Path(".streamlit/config.toml").read_text(encoding="utf-8"))["theme"][mode]
    for part in (theme, theme["sidebar"]):
        assert contrast(part["primaryColor"], "#ffffff") >= 4.5
        assert contrast(part["primaryColor"], part["backgroundColor"]) >= 3
        for background in ("backgroundColor", "secondaryBackgroundColor"):
            assert contrast(part["textColor"], part[background]) >= 7
            assert contrast(part["linkColor"], part[background]) >= 4.5
    for name in ("red", "orange", "yellow", "green", "blue", "violet", "gray"):
        assert contrast(theme[f"{name}Color"], theme["backgroundColor"]) >= 4.5
    assert contrast(theme["dataframeHeaderTextColor"], theme["dataframeHeaderBackgroundColor"]) >= 4.5


def test_the_server_listens_to_this_machine_only_and_tells_nothing() -> None:
    options = tomllib.loads(Path(".streamlit/config.toml").read_text(encoding="utf-8"))
    assert options["server"]["address"] == "127.0.0.1" and options["server"]["enableXsrfProtection"]
    assert set(options["server"]["allowedHosts"]) == {"127.0.0.1", "localhost"}
    assert options["client"]["showErrorDetails"] == "none" and not options["browser"]["gatherUsageStats"]
