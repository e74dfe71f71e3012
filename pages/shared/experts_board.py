"""The plan board: one row a skill, one column an expert; what that means for sizes; saving it; what follows from it."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import BASE_EXPERT, NAME_PATTERN
from metamoe_backend.errors import ConfigError, UserError
from metamoe_backend.experts.bank import find_free_name
from metamoe_backend.experts.plan import check_assignments, compute_balance, compute_plan_sizes, find_unassigned
from metamoe_backend.figures.plans import make_plan_figure
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_plan_entries, fetch_plans, save_plan
from metamoe_backend.store.skills import fetch_labelling_skills, fetch_labellings, fetch_skills
from pages.shared.charts import show_figure
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import canvas_and_inspector, confirm, plain
from pages.shared.state import get_person, get_store, per_version
from pages.shared.tables import percent

_NEW = ""
_ADDED, _SHOWN = "experts_added", "experts_shown_plan"
_LETTERS = ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")
_WIDEST_BOARD = 64
"""Characters of expert names that fit beside each other; beyond that each skill gets a list to choose from."""


@per_version
def load_plans(store: Store) -> pd.DataFrame:
    return fetch_plans(store)


@per_version
def load_labellings(store: Store) -> pd.DataFrame:
    return fetch_labellings(store)


@per_version
def _load_labelling(store: Store, labelling: str) -> pd.DataFrame:
    return fetch_labelling_skills(store, labelling)


@per_version
def load_entries(store: Store, plan: str) -> pd.DataFrame:
    return fetch_plan_entries(store, plan)


@per_version
def _load_colours(store: Store) -> dict[str, str]:
    skills = fetch_skills(store)
    return dict(zip(skills["name"], skills["colour"], strict=True))


def name_for_skill(skill: str) -> str:
    """A usable expert name made from a skill's: "general knowledge" becomes general-knowledge."""
    kept = "".join(sign if sign in "_.-" or unicodedata.category(sign) in _LETTERS else "-" for sign in skill)
    name = re.sub("-+", "-", kept).strip("-.")[:56].rstrip("-.")
    return name if re.match(NAME_PATTERN, name) and name != BASE_EXPERT else f"expert-{name}".strip("-")


def propose_assignments(skills: Sequence[str]) -> dict[str, str]:
    """What a new plan begins with: an expert of its own for each skill."""
    assignments: dict[str, str] = {}
    for skill in skills:
        assignments[skill] = find_free_name(name_for_skill(skill), list(assignments.values()))
    return assignments


def render_board() -> str | None:
    """Choose a labelling and a plan, move skills, save. Returns the name of the saved plan that is shown, if any."""
    store = get_store()
    labelling, plan = _choose(load_labellings(store), load_plans(store))
    skills = _load_labelling(store, labelling)
    saved = load_entries(store, plan) if plan else pd.DataFrame({"skill": [], "expert": []})
    start = dict(zip(saved["skill"], saved["expert"], strict=True)) or propose_assignments(skills["skill"].tolist())
    scope = f"{labelling}|{plan}"
    added = st.session_state.setdefault(_ADDED, {}).setdefault(scope, [])
    experts = [*sorted({*start.values(), *added} - {BASE_EXPERT}), BASE_EXPERT]
    canvas, inspector = canvas_and_inspector()
    with canvas:
        assignments = _render_rows(skills, start, experts, scope)
        _render_add_expert(scope, experts)
    with inspector:
        _render_sizes(skills, assignments, experts)
        _render_save(labelling, plan, assignments, skills["skill"].tolist())
    if assignments != start:
        _render_take_back(plan, scope)
    return plan or None


def _render_take_back(plan: str, scope: str) -> None:
    """Say that moves are not saved yet, and offer to undo them."""
    unsaved = _("The board differs from the plan {plan} as saved.").format(plan=plain(plan))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(unsaved if plan else _("These moves are not saved yet."), width="content")
        st.button(
            _("Take the moves back"), key="experts_take_back", icon=":material/undo:", type="tertiary",
            on_click=guarded(_take_moves_back), args=(scope,),
        )  # fmt: skip


def _take_moves_back(scope: str) -> None:
    for key in [key for key in st.session_state if str(key).startswith(_move_key(scope, ""))]:
        del st.session_state[key]


def _move_key(scope: str, skill: str) -> str:
    return f"experts_give_{scope}_{skill}"


def _choose(labellings: pd.DataFrame, plans: pd.DataFrame) -> tuple[str, str]:
    """Labelling and plan ("" for a new one)."""
    saved = st.session_state.pop(_SHOWN, None)
    if saved:
        st.session_state["experts_labelling"], st.session_state[f"experts_plan_{saved[0]}"] = saved
    left, right = st.columns(2)
    names = labellings["labelling"].tolist()
    newest = plans["labelling"].iloc[0] if len(plans) and plans["labelling"].iloc[0] in names else names[0]
    st.session_state.setdefault("experts_labelling", newest)
    with left:
        labelling = st.selectbox(
            _("Labelling"), names, key="experts_labelling",
            help=_("The frozen labels that say which questions a skill has. Freeze a new one on the Skills page."),
        )  # fmt: skip
    of_labelling = plans[plans["labelling"] == labelling]["plan"].tolist()
    with right:
        plan = st.selectbox(
            _("Plan"), [*of_labelling, _NEW], key=f"experts_plan_{labelling}",
            format_func=lambda name: name or _("a new plan"),
        )  # fmt: skip
    return labelling, plan


