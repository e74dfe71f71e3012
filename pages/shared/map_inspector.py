"""What was selected on the map, and giving it a skill."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.errors import UserError
from metamoe_backend.rows import How
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import find_or_create_skill, label_questions
from pages.shared.errors import guarded
from pages.shared.i18n import _, ngettext
from pages.shared.layout import confirm, plain, question_text
from pages.shared.map_canvas import find_selected_rows
from pages.shared.map_cluster_acts import render_move
from pages.shared.map_data import fill_missing, load_skills, load_texts, name_clusters
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.state import clear_selection, get_person, get_selection, get_store, open_page
from pages.shared.tables import show_table
from pages.shared.text import cut

SAMPLED = 20


def count_text(n: int) -> str:
    return ngettext("{n} question", "{n} questions", n).format(n=f"{n:,}")


def render_inspector(store: Store, map_id: str, points: pd.DataFrame, clusters: pd.DataFrame) -> None:
    """Count, label control, breakdown and samples of the selection."""
    selection = get_selection()
    rows = points.take(find_selected_rows(map_id, points))
    if rows.empty:
        if selection.questions:
            st.info(_("None of the selected questions lies on this map."), icon=":material/location_off:")
        else:
            st.info(_("Draw round a group with the lasso, or pick a cluster below."), icon=":material/gesture:")
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        why = f" ({plain(selection.why, 40)})" if selection.why else ""
        st.markdown(f"**{count_text(len(rows))}**{why}", width="content")
        st.button(
            _("Clear"), key="map_clear", icon=":material/close:", type="tertiary", on_click=clear_selection,
            args=("questions",),
        )  # fmt: skip
    elsewhere = len(selection.questions) - len(rows)
    if elsewhere:
        st.caption(_("{n} more of the selection lie on other maps.").format(n=f"{elsewhere:,}"))
    render_label_control(
        store,
        selection.questions if len(rows) == len(selection.questions) else rows["question_id"].tolist(),
        "lasso",
        "map_label",
    )
    _render_breakdown(store, rows, clusters)
    _render_samples(store, rows)
    render_move(map_id, rows["question_id"], clusters)
    if st.button(_("Label them one by one"), key="map_to_skills", icon=":material/label:"):
        open_page("skills")


def render_label_control(store: Store, ids: Sequence[str], how: How, key: str) -> None:
    """Give all these questions one skill, an existing or a new one. A form: choosing a name sends nothing."""
    skills = load_skills(store)["name"].tolist()
    with st.form(f"{key}_form", border=False):
        st.selectbox(
            _("Label as"), skills, index=None, key=key, accept_new_options=True,
            placeholder=_("a skill, or a new name"), label_visibility="collapsed",
        )  # fmt: skip
        st.form_submit_button(
            _("Label all {n}").format(n=f"{len(ids):,}"), key=f"{key}_go", type="primary", icon=":material/label:",
            width="stretch", on_click=guarded(lambda: label_all(ids, st.session_state[key], how)),
        )  # fmt: skip


def label_all(ids: Sequence[str], name: str | None, how: How) -> None:
    """Store the labels, say so, and offer to take them back."""
    if not name or not name.strip():
        raise UserError(_("Choose a skill, or write a new name."))
    store, person = get_store(), get_person()
    event = label_questions(store, find_or_create_skill(store, name, person), ids, person, how)
    confirm(
        ngettext("Labelled {n} question '{skill}'", "Labelled {n} questions '{skill}'", len(ids)).format(
            n=f"{len(ids):,}", skill=plain(name)
        ),
        undo=lambda: undo(store, event, person),
    )


def _render_breakdown(store: Store, rows: pd.DataFrame, clusters: pd.DataFrame) -> None:
    kinds = {"task": _("Task"), "cluster": _("Cluster"), "skill": _("Skill")}
    kind = st.segmented_control(
        _("Counted by"), list(kinds), default="task", format_func=kinds.get, key="map_breakdown", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    counts = count_groups(rows, clusters, kind)
    formats = {
        "n": st.column_config.NumberColumn(_("Questions"), format="localized", width="small"),
        "share": st.column_config.ProgressColumn(
            _("Share"), min_value=0, max_value=100, format="%.0f %%", width="small"
        ),
    }
    if kind == "skill":
        named = counts["group"].where(counts["group"] != _("unlabelled"))
        counts = counts.assign(group=as_chips(named))
        formats["group"] = skill_chips(load_skills(store), kinds[kind])
    height = 240 if len(counts) > 6 else None
    show_table(counts, f"map_counts_{kind}", labels={"group": kinds[kind]}, formats=formats, height=height)


def count_groups(rows: pd.DataFrame, clusters: pd.DataFrame, kind: str) -> pd.DataFrame:
    """group, n, share (percent) of the selected questions, largest first."""
    if kind == "cluster":
        group = fill_missing(name_clusters(rows, clusters), _("noise"))
    else:
        group = fill_missing(rows[kind], _("unlabelled"))
    counts = group.value_counts().rename_axis("group").rename("n").reset_index()
    counts = counts[counts["n"] > 0].astype({"group": str})
    return counts.assign(share=100 * counts["n"] / len(rows))


def _render_samples(store: Store, rows: pd.DataFrame) -> None:
    drawn = rows.sample(min(SAMPLED, len(rows)), random_state=0)
    st.caption(_("{k} of {n}, drawn at random").format(k=len(drawn), n=f"{len(rows):,}"))
    texts = load_texts(store, tuple(drawn["question_id"]))
    shown = pd.DataFrame(
        {
            "question_id": drawn["question_id"].tolist(),
            "prompt": [cut(texts[question_id]) for question_id in drawn["question_id"]],
            "task": drawn["task"].tolist(),
            "skill": as_chips(drawn["skill"].astype(object)),
        }
    )
    picked = show_table(
        shown,
        "map_samples",
        labels={"prompt": _("Question"), "task": _("Task")},
        formats={"skill": skill_chips(load_skills(store), _("Skill"))},
        hide=("question_id",),
        select="single-row",
        height=260,
    )
    if len(picked):
        question_id = picked["question_id"].iloc[0]
        question_text(texts[question_id], key=f"map_{question_id}", question_id=question_id)
