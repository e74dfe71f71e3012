"""One run: how it stands, what one can do about it, its curves, its log."""

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.errors import MetaMoEError
from metamoe_backend.figures.results import make_curves_figure
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, find_run
from metamoe_backend.jobs.supervisor import cancel, move_in_queue, request_stop, resume, retry
from metamoe_backend.jobs.waiting import find_obstacle
from metamoe_backend.launch import launch
from metamoe_backend.pipeline import STAGES
from metamoe_backend.store.reviews import REVIEWED_STAGES
from pages.shared.charts import show_figure
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.jobs_new import kind_of_run, open_new_run
from pages.shared.layout import confirm, plain
from pages.shared.review_views import render_verdict_form
from pages.shared.run_reading import read_metrics
from pages.shared.run_words import (
    STATE_ICONS,
    metric_name,
    metric_text,
    place_text,
    progress_text,
    reason_text,
    run_title,
    state_name,
)
from pages.shared.state import get_person, get_store, get_workspace, select

ACTED = "jobs_acted"
"""Set by a button of a run: the whole page has to be drawn again."""
_LOG_LINES = 200
_LOSSES = ("loss", "eval_loss", "auxiliary_loss")


def render_summary(status: RunStatus, statuses: Sequence[RunStatus]) -> None:
    """State, progress, newest figures, what one can do, and the command line."""
    icon, colour = STATE_ICONS[status.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(run_title(status))}**", width="content")
        st.badge(state_name(status), icon=icon, color=colour)
    if status.state == "running":
        share = min(1.0, status.done / status.total) if status.total else 0.0
        st.progress(share, text=progress_text(status))
    if status.profile is not None:
        st.caption(_("On Slurm: {place}").format(place=plain(place_text(status))))
    reason = reason_text(status, statuses)
    if reason and status.state == "failed":
        st.error(plain(reason), icon=":material/error:")
    elif reason:
        st.caption(plain(reason))
    _render_newest(status)
    _render_actions(status, statuses)
    _render_command(status)


def _render_newest(status: RunStatus) -> None:
    """Newest value of each figure, two in a row."""
    metrics = read_metrics(status.run_id)
    newest = metrics.groupby("name", sort=False)["value"].last().to_dict() if len(metrics) else dict(status.metrics)
    names = sorted(newest, key=lambda name: name not in _LOSSES)
    for first in range(0, len(names), 2):
        for column, name in zip(st.columns(2), names[first : first + 2], strict=False):
            column.metric(metric_name(name), metric_text(name, float(newest[name])))


def _render_actions(status: RunStatus, statuses: Sequence[RunStatus]) -> None:
    run_id = status.run_id
    with st.container(horizontal=True):
        if status.state == "running" and status.stopping is None:
            _button("stop", _("Stop and save"), ":material/pause:", _stop, run_id)
        if status.state in ("queued", "running") and status.stopping != "cancel":
            with st.popover(_("Cancel"), icon=":material/cancel:", key="jobs_cancel"):
                st.caption(_("A cancelled run keeps nothing of what it did."))
                _button("cancel_now", _("Cancel the run"), ":material/cancel:", _cancel, run_id)
        obstacle = find_obstacle(status, {each.run_id: each for each in statuses}) if not status.prepared else None
        if obstacle is not None and obstacle[1] is not None:
            _button("obstacle", _("Show what it waits for"), ":material/hourglass_top:", show_other_run, obstacle[0])
        first = min((each.place for each in statuses if each.state == "queued" and each.place is not None), default=0)
        if status.state == "queued" and (status.place or 0) > first:
            _button("next", _("Start next"), ":material/vertical_align_top:", _move_first, run_id)
        if status.state in ("stopped", "failed"):
            _button("resume", _("Resume"), ":material/resume:", _resume, run_id)
        if status.state not in ("queued", "running") and status.stage in STAGES:
            _button("retry", _("Run again"), ":material/replay:", _run_again, run_id)
        if status.stage in ("train", "sequence", "moe", "evaluate"):
            _button("edit", _("Change and run"), ":material/edit:", _change, run_id)


def _button(key: str, label: str, icon: str, act: Callable[[str], None], run_id: str) -> None:
    st.button(label, key=f"jobs_{key}", icon=icon, on_click=guarded(_then_redraw), args=(act, run_id))


def _then_redraw(act: Callable[[str], None], run_id: str) -> None:
    st.session_state[ACTED] = True
    act(run_id)


