"""Jobs: what runs, and how is it going?"""

import streamlit as st

from metamoe_backend.jobs.run_folder import RunStatus
from metamoe_backend.store.ingestion import ingest_finished_runs
from pages.shared.errors import error_boundary
from pages.shared.i18n import _
from pages.shared.jobs_alerts import render_alerts
from pages.shared.jobs_compare import render_comparison
from pages.shared.jobs_made import render_made
from pages.shared.jobs_new import open_new_run, render_new_run
from pages.shared.jobs_run import ACTED, render_curves, render_log, render_rates, render_review, render_summary
from pages.shared.jobs_table import choose_shown, filter_by_stage, render_table
from pages.shared.layout import answer_line, canvas_and_inspector, empty_state, page_header, plain
from pages.shared.run_reading import ACTIVE, read_statuses
from pages.shared.run_words import answer_text
from pages.shared.state import get_selection, get_store

_STANDING = "jobs_standing"


def _stand(statuses: list[RunStatus]) -> tuple[tuple[str, str], ...]:
    return tuple((status.run_id, status.state) for status in statuses)


def render() -> None:
    action = page_header(
        _("Jobs"), _("Training and evaluation run in processes of their own and go on when this page is closed.")
    )
    with action:
        st.button(_("New run"), type="primary", key="jobs_new", icon=":material/add:", on_click=open_new_run)
    render_new_run()
    statuses = read_statuses()
    if not statuses:
        empty_state(_("Nothing has run yet."), button=_("Start the first run"), on_click=open_new_run)
        return
    st.session_state[_STANDING] = _stand(statuses)
    active = any(status.state in ACTIVE for status in statuses)
    st.fragment(_render_live, run_every="2s" if active else "20s")()


@error_boundary()
def _render_live() -> None:
    """Drawn again and again; when a run starts or ends, its results are taken in and the whole page is drawn anew."""
    statuses = read_statuses()
    if _stand(statuses) != st.session_state.get(_STANDING) or st.session_state.pop(ACTED, False):
        ingest_finished_runs(get_store())
        st.rerun()
    wanted = get_selection().run
    shown = choose_shown(statuses, wanted)
    answer_line(plain(answer_text(statuses)))
    render_alerts(statuses, shown.run_id if shown is not None else None)
    if wanted and shown is not None and shown.run_id != wanted:
        st.warning(_("Run {run} does not exist in this workspace.").format(run=plain(wanted)))
    canvas, inspector = canvas_and_inspector()
    with canvas:
        render_table(filter_by_stage(statuses), shown)
    if shown is None:
        return
    with canvas:
        render_curves(shown)
    with inspector:
        render_summary(shown, statuses)
        render_made(shown)
    render_rates(shown)
    render_log(shown)
    render_comparison(statuses, shown)
    render_review(shown)


render()
