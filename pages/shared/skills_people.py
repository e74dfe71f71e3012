"""Who labelled what, how far people agree, and the questions on which they do not."""

import pandas as pd
import streamlit as st

from metamoe_backend.skills.agreement import Agreement, compare_people, compute_alpha, count_votes
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import fetch_conflicts, fetch_labels, fetch_votes
from pages.shared.i18n import _, ngettext
from pages.shared.layout import plain
from pages.shared.state import per_version
from pages.shared.tables import percent, show_table

DECIDE_MODE = "disputed"


@per_version
def load_conflicts(store: Store) -> pd.DataFrame:
    return fetch_conflicts(store)


@per_version
def load_agreement(store: Store) -> tuple[Agreement, pd.DataFrame]:
    """Alpha over everyone, and each two people with questions in common."""
    votes = fetch_votes(store)
    return compute_alpha(count_votes(votes)), compare_people(votes)


@per_version
def load_people(store: Store) -> pd.DataFrame:
    """author, labels, accepted (of them), decided (of them), skills (distinct), newest."""
    labels = fetch_labels(store)
    return (
        labels.assign(accepted=labels["how"] == "accepted", decided=labels["how"] == "decided")
        .groupby("author")
        .agg(
            labels=("question_id", "size"), accepted=("accepted", "sum"), decided=("decided", "sum"),
            skills=("skill_id", "nunique"), newest=("made_at", "max"),
        )
        .sort_values("labels", ascending=False)
        .reset_index()
    )  # fmt: skip


def render_people(store: Store) -> None:
    """Everyone's labels, agreement with n and intervals, and the way to the disagreements."""
    people = load_people(store)
    if people.empty:
        st.info(_("Nobody has labelled anything yet."), icon=":material/group_off:")
        return
    left, right = st.columns(2, gap="medium")
    with left:
        _render_authors(people)
        _render_conflicts(load_conflicts(store))
    with right:
        _render_agreement(*load_agreement(store))


def _render_authors(people: pd.DataFrame) -> None:
    show_table(
        people,
        "skills_people",
        labels={"author": _("Who"), "labels": _("Labels"), "skills": _("Skills")},
        formats={
            "accepted": st.column_config.NumberColumn(_("Accepted"), help=_("Suggestions accepted as labels")),
            "decided": st.column_config.NumberColumn(_("Decided"), help=_("Disagreements ended")),
            "newest": st.column_config.DatetimeColumn(_("Newest (UTC)"), format="YYYY-MM-DD HH:mm"),
        },
    )


def _render_conflicts(conflicts: pd.DataFrame) -> None:
    n = conflicts["question_id"].nunique()
    if not n:
        st.caption(_("People disagree on no question that is not decided."))
        return
    text = ngettext("People disagree on **{n} question**.", "People disagree on **{n} questions**.", n)
    st.markdown(text.format(n=f"{n:,}"))

    def decide() -> None:
        st.session_state["skills_mode"] = DECIDE_MODE

    st.button(_("Decide one after the other"), key="skills_decide", icon=":material/gavel:", on_click=decide)


def _render_agreement(alpha: Agreement, pairs: pd.DataFrame) -> None:
    st.markdown(
        _("Krippendorff's alpha: **{value}**").format(
            value=coefficient_text(alpha.value, alpha.low, alpha.high, alpha.n)
        )
    )
    st.caption(
        _("Of everyone's own labels, over questions that at least two people labelled; decisions are left out. 1: all agree, 0: as often as by chance.")
    )  # fmt: skip
    if pairs.empty:
        st.caption(_("No two people have labelled the same question yet."))
        return
    intervals = [coefficient_text(row.kappa, row.low, row.high, row.n) for row in pairs.itertuples()]
    show_table(
        pairs.assign(who=pairs["first"] + " · " + pairs["second"], same=pairs["same"].map(percent), kappa=intervals)[
            ["who", "same", "kappa"]
        ],
        "skills_pairs",
        labels={"who": _("Two people"), "same": _("Same skill"), "kappa": _("Cohen's kappa (95 % interval)")},
    )


def coefficient_text(value: float, low: float, high: float, n: int) -> str:
    """A coefficient with its interval and n: ".62 (.54 to .69), n=140"."""
    if pd.isna(value):
        return _("not defined, n={n}").format(n=f"{n:,}")
    return _("{value} ({low} to {high}), n={n}").format(
        value=f"{value:.2f}", low=f"{low:.2f}", high=f"{high:.2f}", n=f"{n:,}"
    )


def who_said_what(conflicts: pd.DataFrame, question_id: str) -> pd.DataFrame:
    """skill (a list, for chips), author, made_at of the labels of one question."""
    rows = conflicts[conflicts["question_id"] == question_id]
    return rows.assign(skill=[[name] for name in rows["skill"]])[["skill", "author", "made_at"]]


def conflict_caption(task: str, split: str, waiting: int) -> str:
    text = ngettext("{task} · {split} · {waiting} disagreement to decide", "{task} · {split} · {waiting} disagreements to decide", waiting)  # fmt: skip
    return text.format(task=plain(task), split=plain(split), waiting=f"{waiting:,}")
