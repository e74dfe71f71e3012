"""What people did, as a table in which acts can be taken back and done again."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.store.acts import Act
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import UNDO
from pages.shared.act_words import act_text, reason_text
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.skills_acts import do_again, render_undo_redo, take_back
from pages.shared.skills_data import load_acts
from pages.shared.tables import show_table


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
    )
    return None if picked.empty else acts[picked.index[0]]
