"""Experts: who learns what?"""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_bank
from pages.shared.experts_bank import render_bank, render_import
from pages.shared.experts_board import load_labellings, load_plans, render_board
from pages.shared.experts_data import render_data
from pages.shared.experts_likeness import render_likeness
from pages.shared.experts_selection import render_selection
from pages.shared.experts_training import render_training
from pages.shared.i18n import _, ngettext
from pages.shared.jobs_new import open_new_run
from pages.shared.layout import answer_line, empty_state, page_header, plain
from pages.shared.relabelling import count_sentence, load_label_changes
from pages.shared.state import get_store, open_page, per_version, segment_in_address

# The parts of the page in the order of the work; only the open one is computed.
_PARTS = ("plan", "bank", "likeness", "choose", "data")


@per_version
def load_adapters(store: Store) -> pd.DataFrame:
    return fetch_bank(store)


def describe_answer(adapters: pd.DataFrame, plans: pd.DataFrame, changes: pd.DataFrame) -> str:
    """How many adapters there are, what the newest plan says, and how many are out of date."""
    n = len(adapters)
    sentences = [ngettext("{n} adapter is in the bank.", "{n} adapters are in the bank.", n).format(n=n)]
    if len(plans):
        newest = plans.iloc[0]
        experts = len(set(newest["experts"]) - {"base"})
        sentences.append(
            _("Plan {plan} gives {skills} skills to {experts} experts under labelling {labelling}.").format(
                plan=plain(newest["plan"]),
                skills=len(newest["skills"]),
                experts=experts,
                labelling=plain(newest["labelling"]),
            )
        )
    sentences += filter(None, [count_sentence(changes)])
    return " ".join(sentences)


def render() -> None:
    action = page_header(_("Experts"), _("Which expert learns which skill, and every adapter there is."))
    with action:
        if st.button(_("Train an expert"), type="primary", key="experts_new", icon=":material/school:"):
            open_new_run("expert")
            open_page("jobs")
    store = get_store()
    adapters, plans, labellings = load_adapters(store), load_plans(store), load_labellings(store)
    changes = load_label_changes(store)
    answer_line(describe_answer(adapters, plans, changes))
    parts: dict[str, tuple[str, Callable[[], None]]] = {
        "plan": (_("Plan and train"), lambda: render_plan(labellings, adapters)),
        "bank": (_("Bank"), lambda: render_bank_part(adapters, changes)),
        "data": (_("Choose data"), render_data),
    }
    if len(adapters) > 1:
        parts["likeness"] = (_("Likeness"), lambda: render_likeness(adapters))
        parts["choose"] = (_("Choose for a task"), lambda: render_selection(adapters))
    names = {part: parts[part][0] for part in _PARTS if part in parts}
    part = segment_in_address(_("Show"), names, "experts_part", visible=False)
    parts[part][1]()


def render_plan(labellings: pd.DataFrame, adapters: pd.DataFrame) -> None:
    """The board, and the form that trains what was planned."""
    if labellings.empty:
        empty_state(
            _("A plan rests on a frozen labelling, and there is none yet. Label questions, then freeze the labels."),
            button=_("Go to Skills"),
            page="skills",
        )
        return
    plan = render_board()
    if plan:
        render_training(plan, adapters)


def render_bank_part(adapters: pd.DataFrame, changes: pd.DataFrame) -> None:
    """Every adapter, and bringing in one from elsewhere."""
    if adapters.empty:
        st.caption(_("No adapter yet: train an expert, or import one."))
    else:
        render_bank(adapters, changes)
    render_import(adapters)


render()
