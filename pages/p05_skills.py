"""Skills: what skill does each question need?"""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.finding import Filters
from pages.shared.find import keep_found, render_find
from pages.shared.i18n import _, ngettext
from pages.shared.layout import answer_line, canvas_and_inspector, empty_state, page_header
from pages.shared.skills_data import load_newest_map, load_questions, load_skills, load_suggestions
from pages.shared.skills_history import render_history
from pages.shared.skills_labellings import render_labellings
from pages.shared.skills_people import render_people
from pages.shared.skills_queue import choose_turn, render_card, render_small_map
from pages.shared.skills_suggestions import UNCERTAIN_BELOW, render_suggestions
from pages.shared.skills_table import render_new_skill, render_skills_table
from pages.shared.state import get_store
from pages.shared.tables import percent


def render_answer(skills: pd.DataFrame, suggestions: pd.DataFrame) -> None:
    labels = int(skills["labels"].sum())
    covered = int((skills["labels"] > 0).sum())
    text = ngettext(
        "{n} labelled question covers {skills} of {all} skills",
        "{n} labelled questions cover {skills} of {all} skills",
        labels,
    )
    sentence = text.format(n=f"{labels:,}", skills=covered, all=len(skills))
    if len(suggestions):
        uncertain = int((suggestions["probability"] < UNCERTAIN_BELOW).sum())
        sentence += _("; {n} more have a suggestion, {uncertain} of them uncertain (under {limit})").format(
            n=f"{len(suggestions):,}", uncertain=f"{uncertain:,}", limit=percent(UNCERTAIN_BELOW)
        )
    answer_line(sentence + _("."))


def render() -> None:
    action = page_header(_("Skills"), _("A skill is a name for a kind of reasoning. Only people make labels."))
    store = get_store()
    skills, questions = load_skills(store), load_questions(store)
    if questions.empty:
        empty_state(_("There are no questions to label yet."), button=_("Import questions"), page="tasks")
        return
    with action:
        render_new_skill(skills)
    suggestions = load_suggestions(store)
    render_answer(skills, suggestions)
    canvas, inspector = canvas_and_inspector()
    with canvas:
        newest = load_newest_map(store)
        filters = render_find(store, newest["map_id"] if newest else None)
        wanted = keep_found(store, filters, questions)
        turn = choose_turn(store, wanted)
        if turn is None and len(wanted):
            st.success(_("Every question here has a label."), icon=":material/check_circle:")
        elif turn is not None:
            if skills.empty:
                st.info(_("Create a skill first (above, right): it gets a key of its own."), icon=":material/keyboard:")
            render_card(store, turn, skills)
    with inspector:
        if turn is not None:
            render_small_map(questions, turn, skills)
    render_tabs(store, skills, suggestions, filters)


def render_tabs(store: Store, skills: pd.DataFrame, suggestions: pd.DataFrame, filters: Filters) -> None:
    """Only the open one is computed: the page is drawn anew with every label."""
    names = [_("Skills"), _("Suggestions"), _("People"), _("History"), _("Labellings")]
    draw: list[Callable[[], None]] = [
        lambda: render_skills_table(store, skills),
        lambda: render_suggestions(store, suggestions, skills, filters),
        lambda: render_people(store),
        lambda: render_history(store),
        lambda: render_labellings(store, suggestions),
    ]
    for tab, render_tab in zip(st.tabs(names, key="skills_tabs", on_change="rerun"), draw, strict=True):
        with tab:
            if tab.open:
                render_tab()


render()
