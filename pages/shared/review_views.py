"""The parts of the Review page; the verdict form also stands where other pages want it."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.reviews import fetch_reviews, leave_review
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.layout import confirm_and_rerun, plain, question_text
from pages.shared.state import get_person, open_page, select
from pages.shared.tables import show_table

CHART_PAGES = ("experts", "router", "outcomes", "forgetting")
VERDICTS = ("approve", "question", "reject")


def verdict_name(verdict: str | None) -> str:
    names = {"approve": _("approve"), "question": _("question"), "reject": _("reject")}
    return names.get(verdict or "", _("awaited"))


def chart_title(address: str) -> str:
    """What a chart's address (PAGE/CHART?FILTERS) means, in words: its page, its name, and what it was filtered by."""
    names = {
        "experts/likeness": _("Experts: how alike the adapters are"), "experts/selection": _("Experts: choice for a task"),
        "router/layers": _("Router: layer × expert"), "router/skills": _("Router: skill × expert"),
        "router/pairs": _("Router: experts chosen together"), "router/agreement": _("Router: do the routers agree?"),
        "outcomes/parts": _("Outcomes: solved by all, some, none"), "outcomes/errors": _("Outcomes: error rates"),
        "outcomes/regret": _("Outcomes: regret"),
        "forgetting/matrix": _("Forgetting: systems × tasks"),
    }  # fmt: skip
    chart, _mark, query = address.partition("?")
    filters = ", ".join(_filter_word(name, value) for name, value in parse_qsl(query))
    return names.get(chart, chart) + (f" ({filters})" if filters else "")


def _filter_word(name: str, value: str) -> str:
    """A filter's value as the page calls it; names of systems, tasks and experts are what they are."""
    return filter_words().get(name, {}).get(value, value)


def filter_words() -> dict[str, dict[str, str]]:
    """What the codes that stand in the address are called, by the key of their widget."""
    metrics = {
        "scored": _("as scored"), "acc_norm": _("acc_norm: options by log-likelihood per character"),
        "strict": _("strict: numbers only after ####"),
    }  # fmt: skip
    return {
        "router_value": {
            "weight": _("Mean gate weight"), "chosen": _("Top-k share of tokens"), "share": _("Share of chosen gates"),
        },
        "router_group": {"skill": _("Skills"), "task": _("Tasks")},
        "outcomes_by": {"task": _("Tasks"), "skill": _("Skills")},
        "outcomes_show": {
            "parts": _("All, some or none"), "solvers": _("How many solve it"), "sets": _("Who solves what"),
            "versus": _("Against the best expert"), "regret": _("Regret"),
        },
        "outcomes_metric": metrics,
        "forgetting_metric": metrics,
        "router_level": {"question": _("Per question (probability)"), "token": _("Per token (gate weight)")},
    }  # fmt: skip


def render_review_action(store: Store, chart: str, filters: Sequence[str]) -> None:
    """A small button under a chart (PAGE/CHART) that opens its comments and verdicts.

    `filters` are the keys of the widgets that decide what the chart shows; their values stand in the chart's address,
    so that a reviewer sees the same. They are bound to the address line (`bind="query-params"`).
    """
    pairs = [(name, value) for name in filters for value in _filter_values(name)]
    address = chart + (f"?{urlencode(pairs)}" if pairs else "")
    said = len(fetch_reviews(store, "chart", address))
    label = _("Review ({n})").format(n=said) if said else _("Review")
    if st.button(label, key=f"review_chart_{chart}", icon=":material/rate_review:", type="tertiary"):
        st.dialog(_("Review this chart"))(_render_chart_dialog)(store, address)


def _filter_values(name: str) -> list[str]:
    in_address = st.query_params.get_all(name)
    if in_address:
        return in_address
    value = st.session_state.get(name)
    return [value] if isinstance(value, str) else [str(each) for each in value or ()]


def _render_chart_dialog(store: Store, address: str) -> None:
    st.markdown(plain(chart_title(address)))
    render_verdict_form(store, "chart", address)
    _render_comments(fetch_reviews(store, "chart", address))


def _open_chart(address: str) -> None:
    chart, _mark, query = address.partition("?")
    page = chart.partition("/")[0]
    if page in CHART_PAGES:
        st.switch_page(st.session_state["pages"][page], query_params=parse_qs(query))


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
        title=[chart_title(row.target) if row.target_kind == "chart" else row.title for row in shown.itertuples()],
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
        open_page("experts", experts_part="bank")
    if kind == "chart" and st.button(_("Open the chart"), key="review_open_chart", type="tertiary"):
        _open_chart(name)
    render_verdict_form(store, kind, name)
    _render_comments(fetch_reviews(store, kind, name))


def _render_comments(thread: pd.DataFrame) -> None:
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
    confirm_and_rerun(_("Review stored."))
