"""The parts of the Overview page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import streamlit as st

from metamoe_backend.store.acts import Act
from pages.shared.act_words import act_text
from pages.shared.i18n import _, ngettext
from pages.shared.layout import plain
from pages.shared.relabelling import count_sentence
from pages.shared.state import open_page
from pages.shared.tables import show_table

CardState = Literal["done", "stale", "empty"]


@dataclass(frozen=True, slots=True)
class Card:
    """One station of the pipeline."""

    title: str
    icon: str
    count: str
    note: str
    state: CardState
    page: str
    action: str


def describe_cards(found: dict[str, Any]) -> list[Card]:
    """The pipeline as eight cards, in order. A card is stale when what it rests on has changed since."""
    counts = found["counts"]
    maps: pd.DataFrame = found["maps"]
    on_map = int(maps["questions"].iloc[0]) if len(maps) else 0
    unlabelled = counts["questions"] - counts["labels"] - counts["suggestions"]

    def state(present: int, stale: bool = False) -> CardState:
        return "empty" if not present else "stale" if stale else "done"

    return [
        Card(_("Tasks"), "quiz", f"{counts['questions']:,}", ngettext("questions of {n} task", "questions of {n} tasks", counts["tasks"]).format(n=counts["tasks"]), state(counts["tasks"]), "tasks", _("Import questions")),
        Card(_("Meta-questions"), "abc", f"{counts['meta_questions']:,}", _("built"), state(counts["meta_questions"], counts["meta_questions"] < counts["questions"]), "meta-questions", _("Build meta-questions")),
        Card(_("Map"), "scatter_plot", f"{counts['clusters']:,}", _("clusters of {n} questions").format(n=f"{on_map:,}"), state(counts["maps"], on_map < counts["questions"]), "map", _("Draw the map")),
        Card(_("Skills"), "label", f"{counts['skills']:,}", _("{labels} labels, {suggestions} suggestions").format(labels=f"{counts['labels']:,}", suggestions=f"{counts['suggestions']:,}"), state(counts["skills"], unlabelled > 0), "skills", _("Label questions")),
        Card(_("Plan"), "account_tree", f"{counts['plans']:,}", ngettext("plans, {n} labelling", "plans, {n} labellings", counts["labellings"]).format(n=f"{counts['labellings']:,}"), state(counts["plans"]), "experts", _("Give skills to experts")),
        Card(_("Experts"), "school", f"{counts['experts']:,}", count_sentence(found["changes"]) or _("trained or imported"), state(counts["experts"], len(found["changes"]) > 0), "experts" if len(found["changes"]) else "jobs", _("Train an expert")),
        Card(_("Mixtures"), "hub", f"{counts['mixtures']:,}", _("of experts"), state(counts["mixtures"]), "jobs", _("Train a mixture")),
        Card(_("Evaluation"), "fact_check", f"{counts['predictions']:,}", _("answers of {n} systems").format(n=counts["systems_evaluated"]), state(counts["predictions"]), "outcomes", _("Evaluate systems")),
    ]  # fmt: skip


def render_cards(cards: list[Card]) -> None:
    """Two rows of four."""
    states = {
        "done": (":material/check_circle:", "green", _("done")),
        "stale": (":material/update:", "orange", _("out of date")),
        "empty": (":material/radio_button_unchecked:", "gray", _("missing")),
    }
    for start in range(0, len(cards), 4):
        for column, card in zip(st.columns(4), cards[start : start + 4], strict=False):
            with column, st.container(border=True, height="stretch"):
                icon, colour, word = states[card.state]
                st.metric(f":material/{card.icon}: {card.title}", card.count)
                st.caption(card.note)
                with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                    st.badge(word, icon=icon, color=colour)
                    label = card.action if card.state == "empty" else _("Open")
                    if st.button(label, key=f"overview_{card.icon}", type="tertiary"):
                        open_page("jobs" if card.state == "empty" and card.icon == "fact_check" else card.page)


def render_review_line(feed: pd.DataFrame, following: Card | None) -> None:
    """What comes next, and what awaits an advisor."""
    awaited = int(feed["verdict"].isna().sum()) if len(feed) else 0
    parts = [_("Next: {action}.").format(action=following.action.lower())] if following else []
    if awaited:
        parts.append(_("{n} runs and experts await a verdict.").format(n=awaited))
    st.caption(" ".join(parts) or _("Everything is done and reviewed."))


def render_runs(runs: pd.DataFrame) -> None:
    st.subheader(_("Newest runs"), anchor=False)
    if runs.empty:
        st.caption(_("No run yet."))
        return
    show_table(
        runs.head(8)[["stage", "name", "state", "created_at"]],
        "overview_runs",
        labels={"stage": _("Stage"), "name": _("Name"), "state": _("State")},
        formats={"created_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm")},
    )


def render_acts(acts: Sequence[Act]) -> None:
    st.subheader(_("What people did"), anchor=False)
    if not acts:
        st.caption(_("Nothing yet."))
        return
    for act in acts[:8]:
        text = plain(act_text(act), 90)
        st.markdown(
            f"{plain(act.by)}: ~~{text}~~" if act.undone_by else f"{plain(act.by)}: {text}",
            help=f"{act.at:%Y-%m-%d %H:%M} UTC",
        )
