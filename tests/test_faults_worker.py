"""A worker killed at any moment: its run can be resumed, and ends with the bytes and rows of an undisturbed one."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from metamoe_backend.config import EvaluateConfig
from metamoe_backend.errors import ConflictError
from metamoe_backend.evaluate import stage
from metamoe_backend.jobs import supervisor
from metamoe_backend.jobs.run_folder import RunFolder, create_run, list_runs
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_rows
from tests.faults import ENDING, LONG, SEED, Ended, Job, Server, choose_points, open_server, report
from tests.test_evaluate_stage import insert_tasks, make_experts, make_token_mixture
from tests.test_training import NO_START, make_config, make_questions
from tests.tiny_models import make_tiny_base

POINTS = {False: 3, True: 50}
TIMED = ("tokens_per_s", "memory_mb", "questions_per_s")
"""Metrics that no two runs share."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with open_server(models=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests start each worker themselves."""
    monkeypatch.setattr(supervisor, "_ensure_supervisor", lambda workspace: None)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a queued training of 20 steps, a checkpoint every five."""
    folder = tmp_path_factory.mktemp("training")
    workspace = Workspace(folder / "workspace").create()
    config = make_config(make_tiny_base(folder / "tiny"), {"rank": 4, "dropout": 0.1})
    inputs = {"questions": make_questions(), "target": pd.DataFrame({"adapter": ["copy"]}), "start": NO_START}
    create_run(workspace, "train", "copy", config, "ana", inputs)
    return workspace


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a queued evaluation of four systems, in parts of three questions."""
    folder = tmp_path_factory.mktemp("evaluation")
    base = str(make_tiny_base(folder / "tiny"))
    workspace = Workspace(folder / "workspace").create()
    with Store.open(workspace, "a test") as store:
        insert_tasks(store)
        systems = [*make_experts(workspace, base), make_token_mixture(workspace, base)]
        insert_rows(store, "train", system=pd.DataFrame(systems))
        config = EvaluateConfig(
            systems=["base", "colours", "sums", "moe"], tasks=["colour", "sum"], device="cpu", max_new_tokens=4,
            token_sample=2,
        )  # fmt: skip
        create_run(workspace, "evaluate", "all", config, "ana", stage.prepare(store, config))
    return workspace


def copy(workspace: Workspace, folder: Path) -> tuple[Workspace, RunFolder]:
    """A workspace of its own, and its queued run (the newest)."""
    copied = Workspace(Path(shutil.copytree(workspace.root, folder)))
    return copied, list_runs(copied)[0]


def work(server: Server, run: RunFolder, **kill: float) -> Ended:
    return server.run(Job("worker", [str(run.path)], str(run.workspace.root), **kill))


def kill_and_resume(server: Server, run: RunFolder, kills: list[dict[str, float]]) -> int:
    """Kill the worker as each of `kills` says, resuming after each, then let it end; returns how often it was hit."""
    hit = 0
    for kill in [*kills, {}]:
        status = run.read_state()
        assert status.state in ("queued", "failed", "finished"), "a dead worker's run never reads as running"
        if status.state == "failed":
            assert "worker is gone" in str(status.error)
            supervisor.resume(run)
        if status.state == "finished":
            with pytest.raises(ConflictError):
                supervisor.resume(run)
            break
        ended = work(server, run, **kill)
        hit += ended.code == -9
        assert ended.code in (0, -9), run.read_log()
    status = run.read_state()
    assert status.state == "finished", (status, run.read_log())
    return hit


def dump(workspace: Workspace, stage_name: str) -> dict[str, pd.DataFrame]:
    """The rows that the run of a stage brought in, run ids and clock readings left out, in a fixed order."""
    with Store.open(workspace, "a test") as store:
        rows = {}
        for table in ("adapter", "system", "metric", "prediction", "activation", "token_activation", "route"):
            frame = store.frame(f'SELECT * FROM "{table}"').drop(columns="run_id", errors="ignore")
            if table == "metric":
                frame = frame[~frame["name"].isin(TIMED)]
            frame = frame.map(
                lambda value: tuple(value) if hasattr(value, "__len__") and not isinstance(value, str) else value
            )
            rows[table] = frame.sort_values(list(frame.columns), ignore_index=True)
        handed = store.frame("SELECT part FROM part JOIN run USING (run_id) WHERE stage = ?", [stage_name])
        assert not handed["part"].duplicated().any()
    return rows


def assert_same_rows(found: dict[str, pd.DataFrame], wanted: dict[str, pd.DataFrame]) -> None:
    for table, frame in wanted.items():
        pd.testing.assert_frame_equal(found[table], frame, obj=table)


