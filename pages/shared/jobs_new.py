"""The panel that starts a run: choose what, fill in the form made from its settings, see the command, start."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import (
    BASE_EXPERT,
    DEFAULT_BASE,
    DEFAULT_ENCODER,
    UNTAUGHT_MODES,
    EvaluateConfig,
    MoeConfig,
    SequenceConfig,
    StageConfig,
    TrainConfig,
    parse_config,
)
from metamoe_backend.errors import ConfigError
from metamoe_backend.jobs.devices import list_devices
from metamoe_backend.jobs.profile import list_profiles, read_profile
from metamoe_backend.jobs.run_folder import RunStatus, find_run
from metamoe_backend.jobs.slurm import choose_device, describe_request
from metamoe_backend.launch import find_makers, launch
from metamoe_backend.store.connection import Store
from metamoe_backend.store.data_selections import fetch_data_selections
from metamoe_backend.store.experts import fetch_adapters, fetch_plan_entries, fetch_plans, fetch_systems
from metamoe_backend.store.maps import fetch_embedded
from metamoe_backend.store.questions import fetch_tasks
from metamoe_backend.store.results import fetch_evaluated_systems
from pages.shared.config_form import FormOptions, render_fields, render_nested
from pages.shared.errors import error_boundary
from pages.shared.i18n import _
from pages.shared.jobs_memory import render_need
from pages.shared.layout import confirm_and_rerun, empty_state, plain
from pages.shared.run_reading import ACTIVE, read_statuses
from pages.shared.run_words import run_title
from pages.shared.state import get_person, get_store, get_workspace, per_version, select

STAGE_OF_KIND = {"expert": "train", "mixed": "train", "sequence": "sequence", "moe": "moe", "evaluate": "evaluate"}
_CONFIG_OF_STAGE: dict[str, type[StageConfig]] = {
    "train": TrainConfig, "sequence": SequenceConfig, "moe": MoeConfig, "evaluate": EvaluateConfig,
}  # fmt: skip
_PANEL, _OPENED = "jobs_panel", "jobs_panels_opened"
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear modules of llama-like models; others can be typed in."""
SOURCES = ("plan", "tasks", "data")
_PACKAGED_ENCODERS = ("minilm", "e5")


def open_new_run(kind: str = "expert", values: Mapping[str, Any] | None = None) -> None:
    """Let the Jobs page show the panel, filled in with `values` (as in the settings class of that kind of run)."""
    st.session_state[_OPENED] = st.session_state.get(_OPENED, 0) + 1
    st.session_state[_PANEL] = {"kind": kind, "values": dict(values or {}), "key": f"new{st.session_state[_OPENED]}"}


def close_new_run() -> None:
    st.session_state.pop(_PANEL, None)


def kind_of_run(stage: str, config: Mapping[str, Any]) -> str | None:
    """Which form made such a run; None for runs that other pages start."""
    if stage == "train":
        return str(config.get("kind", "expert"))
    return stage if stage in ("sequence", "moe", "evaluate") else None


def render_new_run() -> None:
    """The panel, where it is open."""
    if _PANEL in st.session_state:
        with st.container(border=True, key="jobs_new_run"):
            st.fragment(_render_panel)()


@error_boundary()
def _render_panel() -> None:
    panel = st.session_state[_PANEL]
    names = {
        "expert": _("Expert"),
        "mixed": _("Mixed baseline"),
        "sequence": _("Sequence"),
        "moe": _("Mixture of experts"),
        "evaluate": _("Evaluation"),
    }
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        kind = st.segmented_control(
            _("What to run"), list(names), default=panel["kind"], required=True, format_func=names.get,
            key=f"jobs_{panel['key']}_kind", label_visibility="collapsed",
        )  # fmt: skip
        if st.button(_("Close"), key="jobs_new_close", icon=":material/close:", type="tertiary"):
            close_new_run()
            st.rerun()
    initial = panel["values"] if kind == panel["kind"] else {}
    lacking = _find_lacking(kind)
    if lacking:
        text, button, page = lacking
        empty_state(text, button=button, page=page)
        return
    st.caption(_explain(kind))
    key = f"jobs_{panel['key']}_{kind}"
    if kind == "evaluate":
        values = _render_evaluate(key, initial)
    elif kind == "sequence":
        values = _render_sequence(key, initial)
    else:
        values = _render_training(kind, key, initial)
    _render_start(STAGE_OF_KIND[kind], values, _choose_profile(panel["key"]))


