"""The map itself: how it is coloured, what is searched, and what was drawn round."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from metamoe_backend.figures.maps import (
    MOST_POINTS,
    Camera,
    Colouring,
    colour_by_group,
    colour_by_value,
    make_map_figure,
)
from metamoe_backend.skills.selection import find_nearest_point, find_points_in_polygon, make_box
from metamoe_backend.store.connection import Store
from metamoe_backend.store.finding import Filters
from pages.shared.camera import Drawing, get_camera, get_drawing, watch_figure
from pages.shared.charts import show_figure
from pages.shared.errors import error_boundary, guarded
from pages.shared.find import load_found
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.map_data import (
    NAMED,
    colour_name,
    group_points,
    load_experts,
    load_outcomes,
    load_points,
)
from pages.shared.state import get_selection, get_store, per_version_shared, select, select_in_address

if TYPE_CHECKING:
    import plotly.graph_objects as go

FIGURE = "map_figure"
_DRAWN, _LASSOED, _ROWS, _NEW = "map_drawn", "map_lassoed", "map_rows", "map_new_drawing"
COLOURS = ("cluster", "task", "skill", "expert", "outcome", "confidence")
_OF_TEXTS = ("cluster", "task")
"""Colourings that a new label does not change."""
Ids = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What the toolbar says."""

    colour: str
    filters: Filters
    tool: str
    size: int
    names: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """The figure in the browser and what it was made of. While this stays, the browser keeps the figure as it is."""

    signature: tuple
    highlighted: Ids
    camera: Camera | None
    number: int
    """Of this drawing: a new number makes the browser forget what was drawn round."""
    figure: "go.Figure"


@per_version_shared
def load_matches(store: Store, map_id: str, filters: Filters) -> np.ndarray:
    """Which of `load_points` are looked for: [n] bool."""
    return load_points(store, map_id)["question_id"].isin(load_found(store, filters)).to_numpy(bool)


def render_toolbar(filters: Filters) -> View:
    """Colour, tool, and how the points look; `filters` say what stands out."""
    left, right, last = st.columns([1.1, 1.95, 0.6], vertical_alignment="bottom", gap="small")
    with left:
        colour = select_in_address(_("Colour by"), COLOURS, "map_colour", colour_name)
    with right:
        tools = {"lasso": _("Lasso"), "select": _("Box"), "pan": _("Pan")}
        tool = st.segmented_control(
            _("Tool"), list(tools), default="lasso", format_func=tools.get, key="map_tool", required=True,
            help=_("With Pan, the wheel zooms. A click with any tool picks one question."),
        )  # fmt: skip
    with last, st.popover(":material/tune:", key="map_points", help=_("Size of the points, names")):
        size = st.slider(_("Size, pixels"), 2, 16, 6, key="map_size")
        names = st.toggle(_("Names of the clusters"), value=True, key="map_names")
    return View(colour, filters, tool, size, names)


def render_map(store: Store, map_id: str, points: pd.DataFrame, clusters: pd.DataFrame, view: View) -> None:
    """The figure. It is made anew only when it must look different, and then where the person had zoomed to."""
    st.session_state.pop(_NEW, None)  # the page runs: what was drawn round is known
    _render_figure(store, map_id, points, clusters, view)
    _explain_colour(store, view.colour)


def find_selected_rows(map_id: str, points: pd.DataFrame) -> np.ndarray:
    """Row numbers of the selected questions. Looked up once a selection: it may be most of a million."""
    ids = get_selection().questions
    kept = st.session_state.get(_ROWS)
    if kept is None or kept[0] != map_id or kept[1] is not ids:
        rows = np.flatnonzero(points["question_id"].isin(ids)) if ids else np.empty(0, dtype=np.intp)
        kept = st.session_state[_ROWS] = (map_id, ids, rows)
    return kept[2]


