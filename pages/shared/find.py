"""The bar that finds questions, the same on every page that lists them: search, filters, and a chip for each of them."""

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.errors import NotFoundError
from metamoe_backend.evaluate.outcomes import OUTCOMES
from metamoe_backend.store.connection import Store
from metamoe_backend.store.finding import NO_SKILL, Filters, fetch_authors, find_questions, make_cluster_code
from metamoe_backend.store.questions import fetch_prompts, fetch_task_names
from metamoe_backend.store.skills import fetch_skills
from pages.shared.errors import guarded
from pages.shared.filters import get_filters, put_filters, restore_filters
from pages.shared.i18n import _, ngettext
from pages.shared.map_data import cluster_names, load_clusters
from pages.shared.outcome_views import outcome_name
from pages.shared.state import per_version, per_version_shared, select
from pages.shared.text import plain

NEAREST = 100
"""Of similar questions so many are shown; further ones are hardly alike."""
_CONFIDENCE, _TAKEN = "find_confidence", "find_taken"


@per_version_shared
def load_found(store: Store, filters: Filters) -> tuple[str, ...]:
    """Ids of what is looked for; of similar questions the nearest."""
    found = find_questions(store, filters)
    return tuple(found if filters.like is None else found[:NEAREST])


@per_version
def load_names(store: Store, map_id: str | None) -> dict[str, dict[str, str]]:
    """For each part of `Filters` that offers a choice: code -> what the person reads."""
    skills = fetch_skills(store)
    clusters = cluster_names(load_clusters(store, map_id)) if map_id else {}
    return {
        "tasks": {task: task for task in fetch_task_names(store)},
        "skills": dict(zip(skills["skill_id"], skills["name"], strict=True)),
        "clusters": {make_cluster_code(map_id or "", cluster): name for cluster, name in clusters.items()},
        "authors": {author: author for author in fetch_authors(store)},
    }


def render_find(store: Store, map_id: str | None) -> Filters:
    """Search, filters and chips; returns what is looked for. Clusters to choose from are those of `map_id`."""
    st.session_state.pop(_TAKEN, None)  # the page runs: what was chosen is known
    wrong = restore_filters()
    names = load_names(store, map_id)
    names["skills"][NO_SKILL] = _("no skill yet")
    names["outcomes"] = {outcome: outcome_name(outcome) for outcome in OUTCOMES}
    if map_id:
        names["clusters"][make_cluster_code(map_id, -1)] = _("noise")
    wrong += _drop_unknown(store, names)
    if wrong:
        listed = ", ".join(plain(value, 40) for value in wrong)
        st.warning(_("The address asks for what is not in this workspace; left out: {values}").format(values=listed))
    filters = get_filters()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        # A field that begins with a value of its own reports it; one that is set afterwards may report "" before.
        begun = "find_text" in st.session_state
        if begun:
            _keep("find_text", filters.text)
        st.text_input(
            _("Search the text"), "" if begun else filters.text, key="find_text", icon=":material/search:", label_visibility="collapsed", width="stretch",
            placeholder=_("words of a question; \"in quotes\": as written"), on_change=_take, args=("text",),
        )  # fmt: skip
        _render_choices(filters, names)
    if filters:
        _render_found(store, filters, names)
    return filters


