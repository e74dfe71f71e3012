"""What part of a figure a person has zoomed to. Streamlit draws a changed figure anew and forgets it; this does not.

A component without a face: after each drag or turn of the wheel over the figure it reports the ranges of both axes, so
that the next figure can be drawn with the same ones (`figures.maps.set_camera`). It changes nothing on the page.
"""

import streamlit as st

from metamoe_backend.figures.maps import Camera
from pages.shared.errors import error_boundary

_SCRIPT = """
export default function ({ data, setStateValue }) {
  const place = `.st-key-${data.figure}`
  let armed = false
  let timer = 0
  const look = () => {
    const layout = document.querySelector(`${place} .js-plotly-plot`)?._fullLayout
    if (!layout?.xaxis) return
    const free = layout.xaxis.autorange || layout.yaxis.autorange
    const ranges = free ? null : [...layout.xaxis.range, ...layout.yaxis.range].map(Number)
    if (JSON.stringify(ranges) !== JSON.stringify(data.ranges)) setStateValue("view", { of: data.of, ranges })
  }
  const soon = () => { clearTimeout(timer); timer = setTimeout(look, 400) }
  const over = (event) => Boolean(event.target?.closest?.(place))
  const press = (event) => { armed = over(event) }
  const release = () => { if (armed) soon(); armed = false }
  const turn = (event) => { if (over(event)) soon() }
  document.addEventListener("pointerdown", press, true)
  document.addEventListener("pointerup", release, true)
  document.addEventListener("wheel", turn, { capture: true, passive: true })
  return () => {
    clearTimeout(timer)
    document.removeEventListener("pointerdown", press, true)
    document.removeEventListener("pointerup", release, true)
    document.removeEventListener("wheel", turn, { capture: true })
  }
}
"""
_watch = st.components.v2.component("metamoe_camera", js=_SCRIPT)


def get_camera(figure_key: str, of: str) -> Camera | None:
    """What is in view of figure `figure_key` while it shows `of` (a map's id); None: all of it."""
    view = (st.session_state.get(f"{figure_key}_camera") or {}).get("view")
    return tuple(view["ranges"]) if view and view["of"] == of and view["ranges"] else None


@st.fragment
@error_boundary()
def watch_camera(figure_key: str, of: str) -> None:
    """Keep an eye on the figure with this key. A fragment: looking around never runs the whole page."""
    ranges = get_camera(figure_key, of)
    data = {"figure": figure_key, "of": of, "ranges": list(ranges) if ranges else None}
    _watch(key=f"{figure_key}_camera", data=data, on_view_change=lambda: None, height="content")
