"""Regret: what an expert knew and the mixture did not say, and whether its routers are to blame."""

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.outcomes import find_regret, summarise_regret
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_routing
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.outcome_views import View
from pages.shared.state import per_version
from pages.shared.tables import show_table


@per_version
def _load_routing(store: Store, mixture: str) -> pd.DataFrame:
    return fetch_routing(store, mixture)


_regret = st.cache_data(show_spinner=False, max_entries=16)(find_regret)


def render_regret_by_expert(store: Store, view: View) -> str | None:
    """How often each expert was right where the mixture was wrong, and what it was given there; returns the picked one."""
    if view.mixture is None:
        return None
    routing, regret = _load(store, view)
    frame = summarise_regret(regret, routing, view.experts)
    st.markdown(_("**Who was right** where {moe} was wrong").format(moe=plain(view.mixture)))
    there = [name for name in ("probability", "weight") if frame[name].notna().any()]
    picked = show_table(
        frame[["expert", "questions", "alone", *there]],
        f"outcomes_regret_experts_{view.mixture}",
        labels={"expert": _("Expert"), "questions": _("Right"), "alone": _("Alone")},
        formats={
            "probability": st.column_config.NumberColumn(_("Per question"), format="%.2f"),
            "weight": st.column_config.NumberColumn(_("Per token"), format="%.2f"),
        },
        select="single-row",
    )
    st.caption(
        _(
            "Alone: no other expert was right. Per question, per token: the mean probability and gate weight the routers gave the expert on these questions. Pick an expert to see its questions only."
        )
    )
    return None if picked.empty else str(picked["expert"].iloc[0])


def render_regret(store: Store, view: View, expert: str | None) -> str | None:
    """The questions an expert (`expert`, or any) solves and the mixture does not, and what the routers gave the experts
    that were right; returns the question that is picked."""
    if view.mixture is None:
        st.info(_("No mixture is evaluated yet."), icon=":material/inbox:")
        return None
    _routing, regret = _load(store, view)
    if expert is not None:
        regret = regret[[expert in right for right in regret["right"]]]
    st.markdown(
        _("**{n} questions** that {who} solves and mixture {moe} does not").format(
            n=len(regret), who=plain(expert) if expert else _("an expert"), moe=plain(view.mixture)
        )
    )
    names = {
        "routing": _("routing"), "mixing": _("mixing"), "absent": _("not in the mixture"), "unknown": _("unknown"),
    }  # fmt: skip
    words = {fault: f"{names[fault]} ({n})" for fault, n in regret["fault"].value_counts().sort_index().items()}
    if len(words) > 1:
        faults = st.pills(_("Fault"), list(words), selection_mode="multi", format_func=words.get, key="outcomes_fault")
        regret = regret[regret["fault"].isin(faults)] if faults else regret
    st.caption(
        _(
            "Routing: every router favoured an expert that is wrong here. Mixing: one favoured an expert that is right, and still the answer is wrong. Not in the mixture: the experts that are right do not belong to it."
        )
    )
    texts = view.predictions.drop_duplicates("question_id").set_index("question_id")[["prompt", "answer"]]
    said = view.predictions[view.predictions["system"] == view.mixture].set_index("question_id")["output"]
    shown = regret.join(texts, on="question_id").assign(
        said=regret["question_id"].map(said), fault=regret["fault"].map(names)
    )
    there = [name for name in ("probability", "by_question", "weight", "by_token") if shown[name].notna().any()]
    picked = show_table(
        shown[["question_id", "task", "prompt", "answer", "said", "right", *there, "fault"]],
        f"outcomes_regret_{view.mixture}_{expert}",
        labels={
            "task": _("Task"),
            "answer": _("Right answer"),
            "said": _("Mixture said"),
            "by_question": _("Task router favoured"),
            "by_token": _("Gates favoured"),
            "fault": _("Fault"),
        },
        formats={
            "prompt": st.column_config.TextColumn(_("Question"), width="medium"),
            "right": st.column_config.ListColumn(_("Who was right")),
            "probability": st.column_config.ProgressColumn(
                _("Given per question"), min_value=0, max_value=1, format="%.2f",
                help=_("The task-level router's probability of the experts that were right, together"),
            ),
            "weight": st.column_config.ProgressColumn(
                _("Given per token"), min_value=0, max_value=1, format="%.2f",
                help=_("Mean gate weight of the experts that were right, together"),
            ),
        },
        select="single-row",
        hide=("question_id",),
        height=360,
    )  # fmt: skip
    st.caption(_("Pick a row to see all answers side by side."))
    return None if picked.empty else str(picked["question_id"].iloc[0])


def _load(store: Store, view: View) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the routers of the mixture gave, and its regret."""
    routing = _load_routing(store, str(view.mixture))
    return routing, _regret(view.predictions, view.experts, str(view.mixture), routing)