def read_weights(run: RunFolder) -> dict[str, bytes]:
    """Adapters, and what the newest checkpoint holds: adapter, optimizer and random numbers."""
    found = {
        str(path.relative_to(run.workspace.root)): path.read_bytes() for path in run.workspace.adapters.rglob("*.*")
    }
    return found | {path.name: path.read_bytes() for path in run.checkpoints.glob("checkpoint-20/*.safetensors")}


def list_hidden(workspace: Workspace, run: RunFolder) -> list[Path]:
    """What a broken-off attempt may have left half-written."""
    places = (run.output, run.checkpoints, workspace.adapters, workspace.mixtures)
    return [path for place in places for path in place.rglob(".*")]


def draw_kills(count: int, whole: Ended, seed: int) -> list[list[dict[str, float]]]:
    """For each of `count` runs one kill, and for every third a second one during the attempt that follows."""
    draw = random.Random(seed)
    kills = [[point] for point in choose_points(count, whole, seed)]
    for number in range(0, count, 3):
        kills[number].append({"at": draw.randint(1, whole.points)})
    return kills


def draw_ending(count: int, whole: Ended, seed: int) -> list[int]:
    """Points among the last of an undisturbed process, where everything is published and handed over."""
    return sorted(random.Random(seed).sample(range(whole.points - ENDING, whole.points + 1), min(count, ENDING)))


@pytest.mark.parametrize("long", LONG)
def test_a_training_killed_anywhere_ends_as_if_undisturbed(
    training: Workspace, server: Server, tmp_path: Path, long: bool
) -> None:
    workspace, run = copy(training, tmp_path / "whole")
    whole = work(server, run)
    assert whole.code == 0, run.read_log()
    wanted, weights = dump(workspace, "train"), read_weights(run)
    assert len(weights) == 5 and len(wanted["metric"])

    hit = 0
    for number, kills in enumerate(draw_kills(POINTS[long], whole, SEED)):
        workspace, run = copy(training, tmp_path / str(number))
        hit += kill_and_resume(server, run, kills)
        assert read_weights(run) == weights, kills
        assert_same_rows(dump(workspace, "train"), wanted)
        assert list_hidden(workspace, run) == [], kills
        shutil.rmtree(workspace.root)
    assert hit >= POINTS[long] // 2
    report("kill -9, training", {"runs": POINTS[long], "kills": hit, "of": whole.points, "seed": SEED})


@pytest.mark.parametrize("long", LONG)
def test_a_resumed_training_killed_while_it_replaces_what_it_published(
    training: Workspace, server: Server, tmp_path: Path, long: bool
) -> None:
    """Stopped at its first step, which publishes; resumed, it is killed near its end."""
    stopped, run = copy(training, tmp_path / "stopped")
    run.write_request(save=True)
    assert work(server, run).code == 0 and run.read_state().state == "stopped", run.read_log()
    supervisor.resume(run)
    early = read_weights(run)
    workspace, run = copy(stopped, tmp_path / "whole")
    whole = work(server, run)
    wanted, weights = dump(workspace, "train"), read_weights(run)
    published = "adapters/copy/adapter_model.safetensors"
    assert whole.code == 0 and sorted(early) == sorted(name for name in weights if name.startswith("adapters/"))
    assert early[published] != weights[published]

    hit, points = 0, draw_ending(POINTS[long], whole, SEED + 7)
    for number, at in enumerate(points):
        workspace, run = copy(stopped, tmp_path / str(number))
        hit += kill_and_resume(server, run, [{"at": at}])
        assert read_weights(run) == weights, at
        assert_same_rows(dump(workspace, "train"), wanted)
        assert list_hidden(workspace, run) == [], at
        shutil.rmtree(workspace.root)
    assert hit >= len(points) // 2
    report("kill -9, publishing anew", {"runs": len(points), "kills": hit, "of": whole.points, "seed": SEED + 7})


@pytest.mark.parametrize("long", LONG)
def test_an_evaluation_killed_anywhere_answers_each_question_once(
    evaluation: Workspace, server: Server, tmp_path: Path, long: bool
) -> None:
    workspace, run = copy(evaluation, tmp_path / "whole")
    whole = work(server, run)
    assert whole.code == 0, run.read_log()
    wanted = dump(workspace, "evaluate")
    assert all(len(wanted[table]) for table in ("prediction", "activation", "token_activation"))

    hit = 0
    for number, kills in enumerate(draw_kills(POINTS[long], whole, SEED + 1)):
        workspace, run = copy(evaluation, tmp_path / str(number))
        hit += kill_and_resume(server, run, kills)
        assert_same_rows(dump(workspace, "evaluate"), wanted)
        assert list_hidden(workspace, run) == [], kills
        shutil.rmtree(workspace.root)
    assert hit >= POINTS[long] // 2
    report("kill -9, evaluation", {"runs": POINTS[long], "kills": hit, "of": whole.points, "seed": SEED + 1})
