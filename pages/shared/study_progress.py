"""How far a study is: its steps, kept up to date, started as they become ready, and the button that stops or goes on."""

import pandas as pd
import streamlit as st

from metamoe_backend.study.advance import advance, go_on, look_at, stop
from metamoe_backend.study.document import make_command
from metamoe_backend.study.progress import Look, StepStatus
from metamoe_backend.study.studies import Study, read_study
from pages.shared.errors import error_boundary, guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import plain
from pages.shared.run_words import stage_name
from pages.shared.state import get_person, get_store, get_workspace, open_page, select
from pages.shared.tables import duration_text, show_table

_STANDING = "study_standing"


def render_switch(study: Study) -> None:
    """Stop, or go on: whichever there is to do."""
    look = look_at(get_store(), study)
    broken = any(status.state in ("failed", "stopped") for status in look.left)
    if look.left and (study.paused or (broken and not look.active)):
        st.button(
            _("Go on"), key="study_go_on", type="primary", icon=":material/play_arrow:",
            on_click=guarded(lambda: go_on(get_store(), study.config.name, get_person())),
        )  # fmt: skip
    elif look.left:
        st.button(
            _("Stop and save"), key="study_stop", icon=":material/pause:",
            on_click=guarded(lambda: stop(get_store(), study.config.name)),
        )  # fmt: skip


def render_progress(study: Study) -> None:
    """The sentence, the bar and the steps; while the study goes on and the page is open, the next steps are started."""
    look = look_at(get_store(), study)
    going = bool(look.left) and not study.paused
    st.session_state[_STANDING] = look.done
    st.fragment(lambda: _render_live(study.config.name), run_every="3s" if going else None)()


@error_boundary()
def _render_live(name: str) -> None:
    study = read_study(get_workspace(), name)
    look = advance(get_store(), study, get_person())
    if look.done != st.session_state.get(_STANDING):
        st.rerun()
    st.progress(look.done / len(look.own), text=describe(study, look))
    failed = next((status for status in look.left if status.state == "failed"), None)
    if failed is not None:
        text = _("Step {step} failed: {error}").format(step=plain(failed.step.key), error=plain(failed.error))
        st.warning(text, icon=":material/error:")
    with st.expander(_("Steps"), expanded=bool(look.left), key=f"study_steps_{name}"):
        _render_steps(look)
        st.code(make_command(study.config), language="bash", wrap_lines=True)


def describe(study: Study, look: Look) -> str:
    """How far it is and how long it will take."""
    done = ngettext("{done} of {n} run finished", "{done} of {n} runs finished", len(look.own)).format(
        done=look.done, n=len(look.own)
    )
    parts = [done]
    if look.left and study.paused:
        parts.append(_("it rests"))
    if look.left:
        parts.append(
            _("about {time} left").format(time=duration_text(look.left_s))
            if look.left_s
            else _("time left not known yet")
        )
    if look.left_s and look.untold:
        parts.append(_("without {n} of a kind that has not finished yet").format(n=look.untold))
    return ", ".join(parts) + "."


def _render_steps(look: Look) -> None:
    picked = show_table(
        pd.DataFrame([_row(status) for status in look.statuses]),
        "study_steps",
        labels={"step": _("Step"), "what": _("What it does"), "state": _("State"), "took": _("Took"), "left": _("Left"),
                "run_id": _("Run")},
        select="single-row",
        height=320,
    )  # fmt: skip
    if len(picked) and picked["run_id"].iloc[0]:
        run_id = picked["run_id"].iloc[0]
        if st.button(_("Look at the run"), key="study_open_run", icon=":material/open_in_new:"):
            select(run=run_id)
            open_page("jobs")


def _row(status: StepStatus) -> dict[str, str]:
    states = {
        "waiting": _("waits"), "ready": _("ready"), "queued": _("queued"), "running": _("running"),
        "stopped": _("stopped"), "failed": _("failed"), "finished": _("finished"),
    }  # fmt: skip
    shared = _("the same as {step}").format(step=status.same_as) if status.same_as else ""
    return {
        "step": status.step.key,
        "what": stage_name(status.step.stage),
        "state": shared or states[status.state],
        "took": duration_text(status.seconds) if status.seconds is not None else "",
        "left": duration_text(status.left_s) if status.left_s is not None and not shared else "",
        "run_id": status.run_id or "",
    }
