"""Skills: what skill does each question need?"""

import pandas as pd
import streamlit as st

from pages.shared.i18n import _, ngettext
from pages.shared.layout import answer_line, canvas_and_inspector, empty_state, page_header
from pages.shared.skills_data import load_questions, load_skills, load_suggestions
from pages.shared.skills_history import render_history, render_labellings
from pages.shared.skills_queue import choose_queue, render_card, render_small_map
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
        queue = choose_queue(store, questions)
        question = questions.set_index("question_id", drop=False).loc[queue[0]] if queue else None
        if question is None:
            st.success(_("Every question here has a label."), icon=":material/check_circle:")
        else:
            if skills.empty:
                st.info(_("Create a skill first (above, right): it gets a key of its own."), icon=":material/keyboard:")
            render_card(store, question, skills, len(queue))
    with inspector:
        if question is not None:
            render_small_map(questions, question, skills)
    names = [_("Skills"), _("Suggestions"), _("History"), _("Labellings")]
    skill_tab, suggestion_tab, history_tab, labelling_tab = st.tabs(names)
    with skill_tab:
        if skills.empty:
            st.info(_("There is no skill yet."), icon=":material/label_off:")
        else:
            render_skills_table(store, skills)
    with suggestion_tab:
        render_suggestions(store, suggestions, skills)
    with history_tab:
        render_history(store)
    with labelling_tab:
        render_labellings(store, suggestions)


render()
