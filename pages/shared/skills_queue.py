"""The queue card: one question after the other, labelled with a key."""

import pandas as pd
import streamlit as st

from metamoe_backend.figures.maps import make_map_figure, mark_point
from metamoe_backend.skills.queue import order_queue
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import fetch_redoable, fetch_undoable, label_questions, undo
from pages.shared.charts import show_figure
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.layout import confirm, plain, question_text
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.skills_data import load_meta_question, load_neighbours, load_queue
from pages.shared.state import get_person, get_selection, get_store, per_version
from pages.shared.tables import percent, show_table

KEYS = 9
_SKIPPED = "skills_skipped"


@per_version
def load_undoable(store: Store, person: str) -> dict[str, str] | None:
    return fetch_undoable(store, person)


@per_version
def load_redoable(store: Store, person: str) -> dict[str, str] | None:
    return fetch_redoable(store, person)


def choose_queue(store: Store, questions: pd.DataFrame) -> list[str]:
    """Ids in the order in which they come up; of the selection only, where the person wants that. Skipped ones last."""
    selected = questions[questions["question_id"].isin(get_selection().questions)]
    queue = load_queue(store)
    if len(selected) and st.toggle(
        _("Only the {n} selected questions").format(n=f"{len(selected):,}"), value=True, key="skills_only_selected"
    ):
        queue = order_queue(selected)
    skipped = st.session_state.get(_SKIPPED, {})
    return sorted(queue, key=lambda question_id: skipped.get(question_id, 0))


def render_card(store: Store, question: pd.Series, skills: pd.DataFrame, waiting: int) -> None:
    """The question with all that helps to decide, and the keys that decide."""
    question_id = question["question_id"]
    with st.container(border=True, key="skills_card"):
        st.caption(
            _("{task} · {split} · {waiting} questions wait for a label").format(
                task=plain(question["task"]), split=plain(question["split"]), waiting=f"{waiting:,}"
            )
        )
        question_text(question["prompt"], key=f"skills_{question_id}")
        meta = load_meta_question(store, question_id, question["task"])
        if meta:
            st.caption(_("In general"))
            st.text(meta, width="stretch")
        suggested = _render_suggestion(question, skills)
        _render_keys(question_id, skills, suggested)
        _render_neighbours(store, question_id, skills)
    render_undo_redo(store, "card")


def _render_suggestion(question: pd.Series, skills: pd.DataFrame) -> pd.Series | None:
    """Says what is suggested; returns the suggested skill's row."""
    found = skills[skills["name"] == question["skill"]] if pd.notna(question["skill"]) else skills.iloc[:0]
    if found.empty:
        st.caption(_("No skill is suggested for it yet."))
        return None
    runner_up = skills.loc[skills["skill_id"] == question["runner_up"], "name"]
    text = _("Suggestion: **{skill}** with {probability}").format(
        skill=plain(question["skill"]), probability=percent(question["probability"])
    )
    if len(runner_up) and runner_up.iloc[0] != question["skill"]:
        text += _(", ahead of {other} by {margin} points").format(
            other=plain(runner_up.iloc[0]), margin=f"{100 * question['margin']:.0f}"
        )
    st.markdown(text)
    return found.iloc[0]


def _render_keys(question_id: str, skills: pd.DataFrame, suggested: pd.Series | None) -> None:
    """One button a skill, keys 1 to 9 in the order of the table; Enter accepts, Space skips.

    The question stands in each key, so that a press always counts for the question it was made on.
    """
    with st.container(horizontal=True, gap="small"):
        for number, skill in enumerate(skills.head(KEYS).itertuples(), start=1):
            st.button(
                plain(skill.name, 40),
                key=f"skills_give_{number}_{question_id}",
                shortcut=str(number),
                on_click=guarded(label_one),
                args=(question_id, skill.skill_id, skill.name, "question"),
            )
    with st.container(horizontal=True, gap="small"):
        if suggested is not None:
            st.button(
                _("Accept {skill}").format(skill=plain(suggested["name"], 40)),
                key=f"skills_accept_{question_id}",
                type="primary",
                shortcut="Enter",
                on_click=guarded(label_one),
                args=(question_id, suggested["skill_id"], suggested["name"], "accepted"),
            )
        st.button(_("Skip"), key=f"skills_skip_{question_id}", shortcut="Space", on_click=skip, args=(question_id,))
        further = skills.iloc[KEYS:]
        if len(further):
            other = st.selectbox(
                _("Another skill"), further["name"].tolist(), index=None, key=f"skills_other_{question_id}",
                placeholder=_("another skill"), label_visibility="collapsed", width=200,
            )  # fmt: skip
            if other:
                skill_id = further.loc[further["name"] == other, "skill_id"].iloc[0]
                label_one(question_id, skill_id, other, "question")
                st.rerun()


