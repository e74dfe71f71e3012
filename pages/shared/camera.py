"""What a person does on a figure with the mouse: where they have zoomed to, and what they drew round.

A component without a face. It reports the ranges of both axes after each drag or turn of the wheel, so that the next
figure can be drawn with the same ones (Streamlit draws a changed figure anew and forgets them), and the outline of a
lasso or box, or the place of a click, in the figure's own coordinates. Streamlit's own selection would send every point
inside, and send them again with each later click. It changes nothing on the page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from metamoe_backend.figures.maps import Camera

_SCRIPT = """
export default function ({ data, setStateValue, setTriggerValue }) {
  const place = `.st-key-${data.figure}`
  const find = () => document.querySelector(`${place} .js-plotly-plot`)
  const short = (values) => Array.from(values, (value) => Number(Number(value).toPrecision(7)))
  let pressed = null
  let moved = false
  let looking = 0
  let clicking = 0

  const look = () => {
    const layout = find()?._fullLayout
    if (!layout?.xaxis) return
    const free = layout.xaxis.autorange || layout.yaxis.autorange
    const ranges = free ? null : [...layout.xaxis.range, ...layout.yaxis.range].map(Number)
    if (JSON.stringify(ranges) !== JSON.stringify(data.ranges)) setStateValue("view", { of: data.of, ranges })
  }
  const soon = () => { clearTimeout(looking); looking = setTimeout(look, 400) }

  const report = (kind, xs, ys, reach) => (
    setTriggerValue("drawn", { of: data.of, kind, xs: short(xs), ys: short(ys), reach })
  )
  const selected = (event) => {
    if (event?.lassoPoints) report("lasso", event.lassoPoints.x, event.lassoPoints.y, 0)
    else if (event?.range) report("box", event.range.x, event.range.y, 0)
  }
  const cleared = () => { clearTimeout(clicking); report("nothing", [], [], 0) }
  const forget = (figure) => {
    for (const [name, listener] of figure?.metamoeListeners ?? []) figure.removeListener(name, listener)
  }
  const listen = (figure) => {
    forget(figure)
    figure.metamoeListeners = [["plotly_selected", selected], ["plotly_deselect", cleared]]
    for (const [name, listener] of figure.metamoeListeners) figure.on(name, listener)
  }

  const over = (event) => Boolean(event.target?.closest?.(place))
  const press = (event) => {
    clearTimeout(clicking)
    pressed = over(event) ? event : null
    moved = false
    const figure = find()
    if (pressed && figure) listen(figure)
  }
  const move = (event) => {  // a lasso may well end where it began: that is no click
    if (pressed) moved ||= Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) >= 4
  }
  const release = (event) => {
    if (!pressed) return
    soon()
    const plot = pressed.target.closest(".nsewdrag")
    if (!moved && plot) clicking = setTimeout(() => click(plot.getBoundingClientRect(), event), 350)
    pressed = null
  }
  const click = (frame, event) => {
    const { xaxis, yaxis } = find()?._fullLayout ?? {}
    if (!xaxis) return
    const [x, y] = [xaxis.p2d(event.clientX - frame.left), yaxis.p2d(event.clientY - frame.top)]
    report("point", [x], [y], Math.abs(xaxis.p2d(6) - xaxis.p2d(0)))
  }
  const turn = (event) => { if (over(event)) soon() }
  document.addEventListener("pointerdown", press, true)
  document.addEventListener("pointermove", move, true)
  document.addEventListener("pointerup", release, true)
  document.addEventListener("wheel", turn, { capture: true, passive: true })
  return () => {
    clearTimeout(looking)
    clearTimeout(clicking)
    forget(find())
    document.removeEventListener("pointerdown", press, true)
    document.removeEventListener("pointermove", move, true)
    document.removeEventListener("pointerup", release, true)
    document.removeEventListener("wheel", turn, { capture: true })
  }
}
"""
_watch = st.components.v2.component("metamoe_camera", js=_SCRIPT)


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a person drew, in the figure's coordinates. `nothing`: they took back what they had drawn."""

    kind: Literal["lasso", "box", "point", "nothing"]
    xs: tuple[float, ...] = ()
    """Corners of the lasso, two opposite corners of the box, or the point."""
    ys: tuple[float, ...] = ()
    reach: float = 0.0
    """How near to a point means that point: six pixels."""


def get_camera(figure_key: str, of: str) -> Camera | None:
    """What is in view of figure `figure_key` while it shows `of` (a map's id); None: all of it."""
    view = (st.session_state.get(f"{figure_key}_camera") or {}).get("view")
    return tuple(view["ranges"]) if view and view["of"] == of and view["ranges"] else None


def get_drawing(figure_key: str, of: str) -> Drawing | None:
    """What was just drawn on the figure; in the callback of `watch_figure` only."""
    drawn = (st.session_state.get(f"{figure_key}_camera") or {}).get("drawn")
    if not drawn or drawn["of"] != of:
        return None
    return Drawing(drawn["kind"], tuple(drawn["xs"]), tuple(drawn["ys"]), float(drawn["reach"]))


def watch_figure(figure_key: str, of: str, on_drawn: Callable[[], None]) -> None:
    """Keep an eye on the figure with this key, which shows `of`. Belongs into the figure's fragment."""
    ranges = get_camera(figure_key, of)
    data = {"figure": figure_key, "of": of, "ranges": list(ranges) if ranges else None}
    _watch(
        key=f"{figure_key}_camera", data=data, on_view_change=lambda: None, on_drawn_change=on_drawn, height="content"
    )
