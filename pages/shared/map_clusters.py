"""How good the clusters are, and what each one holds."""

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_cluster_question_ids, is_changed
from pages.shared.i18n import _, ngettext
from pages.shared.layout import answer_line, plain, question_text
from pages.shared.map_cluster_acts import render_cluster_acts, render_noise_act
from pages.shared.map_data import load_skills, load_texts
from pages.shared.map_drawing import of_name
from pages.shared.map_inspector import count_text, render_label_control
from pages.shared.skill_cells import as_chips, skill_chips
from pages.shared.state import per_version, select
from pages.shared.tables import percent, show_table
from pages.shared.text import cut

ONE_TASK = 0.95
"""A cluster is of one task when at least this share of it is."""


@per_version
def load_cluster_ids(store: Store, map_id: str, cluster: int) -> list[str]:
    return fetch_cluster_question_ids(store, map_id, cluster)


def number_text(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.2f}"


def describe_map(row: pd.Series) -> str:
    """A map's settings in a line, to tell maps apart."""
    return _("{when} · {of} · {encoder} · {clusters} clusters · neighbours {k}, distance {d:g}, size {s}, seed {seed}").format(
        when=f"{row['created_at']:%Y-%m-%d %H:%M}", of=of_name(row["of"]), encoder=row["encoder"], k=row["neighbours"],
        clusters=row["clusters"], d=row["min_dist"], s=row["min_cluster_size"], seed=row["seed"],
    )  # fmt: skip


def render_answer(chosen: pd.Series, clusters: pd.DataFrame) -> None:
    """How many groups there are, and whether they are the tasks under another name."""
    n = len(clusters)
    sentence = ngettext("{n} cluster in {questions} questions", "{n} clusters in {questions} questions", n).format(
        n=n, questions=f"{chosen['questions']:,}"
    )
    if n:
        pure = int((clusters["top_task_share"] >= ONE_TASK).sum())
        sentence += _(", {pure} of them of one task only").format(pure=pure)
    sentence += _("; {noise} noise").format(noise=percent(1 - clusters["size"].sum() / chosen["questions"]))
    if pd.notna(chosen["nmi"]):
        sentence += _("; NMI to task names {nmi}").format(nmi=number_text(chosen["nmi"]))
    answer_line(sentence + _("."))


def render_quality(store: Store, chosen: pd.Series) -> None:
    """Every measure in one line, with what it means."""
    if is_changed(store, chosen["map_id"]):
        st.caption(_("Clusters were changed by hand since; the measures are of those that HDBSCAN found."))
    st.caption(
        _(
            "NMI {nmi} and ARI {ari} against task names (1: the same grouping, 0: none; noise left out). DBCV {dbcv} and "
            "silhouette {silhouette} (both -1 to 1: how dense and how separate). n={n}."
        ).format(
            nmi=number_text(chosen["nmi"]),
            ari=number_text(chosen["ari"]),
            dbcv=number_text(chosen["dbcv"]),
            silhouette=number_text(chosen["silhouette"]),
            n=f"{chosen['questions']:,}",
        )
    )


def render_clusters(store: Store, map_id: str, clusters: pd.DataFrame) -> None:
    """The table of clusters; the picked one can be labelled, shown, renamed, merged and split."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader(_("Clusters"), anchor=False, width="content")
        render_noise_act(map_id, clusters)
    if clusters.empty:
        st.info(_("Everything is noise here: draw a map with a smaller cluster size."), icon=":material/blur_on:")
        return
    texts = load_texts(store, tuple(ids[0] for ids in clusters["samples"] if len(ids)))
    shown = pd.DataFrame(
        {
            "cluster": clusters["cluster"],
            "name": clusters["name"].where(clusters["named"], ""),
            "size": clusters["size"],
            "keywords": [", ".join(words) for words in clusters["keywords"]],
            "top_task": clusters["top_task"],
            "top_task_share": 100 * clusters["top_task_share"],
            "labelled": clusters["labelled"],
            "top_skill": as_chips(clusters["top_skill"]),
            "sample": [cut(texts.get(ids[0], "")) if len(ids) else "" for ids in clusters["samples"]],
        }
    )
    formats = {
        "top_task_share": st.column_config.ProgressColumn(
            _("Its share"), min_value=0, max_value=100, format="%.0f %%", width="small"
        ),
        "top_skill": skill_chips(load_skills(store), _("Most frequent label")),
    }
    labels = {
        "cluster": _("Cluster"), "name": _("Name"), "size": _("Questions"), "keywords": _("Keywords"), "top_task": _("Largest task"),
        "labelled": _("Labelled"), "sample": _("Most central question"),
    }  # fmt: skip
    picked = show_table(
        shown, f"map_clusters_{map_id}", labels=labels, formats=formats, select="single-row",
    )  # fmt: skip
    if len(picked):
        row = clusters[clusters["cluster"] == picked["cluster"].iloc[0]].iloc[0]
        _render_cluster(store, map_id, row, clusters)
    else:
        st.caption(_("Pick a row to see the cluster's questions, and to label, rename, merge or split it."))


def _render_cluster(store: Store, map_id: str, row: pd.Series, clusters: pd.DataFrame) -> None:
    number = int(row["cluster"])
    ids = load_cluster_ids(store, map_id, number)
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            title = _("Cluster {number}: {name}").format(number=number, name=plain(row["name"]))
            st.markdown(f"**{title}** ({count_text(len(ids))})", width="content")
            if st.button(_("Show on the map"), key="map_show_cluster", icon=":material/highlight:"):
                select(questions=ids, why=_("cluster {number}").format(number=number))
                st.rerun()
        render_cluster_acts(store, map_id, row, clusters)
        render_label_control(store, ids, "cluster", f"map_cluster_{number}")
        texts = load_texts(store, tuple(row["samples"]))
        for question_id in row["samples"]:
            question_text(texts.get(question_id, ""), key=f"map_cluster_{question_id}", question_id=question_id)