def _render_rows(skills: pd.DataFrame, start: Mapping[str, str], experts: Sequence[str], scope: str) -> dict[str, str]:
    """One control a skill; returns skill to expert. What a control begins with never depends on what it returns."""
    assignments: dict[str, str] = {}
    as_board = sum(len(name) + 4 for name in experts) <= _WIDEST_BOARD
    for row in skills.itertuples():
        left, right = st.columns([2, 5], vertical_alignment="center", gap="small")
        with left:
            size = _("{train} to train on, {labels} labels").format(train=f"{row.train:,}", labels=f"{row.labels:,}")
            st.markdown(f"**{plain(row.skill, 40)}**  \n:small[:gray[{plain(size)}]]")
        about: dict[str, Any] = {
            "key": _move_key(scope, row.skill),
            "label_visibility": "collapsed",
            "persist_state": "session",  # a move that is not saved yet outlives a look at another page
        }
        label, wanted = _("Expert of {skill}").format(skill=plain(row.skill)), start.get(row.skill)
        with right:
            if as_board:
                chosen = st.segmented_control(label, experts, default=wanted, **about)
            else:
                index = experts.index(wanted) if wanted in experts else None
                chosen = st.selectbox(label, experts, index=index, placeholder=_("nobody learns it"), **about)
        if chosen:
            assignments[row.skill] = chosen
    st.caption(_("base: no adapter"))
    return assignments


def _render_add_expert(scope: str, experts: Sequence[str]) -> None:
    def add() -> None:
        name = st.session_state["experts_new_name"].strip()
        if not re.match(NAME_PATTERN, name):
            raise ConfigError(
                _("The name {name} cannot be used; use letters, digits, '.', '_' and '-'.").format(name=repr(name))
            )
        if name not in experts:
            st.session_state[_ADDED][scope].append(name)
        st.session_state["experts_new_name"] = ""

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(_("Another expert"), key="experts_new_name", width=240, max_chars=64)
        st.button(_("Add"), key="experts_add", icon=":material/add:", on_click=guarded(add))


def _render_sizes(skills: pd.DataFrame, assignments: Mapping[str, str], experts: Sequence[str]) -> None:
    counts = dict(zip(skills["skill"], skills["train"].astype(int), strict=True))
    sizes = compute_plan_sizes(counts, assignments)
    used = [expert for expert in experts if expert in set(sizes["expert"])]
    if used:
        figure = make_plan_figure(
            counts, assignments, used, _load_colours(get_store()), {BASE_EXPERT: _("base (no adapter)")}
        )
        show_figure(figure, key="experts_sizes", alt=_("Training questions of each expert, by skill"))
    balance = compute_balance(sizes)
    trained = int((sizes["expert"] != BASE_EXPERT).sum())
    st.caption(
        ngettext("{n} expert", "{n} experts", trained).format(n=trained)
        + " · "
        + _("smallest to largest: {balance}").format(balance=percent(balance))
    )
    left_out = find_unassigned(skills["skill"], assignments)
    if left_out:
        st.warning(
            _("Nobody learns {skills}.").format(skills=plain(", ".join(left_out), 160)), icon=":material/person_off:"
        )


def _render_save(labelling: str, plan: str, assignments: dict[str, str], skills: list[str]) -> None:
    taken = load_plans(get_store())["plan"].tolist()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.text_input(
            _("Name of the plan"), value=plan or find_free_name("plan", taken), max_chars=64,
            key=f"experts_plan_name_{labelling}_{plan}", width=180,
        ).strip()  # fmt: skip
        # Not a callback: that would get what the board said before the last edit.
        wanted = st.button(_("Save plan"), key="experts_save", type="primary", icon=":material/save:")
    if not wanted:
        return
    try:
        _save(labelling, name, assignments, skills)
    except UserError as error:
        st.error(plain(error), icon=":material/error:")
    else:
        if name != plan:
            _take_moves_back(f"{labelling}|{plan}")  # they are the new plan's
        st.rerun()


def _save(labelling: str, name: str, assignments: dict[str, str], skills: list[str]) -> None:
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(
            _("The name {name} cannot be used; use letters, digits, '.', '_' and '-'.").format(name=repr(name))
        )
    check_assignments(assignments, skills, labelling)
    store, person = get_store(), get_person()
    event = save_plan(store, name, labelling, list(assignments.items()), person)
    st.session_state[_SHOWN] = (labelling, name)

    def take_back() -> None:
        undo(store, event, person)
        st.session_state.pop(f"experts_plan_{labelling}", None)  # it may name a plan that is gone

    confirm(_("Plan {plan} is saved.").format(plan=plain(name)), undo=take_back)
