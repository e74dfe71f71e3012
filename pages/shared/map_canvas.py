"""The map itself: how it is coloured, what is searched, and what was drawn round."""

from dataclasses import dataclass

import pandas as pd
import streamlit as st

from metamoe_backend.figures.maps import (
    Camera,
    highlight_points,
    make_map_figure,
    make_value_map_figure,
    set_camera,
)
from metamoe_backend.skills.selection import find_points_in_polygon, make_box
from metamoe_backend.store.connection import Store
from pages.shared.camera import get_camera, watch_camera
from pages.shared.charts import show_figure
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import plain
from pages.shared.map_data import colour_name, group_points, load_experts, load_outcomes, load_points
from pages.shared.state import get_selection, get_store, select

FIGURE = "map_figure"
_DRAWN, _LASSOED = "map_drawn", "map_lassoed"
COLOURS = ("cluster", "task", "skill", "expert", "outcome", "confidence")
Ids = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What the toolbar says."""

    colour: str
    search: str
    tool: str
    size: int
    names: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the figure in the browser was made of. While this stays, the browser keeps the figure as it is."""

    signature: tuple
    highlighted: Ids
    camera: Camera | None


def render_toolbar() -> View:
    """Colour, search, tool, and how the points look."""
    left, middle, right, last = st.columns([1.1, 1.2, 1.95, 0.6], vertical_alignment="bottom", gap="small")
    with left:
        colour = st.selectbox(_("Colour by"), COLOURS, format_func=colour_name, key="map_colour", bind="query-params")
    with middle:
        search = st.text_input(
            _("Search the text"), key="map_search", icon=":material/search:", placeholder=_("any part of a question")
        )
    with right:
        tools = {"lasso": _("Lasso"), "select": _("Box"), "pan": _("Pan")}
        tool = st.segmented_control(
            _("Tool"), list(tools), default="lasso", format_func=tools.get, key="map_tool", required=True
        )
    with last, st.popover(":material/tune:", key="map_points", help=_("Size of the points, names")):
        size = st.slider(_("Size, pixels"), 2, 16, 6, key="map_size")
        names = st.toggle(_("Names of the clusters"), value=True, key="map_names")
    return View(colour, search.strip(), tool, size, names)


def find_matches(points: pd.DataFrame, search: str) -> pd.Series:
    """Which points' question, task or skill holds the text, in any case."""
    if not search:
        return pd.Series(True, index=points.index)
    wanted = search.casefold()
    texts = points["prompt"] + "\n" + points["task"] + "\n" + points["skill"].fillna("")
    return texts.str.casefold().str.contains(wanted, regex=False)


def render_map(store: Store, map_id: str, points: pd.DataFrame, clusters: pd.DataFrame, view: View) -> None:
    """The figure. It is made anew only when it must look different, and then where the person had zoomed to."""
    matches = find_matches(points, view.search)
    if view.search:
        _render_matches(points, matches, view.search)
    group, colours = (points["confidence"], {}) if view.colour == "confidence" else group_points(
        store, points, clusters, view.colour
    )  # fmt: skip
    drawn = _keep_or_redraw(map_id, view, store.version)
    names = clusters[["x", "y", "name"]] if view.names else None
    look = {"names": names, "point_size": view.size, "dragmode": view.tool}
    if view.colour == "confidence":
        figure = make_value_map_figure(points, group, _("Confidence"), **look)
    else:
        figure = make_map_figure(points, group, colours, **look)
    picked = points["question_id"].isin(drawn.highlighted)
    if view.search or (picked.any() and not picked.all()):
        highlight_points(figure, points.index[matches if view.search else picked].tolist())
    if drawn.camera:
        set_camera(figure, drawn.camera)
    show_figure(
        figure,
        key=FIGURE,
        alt=_("Map of the questions, coloured by {what}.").format(what=colour_name(view.colour).lower()),
        select=("points", "box", "lasso"),
        on_select=guarded(lambda: _take_selection(map_id, view.search)),
    )
    watch_camera(FIGURE, map_id)
    _explain_colour(store, view.colour)


def _render_matches(points: pd.DataFrame, matches: pd.Series, search: str) -> None:
    n = int(matches.sum())
    text = ngettext("{n} question contains “{text}”", "{n} questions contain “{text}”", n)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(text.format(n=f"{n:,}", text=plain(search, 60)), width="content")
        ids = points.loc[matches, "question_id"].tolist()
        if n and st.button(_("Select them"), key="map_select_matches", type="tertiary", icon=":material/checklist:"):
            select(questions=ids, why=search)
            st.rerun()


def _explain_colour(store: Store, colour: str) -> None:
    if colour == "expert":
        plan = load_experts(store)[0]
        said = _("Expert of each question's skill under the newest plan, '{plan}'.").format(plan=plain(plan)) if plan else (
            _("No plan is saved yet: no skill has an expert.")
        )  # fmt: skip
        st.caption(said)
    elif colour == "outcome":
        some = len(load_outcomes(store))
        st.caption(
            _("Outcome over all evaluated experts, n={n} questions.").format(n=f"{some:,}")
            if some
            else _("Fewer than two experts are evaluated: there is no outcome yet.")
        )
    elif colour == "confidence":
        st.caption(_("1 for a label, the suggestion's probability else; grey: neither."))


def _keep_or_redraw(map_id: str, view: View, version: int) -> Drawn:
    """The browser shows a lasso by itself; any other change of the selection, or of the view, draws the figure anew."""
    signature = (map_id, view, version)
    selected = get_selection().questions
    drawn: Drawn | None = st.session_state.get(_DRAWN)
    by_hand = st.session_state.get(_LASSOED) == selected
    if drawn is None or drawn.signature != signature or not (by_hand or drawn.highlighted == selected):
        drawn = Drawn(signature, selected, get_camera(FIGURE, map_id))
        st.session_state[_DRAWN] = drawn
        st.session_state.pop(_LASSOED, None)
    return drawn


def _take_selection(map_id: str, search: str) -> None:
    """What was drawn round becomes the selection; of a search, only what was found."""
    event = st.session_state[FIGURE].selection
    points = load_points(get_store(), map_id)
    polygons = [list(zip(shape["x"], shape["y"], strict=True)) for shape in event.lasso]
    polygons += [make_box(shape["x"], shape["y"]) for shape in event.box]
    rows = {row for polygon in polygons for row in find_points_in_polygon(points["x"], points["y"], polygon).tolist()}
    if not polygons:
        rows = {point["customdata"] for point in event.points if "customdata" in point}
    matches = find_matches(points, search)
    ids = points["question_id"][[row for row in sorted(rows) if matches[row]]].tolist()
    why = _("lasso on the map") if event.lasso else _("box on the map") if event.box else _("picked on the map")
    select(questions=ids, why=why if ids else "")
    st.session_state[_LASSOED] = tuple(ids)
