"""The skills: create, rename, recolour, merge."""

import pandas as pd
import streamlit as st

from metamoe_backend.skills.palette import next_colour
from metamoe_backend.skills.queue import NOISE
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import create_skill, merge_skills, recolour_skill, rename_skill, split_skill
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm, plain
from pages.shared.map_data import load_experts
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.skills_data import load_questions
from pages.shared.state import get_person, get_selection, get_store
from pages.shared.tables import show_table

LONGEST = 60


def render_new_skill(skills: pd.DataFrame) -> None:
    """Name and colour of a new skill, in a popover."""
    with st.popover(_("New skill"), icon=":material/add:", type="primary", key="skills_new"):
        st.text_input(_("Name"), key="skills_new_name", max_chars=LONGEST, placeholder=_("what one must be able to do"))
        fresh = next_colour(skills["colour"].tolist())
        st.color_picker(_("Colour"), value=fresh, key=f"skills_new_colour_{fresh}")
        st.button(
            _("Create"),
            key="skills_create",
            type="primary",
            on_click=guarded(_create),
            args=(f"skills_new_colour_{fresh}",),
        )


def _create(colour_key: str) -> None:
    name = st.session_state["skills_new_name"]
    create_skill(get_store(), name, get_person(), st.session_state[colour_key])
    st.session_state["skills_new_name"] = ""
    confirm(_("Created '{skill}'").format(skill=plain(name)))


def render_skills_table(store: Store, skills: pd.DataFrame) -> None:
    """All skills with their key; the picked one can be changed."""
    if skills.empty:
        st.info(_("There is no skill yet."), icon=":material/label_off:")
        return
    plan, experts = load_experts(store)
    shown = pd.DataFrame(
        {
            "key": [str(n) if n <= 9 else "" for n in range(1, len(skills) + 1)],
            "skill": as_chips(skills["name"]),
            "labels": skills["labels"],
            "suggestions": skills["suggestions"],
            "expert": skills["name"].map(experts).fillna("–"),
            "author": skills["author"],
            "made_at": skills["made_at"],
        }
    )
    picked = show_table(
        shown.assign(skill_id=skills["skill_id"]),
        "skills_table",
        labels={"key": _("Key"), "labels": _("Labels"), "suggestions": _("Suggestions"), "author": _("Created by")},
        formats={
            "skill": skill_chips(skills, _("Skill")),
            "expert": st.column_config.TextColumn(_("Expert"), help=_("Under the newest plan.")),
            "made_at": st.column_config.DatetimeColumn(_("Created (UTC)"), format="YYYY-MM-DD HH:mm"),
        },
        hide=("skill_id",),
        select="single-row",
    )
    said = _("Experts under plan '{plan}'.").format(plan=plain(plan)) if plan else _("No plan is saved yet.")
    st.caption(said + " " + _("Pick a skill to rename, recolour, merge or split it."))
    if len(picked):
        row = skills[skills["skill_id"] == picked["skill_id"].iloc[0]].iloc[0]
        _render_editor(row, skills[skills["skill_id"] != row["skill_id"]])
        _render_split(store, row)


def _render_editor(skill: pd.Series, others: pd.DataFrame) -> None:
    """Each change is an act of its own, with its undo."""
    skill_id = skill["skill_id"]
    keys = {what: f"skills_{what}_{skill_id}" for what in ("name", "colour", "into")}
    name, colour, merge = st.columns([2, 1, 2], gap="medium")
    with name:
        st.text_input(_("Name"), value=skill["name"], key=keys["name"], max_chars=LONGEST)
        st.button(
            _("Rename"), key=f"{keys['name']}_go",
            on_click=guarded(lambda: _change(rename_skill, skill_id, keys["name"], _("Renamed '{skill}'"), skill["name"])),
        )  # fmt: skip
    with colour:
        st.color_picker(_("Colour"), value=skill["colour"], key=keys["colour"])
        st.button(
            _("Recolour"), key=f"{keys['colour']}_go",
            on_click=guarded(lambda: _change(recolour_skill, skill_id, keys["colour"], _("Recoloured '{skill}'"), skill["name"])),
        )  # fmt: skip
    with merge:
        names = dict(zip(others["skill_id"], others["name"], strict=True))
        into = st.selectbox(
            _("Merge into"), list(names), index=None, format_func=names.get, key=keys["into"],
            placeholder=_("the skill that takes its labels"),
        )  # fmt: skip
        st.button(
            _("Merge"), key=f"{keys['into']}_go", disabled=into is None,
            on_click=guarded(lambda: _change(merge_skills, skill_id, keys["into"], _("Merged '{skill}'"), skill["name"])),
        )  # fmt: skip


def _render_split(store: Store, skill: pd.Series) -> None:
    """Some of a skill's labelled questions become a skill of their own: the selected ones, or whole tasks or clusters."""
    questions = load_questions(store)
    groups = _group_labelled(questions[questions["labelled"] & (questions["skill"] == skill["name"])])
    keys = {what: f"skills_split_{what}_{skill['skill_id']}" for what in ("name", "off")}
    name, off = st.columns([2, 3], gap="medium")
    with name:
        new_name = st.text_input(_("Split off a new skill"), key=keys["name"], max_chars=LONGEST)
    with off:
        chosen = st.multiselect(
            _("with the labelled questions of"), list(groups), key=keys["off"],
            format_func=lambda group: f"{group} ({len(groups[group]):,})", placeholder=_("tasks, clusters, the selection"),
        )  # fmt: skip
    ids = list(dict.fromkeys(question_id for group in chosen for question_id in groups.get(group, [])))
    text = ngettext("Split {n} question off", "Split {n} questions off", len(ids)).format(n=f"{len(ids):,}")
    st.button(
        text, key=f"{keys['off']}_go", disabled=not (ids and new_name.strip()), on_click=guarded(_split),
        args=(skill["skill_id"], skill["name"], new_name, ids),
    )  # fmt: skip


def _group_labelled(labelled: pd.DataFrame) -> dict[str, list[str]]:
    """What can be split off by name: question ids."""
    selected = labelled[labelled["question_id"].isin(get_selection().questions)]
    groups = {_("the selection"): selected["question_id"].tolist()} if len(selected) else {}
    for task, rows in labelled.groupby("task"):
        groups[_("task {name}").format(name=task)] = rows["question_id"].tolist()
    for cluster, rows in labelled[labelled["cluster"] != NOISE].groupby("cluster"):
        groups[_("cluster {name}").format(name=cluster)] = rows["question_id"].tolist()
    return groups


def _split(skill_id: str, before: str, name: str, question_ids: list[str]) -> None:
    store, person = get_store(), get_person()
    event = split_skill(store, skill_id, name, question_ids, person)
    confirm(
        _("Split '{name}' off '{before}'").format(name=plain(name), before=plain(before)),
        undo=lambda: undo(store, event, person),
    )


def _change(act, skill_id: str, key: str, message: str, name: str) -> None:
    store, person = get_store(), get_person()
    event = act(store, skill_id, st.session_state[key], person)
    confirm(message.format(skill=plain(name)), undo=lambda: undo(store, event, person))
