"""The form that asks for a study."""

from typing import Any

import streamlit as st

from metamoe_backend.config import StudyConfig
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_adapters, fetch_plans
from metamoe_backend.store.questions import fetch_tasks
from metamoe_backend.study.advance import go_on
from metamoe_backend.study.studies import create_study
from pages.shared.config_form import FormOptions, render_fields, render_nested
from pages.shared.errors import error_boundary
from pages.shared.i18n import _
from pages.shared.layout import confirm_and_rerun
from pages.shared.state import get_person, get_store, per_version

_SHORT = ("k", "experts", "shortlist", "top_k", "budget", "eval_limit")
_NAMED = ("name", "targets", "ablations")
_NESTED = ("lora", "optim")


@per_version
def _load(store: Store) -> tuple[list[str], list[str], list[str], list[str]]:
    """Tasks that can be targets, tasks with train questions, adapters, plans."""
    tasks = fetch_tasks(store)
    both = tasks.loc[(tasks["train"] > 0) & (tasks["test"] > 0), "task"]
    train = tasks.loc[tasks["train"] > 0, "task"]
    return both.tolist(), train.tolist(), fetch_adapters(store)["adapter"].tolist(), fetch_plans(store)["plan"].tolist()


def render_study_form(opened: bool) -> None:
    """What a new study compares; its settings are checked when it is asked for."""
    with st.expander(_("New study"), icon=":material/add:", expanded=opened, key="study_form"):
        targets, train, adapters, plans = _load(get_store())
        if not targets or not adapters:
            st.caption(_("A study needs a task with train and test questions, and a bank of experts."))
            return
        values = _render_fields(targets, train, adapters, plans)
        if st.button(
            _("Start the study"), key="study_start", type="primary", icon=":material/play_arrow:",
            disabled=not (values["name"] and values["targets"]),
        ):  # fmt: skip
            _start(values)


@error_boundary()
def _start(values: dict[str, Any]) -> None:
    create_study(get_store(), {key: value for key, value in values.items() if value != ""}, get_person())
    go_on(get_store(), values["name"], get_person())
    st.query_params["study"] = values["name"]
    st.session_state.pop("study", None)
    confirm_and_rerun(_("Study {name} has begun.").format(name=values["name"]))


def _render_fields(targets: list[str], train: list[str], adapters: list[str], plans: list[str]) -> dict[str, Any]:
    options = FormOptions(
        "study_new",
        choices={"encoder": ("minilm", "e5"), "pool_tasks": train, "bank": adapters, "plan": plans},
        free=frozenset({"encoder"}),
    )
    left, middle, right = st.columns([1, 2, 1], vertical_alignment="bottom")
    with left:
        name = st.text_input(_("Name"), key="study_name", max_chars=40).strip()
    with middle:
        chosen = st.multiselect(_("Target tasks"), targets, key="study_targets", placeholder=_("choose tasks"))
    with right:
        varied = st.multiselect(
            _("Ablations on"),
            chosen,
            key="study_ablations",
            help=_("Targets on which each choice is varied alone"),
            placeholder=_("none"),
        )
    values: dict[str, Any] = {"name": name, "targets": chosen, "ablations": varied}
    values |= render_fields(StudyConfig, _SHORT, options, columns=6)
    with st.container(horizontal=True):
        others = [each for each in StudyConfig.model_fields if each not in (*_NAMED, *_SHORT, *_NESTED)]
        with st.popover(_("More settings"), icon=":material/tune:", key="study_more"):
            values |= render_fields(StudyConfig, others, options, columns=2)
        values["optim"] = render_nested(StudyConfig, "optim", options, _("Training"))
        values["lora"] = render_nested(StudyConfig, "lora", options, _("Adapter"))
    return values
