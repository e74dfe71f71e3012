"""Saying that two questions or groups need the same skill, or different ones: what suggestions then respect."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.rows import Relation
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_prompts
from metamoe_backend.store.skills import constrain_questions, fetch_constraints
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm
from pages.shared.state import get_person, get_store, per_version
from pages.shared.tables import show_table
from pages.shared.text import cut


@per_version
def load_constraints(store: Store) -> pd.DataFrame:
    """event_id, relation, first, second (the beginning of a question, and how many more), author, made_at."""
    found = fetch_constraints(store)
    sides = {side: [list(ids) for ids in found[f"{side}_ids"]] for side in ("first", "second")}
    texts = fetch_prompts(store, [ids[0] for groups in sides.values() for ids in groups])
    told = {side: [_describe(texts[ids[0]], len(ids)) for ids in groups] for side, groups in sides.items()}
    return found[["event_id", "relation", "author", "made_at"]].assign(**told)


def _describe(text: str, n: int) -> str:
    more = ngettext(" (+{n} more)", " (+{n} more)", n - 1).format(n=f"{n - 1:,}") if n > 1 else ""
    return cut(text) + more


def relation_name(relation: str) -> str:
    return _("the same skill") if relation == "same" else _("different skills")


def constrain(relation: Relation, first: Sequence[str], second: Sequence[str]) -> None:
    """Record it as an act of the person at the browser, and offer to take it back."""
    store, person = get_store(), get_person()
    event = constrain_questions(store, relation, first, second, person)
    confirm(
        _("Kept for the next suggestions: {relation}.").format(relation=relation_name(relation)),
        undo=lambda: undo(store, event, person),
    )


def render_constrain_buttons(first: Sequence[str], second: Sequence[str], key: str) -> None:
    """The same skill, or different ones, for two groups of questions."""
    with st.container(horizontal=True, gap="small"):
        st.button(
            _("Same skill"), key=f"{key}_same", icon=":material/link:", on_click=guarded(constrain),
            args=("same", first, second),
        )  # fmt: skip
        st.button(
            _("Different skills"), key=f"{key}_different", icon=":material/link_off:", on_click=guarded(constrain),
            args=("different", first, second),
        )  # fmt: skip


def render_constraints(store: Store) -> None:
    """What holds now; the picked one can be taken back."""
    found = load_constraints(store)
    if found.empty:
        return
    st.caption(
        ngettext("{n} constraint holds for suggestions", "{n} constraints hold for suggestions", len(found)).format(
            n=f"{len(found):,}"
        )
    )
    picked = show_table(
        found.assign(relation=found["relation"].map(relation_name))[
            ["first", "relation", "second", "author", "made_at", "event_id"]
        ],
        "skills_constraints",
        labels={"first": _("These"), "relation": _("need"), "second": _("as these"), "author": _("Who")},
        formats={"made_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm")},
        hide=("event_id",),
        select="single-row",
    )
    if len(picked):
        st.button(
            _("Take back this constraint"), key="skills_constraint_undo", icon=":material/undo:",
            on_click=guarded(_take_back), args=(picked["event_id"].iloc[0],),
        )  # fmt: skip


def _take_back(event_id: str) -> None:
    store, person = get_store(), get_person()
    undone = undo(store, event_id, person)
    confirm(_("The constraint is taken back."), undo=lambda: undo(store, undone, person))
