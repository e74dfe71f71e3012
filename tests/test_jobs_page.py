"""The Jobs page: forms made from the settings, runs read cheaply, runs in words, two runs compared."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from metamoe_backend.config import (
    EvaluateConfig,
    ImportAdapterConfig,
    MoeConfig,
    SequenceConfig,
    TrainConfig,
    parse_config,
)
from metamoe_backend.errors import ConfigError, DivergedError
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, create_run, list_runs
from metamoe_backend.jobs.supervisor import Seen, poll, submit
from metamoe_backend.workspace import Workspace
from pages.shared import jobs_memory, jobs_new, state
from pages.shared.config_form import field_labels
from pages.shared.jobs_compare import compare_results, compare_settings
from pages.shared.jobs_table import choose_shown, make_rows
from pages.shared.run_reading import thin_out
from pages.shared.run_words import answer_text, progress_text, reason_text, state_name, time_text
from tests.tiny_models import make_tiny_base

NOW = datetime(2026, 11, 21, 12)
RUN = RunStatus(run_id="r1", stage="train", name="arith", by="ana", created_at=NOW, state="queued", place=1)
RUNNING = replace(RUN, state="running", done=120, total=300, eta_s=240.0, started_at=NOW - timedelta(minutes=2))


# ---- reading ------------------------------------------------------------------------------------------------------


def test_ended_runs_are_read_once_and_again_after_a_resume(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [create_run(workspace, "train", f"run-{number}", {}, "ana", {}) for number in range(3)]
    for run, end in zip(runs, ("finished", "stopped", None), strict=True):
        context = RunContext(run)
        context.start()
        if end:
            context.finish(end)
    read: list[str] = []
    original = RunFolder.read_state
    monkeypatch.setattr(RunFolder, "read_state", lambda run: read.append(run.run_id) or original(run))
    seen: Seen = {}
    assert [status.state for status in poll(workspace, seen)] == ["running", "stopped", "finished"]
    read.clear()
    assert [status.state for status in poll(workspace, seen)] == ["running", "stopped", "finished"]
    assert read == [runs[2].run_id]
    runs[1].write_state(runs[1].read_state_file().model_copy(update={"state": "queued"}))
    assert [status.state for status in poll(workspace, seen)] == ["running", "queued", "finished"]


@pytest.mark.parametrize("n", [0, 1, 59, 60, 61, 119, 1000])
def test_a_sparkline_keeps_its_end(n: int) -> None:
    values = [float(number) for number in range(n)]
    thinned = thin_out(values, 60)
    assert len(thinned) <= 60 and thinned == sorted(thinned) and set(thinned) <= set(values)
    assert thinned[-1:] == values[-1:] and (n > 60 or thinned == values)


# ---- words --------------------------------------------------------------------------------------------------------


def test_a_run_in_words() -> None:
    assert progress_text(RUNNING) == "120 of 300, 4 min left"
    assert progress_text(replace(RUNNING, total=0)) == "getting ready"
    assert time_text(RUNNING, NOW) == "4 min left"
    assert time_text(replace(RUNNING, eta_s=None), NOW) == "2 min"
    assert time_text(RUN, NOW) == "–"
    ended = replace(RUNNING, state="finished", ended_at=NOW - timedelta(seconds=90))
    assert time_text(ended, NOW) == "30 s"
    assert state_name(replace(RUNNING, stopping="cancel")) == "cancelling"
    assert state_name(replace(RUNNING, responding=False)) == "not responding"


def test_the_answer_says_what_runs_and_what_waits() -> None:
    assert answer_text([RUN, RUNNING, RUN]) == "1 running (arith: 120 of 300, 4 min left), 2 queued"
    assert answer_text([RUN]) == "1 queued"
    failed, finished = replace(RUN, state="failed"), replace(RUN, state="finished")
    assert answer_text([finished]) == "Nothing is running; 1 run has ended."
    assert answer_text([failed, finished]) == "Nothing is running; 2 runs have ended. 1 of them failed."


def test_why_a_run_stands_as_it_does() -> None:
    assert reason_text(RUNNING) is None and reason_text(replace(RUN, state="finished")) is None
    assert "half a minute" in (reason_text(replace(RUNNING, responding=False)) or "")
    assert reason_text(replace(RUN, state="failed", error="The loss became NaN.")) == "The loss became NaN."
    waiting = replace(RUN, run_id="r2", place=3)
    on_slurm = replace(RUN, run_id="r3", place=None, profile="a100", job="12")
    assert reason_text(on_slurm, [RUN, on_slurm]) == "It waits in Slurm's queue."
    assert "for a free node" in (reason_text(replace(on_slurm, waits_for="Resources")) or "")
    assert "PartitionDown." in (reason_text(replace(on_slurm, waits_for="PartitionDown")) or "")
    assert "comes next" in (reason_text(RUN, [on_slurm, RUN]) or ""), "a run on Slurm holds up nobody here"
    assert "comes next" in (reason_text(RUN, [RUN, waiting]) or "")
    held = replace(RUN, run_id="r4", place=1, after=("r1", "r3"), prepared=False)
    assert state_name(held) == "waiting"
    assert "comes next" in (reason_text(replace(RUN, place=2), [replace(RUN, place=2), held]) or "")
    others = [replace(RUN, state="stopped"), on_slurm, held]
    assert reason_text(held, others) == (
        "It waits for training · arith, which was stopped: resume that run, or cancel this one. "
        "1 more run must finish, too."
    )
    assert "is gone" in (reason_text(held, [held]) or "")
    assert "1 run is before it" in (reason_text(waiting, [RUN, waiting]) or "")


def test_the_table_has_a_row_a_run_and_shows_what_runs_first() -> None:
    rows = make_rows([RUN, RUNNING], {"r1": [2.0, 1.0]}, NOW)
    assert rows["what"].tolist() == ["training · arith"] * 2
    assert pd.isna(rows["progress"][0]) and rows["progress"][1] == 40.0
    assert make_rows([], {}, NOW).empty
    other = replace(RUNNING, run_id="r2")
    assert make_rows([RUN, other], {}, NOW, {"r1": "+5 −3"})["since"].tolist() == ["+5 −3", "–"]
    assert "where" not in rows
    on_slurm = replace(RUN, profile="a100", job="12")
    assert make_rows([RUN, on_slurm], {}, NOW)["where"].tolist() == ["this computer", "a100 · 12"]
    assert choose_shown([RUN, other], None) is other and choose_shown([RUN, other], "r1") is RUN
    assert choose_shown([RUN], "gone") is RUN and choose_shown([], None) is None


# ---- comparing ----------------------------------------------------------------------------------------------------


def test_only_what_differs_is_named() -> None:
    first = TrainConfig(name="arith", plan="p").model_dump(mode="json")
    second = TrainConfig(name="arith", plan="p", limit=40, optim={"steps": 7}).model_dump(mode="json")
    found = compare_settings({"A": first, "B": second, "C": first}).set_index("setting")
    assert found["A"].to_dict() == found["C"].to_dict() == {"limit": "–", "optim.steps": "–"}
    assert found["B"].to_dict() == {"limit": "40", "optim.steps": "7"}
    assert compare_settings({"A": first, "B": first}).empty


def test_last_values_of_runs_stand_side_by_side() -> None:
    a = pd.DataFrame({"step": [1, 2], "name": "loss", "value": [3.0, 2.0]})
    b = pd.DataFrame({"step": [1, 2], "name": ["loss", "eval_loss"], "value": [4.0, 1.0]})
    found = compare_results({"A": a, "B": b, "C": a}).set_index("metric")
    assert found.loc["loss"].tolist() == [2.0, 4.0, 2.0]
    assert pd.isna(found.loc["eval_loss", "A"]) and found.loc["eval_loss", "B"] == 1.0


# ---- forms --------------------------------------------------------------------------------------------------------


def test_every_setting_of_a_form_has_a_name_of_its_own() -> None:
    nested = [TrainConfig.model_fields[name].annotation for name in ("lora", "optim")]
    for cls in (TrainConfig, SequenceConfig, MoeConfig, EvaluateConfig, ImportAdapterConfig, *nested):
        for name in cls.model_fields:
            assert name in (*field_labels(), "lora", "optim"), (cls, name)


FORM = """
import streamlit as st
from metamoe_backend.config import MoeConfig, OptimSettings
from pages.shared.config_form import FormOptions, render_fields, render_nested
options = FormOptions("f", {"name": "m", "plan": "p2", "experts": ["a"], "optim": {"batch_size": 4}},
    {"plan": ["p1", "p2"], "experts": ["a", "b"]}, frozenset({"base"}))
