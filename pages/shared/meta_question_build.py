"""The build dialog of the Meta-questions page, and the builds that run."""

from typing import Any

import streamlit as st

from metamoe_backend.config import MetaQuestionConfig
from metamoe_backend.errors import UserError
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus
from metamoe_backend.jobs.supervisor import request_stop
from metamoe_backend.launch import launch, run_now
from metamoe_backend.meta_questions import KEY_VARIABLE, PROMPT
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.store.runs import fetch_runs
from pages.shared.errors import error_boundary, guarded
from pages.shared.i18n import _
from pages.shared.jobs_line import fetch_active_runs
from pages.shared.layout import confirm_and_rerun, plain
from pages.shared.state import get_person, get_store, get_workspace, per_version
from pages.shared.tables import duration_text

STAGE = "meta-questions"
_SEEN = "meta_seen_failure"


def open_build_dialog(tasks: list[str]) -> None:
    st.dialog(_("Build meta-questions"), width="large")(_render_dialog)(tasks)


def _render_dialog(tasks: list[str]) -> None:
    methods = {"template": _("Template: rules, no model"), "llm": _("Language model")}
    method = st.segmented_control(
        _("Method"), list(methods), default="template", format_func=methods.get, key="meta_new_method", required=True
    )
    chosen = st.multiselect(_("Tasks"), tasks, key="meta_new_tasks", placeholder=_("all tasks"))
    values: dict[str, Any] = {"method": method, "tasks": chosen}
    if method == "llm":
        values |= _choose_model()
    else:
        st.caption(_("Numbers, names, dates, quotations and lists each become a placeholder."))
    st.caption(_("What was built from the same text by the same means is not built again."))
    if not st.button(_("Build meta-questions"), type="primary", key="meta_new_go"):
        return
    try:
        said = _build_by_template(values) if method == "template" else _launch(values)
    except UserError as error:
        st.error(plain(error), icon=":material/error:")
        return
    confirm_and_rerun(said)


def _help(field: str) -> str:
    return _(MetaQuestionConfig.model_fields[field].description or "")


def _choose_model() -> dict[str, Any]:
    places = {"local": _("Local model"), "server": _("OpenAI-compatible server")}
    place = st.segmented_control(
        _("Where it runs"), list(places), default="local", format_func=places.get, key="meta_new_place", required=True
    )
    values: dict[str, Any] = {}
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        if place == "server":
            values["base_url"] = st.text_input(
                _("Address of the server"),
                key="meta_new_url",
                placeholder="http://127.0.0.1:11434/v1",
                help=_("A key, where one is needed, is read from the environment variable {name}.").format(
                    name=KEY_VARIABLE
                ),
            ).strip()
        default = MetaQuestionConfig.model_fields["model"].default if place == "local" else ""
        values["model"] = st.text_input(
            _("Model"), value=default, key=f"meta_new_model_{place}", help=_help("model")
        ).strip()
    with right:
        field = MetaQuestionConfig.model_fields["max_tokens"]
        bounds = {type(bound).__name__: bound for bound in field.metadata}
        values["max_tokens"] = st.number_input(
            _("At most, tokens"), bounds["Ge"].ge, bounds["Le"].le, field.default, key="meta_new_tokens",
            help=_help("max_tokens"),
        )  # fmt: skip
    with st.expander(_("Instruction")):
        prompt = st.text_area(
            _("Own instruction"), value=PROMPT, key="meta_new_prompt", height=260, help=_help("prompt")
        )
    values["prompt"] = prompt if prompt.strip() and prompt != PROMPT else None
    return values


def _build_by_template(values: dict[str, Any]) -> str:
    bar = st.progress(0.0, text=_("Building …"))

    def on_progress(done: int, total: int) -> None:
        text = _("{done} of {total} questions").format(done=f"{done:,}", total=f"{total:,}")
        bar.progress(min(1.0, done / max(total, 1)), text=text)

    try:
        status = run_now(get_store(), STAGE, values, get_person(), on_progress).read_state()
    finally:
        bar.empty()
    return _("{built} meta-questions built, {reused} reused.").format(
        built=f"{status.total:,}", reused=f"{int(status.metrics.get('reused', 0)):,}"
    )


def _launch(values: dict[str, Any]) -> str:
    launch(get_store(), STAGE, values, get_person())
    return _("The build is queued; it goes on when you leave this page.")


@per_version
def load_newest_run(store: Store) -> dict[str, Any] | None:
    runs = fetch_runs(store, [STAGE])
    return runs.iloc[0].to_dict() if len(runs) else None


def render_builds(store: Store) -> None:
    """Builds by a language model run as jobs: their progress stands here, too; else, why the last one failed."""
    if _fetch_builds():
        st.fragment(_render_running, run_every="2s")()
        return
    newest = load_newest_run(store)
    if newest and newest["state"] == "failed" and st.session_state.get(_SEEN) != newest["run_id"]:
        with st.container(horizontal=True, vertical_alignment="center"):
            text = _("The last build failed: {reason}").format(reason=plain(newest["error"]))
            st.error(text, icon=":material/error:")
            seen = {_SEEN: newest["run_id"]}
            st.button(_("Dismiss"), key="meta_dismiss", on_click=lambda: st.session_state.update(seen))


def _fetch_builds() -> list[RunStatus]:
    return [status for status in fetch_active_runs() if status.stage == STAGE]


@error_boundary()
def _render_running() -> None:
    active = _fetch_builds()
    if not active:
        ingest_finished_runs(get_store())
        st.rerun()
    for status in active:
        left = _("waits in the queue") if status.state == "queued" else _("{time} left").format(
            time=duration_text(status.eta_s)
        )  # fmt: skip
        text = _("Building meta-questions: {done} of {total}, {left}").format(
            done=f"{status.done:,}", total=f"{status.total:,}", left=left
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(min(1.0, status.done / max(status.total, 1)), text=text)
            st.button(
                _("Stop and keep"),
                key=f"meta_stop_{status.run_id}",
                icon=":material/stop_circle:",
                disabled=status.stopping is not None,
                on_click=guarded(lambda run_id=status.run_id: request_stop(RunFolder(get_workspace().run(run_id)))),
            )
