"""What a person does to clusters from the Map page: each act is told, and can be taken back."""

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.config import MetaQuestionConfig
from metamoe_backend.skills.cluster_names import find_server, suggest_name
from metamoe_backend.skills.clusters import (
    LONGEST_NAME,
    MOST_PARTS,
    absorb_map_noise,
    merge_clusters,
    move_questions,
    rename_cluster,
    split_cluster,
)
from metamoe_backend.skills.queue import NOISE
from metamoe_backend.store.acts import fetch_act, undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_cluster_question_ids
from pages.shared.act_words import act_text
from pages.shared.constraining import render_constrain_buttons
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.layout import confirm, plain
from pages.shared.map_data import cluster_names, load_texts
from pages.shared.state import get_person, get_store, per_version

_NEW = "new"


@per_version
def load_server(store: Store) -> MetaQuestionConfig | None:
    return find_server(store)


def do(act: Callable[[Store, str], str]) -> None:
    """Record an act, say what it did, and offer to take it back."""
    store, person = get_store(), get_person()
    event_id = act(store, person)
    done = fetch_act(store, event_id)
    said = act_text(done) if done else ""
    confirm(_("Done: {act}").format(act=plain(said, 90)), undo=lambda: undo(store, event_id, person))


def render_cluster_acts(store: Store, map_id: str, row: pd.Series, clusters: pd.DataFrame) -> None:
    """Rename, merge and split the cluster in `row`."""
    number = int(row["cluster"])
    with st.container(horizontal=True, gap="small"):
        with st.popover(_("Rename"), icon=":material/edit:", key=f"map_rename_{number}"):
            _render_rename(store, map_id, row)
        with st.popover(_("Merge"), icon=":material/merge:", key=f"map_merge_{number}", disabled=len(clusters) < 2):
            _render_merge(map_id, number, clusters)
        with st.popover(_("Split"), icon=":material/call_split:", key=f"map_split_{number}"):
            _render_split(map_id, number)
        with st.popover(
            _("Compare"), icon=":material/link:", key=f"map_constrain_{number}", disabled=len(clusters) < 2
        ):
            _render_constrain(store, map_id, number, clusters)


def _render_rename(store: Store, map_id: str, row: pd.Series) -> None:
    number, key = int(row["cluster"]), f"map_name_{int(row['cluster'])}"
    proposed = " ".join(list(row["keywords"])[:3])
    st.session_state.setdefault(key, row["name"] if row["named"] else proposed)
    st.text_input(
        _("Name"), key=key, max_chars=LONGEST_NAME, help=_("Empty: the cluster is called after its keywords again.")
    )
    st.caption(_("Keywords: {words}").format(words=plain(", ".join(row["keywords"]))))
    server = load_server(store)
    with st.container(horizontal=True):
        st.button(
            _("Rename"), key=f"{key}_go", type="primary",
            on_click=guarded(lambda: do(lambda store, by: rename_cluster(store, map_id, number, st.session_state[key], by))),
        )  # fmt: skip
        if server is not None:
            st.button(
                _("Ask {model}").format(model=plain(server.model, 30)), key=f"{key}_ask", icon=":material/auto_awesome:",
                on_click=guarded(lambda: _propose(store, server, row, key)),
            )  # fmt: skip


def _propose(store: Store, server: MetaQuestionConfig, row: pd.Series, key: str) -> None:
    texts = list(load_texts(store, tuple(row["samples"])).values())
    st.session_state[key] = suggest_name(server, list(row["keywords"]), texts)


def _render_merge(map_id: str, number: int, clusters: pd.DataFrame) -> None:
    names = {other: name for other, name in cluster_names(clusters).items() if other != number}
    into = st.selectbox(_("Into"), list(names), format_func=names.get, key=f"map_into_{number}")
    st.button(
        _("Merge"), key=f"map_merge_{number}_go", type="primary",
        on_click=guarded(lambda: do(lambda store, by: merge_clusters(store, map_id, [number], into, by))),
    )  # fmt: skip


def _render_split(map_id: str, number: int) -> None:
    choices = [None, *range(2, MOST_PARTS + 1)]
    parts = st.selectbox(
        _("Parts"), choices, key=f"map_parts_{number}",
        format_func=lambda count: _("as many as fit best") if count is None else str(count),
        help=_("Smaller groups are found among the cluster's vectors; the largest keeps the number."),
    )  # fmt: skip
    st.button(
        _("Split"), key=f"map_split_{number}_go", type="primary",
        on_click=guarded(lambda: do(lambda store, by: split_cluster(store, map_id, number, parts, by))),
    )  # fmt: skip


def _render_constrain(store: Store, map_id: str, number: int, clusters: pd.DataFrame) -> None:
    names = {other: name for other, name in cluster_names(clusters).items() if other != number}
    other = st.selectbox(
        _("With"), list(names), format_func=names.get, key=f"map_with_{number}",
        help=_("Whether the questions of both need one skill or different ones: the next suggestions respect it."),
    )  # fmt: skip
    sides = [fetch_cluster_question_ids(store, map_id, cluster) for cluster in (number, other)]
    render_constrain_buttons(*sides, key=f"map_constrain_{number}")


def render_noise_act(map_id: str, clusters: pd.DataFrame) -> None:
    """Let clusters take in the noise among them."""
    st.button(
        _("Absorb noise"), key="map_absorb", icon=":material/join_inner:", disabled=clusters.empty,
        help=_("A question of the noise goes to the cluster that most of its nearest neighbours are of; else it stays."),
        on_click=guarded(lambda: do(lambda store, by: absorb_map_noise(store, map_id, by))),
    )  # fmt: skip


@st.fragment
def render_move(map_id: str, ids: Sequence[str], clusters: pd.DataFrame) -> None:
    """Put the selected questions into another cluster, a new one, or the noise."""
    box = st.popover(_("Move to a cluster"), icon=":material/drive_file_move:", key="map_move", on_change="rerun")
    if not box.open:
        return
    names = {**cluster_names(clusters), _NEW: _("a new cluster"), NOISE: _("noise")}
    with box:
        into = st.selectbox(_("Cluster"), list(names), format_func=names.get, key="map_move_into")
        if st.button(_("Move"), key="map_move_go", type="primary"):
            target = None if into == _NEW else into
            guarded(lambda: do(lambda store, by: move_questions(store, map_id, list(ids), target, by)))()
            st.rerun()