def show_other_run(run_id: str) -> None:
    """For buttons: from now on the page shows this run."""
    select(run=run_id)
    st.session_state[ACTED] = True


def _stop(run_id: str) -> None:
    request_stop(_find(run_id))
    confirm(_("Asked to save and stop."))


def _cancel(run_id: str) -> None:
    cancel(_find(run_id))
    confirm(_("Cancelled."))


def _resume(run_id: str) -> None:
    resume(_find(run_id))
    confirm(_("Queued again; it goes on where it stopped."))


def _move_first(run_id: str) -> None:
    run = _find(run_id)
    queued = [RunFolder(path.parent) for path in run.workspace.runs.glob("*/state.json")]
    waiting = [(each.read_state_file().place, each) for each in queued if each.read_state_file().state == "queued"]
    first = min((place, each.run_id, each) for place, each in waiting if place is not None)[2]
    move_in_queue(run, first)


def _run_again(run_id: str) -> None:
    """From the same rows; a run that came without them (a recorded demo) reads the workspace as it is now."""
    run = _find(run_id)
    if run.is_repeatable:
        again = retry(run)
    else:
        spec = run.read_spec()
        again = launch(get_store(), spec.stage, spec.config, get_person())
    select(run=again.run_id)
    confirm(_("Queued once more."))


def _change(run_id: str) -> None:
    spec = _find(run_id).read_spec()
    kind = kind_of_run(spec.stage, spec.config)
    if kind is not None:
        open_new_run(kind, spec.config)


def _find(run_id: str) -> RunFolder:
    return find_run(get_workspace(), run_id)


def _render_command(status: RunStatus) -> None:
    from metamoe_backend.jobs.command_line import command_line

    if status.stage not in STAGES:
        return
    try:
        text = command_line(_find(status.run_id))
    except MetaMoEError as error:  # settings of an older MetaMoE: the run can still be looked at
        st.caption(plain(error))
        return
    with st.expander(_("Command line"), icon=":material/terminal:", key="jobs_command"):
        st.code(text, language="bash", wrap_lines=True)


def render_curves(status: RunStatus) -> None:
    """Loss of training and of held-back questions, and below it everything else that was reported."""
    metrics = read_metrics(status.run_id)
    losses = metrics[metrics["name"].isin(_LOSSES)]
    if losses.empty:
        if status.stage in ("train", "moe"):
            st.caption(_("The loss is drawn here as soon as the first steps are done."))
        return
    words = {"loss": _("training"), "eval_loss": "eval", "auxiliary_loss": _("load balance")}
    figure = make_curves_figure(losses.assign(name=losses["name"].map(words)), _("loss, nats per token"))
    last = losses[losses["name"] == "loss"]["value"]
    alt = _("Loss over steps, last {value}").format(value=f"{last.iloc[-1]:.3f}" if len(last) else "–")
    show_figure(figure, key="jobs_loss", alt=alt)


def render_rates(status: RunStatus) -> None:
    """Learning rate, speed and memory over steps, small, side by side."""
    metrics = read_metrics(status.run_id)
    others = [name for name in dict.fromkeys(metrics["name"]) if name not in _LOSSES]
    drawn = [name for name in others if (metrics["name"] == name).sum() > 1][:4]
    if not drawn:
        return
    for column, name in zip(st.columns(len(drawn)), drawn, strict=True):
        of_name: pd.DataFrame = metrics[metrics["name"] == name]
        with column:
            along = None if status.stage in ("train", "sequence", "moe") else _("questions done")
            named = of_name.assign(name=metric_name(name))
            figure = make_curves_figure(named, metric_name(name), height=180, along=along)
            figure.update_layout(showlegend=False)
            show_figure(figure, key=f"jobs_{name}", alt=_("{name} over steps").format(name=metric_name(name)))


def render_log(status: RunStatus) -> None:
    with st.expander(_("Log"), icon=":material/description:", key="jobs_log", expanded=status.state == "failed"):
        text = _find(status.run_id).read_log(_LOG_LINES)
        with st.container(height=280, border=False, autoscroll=True):
            st.code(text or _("Nothing has been written yet."), language=None, wrap_lines=True)


def render_review(status: RunStatus) -> None:
    if status.stage in REVIEWED_STAGES and status.state in ("finished", "stopped"):
        with st.expander(_("Review"), icon=":material/rate_review:", key="jobs_review"):
            render_verdict_form(get_store(), "run", status.run_id)
