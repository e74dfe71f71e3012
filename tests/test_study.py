"""A study from what it asks for to its table: on a tiny model, end to end, broken off and continued."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError, StorageError
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import find_run
from metamoe_backend.store.connection import Store
from metamoe_backend.store.rebuild import rebuild
from metamoe_backend.study.advance import advance, go_on, look_at, stop
from metamoe_backend.study.document import make_command, write_document
from metamoe_backend.study.progress import describe_content
from metamoe_backend.study.recipe import SYSTEMS
from metamoe_backend.study.results import collect_results
from metamoe_backend.study.studies import create_study, list_studies, read_study
from metamoe_backend.study.table import ALL
from metamoe_backend.verbs.study import describe
from metamoe_backend.workspace import Workspace
from tests.fake_encoder import install
from tests.studies import BANK, SETTINGS, TARGETS, fill_workspace, hold_queue, plan_bank, work_off
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def answer_to_sigterm() -> Iterator[None]:
    """A worker leaves its own behind."""
    answer = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, answer)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def bank(store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a study in a workspace that has what it needs."""
    monkeypatch.setenv("METAMOE_CACHE", str(tmp_path / "cache"))
    install(monkeypatch)
    hold_queue(monkeypatch)
    fill_workspace(store, tmp_path / "made", base)
    return SETTINGS | {"base": str(base)}


def test_a_study_is_carried_out_broken_off_and_continued(
    store: Store, workspace: Workspace, bank: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_bank(store)
    study = create_study(store, bank, "ana")
    assert study.config.plan == plan
    assert study.config.bank == sorted(BANK) and study.config.pool_tasks == ["colours", "pool", "sums"]
    look = go_on(store, "small", "ana")
    assert {status.step.stage for status in look.active} == {"select", "select-data", "embed", "evaluate", "train"}
    _break_off_at(monkeypatch, "small.mixed")
    while work_off(workspace):
        look = advance(store, study, "ana")
    (broken,) = [status for status in look.left if status.state == "failed"]
    assert broken.step.key == "mixed" and "electricity" in str(broken.error)
    waiting = {status.step.key for status in look.left if status.state == "waiting"}
    assert {f"mixed:{target}" for target in TARGETS} | {f"evaluate:{target}" for target in TARGETS} <= waiting
    before = {status.run_id for status in look.own if status.state == "finished"}

    go_on(store, "small", "ana")
    while work_off(workspace):
        look = advance(store, study, "ana")
    assert not look.left and before < {status.run_id for status in look.own}
    assert look.made["mixed"].run_id == broken.run_id, "it went on in its own folder"
    contents = [describe_content(status.step) for status in look.own]
    assert len(set(contents)) == len(contents)
    runs = list(store.frame("SELECT run_id FROM run WHERE stage NOT IN ('ingest', 'import', 'freeze')")["run_id"])
    assert sorted(runs) == sorted(status.run_id for status in look.own), "nothing ran twice, nothing else ran"
    attempts = {run_id: find_run(workspace, run_id).read_state_file().attempt for run_id in runs}
    assert {run_id for run_id, attempt in attempts.items() if attempt > 1} == {broken.run_id}
    same = {status.step.key: status.same_as for status in look.statuses if status.same_as}
    assert same["K=6:sounds"] == same["data=similar-and-diverse:sounds"] == "token:sounds"

    results = collect_results(store, study, look)
    for target in [*TARGETS, ALL]:
        of_target = results.compared[results.compared["target"] == target]
        assert of_target["system"].tolist() == list(SYSTEMS)
        assert set(of_target["n"]) == {10 if target == ALL else 5}
    assert set(results.forgetting["target"]) == {*TARGETS, ALL}
    assert len(results.ablations) > 12 and set(results.ablations["target"]) == {"sounds"}
    predicted = store.frame("SELECT system, question_id, count(*) AS n FROM prediction GROUP BY ALL")
    assert set(predicted["n"]) == {1}, "no question is answered twice by one system"
    text = write_document(study, look, results)
    assert all(word in text for word in ["‡", "at n questions", "come from other models", "under plan `over-all`"])
    assert bank["base"] not in text and "--set experts=2" in make_command(study.config)

    frozen = store.frame("SELECT * FROM prediction ORDER BY ALL").to_csv()
    store.close()
    rebuild(workspace)
    with Store.open(workspace, "a test") as again:
        assert read_study(workspace, "small") == study
        assert again.frame("SELECT * FROM prediction ORDER BY ALL").to_csv() == frozen
        assert not look_at(again, study).left


def _break_off_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The run of this name dies in its second step, once."""
    report, left = RunContext.progress, [1]

    def progress(self: RunContext, done: int, total: int, **metrics: float) -> None:
        report(self, done, total, **metrics)
        if left and done >= 1 and self.run.read_spec().name == name:
            left.clear()
            raise RuntimeError("the electricity went")

    monkeypatch.setattr(RunContext, "progress", progress)


def test_a_study_rests_when_it_is_told_to(store: Store, workspace: Workspace, bank: dict[str, Any]) -> None:
    study = create_study(store, bank, "ana")
    started = go_on(store, "small", "ana").active
    look = stop(store, "small")
    assert not look.active and look.done == 0 and read_study(workspace, "small").paused
    assert not advance(store, read_study(workspace, "small"), "ana").active
    first = look.statuses[0]
    interrupted = describe(replace(look, statuses=[replace(first, state="stopped")]))
    assert f"stopped: {first.step.key}; the same command" in interrupted, "a wait that ends here says why"
    again = go_on(store, "small", "ana")
    assert [status.step.key for status in again.active] == [status.step.key for status in started]
    assert list_studies(workspace) == [study]


def test_what_could_not_be_carried_out_is_refused(store: Store, workspace: Workspace, bank: dict[str, Any]) -> None:
    def refuse(error: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            create_study(store, bank | {"ablations": []} | changes, "ana")

    refuse(ConfigError, "task 'sums' has 10 train and 0 test questions", targets=["sums"])
    refuse(ConfigError, "10 train and 6 test questions; a study needs at least k = 11", k=11)
    refuse(NotFoundError, "Task 'none' does not exist", targets=["none"])
    refuse(NotFoundError, "Expert 'none' does not exist", bank=["none"])
    refuse(NotFoundError, "Plan 'none' does not exist", plan="none")
    refuse(ConfigError, "3 adapters of the bank may be chosen for 'colours'", experts=4, shortlist=4)
    refuse(ConfigError, "2 adapters of the bank may be chosen for 'colours'", experts=3, own_experts=False)
    refuse(ConfigError, "stands on .*, not on 'smollm2-135m'", base="smollm2-135m", bank=["north"])
    refuse(ConfigError, "other is no target of the study", ablations=["other"])
    refuse(ConfigError, "targets: a name stands twice", targets=["sounds", "sounds"])
    assert list_studies(workspace) == [], "nothing is written of a study that is refused"
    create_study(store, bank, "ana")
    refuse(ConflictError, "Study 'small' exists already")
    with pytest.raises(NotFoundError, match=r"Study 'other' does not exist \(there are: small\)"):
        read_study(workspace, "other")
    path = workspace.studies / "small.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"paused": "perhaps"}))
    with pytest.raises(StorageError, match=r"small.json is damaged \(paused:"):
        read_study(workspace, "small")
