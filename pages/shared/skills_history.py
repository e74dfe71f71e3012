"""What people did, and the labellings that were frozen from it."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.config import FreezeConfig
from metamoe_backend.launch import run_now
from metamoe_backend.store.acts import Act
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import UNDO
from metamoe_backend.store.skills import fetch_labelling_skills
from pages.shared.act_words import act_text, reason_text
from pages.shared.errors import error_boundary, guarded
from pages.shared.i18n import _
from pages.shared.layout import confirm, plain
from pages.shared.skills_acts import do_again, render_undo_redo, take_back
from pages.shared.skills_data import load_acts, load_labellings
from pages.shared.state import get_person, open_page, per_version
from pages.shared.tables import show_table


@per_version
def load_labelling_skills(store: Store, labelling: str) -> pd.DataFrame:
    return fetch_labelling_skills(store, labelling)


def render_history(store: Store) -> None:
    """The newest acts of everyone; what can be taken back or done again is offered to be."""
    render_undo_redo(store, "history")
    acts = load_acts(store)
    if not acts:
        st.info(_("Nobody has done anything yet."), icon=":material/history:")
        return
    picked = show_acts(acts, "skills_history", select=True)
    if picked is None:
        return
    if picked.undone_by:
        st.button(
            _("Do again: {act}").format(act=plain(act_text(picked), 70)), key="skills_redo_picked",
            icon=":material/redo:", on_click=guarded(do_again), args=(picked,),
        )  # fmt: skip
    elif picked.kind in UNDO:
        st.button(
            _("Take back {act}").format(act=plain(act_text(picked), 70)), key="skills_undo_picked",
            icon=":material/undo:", on_click=guarded(take_back), args=(picked,),
        )  # fmt: skip
    else:
        st.caption(_("An undo is taken back by doing its act again: pick that act."))


def show_acts(acts: Sequence[Act], key: str, select: bool = False) -> Act | None:
    """Acts as a table: who, when, what, why; returns the picked one."""
    frame = pd.DataFrame(
        {
            "made_at": [act.at for act in acts],
            "author": [act.by for act in acts],
            "what": [act_text(act) for act in acts],
            "why": [reason_text(act) for act in acts],
            "undone": [act.undone_by is not None for act in acts],
        }
    )
    picked = show_table(
        frame,
        key,
        labels={"author": _("Who"), "what": _("What"), "why": _("How and why")},
        formats={
            "made_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm:ss"),
            "undone": st.column_config.CheckboxColumn(_("Taken back"), width="small"),
        },
        select="single-row" if select else None,
        height=45 + 36 * min(max(len(acts), 2), 8),
    )
    return None if picked.empty else acts[picked.index[0]]


def render_labellings(store: Store, suggestions: pd.DataFrame) -> None:
    """Freeze what stands now; look at what was frozen."""
    _render_freeze(store, suggestions)
    labellings = load_labellings(store)
    if labellings.empty:
        st.info(_("No labelling is frozen yet. A plan of experts rests on one."), icon=":material/ac_unit:")
        return
    threshold = [value if value <= 1 else None for value in labellings["threshold"]]
    picked = show_table(
        labellings.assign(threshold=threshold)[["labelling", "labels", "suggestions", "threshold", "author", "created_at"]],
        "skills_labellings",
        labels={
            "labelling": _("Labelling"), "labels": _("From labels"), "suggestions": _("From suggestions"),
            "author": _("Frozen by"),
        },
        formats={
            "threshold": st.column_config.NumberColumn(_("Least probability"), format="%.2f"),
            "created_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm"),
        },
        select="single-row",
    )  # fmt: skip
    if len(picked):
        labels = {
            "skill": _("Skill"), "questions": _("Questions"), "labels": _("From labels"),
            "suggestions": _("From suggestions"),
        }  # fmt: skip
        show_table(load_labelling_skills(store, picked["labelling"].iloc[0]), "skills_labelling", labels=labels)
    if st.button(_("Plan experts on a labelling"), key="skills_to_experts", icon=":material/school:"):
        open_page("experts")


def _render_freeze(store: Store, suggestions: pd.DataFrame) -> None:
    with st.form("skills_freeze", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.text_input(
            _("Name of the labelling"), key="skills_labelling_name", width=260,
            help=_("Letters, digits, '.', '_' and '-'. A labelling is never changed."),
        )  # fmt: skip
        with_suggestions = st.toggle(
            _("Take in suggestions, too"), value=bool(len(suggestions)), key="skills_freeze_too"
        )
        threshold = st.number_input(
            _("at least this probable"), 0.0, 1.0, 0.5, 0.05, key="skills_freeze_threshold", width=180,
            help=_(FreezeConfig.model_fields["threshold"].description or ""),
        )  # fmt: skip
        asked = st.form_submit_button(_("Freeze"), icon=":material/ac_unit:", type="primary")
    if asked:
        with error_boundary():
            none = FreezeConfig.model_fields["threshold"].default
            values = {"labelling": name.strip(), "threshold": threshold if with_suggestions else none}
            run_now(store, "freeze", values, get_person())
            confirm(_("Frozen as '{name}'").format(name=plain(name.strip())))
            st.rerun()
