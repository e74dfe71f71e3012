"""The queue card: one question after the other, or many together, labelled with keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from metamoe_backend.figures.maps import colour_by_group, highlight_points, make_map_figure, mark_point
from metamoe_backend.rows import How
from metamoe_backend.skills.queue import NOISE, order_queue
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import decide_label, label_questions
from pages.shared.charts import show_figure
from pages.shared.constraining import render_constrain_buttons
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm, plain, question_text
from pages.shared.map_data import cluster_names, load_clusters
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.skills_acts import render_undo_redo
from pages.shared.skills_data import (
    load_meta_question,
    load_neighbours,
    load_newest_map,
    load_prompts,
    load_question_acts,
    load_queue,
)
from pages.shared.skills_history import show_acts
from pages.shared.skills_people import DECIDE_MODE, conflict_caption, load_conflicts, who_said_what
from pages.shared.skills_suggestions import accept, pair, reject
from pages.shared.state import get_person, get_selection, get_store
from pages.shared.tables import percent, show_table

KEYS = 9
SHOWN_TOGETHER = 200
_SKIPPED = "skills_skipped"


@dataclass(frozen=True, slots=True)
class Turn:
    """What the next key acts on."""

    name: str
    """Stands in the key of each button, so that a press always counts for the turn it was made on."""
    questions: pd.DataFrame
    """Rows of `load_questions`, one or many."""
    how: How
    waiting: int
    """Turns that are left, this one included."""


def choose_turn(store: Store, questions: pd.DataFrame) -> Turn | None:
    """Lets the person say whether the keys act on one question, on a cluster or on the selection; the turn to take."""
    selected = questions[questions["question_id"].isin(get_selection().questions)]
    names = {"one": _("One question"), "cluster": _("A cluster at once")}
    if len(selected):
        names["selected"] = _("The {n} selected at once").format(n=f"{len(selected):,}")
    conflicts = load_conflicts(store)
    conflicts = conflicts[conflicts["question_id"].isin(questions["question_id"])]
    disputed = conflicts["question_id"].nunique()
    if disputed:
        names[DECIDE_MODE] = _("Disagreements ({n})").format(n=f"{disputed:,}")
    if st.session_state.get("skills_mode") not in names:
        st.session_state["skills_mode"] = "one"
    mode = st.segmented_control(
        _("The keys label"), list(names), format_func=names.get, key="skills_mode", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    if mode == "selected":
        return Turn("selected", selected, "lasso", 1)
    if mode == "cluster":
        return _choose_cluster(questions)
    if mode == DECIDE_MODE:
        first = first_in_turn(list(dict.fromkeys(conflicts["question_id"])))
        return Turn(first, questions[questions["question_id"] == first], "decided", disputed)
    return _choose_question(store, questions, selected)


def _choose_question(store: Store, questions: pd.DataFrame, selected: pd.DataFrame) -> Turn | None:
    """In the order in which they help most; of the selection only, where the person wants that. Skipped ones last."""
    among = set(questions["question_id"])
    queue = [question_id for question_id in load_queue(store) if question_id in among]
    if len(selected) and st.toggle(
        _("Only the {n} selected questions").format(n=f"{len(selected):,}"), value=True, key="skills_only_selected"
    ):
        queue = order_queue(selected)
    if not queue:
        return None
    first = first_in_turn(queue)
    return Turn(first, questions[questions["question_id"] == first], "question", len(queue))


def first_in_turn(queue: Sequence[str]) -> str:
    """The first that was not skipped; where all were, the one skipped longest ago."""
    skipped = st.session_state.get(_SKIPPED, {})
    return min(queue, key=lambda name: skipped.get(name, 0)) if skipped else queue[0]


def _choose_cluster(questions: pd.DataFrame) -> Turn | None:
    """Unlabelled questions of the cluster with the smallest labelled share; skipped ones last."""
    clusters = questions[questions["cluster"] != NOISE].groupby("cluster")["labelled"].agg(["mean", "size"])
    clusters = clusters[clusters["mean"] < 1]
    if clusters.empty:
        return None
    skipped = st.session_state.get(_SKIPPED, {})
    clusters["skipped"] = [skipped.get(f"cluster-{cluster}", 0) for cluster in clusters.index]
    first = clusters.sort_values(["skipped", "mean", "size"], ascending=[True, True, False]).index[0]
    members = questions[(questions["cluster"] == first) & ~questions["labelled"]]
    return Turn(f"cluster-{first}", members, "cluster", len(clusters))


def render_card(store: Store, turn: Turn, skills: pd.DataFrame) -> None:
    """The question or questions with all that helps to decide, and the keys that decide."""
    with st.container(border=True, key="skills_card"):
        if turn.how == "question":
            _render_question(store, turn, skills)
        elif turn.how == "decided":
            _render_dispute(store, turn, skills)
        else:
            _render_together(store, turn, skills)


def _render_question(store: Store, turn: Turn, skills: pd.DataFrame) -> None:
    question = turn.questions.iloc[0]
    question_id = question["question_id"]
    st.caption(
        _("{task} · {split} · {waiting} questions wait for a label").format(
            task=plain(question["task"]), split=plain(question["split"]), waiting=f"{turn.waiting:,}"
        )
    )
    prompt = load_prompts(store, (question_id,))[question_id]
    question_text(prompt, key=f"skills_{question_id}", question_id=question_id)
    meta = load_meta_question(store, question_id, question["task"])
    if meta and meta != prompt:
        st.caption(_("In general"))
        st.text(meta, width="stretch")
    _render_suggestion(question, skills)
    _render_keys(store, turn, skills)
    _render_neighbours(store, question_id, skills)
    with st.expander(
        _("History of this question"), icon=":material/history:", key="skills_past", on_change="rerun"
    ) as past:
        if past.open:
            acts = load_question_acts(store, question_id)
            if acts:
                show_acts(acts, "skills_question_acts")
            else:
                st.caption(_("Nobody has touched it yet."))


def _render_dispute(store: Store, turn: Turn, skills: pd.DataFrame) -> None:
    """Who said what; the key that is pressed decides."""
    question = turn.questions.iloc[0]
    question_id = question["question_id"]
    st.caption(conflict_caption(question["task"], question["split"], turn.waiting))
    question_text(
        load_prompts(store, (question_id,))[question_id], key=f"skills_{question_id}", question_id=question_id
    )
    show_table(
        who_said_what(load_conflicts(store), question_id),
        "skills_dispute",
        labels={"author": _("Who")},
        formats={
            "skill": skill_chips(skills, _("Skill")),
            "made_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm"),
        },
    )
    st.text_input(_("Why (kept with the decision)"), key=f"skills_why_{question_id}", max_chars=500)
    _render_keys(store, turn, skills)


def _render_together(store: Store, turn: Turn, skills: pd.DataFrame) -> None:
    rows, n = turn.questions, len(turn.questions)
    if turn.how == "cluster":
        newest = load_newest_map(store)
        name = (
            cluster_names(load_clusters(store, newest["map_id"])).get(int(rows["cluster"].iloc[0]), "")
            if newest
            else ""
        )
        text = ngettext(
            "Cluster {name}: {n} question without a label", "Cluster {name}: {n} questions without a label", n
        )
        st.markdown("**" + text.format(name=plain(name), n=f"{n:,}") + "**")
        st.caption(_("{n} clusters wait for labels").format(n=f"{turn.waiting:,}"))
    else:
        text = ngettext("{n} selected question", "{n} selected questions", n).format(n=f"{n:,}")
        labelled = int(rows["labelled"].sum())
        more = ngettext(", {n} of them labelled already", ", {n} of them labelled already", labelled)
        st.markdown("**" + text + (more.format(n=f"{labelled:,}") if labelled else "") + "**")
    ordered = rows.sort_values(["probability", "question_id"], na_position="first").head(SHOWN_TOGETHER)
    prompts = ordered["question_id"].map(load_prompts(store, tuple(ordered["question_id"])))
    show_table(
        ordered.assign(chip=as_chips(ordered["skill"]), prompt=prompts)[["chip", "probability", "prompt"]],
        "skills_together",
        labels={"prompt": _("Question")},
        formats={
            "chip": skill_chips(skills, _("Label or suggestion")),
            "probability": st.column_config.NumberColumn(_("Probability"), format="%.2f", width="small"),
        },
        height=45 + 36 * min(max(len(ordered), 2), 6),
    )
    if n > SHOWN_TOGETHER:
        st.caption(_("The first {n} are shown.").format(n=SHOWN_TOGETHER))
    _render_keys(store, turn, skills)


def _render_suggestion(question: pd.Series, skills: pd.DataFrame) -> None:
    """Says what is suggested, and how sure that is."""
    if not (skills["name"] == question["skill"]).any():
        st.caption(_("No skill is suggested for it yet."))
        return
    runner_up = skills.loc[skills["skill_id"] == question["runner_up"], "name"]
    text = _("Suggestion: **{skill}** with {probability}").format(
        skill=plain(question["skill"]), probability=percent(question["probability"])
    )
    if len(runner_up) and runner_up.iloc[0] != question["skill"]:
        text += _(", ahead of {other} by {margin} points").format(
            other=plain(runner_up.iloc[0]), margin=f"{100 * question['margin']:.0f}"
        )
    st.markdown(text)


def _render_keys(store: Store, turn: Turn, skills: pd.DataFrame) -> None:
    """One button a skill, keys 1 to 9 in the order of the table; Enter accepts, Backspace refuses, Space skips, U undoes."""
    ids = turn.questions["question_id"].tolist()
    with st.container(horizontal=True, gap="small"):
        for number, skill in enumerate(skills.head(KEYS).itertuples(), start=1):
            _key(
                plain(skill.name, 40),
                f"give_{number}",
                turn,
                str(number),
                label_all,
                ids,
                skill.skill_id,
                skill.name,
                turn.how,
            )
    suggested = find_suggested(turn.questions, skills)
    with st.container(horizontal=True, gap="small"):
        if suggested:
            _key(_accept_text(turn, suggested), "accept", turn, "Enter", accept, suggested, primary=True)
            _key(_reject_text(suggested), "reject", turn, "Backspace", _reject_and_go_on, suggested, turn.name)
        _key(_("Skip"), "skip", turn, "Space", skip, turn.name)
        further = skills.iloc[KEYS:]
        if len(further):
            other = st.selectbox(
                _("Another skill"), further["name"].tolist(), index=None, key=f"skills_other_{turn.name}",
                placeholder=_("another skill"), label_visibility="collapsed", width=200,
            )  # fmt: skip
            if other:
                skill_id = further.loc[further["name"] == other, "skill_id"].iloc[0]
                label_all(ids, skill_id, other, turn.how)
                st.rerun()
    render_undo_redo(store, "card", keys=True)


def _key(
    label: str, what: str, turn: Turn, shortcut: str, act: Callable[..., None], *args: object, primary: bool = False
) -> None:
    st.button(
        label, key=f"skills_{what}_{turn.name}", shortcut=shortcut, type="primary" if primary else "secondary",
        on_click=guarded(act), args=args,
    )  # fmt: skip


def find_suggested(questions: pd.DataFrame, skills: pd.DataFrame) -> dict[str, str]:
    """question_id to the skill_id suggested for it, of those that have a suggestion and no label."""
    rows = questions[~questions["labelled"] & questions["skill"].notna()]
    return pair(rows[["question_id", "skill"]].merge(skills[["skill_id", "name"]], left_on="skill", right_on="name"))


def _accept_text(turn: Turn, suggested: Mapping[str, str]) -> str:
    if turn.how == "question":
        return _("Accept {skill}").format(skill=plain(turn.questions["skill"].iloc[0], 40))
    n = len(suggested)
    return ngettext("Accept {n} suggestion", "Accept {n} suggestions", n).format(n=f"{n:,}")


def _reject_text(suggested: Mapping[str, str]) -> str:
    n = len(suggested)
    return (
        _("Refuse it") if n == 1 else ngettext("Refuse {n} suggestion", "Refuse {n} suggestions", n).format(n=f"{n:,}")
    )


def _reject_and_go_on(suggested: Mapping[str, str], turn: str) -> None:
    """Who refuses does not say what it is instead, so the question comes up again after all others."""
    reject(suggested)
    skip(turn)


def label_all(question_ids: Sequence[str], skill_id: str, skill: str, how: How) -> None:
    """Label these questions as one act of the person at the browser."""
    store, person, n = get_store(), get_person(), len(question_ids)
    if how == "decided":
        why = st.session_state.get(f"skills_why_{question_ids[0]}", "")
        event = decide_label(store, skill_id, question_ids[0], person, why)
    else:
        event = label_questions(store, skill_id, question_ids, person, how)
    text = ngettext("Labelled as '{skill}'", "{n} questions labelled as '{skill}'", n)
    confirm(text.format(skill=plain(skill), n=f"{n:,}"), undo=lambda: undo(store, event, person))


def skip(turn: str) -> None:
    """Comes up again after all others; of several, the one skipped longest ago first."""
    skipped = st.session_state.setdefault(_SKIPPED, {})
    skipped[turn] = max(skipped.values(), default=0) + 1


def _render_neighbours(store: Store, question_id: str, skills: pd.DataFrame) -> None:
    near = load_neighbours(store, question_id)
    if near.empty:
        return
    st.caption(_("Nearest labelled questions (cosine similarity of the vectors)"))
    picked = show_table(
        near.assign(skill=as_chips(near["skill"]))[["similarity", "skill", "prompt", "question_id"]],
        f"skills_neighbours_{question_id}",
        labels={"prompt": _("Question")},
        formats={
            "similarity": st.column_config.NumberColumn(_("Similarity"), format="%.2f", width="small"),
            "skill": skill_chips(skills, _("Skill")),
        },
        hide=("question_id",),
        select="single-row",
    )
    if len(picked):
        st.caption(_("Whatever its name is: this question and the picked one need …"))
        other = picked["question_id"].iloc[0]
        render_constrain_buttons([question_id], [other], key=f"skills_constrain_{question_id}")
        question_text(picked["prompt"].iloc[0], key=f"skills_near_{other}", question_id=other)


def render_small_map(questions: pd.DataFrame, turn: Turn, skills: pd.DataFrame) -> None:
    """Where the card's questions lie among the others."""
    placed = questions[questions["x"].notna()].sort_values("labelled", kind="stable")  # labels lie on top
    if placed.empty:
        st.info(_("No map is drawn yet: the queue does not know which questions are alike."), icon=":material/map:")
        return
    group = placed["skill"].where(placed["labelled"]).fillna(_("unlabelled"))
    colours = dict(zip(skills["name"], skills["colour"], strict=True))
    figure = make_map_figure(placed, colour_by_group(group, colours), point_size=4, height=380, dragmode="pan")
    at = turn.questions[turn.questions["x"].notna()]
    if turn.how not in ("question", "decided"):
        highlight_points(figure, placed["question_id"].isin(at["question_id"]).to_numpy().nonzero()[0].tolist())
        said = _("Labels of people only. The questions on the card stand out.")
    elif at.empty:
        said = _("Labels of people only. The question on the card is not on the newest map.")
    else:
        mark_point(figure, at["x"].iloc[0], at["y"].iloc[0])
        said = _("Labels of people only. The ring marks the question on the card.")
    alt = _("Map of the questions with their labels; a ring marks the question on the card.")
    show_figure(figure, key="skills_map", alt=alt)
    st.caption(said)
