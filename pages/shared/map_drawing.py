"""Drawing maps: the settings, what must come before, and the jobs that run."""

from typing import get_args

import pandas as pd
import streamlit as st

from metamoe_backend.config import DEFAULT_ENCODER, ClusterConfig
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus
from metamoe_backend.jobs.supervisor import cancel
from metamoe_backend.launch import launch
from metamoe_backend.mapping import STEP_UNITS, STEPS
from metamoe_backend.rows import MetaQuestionMethod, Reading
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.store.maps import fetch_embedded
from metamoe_backend.store.runs import fetch_pipeline_counts, fetch_runs
from pages.shared.config_form import FormOptions, render_fields
from pages.shared.errors import error_boundary, guarded
from pages.shared.i18n import _
from pages.shared.jobs_line import fetch_active_runs
from pages.shared.layout import confirm, empty_state, plain
from pages.shared.state import get_person, get_store, get_workspace, per_version
from pages.shared.tables import duration_text, percent

STAGES = ("embed", "cluster")
ENCODERS = ("minilm", "e5")


@per_version
def load_embedded(store: Store) -> pd.DataFrame:
    return fetch_embedded(store)


@per_version
def load_counts(store: Store) -> dict[str, int]:
    return fetch_pipeline_counts(store)


@per_version
def load_newest_run(store: Store) -> dict | None:
    runs = fetch_runs(store, STAGES)
    return runs.iloc[0].to_dict() if len(runs) else None


def of_name(of: str) -> str:
    return {"question": _("questions"), "meta-question": _("meta-questions"), "both": _("both joined")}.get(of, of)


def method_name(method: str) -> str:
    """How meta-questions were built."""
    return {"template": _("by template"), "llm": _("by a language model")}.get(method, method)


def start(stage: str, values: dict) -> None:
    """Queue a run and say so; what is joined is embedded in two."""
    both = ("question", "meta-question") if stage == "embed" and values["of"] == "both" else (values["of"],)
    for of in both:
        launch(get_store(), stage, values | {"of": of}, get_person())
    said = _("The map is being drawn") if stage == "cluster" else _("The texts are being embedded")
    confirm(_("{what}; it goes on when you leave this page.").format(what=said))


@st.fragment
def render_draw_form(store: Store) -> None:
    """The settings of a map, in a popover. What is not embedded yet is offered to be."""
    opened = st.session_state.setdefault("map_drawings", 0)  # another key: the popover closes after a start
    box = st.popover(
        _("Draw a map"), icon=":material/scatter_plot:", type="primary", key=f"map_draw_{opened}", on_change="rerun"
    )
    if not box.open:
        return
    with box, st.form("map_form"):
        of = st.segmented_control(
            _("Of"), get_args(Reading), default="question", format_func=of_name, key="map_new_of",
            required=True, help=_(ClusterConfig.model_fields["of"].description or ""),
        )  # fmt: skip
        method = st.segmented_control(
            _("Meta-questions"), get_args(MetaQuestionMethod), default="template", format_func=method_name,
            key="map_new_method", required=True, help=_(ClusterConfig.model_fields["method"].description or ""),
        )  # fmt: skip
        options = FormOptions("map_new", choices={"encoder": ENCODERS}, free=frozenset({"encoder"}))
        names = ["encoder", "neighbours", "min_dist", "min_cluster_size", "seed"]
        values = {"of": of, "method": method} | render_fields(ClusterConfig, names, options, columns=2)
        embedded = load_embedded(store)
        for row in embedded.itertuples():
            text = _("Embedded by {encoder}: {n} {of}").format(
                encoder=plain(row.encoder), n=f"{row.questions:,}", of=of_name(row.of)
            )
            st.caption(text)
        with st.container(horizontal=True):
            draw = st.form_submit_button(_("Draw"), type="primary", icon=":material/play_arrow:")
            help_text = _("Needed once for each encoder, and again after new questions.")
            embed = st.form_submit_button(_("Embed first"), help=help_text)
    if draw or embed:
        with error_boundary():  # what is missing is said here; the map below stays
            start(
                "cluster" if draw else "embed",
                values if draw else {"encoder": values["encoder"], "of": of, "method": method},
            )
            st.session_state["map_drawings"] = opened + 1
            st.rerun()


def render_no_map(store: Store) -> None:
    """The next step towards a first map, with its button."""
    embedded = load_embedded(store)
    if not load_counts(store)["questions"]:
        empty_state(_("A map shows questions, and there are none yet."), button=_("Import questions"), page="tasks")
    elif fetch_drawing_runs():
        empty_state(_("The first map appears here as soon as it is drawn."), icon=":material/hourglass_top:")
    elif embedded.empty:
        values = {"encoder": DEFAULT_ENCODER, "of": "question"}
        empty_state(
            _("A map needs the questions as vectors. Embedding them takes about a second for a hundred questions."),
            button=_("Embed the questions"),
            on_click=start,
            args=("embed", values),
        )
    else:
        values = {"encoder": embedded["encoder"].iloc[0], "of": embedded["of"].iloc[0]}
        empty_state(
            _("{n} {of} are embedded; no map is drawn yet.").format(
                n=f"{embedded['questions'].iloc[0]:,}", of=of_name(values["of"])
            ),
            button=_("Draw the map"),
            on_click=start,
            args=("cluster", values),
        )


def fetch_drawing_runs() -> list[RunStatus]:
    """Embeddings and maps that are being made."""
    return [status for status in fetch_active_runs() if status.stage in STAGES]


def render_drawing(store: Store) -> None:
    """Progress of what runs; else, why the last one failed."""
    if fetch_drawing_runs():
        st.fragment(_render_progress, run_every="2s")()
        return
    newest = load_newest_run(store)
    if newest and newest["state"] == "failed" and st.session_state.get("map_seen_failure") != newest["run_id"]:
        what = _("The last map could not be drawn") if newest["stage"] == "cluster" else _("Embedding failed")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.error(f"{what}: {plain(newest['error'])}", icon=":material/error:")
            seen = {"map_seen_failure": newest["run_id"]}
            st.button(_("Dismiss"), key="map_dismiss", on_click=lambda: st.session_state.update(seen))


def _step_name(done: int) -> str:
    """What the run works on after `done` of all units."""
    names = {
        "layout": _("UMAP layout of the picture"), "space": _("UMAP into the space for clusters"),
        "clusters": _("HDBSCAN finds clusters"), "quality": _("measures of quality"), "keywords": _("keywords"),
    }  # fmt: skip
    return names[STEPS[min(done // STEP_UNITS, len(STEPS) - 1)]]


@error_boundary()
def _render_progress() -> None:
    active = fetch_drawing_runs()
    if not active:
        ingest_finished_runs(get_store())
        st.rerun()
    for status in active:
        what = _("Drawing the map") if status.stage == "cluster" else _("Embedding")
        if status.state == "queued":
            left = _("waits in the queue")
        elif status.eta_s is None:
            left = percent(status.done / max(status.total, 1))
        else:
            left = _("{time} left").format(time=duration_text(status.eta_s))
        if status.stage == "cluster" and status.state != "queued":
            what = _("{what}, step {k} of {n}: {step}").format(
                what=what,
                k=min(status.done // STEP_UNITS, len(STEPS) - 1) + 1,
                n=len(STEPS),
                step=_step_name(status.done),
            )
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(min(1.0, status.done / max(status.total, 1)), text=f"{what}: {left}")
            folder = RunFolder(get_workspace().run(status.run_id))
            st.button(_("Cancel"), key=f"map_cancel_{status.run_id}", on_click=guarded(cancel), args=(folder,))