values = render_fields(MoeConfig, [name for name in MoeConfig.model_fields if name not in ("lora", "optim")], options)
values["optim"] = render_nested(MoeConfig, "optim", options, "Training")
st.session_state["values"] = values
"""


def test_a_form_begins_with_defaults_and_keeps_to_the_bounds() -> None:
    app = AppTest.from_string(FORM, default_timeout=60).run()
    assert not app.exception
    config = parse_config(MoeConfig, app.session_state["values"] | {"top_k": 1})
    assert config.plan == "p2" and config.optim.batch_size == 4
    assert config.optim.steps == 60, "what stands in the place of nothing said is the outer class's default"
    rate = app.number_input(key="f_optim.learning_rate")
    assert rate.max == 1.0 and 0 < rate.min < 1e-6 and rate.help == "Peak learning rate of AdamW"
    assert app.number_input(key="f_top_k").min == 1 and app.number_input(key="f_top_k").max == 512
    assert app.number_input(key="f_limit").value is None
    app.number_input(key="f_limit").set_value(12)
    app.selectbox(key="f_mode").select("uniform")
    app.toggle(key="f_no_expert").set_value(False).run()
    values = app.session_state["values"]
    assert (values["limit"], values["mode"], values["no_expert"]) == (12, "uniform", False)


# ---- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(synthetic: Workspace, monkeypatch: pytest.MonkeyPatch):
    """The Jobs page on a copy of the synthetic workspace."""
    monkeypatch.setenv("METAMOE_WORKSPACE", str(synthetic.root))
    yield AppTest.from_file(str(Path(state.__file__).parents[1] / "p07_jobs.py"), default_timeout=120)
    state._open_store(str(synthetic.root.resolve())).close()
    state._open_store.clear()


def test_a_form_becomes_a_queued_run_and_a_command(
    opened: AppTest, synthetic: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr("metamoe_backend.launch.submit", lambda workspace, run, profile: started.append(run))
    app = opened.run()
    assert not app.exception and not app.error
    assert f"{len(list_runs(synthetic))} runs have ended" in app.subheader[0].value
    app.button(key="jobs_new").click().run()
    assert not app.exception and not app.error
    key = f"jobs_{app.session_state['jobs_panel']['key']}_expert"
    app.selectbox(key=f"{key}_name").select("logic")
    app.number_input(key=f"{key}_optim.steps").set_value(5).run()
    assert any("train expert logic" in code.value and "--steps 5" in code.value for code in app.code)
    app.button(key="jobs_new_start").click().run()
    assert not app.exception and not app.error
    assert [run.read_spec().config["optim"]["steps"] for run in started] == [5]
    assert started[0].read_spec().name == "logic" and "jobs_panel" not in app.session_state
    assert started[0].run_id in app.query_params["run"]


def test_the_form_starts_a_run_on_slurm(opened: AppTest, synthetic: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(
        "metamoe_backend.launch.submit", lambda workspace, run, profile: started.append((run.read_spec().name, profile))
    )
    synthetic.profiles.mkdir()
    (synthetic.profiles / "a100.toml").write_text("gpus = 1")
    (synthetic.profiles / "wrong.toml").write_text("gpus = 'many'")
    app = opened.run()
    app.button(key="jobs_new").click().run()
    panel = app.session_state["jobs_panel"]["key"]
    app.selectbox(key=f"jobs_{panel}_expert_name").select("logic")
    where = app.selectbox(key=f"jobs_{panel}_on")
    assert where.options == ["this computer", "Slurm: a100", "Slurm: wrong"]
    where.select("wrong").run()
    assert any("gpus" in warning.value and "many" in warning.value for warning in app.warning)
    assert app.button(key="jobs_new_start").disabled
    app.selectbox(key=f"jobs_{panel}_on").select("a100").run()
    assert any(code.value.endswith("--on a100") for code in app.code)
    assert "sbatch --requeue --nodes=1 --time=60 --gpus-per-node=1 --signal=B:USR2@120" in [
        code.value for code in app.code
    ]
    app.button(key="jobs_new_start").click().run()
    assert not app.exception and not app.error and started == [("logic", "a100")]


def test_a_mixture_is_asked_for_while_its_expert_is_in_training(
    opened: AppTest, synthetic: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda workspace: None)
    config = TrainConfig(name="late", tasks=["sums"]).model_dump(mode="json")
    training = create_run(synthetic, "train", "late", config, "ana", {})
    submit(synthetic, training)
    app = opened.run()
    app.button(key="jobs_new").click().run()
    panel = app.session_state["jobs_panel"]["key"]
    app.button_group(key=f"jobs_{panel}_kind").select("moe").run()
    experts = app.multiselect(key=f"jobs_{panel}_moe_experts")
    assert "late (in training)" in experts.options
    experts.select("late").run()
    assert any("It will wait until these have finished: training · late." in info.value for info in app.info)
    app.button(key="jobs_new_start").click().run()
    assert not app.exception and not app.error
    run = list_runs(synthetic)[0]
    assert run.read_spec().after == [training.run_id] and not run.is_prepared
    assert any("It waits for training · late, which is queued" in caption.value for caption in app.caption)
    app.button(key="jobs_obstacle").click().run()
    assert training.run_id in app.query_params["run"]


def show_run(app: AppTest, run: RunFolder) -> AppTest:
    app.session_state["selection"] = state.Selection(run=run.run_id)
    return app.run()


def test_a_run_is_stopped_resumed_and_run_again_from_the_page(
    opened: AppTest, synthetic: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamoe_backend.jobs.supervisor._ensure_supervisor", lambda workspace: None)
    config = TrainConfig(name="arith", plan="first").model_dump(mode="json")
    run = create_run(synthetic, "train", "arith", config, "ana", {"questions": pd.DataFrame({"prompt": ["1+1"]})})
    context = RunContext(run)
    context.start("cpu")
    context.progress(2, 10, loss=0.5, tokens_per_s=300.0)
    app = show_run(opened, run)
    assert not app.exception and not app.error
    assert {metric.label: metric.value for metric in app.metric} == {
        "Loss, nats/token": "0.500", "Tokens per second": "300",
    }  # fmt: skip
    app.button(key="jobs_stop").click().run()
    assert (request := run.read_request()) is not None and request.save
    assert "jobs_stop" not in [button.key for button in app.button], "it has been asked already"
    context.finish("stopped")
    app.run()
    app.button(key="jobs_resume").click().run()
    assert run.read_state().state == "queued" and not app.exception and not app.error
    app.button(key="jobs_cancel_now").click().run()
    assert run.read_state().state == "cancelled"
    app.button(key="jobs_retry").click().run()
    again = list_runs(synthetic)[0]
    assert again.run_id != run.run_id and again.read_inputs()["questions"]["prompt"].tolist() == ["1+1"]
    assert not app.exception and not app.error


def test_a_failed_run_says_why_and_shows_its_log(opened: AppTest, synthetic: Workspace) -> None:
    run = create_run(synthetic, "train", "arith", {"name": "arith", "plan": "first"}, "ana", {})
    context = RunContext(run)
    context.start("cpu")
    context.fail(ConfigError("The loss became NaN at step 3; lower the learning rate."))
    app = show_run(opened, run)
    assert not app.exception
    assert "The loss became NaN at step 3" in app.error[0].value.replace("\\", "")
    assert any("The loss became NaN" in code.value for code in app.code)


def test_alerts_stand_above_the_table_and_lead_to_their_run(opened: AppTest, synthetic: Workspace) -> None:
    run = create_run(synthetic, "train", "arith", {"name": "arith", "plan": "first"}, "ana", {})
    context = RunContext(run)
    context.start("cpu")
    context.fail(DivergedError("The loss became NaN at step 3."))
    run.append_told("loss-nan", "HTTPError: 500")
    synthetic.alerts.write_text("url = 'https://hooks.example.org/secret'")
    app = show_run(opened, list_runs(synthetic)[-1])
    assert not app.exception and not app.error
    text = app.warning[0].value.replace("\\", "")
    assert (
        "arith**: The loss became NaN at step 3." in text and "could not be sent to hooks.example.org" in text.lower()
    )
    assert "secret" not in text
    app.button(key=f"jobs_alert_loss-nan_{run.run_id}").click().run()
    assert app.session_state["selection"].run == run.run_id and not app.exception
    synthetic.alerts.write_text("alerts = ['nothing']")
    app.run()
    assert any("alerts.toml: alerts.0" in warning.value.replace("\\", "") for warning in app.warning)


def test_a_run_tells_what_it_produced_and_what_used_it(opened: AppTest, synthetic: Workspace) -> None:
    runs = {run.read_spec().name: run for run in list_runs(synthetic) if run.read_spec().stage == "train"}
    app = show_run(opened, runs["arith"])
    assert not app.exception and not app.error
    assert any(markdown.value == "Produced: **arith**" for markdown in app.markdown)
    uses = [button for button in app.button if (button.key or "").startswith("jobs_use_")]
    assert [button.label.replace("\\", "") for button in uses][-1] == "mixture · moe"
    uses[-1].click().run()
    assert not app.exception and "moe" in app.session_state["selection"].run
    assert any(markdown.value == "Produced: **moe**" for markdown in app.markdown)


def test_the_form_says_how_much_memory_a_training_needs(
    opened: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(make_tiny_base(tmp_path / "base"))
    opened.session_state["jobs_panel"] = {"kind": "expert", "values": {"base": base}, "key": "test"}
    app = opened.run()
    assert not app.exception and not app.error and not app.warning
    assert any("Needs at most about 29 MB of memory" in caption.value for caption in app.caption)
    monkeypatch.setattr(jobs_memory, "_find_memory", lambda wanted: ("cuda:0", 1_000_000))
    app.run()
    assert "cuda:0 has 1 MB: lower the batch size" in app.warning[0].value
    assert not app.button(key="jobs_new_start").disabled, "it is an estimate: the person decides"


@pytest.mark.parametrize("kind", list(jobs_new.STAGE_OF_KIND))
def test_every_form_starts_out_as_something_that_can_be_started(opened: AppTest, kind: str) -> None:
    opened.session_state["jobs_panel"] = {"kind": kind, "values": {}, "key": "test"}
    if kind == "evaluate":  # every system has answered already, so none is proposed
        opened.session_state["jobs_panel"]["values"] = {"systems": ["base", "moe"]}
    app = opened.run()
    assert not app.exception and not app.error and not app.warning
    assert not app.button(key="jobs_new_start").disabled


@pytest.mark.parametrize("source", ["tasks", "data"])
@pytest.mark.parametrize("kind", ["expert", "mixed", "moe"])
def test_a_training_needs_no_plan(opened: AppTest, kind: str, source: str) -> None:
    about = {"name": "newcomer", "tasks": ["syllogism"]} if source == "tasks" else {"name": "newcomer"}
    opened.session_state["jobs_panel"] = {"kind": kind, "values": about, "key": "test"}
    app = opened.run()
    app.button_group(key=f"jobs_test_{kind}_source").set_value(source).run()
    assert not app.exception and not app.error and not app.warning
    said = " ".join(code.value for code in app.code)
    assert ("--task syllogism" if source == "tasks" else "--data ") in said and "--plan" not in said
    assert not app.button(key="jobs_new_start").disabled


def test_a_mixture_in_which_nothing_learns_needs_no_source(opened: AppTest) -> None:
    opened.session_state["jobs_panel"] = {"kind": "moe", "values": {"name": "newcomer"}, "key": "test"}
    app = opened.run()
    app.button_group(key="jobs_test_moe_source").set_value("none").run()
    assert not app.exception and not app.error and not app.warning
    said = " ".join(code.value for code in app.code)
    assert "--mode uniform" in said and not any(option in said for option in ("--plan", "--task", "--data"))
    assert not app.button(key="jobs_new_start").disabled


def test_an_empty_workspace_offers_the_first_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAMOE_WORKSPACE", str(workspace.root))
    try:
        app = AppTest.from_file(str(Path(state.__file__).parents[1] / "p07_jobs.py"), default_timeout=120).run()
        app.button(key="empty_Start the first run").click().run()
        assert not app.exception and not app.error
        assert any("There is no question to train on yet" in markdown.value for markdown in app.markdown)
        assert list_runs(workspace) == []
    finally:
        state._open_store(str(workspace.root.resolve())).close()
        state._open_store.clear()
