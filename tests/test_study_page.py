"""The Study page: the form, the steps, what was found, the button that lets a study go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from metamoe_backend.jobs.run_folder import list_runs
from metamoe_backend.study.studies import create_study, list_studies, set_paused
from metamoe_backend.workspace import Workspace
from pages.shared import state
from tests.studies import hold_queue

PAGE = str(Path(state.__file__).parents[1] / "p13_study.py")
SETTINGS = {
    "name": "both", "targets": ["chain_sum", "syllogism"], "k": 5, "experts": 2, "shortlist": 3, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def opened(synthetic: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    """The page on the synthetic workspace, where queued runs stay queued."""
    monkeypatch.setenv("METAMOE_WORKSPACE", str(synthetic.root))
    hold_queue(monkeypatch)
    yield AppTest.from_file(PAGE, default_timeout=120)
    state.get_store().close()
    state._open_store.clear()


def test_a_study_is_asked_for_with_the_form(opened: AppTest, synthetic: Workspace) -> None:
    app = opened.run()
    assert "No study has been made yet" in app.markdown[0].value and app.button(key="study_start").disabled
    app.text_input(key="study_name").set_value("mine")
    app.multiselect(key="study_targets").set_value(["chain_sum"])
    app.number_input(key="study_new_k").set_value(99).run()
    app.number_input(key="study_new_experts").set_value(2)
    app.button(key="study_start").click().run()
    assert "a study needs at least k" in app.error[0].value and not list_studies(synthetic)
    app.number_input(key="study_new_k").set_value(5)
    app.button(key="study_start").click().run()
    assert not app.exception and not app.error
    (study,) = list_studies(synthetic)
    assert study.config.targets == ["chain_sum"] and study.config.bank == ["arith", "letters", "logic"]
    assert study.config.plan == "first"
    queued = [run for run in list_runs(synthetic) if run.read_state_file().state == "queued"]
    assert {run.read_spec().stage for run in queued} == {"select", "select-data", "evaluate", "train", "embed"}


def test_what_was_found_so_far_is_shown_and_the_study_goes_on(opened: AppTest, synthetic: Workspace) -> None:
    create_study(state.get_store(), SETTINGS, "ana")
    set_paused(synthetic, "both", paused=True)
    app = opened.run()
    assert not app.exception and not app.error
    assert app.subheader[0].value == "The bank is evaluated; the mixtures are not yet."
    tables = {tuple(frame.value.columns): frame.value for frame in app.dataframe}
    compared = next(frame for columns, frame in tables.items() if "tuned" in columns)
    assert compared["system"].tolist() == ["Base model", "Random expert", "Best expert on test ‡ †"]
    steps = next(frame for columns, frame in tables.items() if "what" in columns).set_index("step")
    assert steps.loc["token:chain_sum", "state"] == "waits" and steps.loc["select:syllogism", "state"] == "ready"
    assert not [run for run in list_runs(synthetic) if run.read_state_file().state == "queued"], "it rests"
    app.button(key="study_go_on").click().run()
    assert not app.exception and not app.error and app.button(key="study_stop")
    assert [run for run in list_runs(synthetic) if run.read_state_file().state == "queued"]
    app.button(key="study_stop").click().run()
    assert not [run for run in list_runs(synthetic) if run.read_state_file().state == "queued"]