def keep_found(store: Store, filters: Filters, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows (question_id) that are looked for."""
    return rows[rows["question_id"].isin(load_found(store, filters))] if filters else rows


def _drop_unknown(store: Store, names: dict[str, dict[str, str]]) -> list[str]:
    """Forget what does not exist, be it that a link names it or that it has gone since; returns it."""
    filters, unknown = get_filters(), []
    for part in ("tasks", "skills", "authors"):
        values = getattr(filters, part)
        unknown += [value for value in values if value not in names[part]]
        filters = replace(filters, **{part: tuple(value for value in values if value in names[part])})
    if filters.like is not None:
        try:
            load_found(store, filters)
        except NotFoundError:
            unknown.append(filters.like)
            filters = replace(filters, like=None)
    if unknown:
        put_filters(filters)
    return unknown


def _part_names() -> dict[str, str]:
    return {
        "tasks": _("Task"), "skills": _("Skill"), "clusters": _("Cluster"), "authors": _("Labelled by"),
        "outcomes": _("Outcome"),
    }  # fmt: skip


def _keep(key: str, value: Any) -> None:
    """The widget shows what is looked for; set only where it differs, or what is being typed would be lost."""
    if st.session_state.get(key) != value:
        st.session_state[key] = value


@st.fragment
def _render_choices(filters: Filters, names: dict[str, dict[str, str]]) -> None:
    """A fragment: opening the filters runs nothing else, and while they are closed nothing of them is sent."""
    if st.session_state.pop(_TAKEN, False):
        st.rerun()
    box = st.popover(_("Filter"), icon=":material/filter_list:", key="find_filters", on_change="rerun")
    if box.open:
        with box:
            _render_parts(filters, names)


def _render_parts(filters: Filters, names: dict[str, dict[str, str]]) -> None:
    for part, label in _part_names().items():
        chosen = list(getattr(filters, part))
        there = names[part]
        _keep(f"find_{part}", chosen)
        st.multiselect(
            label, list(dict.fromkeys([*there, *chosen])), key=f"find_{part}", placeholder=_("any"), on_change=_take,
            format_func=lambda code, there=there: there.get(code, code), args=(part,),
        )  # fmt: skip
    low, below = filters.confidence_from, filters.confidence_below
    _keep(_CONFIDENCE, (0.0 if low is None else low, 1.0 if below is None else below))
    st.slider(
        _("Confidence"), 0.0, 1.0, step=0.01, key=_CONFIDENCE, on_change=guarded(_take_confidence),
        help=_("1 for a label, the suggestion's probability else. The right end is left out, except at 1."),
    )  # fmt: skip


def _take(part: str) -> None:
    value = st.session_state[f"find_{part}"]
    put_filters(replace(get_filters(), **{part: value.strip() if isinstance(value, str) else tuple(value)}))
    st.session_state[_TAKEN] = True


def _take_confidence() -> None:
    low, below = st.session_state[_CONFIDENCE]
    put_filters(
        replace(get_filters(), confidence_from=low if low > 0 else None, confidence_below=below if below < 1 else None)
    )
    st.session_state[_TAKEN] = True


def _render_found(store: Store, filters: Filters, names: dict[str, dict[str, str]]) -> None:
    """A chip for each thing that is asked for, and how many questions are all of it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="find_chips"):
        for name, label, rest in _describe(store, filters, names):
            st.button(
                label, key=f"find_drop_{name}", icon=":material/close:", icon_position="right",
                help=_("Do not ask for this"), on_click=put_filters, args=(rest,),
            )  # fmt: skip
    found = load_found(store, filters)
    n = len(found)
    with st.container(horizontal=True, vertical_alignment="center"):
        if n and filters.like is not None:
            text = ngettext("The {n} most similar question", "The {n} most similar questions", n)
        else:
            text = ngettext("{n} question found", "{n} questions found", n)
        st.caption(text.format(n=f"{n:,}"), width="content")
        if n and st.button(_("Select them"), key="find_select", type="tertiary", icon=":material/checklist:"):
            select(questions=found, why=_("found"))
            st.rerun()
        st.button(
            _("Clear all"), key="find_clear", icon=":material/filter_list_off:", type="tertiary", on_click=put_filters,
            args=(Filters(),),
        )  # fmt: skip
    if not n:
        st.info(_("No question is all of this: remove a filter."), icon=":material/filter_list_off:")


def _describe(store: Store, filters: Filters, names: dict[str, dict[str, str]]) -> list[tuple[str, str, Filters]]:
    """Each thing that is asked for: a name of its own, what its chip says, and the filters without it."""
    chips = []
    if filters.text:
        chips.append(("text", f"“{plain(filters.text, 40)}”", replace(filters, text="")))
    for part, label in _part_names().items():
        values = getattr(filters, part)
        for value in values:
            rest = tuple(other for other in values if other != value)
            said = f"{label}: {plain(names[part].get(value, value), 40)}"
            chips.append((f"{part}_{value}", said, replace(filters, **{part: rest})))
    low, below = filters.confidence_from, filters.confidence_below
    if low is not None or below is not None:
        if below is None:
            said = _("Confidence from {low:.2f}").format(low=low)
        elif low is None:
            said = _("Confidence under {below:.2f}").format(below=below)
        else:
            said = _("Confidence from {low:.2f}, under {below:.2f}").format(low=low, below=below)
        chips.append(("confidence", said, replace(filters, confidence_from=None, confidence_below=None)))
    if filters.like is not None:
        text = fetch_prompts(store, [filters.like])[filters.like]
        said = _("Like: “{text}”").format(text=plain(text, 40))
        chips.append(("like", said, replace(filters, like=None)))
    return chips
