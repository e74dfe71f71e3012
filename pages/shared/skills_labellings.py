"""Frozen labellings: freezing what stands now, comparing two, bringing an old one back."""

import pandas as pd
import streamlit as st

from metamoe_backend.config import FreezeConfig
from metamoe_backend.launch import run_now
from metamoe_backend.skills.comparison import Comparison, compare_labellings, count_moves
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.labellings import fetch_labelling_items, restore_labelling
from metamoe_backend.store.skills import fetch_labelling_skills
from pages.shared.errors import error_boundary, guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm, confirm_and_rerun, plain
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.skills_data import load_labellings, load_skills
from pages.shared.state import get_person, get_store, open_page, per_version, select
from pages.shared.tables import show_table

_NOW = ""
SHOWN = 500


@per_version
def load_labelling_skills(store: Store, labelling: str) -> pd.DataFrame:
    return fetch_labelling_skills(store, labelling)


@per_version
def load_comparison(store: Store, first: str, second: str) -> Comparison:
    """ "" stands for what is labelled and suggested now."""
    return compare_labellings(fetch_labelling_items(store, first or None), fetch_labelling_items(store, second or None))


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
    else:
        st.caption(_("Pick a labelling to see its skills or to bring its labels back."))
    with st.container(horizontal=True):
        if st.button(_("Plan experts on a labelling"), key="skills_to_experts", icon=":material/school:"):
            open_page("experts")
        if len(picked):
            _render_restore(picked["labelling"].iloc[0])
    _render_comparison(store, labellings["labelling"].tolist())


def _render_restore(labelling: str) -> None:
    st.button(
        _("Bring the labels of {name} back").format(name=plain(labelling)), key="skills_restore",
        icon=":material/settings_backup_restore:", on_click=guarded(_restore), args=(labelling,),
        help=_("Every question gets the label back that it had there; labels given since are taken back. One act, which can be taken back itself."),
    )  # fmt: skip


def _restore(labelling: str) -> None:
    store, person = get_store(), get_person()
    event = restore_labelling(store, labelling, person)
    confirm(
        _("The labels say again what '{name}' says").format(name=plain(labelling)),
        undo=lambda: undo(store, event, person),
    )


def _render_comparison(store: Store, names: list[str]) -> None:
    """From one labelling to another, or to what stands now."""
    st.subheader(_("What changed between two"), anchor=False)
    left, right = st.columns(2)
    with left:
        first = st.selectbox(_("From"), names, key="skills_compare_from")
    with right:
        second = st.selectbox(
            _("To"), [_NOW, *names], key="skills_compare_to", format_func=lambda name: name or _("what stands now")
        )
    if first == second:
        st.caption(_("Choose two different ones."))
        return
    found = load_comparison(store, first, second)
    n = len(found.moved)
    st.markdown(
        ngettext("**{n} question moved** of {both} in both.", "**{n} questions moved** of {both} in both.", n).format(
            n=f"{n:,}", both=f"{found.both:,}"
        )
        + " "
        + _("{gained} new, {lost} gone. Adjusted Rand index {ari} (n={both}).").format(
            gained=f"{found.gained:,}", lost=f"{found.lost:,}", both=f"{found.both:,}",
            ari="–" if pd.isna(found.ari) else f"{found.ari:.2f}",
        )
    )  # fmt: skip
    if n:
        _render_moves(store, found.moved)


def _render_moves(store: Store, moved: pd.DataFrame) -> None:
    skills = load_skills(store)
    left, right = st.columns([2, 3], gap="medium")
    with left:
        moves = count_moves(moved)
        show_table(
            moves.assign(before=as_chips(moves["before"]), after=as_chips(moves["after"])),
            "skills_moves",
            formats={
                "before": skill_chips(skills, _("From")),
                "after": skill_chips(skills, _("To")),
                "questions": st.column_config.NumberColumn(_("Questions"), format="localized", width="small"),
            },
        )
    with right:
        shown = moved.head(SHOWN)
        show_table(
            shown.assign(before=as_chips(shown["before"]), after=as_chips(shown["after"]))[
                ["before", "after", "prompt", "task"]
            ],
            "skills_moved",
            labels={"prompt": _("Question"), "task": _("Task")},
            formats={"before": skill_chips(skills, _("From")), "after": skill_chips(skills, _("To"))},
        )
        if len(moved) > SHOWN:
            st.caption(_("The first {n} are shown.").format(n=SHOWN))
    if st.button(_("Select the moved questions"), key="skills_select_moved", icon=":material/select_all:"):
        select(questions=moved["question_id"].tolist(), why=_("moved"))
        st.rerun()


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
            confirm_and_rerun(_("Frozen as '{name}'").format(name=plain(name.strip())))
