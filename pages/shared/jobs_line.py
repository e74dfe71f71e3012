"""The running jobs as one line of the sidebar, kept up to date by itself."""

import streamlit as st

from metamoe_backend.jobs.run_folder import RunStatus
from metamoe_backend.store.ingestion import ingest_finished_runs
from pages.shared.errors import error_boundary
from pages.shared.i18n import _
from pages.shared.run_reading import ACTIVE, read_statuses
from pages.shared.state import get_store
from pages.shared.tables import duration_text
from pages.shared.text import plain


def fetch_active_runs() -> list[RunStatus]:
    """Runs that are queued or running, as their folders say."""
    return [status for status in read_statuses() if status.state in ACTIVE]


def render_jobs_line() -> None:
    """Looks often while something runs, seldom otherwise."""
    st.fragment(_render_line, run_every="3s" if fetch_active_runs() else "20s")()


@error_boundary()
def _render_line() -> None:
    """Takes in what has finished, too; new rows redraw the whole page."""
    if ingest_finished_runs(get_store()):
        st.rerun()
    active = fetch_active_runs()
    running = [status for status in active if status.state == "running"]
    if not active:
        st.caption(_("No job is running."))
        return
    parts = [_describe(running[0])] if running else []
    if len(running) > 1:
        parts.append(_("{n} more running").format(n=len(running) - 1))
    queued = len(active) - len(running)
    if queued:
        parts.append(_("{n} queued").format(n=queued))
    st.caption(", ".join(parts))


def _describe(status: RunStatus) -> str:
    name = plain(status.name, 40)
    if not status.total:
        return _("{name} is running").format(name=name)
    done, total, time = f"{status.done:,}", f"{status.total:,}", duration_text(status.eta_s)
    if status.eta_s is None:
        return _("{name}: {done}/{total}").format(name=name, done=done, total=total)
    return _("{name}: {done}/{total}, {time} left").format(name=name, done=done, total=total, time=time)