def _explain(kind: str) -> str:
    return {
        "expert": _("Trains one LoRA adapter on the questions of one expert: its skills, some tasks, or chosen data."),
        "mixed": _("Trains one LoRA adapter on everything together: what a mixture has to beat."),
        "sequence": _("Trains one adapter task after task and keeps it after each: what does it forget?"),
        "moe": _("Joins experts of the bank and trains the routers that choose between them."),
        "evaluate": _("Lets systems answer questions that were held back, and scores the answers."),
    }[kind]


def _find_lacking(kind: str) -> tuple[str, str, str] | None:
    """What has to be made first: a sentence, a button and its page."""
    found = _find_choices()
    if kind == "evaluate":
        missing = not found["tasks"]
        return (_("There is no question to evaluate on yet."), _("Go to Tasks"), "tasks") if missing else None
    if not found["tasks"]:
        return _("There is no question to train on yet."), _("Go to Tasks"), "tasks"
    if kind == "moe" and not found["experts"]:
        return _("The bank holds no expert to join yet: train one, or import one."), _("Go to Experts"), "experts"
    return None


def _find_choices() -> dict[str, Any]:
    """What the forms offer, and beside what there is what runs under way are making (a run may wait for it)."""
    found, active = dict(_load_choices(get_store())), [each for each in read_statuses() if each.state in ACTIVE]
    coming = {kind: _list_coming(active, kind, found["systems"]) for kind in ("expert", "mixed", "moe")}
    found["experts"] = [*found["experts"], *coming["expert"]]
    found["systems"] = [*found["systems"], *coming["expert"], *coming["mixed"], *coming["moe"]]
    names = found["systems"] + found["experts"]
    found["words"] = {name: name for name in names} | {
        name: _("{name} (in training)").format(name=name) for made in coming.values() for name in made
    }
    return found


def _list_coming(active: Sequence[RunStatus], kind: str, there: Sequence[str]) -> list[str]:
    """Names of the systems of a kind that runs under way are making."""
    specs = [find_run(get_workspace(), each.run_id).read_spec() for each in active]
    made = [spec.name for spec in specs if kind_of_run(spec.stage, spec.config) == kind]
    return [name for name in dict.fromkeys(made) if name not in there]


@per_version
def _load_choices(store: Store) -> dict[str, Any]:
    """What the forms offer."""
    plans, systems, adapters = fetch_plans(store), fetch_systems(store), fetch_adapters(store)
    chosen = fetch_data_selections(store)
    embedded, answered = fetch_embedded(store), set(fetch_evaluated_systems(store))
    experts = systems[systems["kind"] == "expert"]["system"]
    names = [BASE_EXPERT, *(name for name in systems["system"] if name != BASE_EXPERT)]
    return {
        "plans": plans["plan"].tolist(),
        "experts_of": {plan: _experts_of(fetch_plan_entries(store, plan)) for plan in plans["plan"]},
        "experts": [name for name in adapters["adapter"] if name in set(experts)],
        "bases": list(dict.fromkeys([DEFAULT_BASE, *adapters["base"]])),
        "encoders": list(dict.fromkeys([*_PACKAGED_ENCODERS, DEFAULT_ENCODER, *embedded["encoder"]])),
        "systems": names,
        "unanswered": [name for name in names if name not in answered],
        "tasks": fetch_tasks(store)["task"].tolist(),
        "data": {row.run_id: f"{row.task}, {row.shot + row.selected:,} ({row.run_id})" for row in chosen.itertuples()},
    }


def _experts_of(entries: pd.DataFrame) -> list[str]:
    return sorted(set(entries["expert"]) - {BASE_EXPERT})


@st.cache_data(show_spinner=False, ttl="5m")
def _list_devices() -> dict[str, str]:
    return {device.name: device.description for device in list_devices()}


def _device_words() -> dict[str, str]:
    words = {name: f"{name} ({description})" for name, description in _list_devices().items()}
    return {"auto": _("auto: a free GPU, else the CPU"), **words}


