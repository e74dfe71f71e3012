"""Review: what should the advisor decide?"""

import pandas as pd
import streamlit as st

from metamoe_backend.report import make_report
from metamoe_backend.store.connection import Store
from metamoe_backend.store.reviews import fetch_review_feed
from pages.shared.i18n import _, ngettext
from pages.shared.layout import answer_line, canvas_and_inspector, empty_state, page_header
from pages.shared.review_views import render_feed, render_thread
from pages.shared.state import get_store, per_version


@per_version
def load(store: Store) -> pd.DataFrame:
    return fetch_review_feed(store)


@per_version
def load_report(store: Store) -> str:
    return make_report(store)


def render() -> None:
    action = page_header(_("Review"), _("Comments and verdicts on runs, experts and charts."))
    store = get_store()
    feed = load(store)
    if feed.empty:
        empty_state(_("Nothing to review yet: train an expert first."), button=_("Go to Jobs"), page="jobs")
        return
    with action:
        st.download_button(
            _("Weekly report"),
            lambda: load_report(store),
            file_name=f"{store.workspace.name}-report.md",
            mime="text/markdown",
            icon=":material/download:",
            key="review_report",
        )
    awaited = int(feed["verdict"].isna().sum())
    answer_line(ngettext("{n} awaits a verdict.", "{n} await a verdict.", awaited).format(n=awaited))
    canvas, inspector = canvas_and_inspector()
    with canvas:
        target = render_feed(feed)
    with inspector:
        render_thread(store, target)


render()
