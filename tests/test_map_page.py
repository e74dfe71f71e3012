"""What the forms of Map and Skills ask for is what is started; what is moved to a cluster lies there then."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from metamoe_backend.store.acts import fetch_undoable, undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_map_points, fetch_newest_map_id
from metamoe_backend.workspace import Workspace
from pages.shared import state

PAGES = Path(state.__file__).parents[1]


@pytest.fixture
def store(synthetic: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store that the pages of this test have open."""
    monkeypatch.setenv("METAMOE_WORKSPACE", str(synthetic.root))
    yield state._open_store(str(synthetic.root.resolve()))
    state._open_store(str(synthetic.root.resolve())).close()
    state._open_store.clear()


def open_app(page: str) -> AppTest:
    return AppTest.from_file(str(PAGES / page), default_timeout=120)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """What the map's form starts, in order, instead of a process for it."""
    runs: list[tuple[str, dict]] = []
    monkeypatch.setattr(
        "pages.shared.map_drawing.launch", lambda store, stage, values, person: runs.append((stage, values))
    )
    return runs


def open_form(store: Store) -> AppTest:
    app = open_app("p04_map.py")
    app.session_state["map_draw_0"] = True
    return app.run()


def find_button(app: AppTest, label: str) -> Button:
    return next(button for button in app.button if button.label == label)


def test_both_joined_by_a_language_model_are_embedded_in_two_runs(store: Store, started: list) -> None:
    app = open_form(store)
    app.button_group(key="map_new_of").set_value("both")
    app.button_group(key="map_new_method").set_value("llm")
    app.selectbox(key="map_new_encoder").select("e5")
    find_button(app, "Embed first").click().run()
    assert not app.exception and not app.error
    common = {"encoder": "e5", "method": "llm"}
    assert started == [("embed", common | {"of": "question"}), ("embed", common | {"of": "meta-question"})]


def test_a_map_is_drawn_of_what_the_form_says(store: Store, started: list) -> None:
    app = open_form(store)
    app.button_group(key="map_new_of").set_value("both")
    app.number_input(key="map_new_neighbours").set_value(7)
    find_button(app, "Draw").click().run()
    assert not app.exception and not app.error
    [(stage, values)] = started
    assert stage == "cluster"
    assert {key: values[key] for key in ("of", "method", "neighbours")} == {
        "of": "both", "method": "template", "neighbours": 7,
    }  # fmt: skip


def test_a_map_of_what_is_not_embedded_is_refused_in_a_sentence(store: Store) -> None:
    app = open_form(store)
    app.button_group(key="map_new_of").set_value("both")
    app.button_group(key="map_new_method").set_value("llm")
    find_button(app, "Draw").click().run()
    assert not app.exception
    assert "have no minilm vector of their text or llm meta" in app.error[0].value


def read_clusters(store: Store, map_id: str) -> pd.Series:
    """The cluster of each question on the map."""
    return fetch_map_points(store, map_id).set_index("question_id")["cluster"].sort_index()


@pytest.mark.parametrize(("into", "number"), [(3, 3), (-1, -1), ("new", 7)])
def test_selected_questions_move_to_a_cluster_and_undo_brings_them_back(
    store: Store, into: int | str, number: int
) -> None:
    map_id = fetch_newest_map_id(store)
    assert map_id is not None
    before = read_clusters(store, map_id)
    ids = before.index[before == 2][:5]
    app = open_app("p04_map.py")
    app.session_state["selection"] = state.Selection(questions=tuple(ids), why="cluster 2")
    app.session_state["map_move"] = True
    app.run()
    app.selectbox(key="map_move_into").set_value(into)
    app.button(key="map_move_go").click().run()
    assert not app.exception and not app.error
    moved = before.copy()
    moved[ids] = number
    pd.testing.assert_series_equal(read_clusters(store, map_id), moved)
    act = fetch_undoable(store, state._default_person())
    assert act is not None
    undo(store, act.event_id, state._default_person())
    pd.testing.assert_series_equal(read_clusters(store, map_id), before)


def test_suggestions_are_asked_for_by_reading_and_method(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict]] = []
    monkeypatch.setattr(
        "pages.shared.skills_suggestions.run_now", lambda store, stage, values, person: asked.append((stage, values))
    )
    app = open_app("p05_skills.py")
    app.session_state["skills_tabs"] = "Suggestions"
    app.run()
    assert app.button_group(key="skills_suggest_method").disabled
    app.button_group(key="skills_suggest_of").set_value("both").run()
    app.button_group(key="skills_suggest_method").set_value("llm").run()
    app.button(key="skills_suggest").click().run()
    assert not app.exception and not app.error
    assert asked == [("suggest", {"encoder": "minilm", "of": "both", "method": "llm"})]
