"""Suggestions: making them, looking at them, accepting them."""

from collections.abc import Mapping
from typing import get_args

import pandas as pd
import streamlit as st

from metamoe_backend.config import DEFAULT_ENCODER, SuggestConfig
from metamoe_backend.figures.skills import make_probability_figure
from metamoe_backend.launch import run_now
from metamoe_backend.rows import MetaQuestionMethod, Reading
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.finding import Filters
from metamoe_backend.store.skills import accept_suggestions, reject_suggestions
from pages.shared.charts import show_figure
from pages.shared.constraining import render_constraints
from pages.shared.errors import error_boundary, guarded
from pages.shared.find import keep_found
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm, confirm_and_rerun, plain, question_text
from pages.shared.map_drawing import method_name, of_name
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.skills_data import load_newest_map
from pages.shared.state import get_person, get_store
from pages.shared.tables import show_table

SHOWN = 500
UNCERTAIN_BELOW = 0.6
"""A suggestion less probable than this counts as uncertain."""


def render_suggestions(store: Store, suggestions: pd.DataFrame, skills: pd.DataFrame, filters: Filters) -> None:
    """Making them anew; those among what is looked for, to accept and refuse."""
    _render_suggest(store, suggestions)
    render_constraints(store)
    if suggestions.empty:
        st.info(
            _("Nothing is suggested. Label a few questions of at least two skills, then suggest."),
            icon=":material/lightbulb:",
        )
        return
    suggestions = keep_found(store, filters, suggestions)
    if suggestions.empty:
        st.info(_("Nothing is suggested for the questions found."), icon=":material/filter_list:")
        return
    left, right = st.columns([1, 2], gap="medium")
    with left:
        _render_threshold(suggestions)
    with right:
        _render_table(suggestions, skills)


def _render_suggest(store: Store, suggestions: pd.DataFrame) -> None:
    """The step runs here and now: it takes seconds."""
    newest = load_newest_map(store) or {"encoder": DEFAULT_ENCODER, "of": "question"}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        of = st.segmented_control(
            _("Read"), get_args(Reading), default=newest["of"], format_func=of_name, key="skills_suggest_of", required=True,
            help=_(SuggestConfig.model_fields["of"].description or ""),
        )  # fmt: skip
        method = st.segmented_control(
            _("Meta-questions"), get_args(MetaQuestionMethod), default="template", format_func=method_name,
            key="skills_suggest_method", required=True, disabled=of == "question",
            help=_(SuggestConfig.model_fields["method"].description or ""),
        )  # fmt: skip
        encoder = st.selectbox(
            _("Encoder"), list(dict.fromkeys([newest["encoder"], "minilm", "e5"])), key="skills_suggest_encoder", width=180,
            accept_new_options=True, help=_(SuggestConfig.model_fields["encoder"].description or ""),
        )  # fmt: skip
        label = _("Suggest again") if len(suggestions) else _("Suggest")
        asked = st.button(label, key="skills_suggest", icon=":material/lightbulb:", type="primary")
    if asked:
        with error_boundary():
            with st.spinner(_("Suggesting …"), show_time=True):
                run_now(store, "suggest", {"encoder": encoder, "of": of, "method": method}, get_person())
            confirm_and_rerun(_("Suggestions are new; labels are untouched."))


def _render_threshold(suggestions: pd.DataFrame) -> None:
    threshold = st.slider(_("Accept at least this probable"), 0.0, 1.0, 0.9, 0.01, key="skills_threshold")
    above = suggestions[suggestions["probability"] >= threshold]
    figure = make_probability_figure(suggestions, threshold)
    show_figure(figure, key="skills_probabilities", alt=_("How many suggestions there are at each probability."))
    counts = above["skill"].value_counts()
    listed = ", ".join(f"{plain(name)} {n:,}" for name, n in counts.items())
    if listed:
        st.caption(_("Above it: {skills}").format(skills=listed))
    n = len(above)
    st.button(
        ngettext("Accept {n} suggestion", "Accept all {n} suggestions", n).format(n=f"{n:,}"),
        key="skills_accept_all", type="primary", disabled=n == 0, on_click=guarded(accept),
        args=(pair(above),),
    )  # fmt: skip
    st.caption(
        _("Of {n} suggestions. Accepting makes them labels of yours; it can be taken back.").format(
            n=f"{len(suggestions):,}"
        )
    )


