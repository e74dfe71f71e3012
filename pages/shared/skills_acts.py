"""Taking acts back and doing them again, by name."""

import streamlit as st

from metamoe_backend.store.acts import SKILL_WORK, Act, fetch_redoable, fetch_undoable, undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import UNDO
from pages.shared.act_words import act_text
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.layout import confirm, plain
from pages.shared.state import get_person, get_store, per_version


@per_version
def load_undoable(store: Store, person: str, kinds: tuple[str, ...]) -> Act | None:
    return fetch_undoable(store, person, kinds)


@per_version
def load_redoable(store: Store, person: str) -> Act | None:
    return fetch_redoable(store, person)


def render_undo_redo(store: Store, place: str, keys: bool = False) -> None:
    """My newest act, by name, to take back; and the one taken back, to do again.

    With `keys` (U and Shift+U) only work on skills and labels: a key pressed while labelling takes no plan back.
    """
    person, kinds = get_person(), SKILL_WORK if keys else tuple(UNDO)
    back, again = load_undoable(store, person, kinds), load_redoable(store, person)
    again = again if again and again.kind in kinds else None
    with st.container(horizontal=True, gap="small"):
        if back:
            st.button(
                _("Take back {act}").format(act=plain(act_text(back), 70)), key=f"skills_undo_{place}",
                icon=":material/undo:", type="tertiary", shortcut="U" if keys else None,
                on_click=guarded(take_back), args=(back,),
            )  # fmt: skip
        if again:
            st.button(
                _("Do again: {act}").format(act=plain(act_text(again), 70)), key=f"skills_redo_{place}",
                icon=":material/redo:", type="tertiary", shortcut="Shift+U" if keys else None,
                on_click=guarded(do_again), args=(again,),
            )  # fmt: skip


def take_back(act: Act) -> None:
    undo(get_store(), act.event_id, get_person())
    confirm(_("Taken back: {act}").format(act=plain(act_text(act), 70)))


def do_again(act: Act) -> None:
    """Takes back the undo that stands in the way."""
    if act.undone_by:
        undo(get_store(), act.undone_by, get_person())
        confirm(_("Done again: {act}").format(act=plain(act_text(act), 70)))