@st.fragment
@error_boundary()
def _render_figure(store: Store, map_id: str, points: pd.DataFrame, clusters: pd.DataFrame, view: View) -> None:
    """A fragment: looking around never runs the whole page. What was drawn round is the page's business, though."""
    if st.session_state.pop(_NEW, False):
        st.rerun()
    drawn = _keep_or_redraw(store, map_id, points, clusters, view)
    show_figure(
        drawn.figure,
        key=FIGURE,
        alt=_("Map of the questions, coloured by {what}.").format(what=colour_name(view.colour).lower()),
        scroll_zoom=view.tool == "pan",
    )
    watch_figure(FIGURE, map_id, guarded(lambda: _take_drawing(map_id, view.filters)))


def _keep_or_redraw(store: Store, map_id: str, points: pd.DataFrame, clusters: pd.DataFrame, view: View) -> Drawn:
    """The browser shows a lasso by itself; any other change of the selection, or of the view, draws the figure anew.

    So does looking elsewhere where the map is a picture.
    """
    dated = view.colour not in _OF_TEXTS or view.filters
    named = tuple(zip(clusters["cluster"], clusters["size"], clusters["name"], strict=True))
    signature = (map_id, view, named, store.version if dated else None)
    selected, camera = get_selection().questions, get_camera(FIGURE, map_id)
    kept: Drawn | None = st.session_state.get(_DRAWN)
    if kept is not None and kept.signature == signature:
        looks_elsewhere = len(points) > MOST_POINTS and kept.camera != camera
        if st.session_state.get(_LASSOED, kept.highlighted) == selected and not looks_elsewhere:
            return kept
    picked = load_matches(store, map_id, view.filters) if view.filters else _pick_selected(map_id, points)
    figure = make_map_figure(
        points,
        _colour_points(store, points, clusters, view.colour),
        names=clusters.nlargest(NAMED, "size")[["x", "y", "name"]] if view.names else None,
        picked=picked,
        camera=camera,
        point_size=view.size,
        dragmode=view.tool,
    )
    number = kept.number + 1 if kept else 0
    figure.update_layout(uirevision=number)
    drawn = st.session_state[_DRAWN] = Drawn(signature, selected, camera, number, figure)
    st.session_state.pop(_LASSOED, None)
    return drawn


def _pick_selected(map_id: str, points: pd.DataFrame) -> np.ndarray | None:
    rows = find_selected_rows(map_id, points)
    if not 0 < len(rows) < len(points):
        return None
    picked = np.zeros(len(points), dtype=bool)
    picked[rows] = True
    return picked


def _colour_points(store: Store, points: pd.DataFrame, clusters: pd.DataFrame, by: str) -> Colouring:
    if by == "confidence":
        return colour_by_value(points["confidence"], _("Confidence"))
    return colour_by_group(*group_points(store, points, clusters, by))


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


def _take_drawing(map_id: str, filters: Filters) -> None:
    """What was drawn round becomes the selection; where something is looked for, only what was found."""
    drawing = get_drawing(FIGURE, map_id)
    if drawing is None:
        return
    points = load_points(get_store(), map_id)
    rows = _find_rows(points, drawing)
    if filters:
        rows = rows[load_matches(get_store(), map_id, filters)[rows]]
    if drawing.kind == "point" and not len(rows):
        return  # a click beside everything is no choice
    why = {"lasso": _("lasso on the map"), "box": _("box on the map"), "point": _("picked on the map")}
    ids = points["question_id"].to_numpy()[rows].tolist()
    select(questions=ids, why=why[drawing.kind] if ids else "")
    selected = get_selection().questions
    st.session_state[_ROWS] = (map_id, selected, rows)
    if drawing.kind != "point":
        st.session_state[_LASSOED] = selected
    st.session_state[_NEW] = True


def _find_rows(points: pd.DataFrame, drawing: Drawing) -> np.ndarray:
    xs, ys = points["x"].to_numpy(), points["y"].to_numpy()
    if drawing.kind == "point":
        row = find_nearest_point(xs, ys, drawing.xs[0], drawing.ys[0], drawing.reach)
        return np.array([] if row is None else [row], dtype=np.intp)
    if drawing.kind == "box":
        return find_points_in_polygon(xs, ys, make_box(drawing.xs, drawing.ys))
    return find_points_in_polygon(xs, ys, list(zip(drawing.xs, drawing.ys, strict=True)))
