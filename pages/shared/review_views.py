"""The parts of the Review page; the verdict form also stands where other pages want it."""

from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.reviews import fetch_reviews, leave_review
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.layout import confirm, plain, question_text
from pages.shared.state import get_person, open_page, select
from pages.shared.tables import show_table

VERDICTS = ("approve", "question", "reject")


def verdict_name(verdict: str | None) -> str:
    names = {"approve": _("approve"), "question": _("question"), "reject": _("reject")}
    return names.get(verdict or "", _("awaited"))


def render_feed(feed: pd.DataFrame) -> pd.Series | None:
    """What can be reviewed, what awaits a verdict first; returns the picked row, or the first one."""
    kinds = {"run": _("Runs"), "expert": _("Experts"), "chart": _("Charts")}
    chosen = st.pills(_("Show"), list(kinds), selection_mode="multi", format_func=kinds.get, key="review_kinds")
    only_awaited = st.toggle(_("Only what awaits a verdict"), key="review_awaited")
    shown = feed[feed["target_kind"].isin(chosen)] if chosen else feed
    shown = shown[shown["verdict"].isna()] if only_awaited else shown
    shown = shown.assign(
        verdict=[verdict_name(None if pd.isna(verdict) else verdict) for verdict in shown["verdict"]],
        kind=shown["target_kind"].map(kinds),
    )
    picked = show_table(
        shown[["kind", "title", "verdict", "comments", "made_at", "target_kind", "target"]],
        "review_feed",
        labels={"kind": _("What"), "title": _("Name"), "verdict": _("Verdict"), "comments": _("Comments")},
        formats={"made_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm")},
        hide=("target_kind", "target"),
        select="single-row",
        height=420,
    )
    if len(picked):
        return picked.iloc[0]
    return shown.iloc[0] if len(shown) else None


def render_thread(store: Store, target: pd.Series | None) -> None:
    """What was said about one thing, and the form that adds to it."""
    if target is None:
        st.info(_("Nothing awaits a verdict."), icon=":material/done_all:")
        return
    kind, name = str(target["target_kind"]), str(target["target"])
    st.markdown(f"**{plain(target['title'])}**")
    if kind == "run" and st.button(_("Open on the Jobs page"), key="review_open", type="tertiary"):
        select(run=name)
        open_page("jobs")
    if kind == "expert" and st.button(_("Open on the Experts page"), key="review_open_expert", type="tertiary"):
        select(expert=name)
        open_page("experts")
    render_verdict_form(store, kind, name)
    thread = fetch_reviews(store, kind, name)
    if thread.empty:
        st.caption(_("No comment yet."))
    for row in thread.itertuples():
        with st.container(border=True):
            verdict = None if pd.isna(row.verdict) else verdict_name(row.verdict)
            st.caption(
                f"{plain(row.author)} · {row.made_at:%Y-%m-%d %H:%M} UTC" + (f" · **{verdict}**" if verdict else "")
            )
            question_text(row.comment, key=f"review_{row.event_id}")


def render_verdict_form(store: Store, kind: str, target: str) -> None:
    """Comment and verdict in one form; stored under the person's name."""
    with st.form(f"review_form_{kind}_{target}", clear_on_submit=True):
        verdict = st.segmented_control(
            _("Verdict"), VERDICTS, format_func=verdict_name, key=f"review_verdict_{kind}_{target}"
        )
        comment = st.text_area(_("Comment"), max_chars=5000, key=f"review_comment_{kind}_{target}")
        if st.form_submit_button(_("Leave review"), type="primary"):
            guarded(_leave)(store, kind, target, verdict, comment)


def _leave(store: Store, kind: str, target: str, verdict: Any, comment: str) -> None:
    leave_review(store, kind, target, verdict, comment, get_person())
    confirm(_("Review stored."))
    st.rerun()