def _render_table(suggestions: pd.DataFrame, skills: pd.DataFrame) -> None:
    left, right = st.columns(2)
    with left:
        only = st.multiselect(
            _("Skills"),
            skills["name"].tolist(),
            key="skills_only",
            placeholder=_("all skills"),
            label_visibility="collapsed",
        )
    with right:
        orders = {"least": _("Least certain first"), "most": _("Most certain first")}
        order = st.segmented_control(
            _("Order"), list(orders), default="least", format_func=orders.get, key="skills_order", required=True,
            label_visibility="collapsed",
        )  # fmt: skip
    rows = suggestions[suggestions["skill"].isin(only)] if only else suggestions
    rows = rows.sort_values("probability", ascending=order == "least", kind="stable").head(SHOWN)
    picked = show_table(
        rows.assign(chip=as_chips(rows["skill"]))[
            ["probability", "chip", "prompt", "task", "margin", "question_id", "skill_id"]
        ],
        f"skills_suggestions_{order}",
        labels={"prompt": _("Question"), "task": _("Task")},
        formats={
            "probability": st.column_config.ProgressColumn(
                _("Probability"), min_value=0, max_value=1, format="%.2f", width="small"
            ),
            "chip": skill_chips(skills, _("Suggested skill")),
            "margin": st.column_config.NumberColumn(
                _("Margin"), format="%.2f", help=_("Probability minus the runner-up's")
            ),
        },
        hide=("question_id", "skill_id"),
        select="multi-row",
        height=330,
    )
    if len(rows) == SHOWN:
        st.caption(_("The first {n} are shown.").format(n=SHOWN))
    n = len(picked)
    if n == 1:
        question_id = picked["question_id"].iloc[0]
        question_text(picked["prompt"].iloc[0], key=f"skills_suggested_{question_id}", question_id=question_id)
    st.button(
        ngettext("Accept the {n} picked", "Accept the {n} picked", n).format(n=n) if n else _("Accept the picked ones"),
        key="skills_accept_picked", disabled=n == 0, on_click=guarded(accept), args=(pair(picked),),
    )  # fmt: skip
    st.button(
        ngettext("Refuse the {n} picked", "Refuse the {n} picked", n).format(n=n) if n else _("Refuse the picked ones"),
        key="skills_reject_picked", disabled=n == 0, on_click=guarded(reject), args=(pair(picked),),
    )  # fmt: skip


def pair(rows: pd.DataFrame) -> dict[str, str]:
    """question_id to the skill_id suggested for it; rows: question_id, skill_id."""
    return dict(zip(rows["question_id"], rows["skill_id"], strict=True))


def accept(suggested: Mapping[str, str]) -> None:
    """One act, however many there are."""
    store, person, n = get_store(), get_person(), len(suggested)
    event = accept_suggestions(store, suggested, person)
    text = ngettext("Accepted {n} suggestion", "Accepted {n} suggestions", n).format(n=f"{n:,}")
    confirm(text, undo=lambda: undo(store, event, person))


def reject(suggested: Mapping[str, str]) -> None:
    """One act: these skills are not suggested for these questions again."""
    store, person, n = get_store(), get_person(), len(suggested)
    event = reject_suggestions(store, suggested, person)
    text = ngettext("Refused {n} suggestion", "Refused {n} suggestions", n).format(n=f"{n:,}")
    confirm(text, undo=lambda: undo(store, event, person))
