"""What a run has produced, where to see it, and which runs used it."""

import pandas as pd
import streamlit as st

from metamoe_backend.jobs.run_folder import RunStatus
from metamoe_backend.store.connection import Store
from metamoe_backend.store.runs import fetch_made_systems, fetch_products, fetch_uses
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.jobs_run import show_other_run
from pages.shared.layout import plain
from pages.shared.run_words import stage_name
from pages.shared.state import get_store, open_page, per_version

_PAGE_OF_STAGE = {
    "ingest": "tasks", "meta-questions": "meta-questions", "embed": "map", "cluster": "map", "suggest": "skills",
    "freeze": "skills", "import": "experts", "select": "experts", "select-data": "experts", "train": "experts",
    "sequence": "forgetting", "moe": "router", "evaluate": "outcomes", "force": "router",
}  # fmt: skip
_MOST_USES = 4


def render_made(status: RunStatus) -> None:
    """Nothing while the run has handed nothing over."""
    systems, products, uses = _load(get_store(), status.run_id)
    parts = [f"**{plain(name)}**" for name in systems]
    parts += [f"{count:,} {_product_names()[table]}" for table, count in products.items() if table in _product_names()]
    if not parts:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(_("Produced: {what}").format(what=", ".join(parts)), width="content")
        page = _PAGE_OF_STAGE.get(status.stage)
        if page and st.button(_("See it"), key="jobs_see", icon=":material/open_in_new:", type="tertiary"):
            open_page(page)
    if uses.empty:
        st.caption(_("No run has used it yet."))
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(_("Used by:"), width="content")
        for row in uses.head(_MOST_USES).itertuples():
            st.button(
                plain(f"{stage_name(str(row.stage))} · {row.name}", 40), key=f"jobs_use_{row.run_id}", type="tertiary",
                on_click=guarded(show_other_run), args=(row.run_id,),
            )  # fmt: skip
        if len(uses) > _MOST_USES:
            st.caption(_("and {n} more runs").format(n=len(uses) - _MOST_USES), width="content")


@per_version
def _load(store: Store, run_id: str) -> tuple[list[str], dict[str, int], pd.DataFrame]:
    return fetch_made_systems(store, run_id), fetch_products(store, run_id), fetch_uses(store, run_id)


def _product_names() -> dict[str, str]:
    """What the rows of a table are called; tables that only go with others are left out."""
    return {
        "question": _("questions"),
        "rejected_row": _("rejected rows"),
        "meta_question": _("meta-questions"),
        "embedding": _("vectors"),
        "map_point": _("points"),
        "cluster": _("clusters"),
        "suggestion": _("suggestions"),
        "labelling_item": _("labelled questions"),
        "prediction": _("answers"),
        "route": _("routed questions"),
        "candidate": _("experts tried"),
        "counterfactual": _("forced answers"),
        "selected_row": _("selected rows"),
    }
