"""Map: what groups exist?"""

import pandas as pd
import streamlit as st

from pages.shared.find import render_find
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, page_header
from pages.shared.map_canvas import render_map, render_toolbar
from pages.shared.map_clusters import describe_map, render_answer, render_clusters, render_quality
from pages.shared.map_data import load_clusters, load_maps, load_points
from pages.shared.map_drawing import render_draw_form, render_drawing, render_no_map
from pages.shared.map_inspector import render_inspector
from pages.shared.state import get_store, select_in_address


def choose_map(maps: pd.DataFrame) -> pd.Series:
    """The newest map, until the person chooses another one; a map that was just drawn is shown at once."""
    newest = maps["map_id"].iloc[0]
    if st.session_state.get("map_newest") not in (None, newest):
        st.session_state["map_id"] = newest
    st.session_state["map_newest"] = newest
    by_id = maps.set_index("map_id", drop=False)
    if len(maps) == 1:
        return by_id.iloc[0]
    chosen = select_in_address(
        _("Map"), maps["map_id"].tolist(), "map_id", lambda map_id: describe_map(by_id.loc[map_id])
    )
    return by_id.loc[chosen]


def render() -> None:
    action = page_header(_("Map"), _("Questions that read alike lie together; clusters are groups found among them."))
    store = get_store()
    maps = load_maps(store)
    if len(maps):
        with action:
            render_draw_form(store)
    render_drawing(store)
    if maps.empty:
        render_no_map(store)
        return
    answer = st.container()
    chosen = choose_map(maps)
    map_id = chosen["map_id"]
    points, clusters = load_points(store, map_id), load_clusters(store, map_id)
    with answer:
        render_answer(chosen, clusters)
    canvas, inspector = canvas_and_inspector()
    with canvas:
        with st.container():  # takes one place however much is asked for, so that the figure keeps its own
            filters = render_find(store, map_id)
        render_map(store, map_id, points, clusters, render_toolbar(filters))
        render_quality(store, chosen)
    with inspector:
        render_inspector(store, map_id, points, clusters)
    render_clusters(store, map_id, clusters)


render()