def label_one(question_id: str, skill_id: str, skill: str, how: str) -> None:
    store, person = get_store(), get_person()
    event = label_questions(store, skill_id, [question_id], person, how)
    confirm(_("Labelled as '{skill}'").format(skill=plain(skill)), undo=lambda: undo(store, event, person))


def skip(question_id: str) -> None:
    """Comes up again after all others; of several, the one skipped longest ago first."""
    skipped = st.session_state.setdefault(_SKIPPED, {})
    skipped[question_id] = max(skipped.values(), default=0) + 1


def _render_neighbours(store: Store, question_id: str, skills: pd.DataFrame) -> None:
    near = load_neighbours(store, question_id)
    if near.empty:
        return
    st.caption(_("Nearest labelled questions (cosine similarity of the vectors)"))
    show_table(
        near.assign(skill=as_chips(near["skill"]))[["similarity", "skill", "prompt"]],
        "skills_neighbours",
        labels={"prompt": _("Question")},
        formats={
            "similarity": st.column_config.NumberColumn(_("Similarity"), format="%.2f", width="small"),
            "skill": skill_chips(skills, _("Skill")),
        },
    )


def render_undo_redo(store: Store, place: str) -> None:
    """My newest act, by name, to take back; and the one taken back, to do again."""
    person = get_person()
    back, again = load_undoable(store, person), load_redoable(store, person)
    with st.container(horizontal=True, gap="small"):
        if back:
            text = _("Take back {act}").format(act=plain(back["description"], 70))
            st.button(
                text, key=f"skills_undo_{place}", icon=":material/undo:", type="tertiary",
                on_click=guarded(undo_by_name), args=(back["event_id"], back["description"]),
            )  # fmt: skip
        if again:
            text = _("Do again: {act}").format(act=plain(again["description"], 70))
            st.button(
                text, key=f"skills_redo_{place}", icon=":material/redo:", type="tertiary",
                on_click=guarded(undo), args=(store, again["event_id"], person),
            )  # fmt: skip


def undo_by_name(event_id: str, description: str) -> None:
    undo(get_store(), event_id, get_person())
    confirm(_("Taken back: {act}").format(act=plain(description)))


def render_small_map(questions: pd.DataFrame, question: pd.Series, skills: pd.DataFrame) -> None:
    """Where the card's question lies among the others."""
    placed = questions[questions["x"].notna()].sort_values("labelled", kind="stable")  # labels lie on top
    if placed.empty:
        st.info(_("No map is drawn yet: the queue does not know which questions are alike."), icon=":material/map:")
        return
    group = placed["skill"].where(placed["labelled"]).fillna(_("unlabelled"))
    colours = dict(zip(skills["name"], skills["colour"], strict=True))
    figure = make_map_figure(placed, group, colours, point_size=4, height=380, dragmode="pan")
    if pd.notna(question["x"]):
        mark_point(figure, question["x"], question["y"])
    alt = _("Map of the questions with their labels; a ring marks the question on the card.")
    show_figure(figure, key="skills_map", alt=alt)
    st.caption(_("Labels of people only. The ring marks the question on the card.") if pd.notna(question["x"]) else (
        _("Labels of people only. The question on the card is not on the newest map.")
    ))  # fmt: skip