def _choose_source(kind: str, key: str, initial: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Where the questions come from: plan, tasks, data, or none for a mixture in which nothing learns."""
    words = {
        "plan": _("A plan"), "tasks": _("Whole tasks"), "data": _("A data selection"), "none": _("None: nothing learns"),
    }  # fmt: skip
    there = {"plan": found["plans"], "tasks": found["tasks"], "data": found["data"], "none": kind == "moe"}
    offered = [name for name in words if there[name]]
    sourceless = initial.get("mode") in UNTAUGHT_MODES and "none" in offered
    begun = next((name for name in offered if initial.get(name)), "none" if sourceless else offered[0])
    if len(offered) == 1:
        return begun
    return st.segmented_control(
        _("Questions from"), offered, default=begun, required=True, format_func=words.get, key=f"{key}_source"
    )


def _render_training(kind: str, key: str, initial: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an expert, the mixed baseline (TrainConfig) or a mixture (MoeConfig)."""
    found, words = _find_choices(), _device_words()
    source = _choose_source(kind, key, initial, found)
    if source != "plan":
        key = f"{key}_{source}"  # widgets of another kind under the same names
    start, choices, in_plan = _offer_training(key, source, initial, found)
    choices |= {"start_from": found["experts"]}
    if kind == "expert" and source == "plan":
        choices["name"] = in_plan
    if kind == "mixed":
        start["name"] = "mixed"
    if kind == "moe":
        choices |= {"experts": found["experts"], "encoder": found["encoders"]}
        members = [name for name in in_plan if name in found["experts"]] or found["experts"]
        start |= {"plan": {}, "none": {"mode": UNTAUGHT_MODES[0]}}.get(source, {"mode": "token"})
        choices |= {"mode": UNTAUGHT_MODES} if source == "none" else {}
        start |= {"name": "moe", "experts": members, "top_k": min(2, len(members))}
    options = FormOptions(
        key,
        {**start, **initial},
        choices,
        frozenset({"base", "encoder", "lora.targets"}),
        {
            "device": words,
            "mode": _mode_words(),
            "data": found["data"],
            "method": _method_words(),
            "experts": found["words"],
            "start_from": found["words"],
        },
    )
    if kind == "moe":
        named = ["name", "experts"] if source == "none" else ["name", source, "experts"]
        values = render_fields(MoeConfig, named, options)
        values |= render_fields(MoeConfig, ["mode", "top_k", "device"], options)
        others = [name for name in MoeConfig.model_fields if name not in (*values, *SOURCES, "optim", "lora")]
        with st.container(horizontal=True):
            with st.popover(_("More settings"), icon=":material/tune:", key=f"{key}_more"):
                values |= render_fields(MoeConfig, others, options, columns=2)
            values["lora"] = render_nested(MoeConfig, "lora", options, _("Fresh experts"))
            values["optim"] = render_nested(MoeConfig, "optim", options, _("How long and how fast"))
        return values
    values = {"kind": kind, **render_fields(TrainConfig, [source, "name", "base"], options)}
    values |= render_fields(TrainConfig, ["device", "split", "limit"], options)
    with st.container(horizontal=True):
        with st.popover(_("More settings"), icon=":material/tune:", key=f"{key}_more"):
            more = ["method", "blocks", "start_from", "part_from", "part_to", "processes"]
            values |= render_fields(TrainConfig, more, options, columns=1)
        values["lora"] = render_nested(TrainConfig, "lora", options, _("LoRA adapter"))
        values["optim"] = render_nested(TrainConfig, "optim", options, _("How long and how fast"))
    return values


def _offer_training(
    key: str, source: str, initial: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What a training's form begins with, what its fields offer, and the experts of the chosen plan."""
    choices: dict[str, Any] = {
        "base": found["bases"], "device": list(_device_words()), "lora.targets": LORA_TARGETS, "plan": found["plans"],
        "tasks": found["tasks"], "data": list(found["data"]),
    }  # fmt: skip
    if source != "plan":
        return {"data": next(iter(found["data"]))} if source == "data" else {}, choices, []
    plan = st.session_state.get(f"{key}_plan") or initial.get("plan") or found["plans"][0]
    return {"plan": plan}, choices, found["experts_of"].get(plan, [])


def _render_sequence(key: str, initial: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a sequence: experts of a plan, or whole tasks, in the order a person picks them."""
    found = _load_choices(get_store())
    begun = {**initial} if initial.get("plan") or not initial.get("order") else {**initial, "tasks": initial["order"]}
    source = _choose_source("sequence", key, begun, {**found, "data": {}})
    key = f"{key}_{source}"
    start, choices, in_plan = _offer_training(key, source, initial, found)
    choices["order"] = in_plan if source == "plan" else found["tasks"]
    options = FormOptions(
        key, {"name": "sequence", "order": choices["order"], **start, **initial}, choices,
        frozenset({"base", "lora.targets"}), {"device": _device_words()},
    )  # fmt: skip
    values = render_fields(SequenceConfig, ["plan"], options, columns=1) if source == "plan" else {}
    values |= render_fields(SequenceConfig, ["order"], options, columns=1)
    values |= render_fields(SequenceConfig, ["name", "replay", "base", "device", "split", "limit"], options)
    with st.container(horizontal=True):
        values["lora"] = render_nested(SequenceConfig, "lora", options, _("LoRA adapter"))
        values["optim"] = render_nested(SequenceConfig, "optim", options, _("How long and how fast"))
    return values


def _method_words() -> dict[str, str]:
    return {
        "lora": _("LoRA adapter"),
        "osf": _("orthogonal subspaces (OSF)"),
        "expansion": _("new blocks (block expansion)"),
    }


def _mode_words() -> dict[str, str]:
    return {
        "token": _("per token"),
        "task": _("per question"),
        "two-level": _("two levels: question and token"),
        "uniform": _("equal weights"),
        "loramoe": _("per token, all experts (LoRAMoE)"),
        "arrow": _("per token, nothing to train (Arrow)"),
        "xlora": _("per token, after a first reading (X-LoRA)"),
        "phatgoose": _("per token, each expert's own gate (PHATGOOSE)"),
    }


def _render_evaluate(key: str, initial: Mapping[str, Any]) -> dict[str, Any]:
    found, words = _find_choices(), _device_words()
    start = {"systems": found["unanswered"], "tasks": found["tasks"]}
    choices = {"systems": found["systems"], "tasks": found["tasks"], "device": list(words)}
    options = FormOptions(key, {**start, **initial}, choices, shown_as={"device": words, "systems": found["words"]})
    values = render_fields(EvaluateConfig, ["systems", "tasks"], options, columns=2)
    values |= render_fields(EvaluateConfig, ["split", "limit", "n_shot", "device"], options, columns=4)
    others = [name for name in EvaluateConfig.model_fields if name not in values]
    with st.popover(_("More settings"), icon=":material/tune:", key=f"{key}_more"):
        values |= render_fields(EvaluateConfig, others, options, columns=2)
    return values


def _choose_profile(key: str) -> str | None:
    """Where the run starts: None is this computer. Asked only where the workspace has a profile of a cluster."""
    there = list_profiles(get_workspace())
    if not there:
        return None
    return st.selectbox(
        _("Where"), [None, *there], format_func=lambda name: _("this computer") if name is None else _("Slurm: {profile}").format(profile=name),
        key=f"jobs_{key}_on", width=320,
    )  # fmt: skip


def _render_start(stage: str, values: dict[str, Any], profile: str | None) -> None:
    """The command that would do the same, and the button; a setting that cannot be is named in their place."""
    from metamoe_backend.jobs.command_line import make_command_line

    request = None
    try:
        config = parse_config(_CONFIG_OF_STAGE[stage], values)
        if profile is not None:
            asked = read_profile(get_workspace(), profile)
            choose_device(config.model_dump(mode="json"), asked, profile)
            request = describe_request(asked, getattr(config, "processes", 1))
    except ConfigError as error:
        st.warning(plain(error), icon=":material/edit:")
        st.button(_("Start"), key="jobs_new_start", type="primary", disabled=True)
        return
    render_need(config, profile)
    if request is not None:
        st.caption(_("What Slurm is asked for:"))
        st.code(request, language="bash", wrap_lines=True)
    st.caption(_("The same on the command line, while this dashboard is closed:"))
    st.code(make_command_line(get_workspace(), stage, config, profile), language="bash", wrap_lines=True)
    makers = find_makers(get_store(), config)
    if makers:
        names = ", ".join(run_title(maker) for maker in makers)
        st.info(
            _("It will wait until these have finished: {names}.").format(names=plain(names)),
            icon=":material/hourglass_top:",
        )
    if st.button(_("Start"), key="jobs_new_start", type="primary", icon=":material/play_arrow:"):
        run = launch(get_store(), stage, values, get_person(), profile)
        select(run=run.run_id)
        close_new_run()
        confirm_and_rerun(_("{name} is queued.").format(name=plain(run.read_spec().name)))
