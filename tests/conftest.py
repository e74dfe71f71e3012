"""Fixtures every test may use: an empty workspace, its store, and a workspace full of drawn numbers."""

import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import hypothesis
import pandas as pd
import pytest

from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_run
from metamoe_backend.workspace import Workspace

# A busy machine is no failure.
hypothesis.settings.register_profile("metamoe", deadline=None)
hypothesis.settings.load_profile("metamoe")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace").create()


@pytest.fixture
def store(workspace: Workspace) -> Iterator[Store]:
    with Store.open(workspace, "a test") as opened:
        yield opened


@pytest.fixture
def queue(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace whose supervisor knows the counting stage; nothing of it outlives the test."""
    from metamoe_backend.jobs import supervisor
    from tests.fake_jobs import SUPERVISOR_COMMAND, find_processes

    monkeypatch.setattr(supervisor, "SUPERVISOR_COMMAND", SUPERVISOR_COMMAND)
    yield workspace
    for process in find_processes(workspace):
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and a busy machine does not make them wait for a second."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recorded_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.synthetic import build_workspace

    return build_workspace(tmp_path_factory.mktemp("synthetic") / "synthetic").root


@pytest.fixture
def synthetic(recorded_synthetic: Path, tmp_path: Path) -> Workspace:
    """A copy of its own of the synthetic workspace."""
    return Workspace(Path(shutil.copytree(recorded_synthetic, tmp_path / "synthetic")))


def insert_rows(store: Store, stage: str, **tables: pd.DataFrame) -> str:
    """Bring rows in the way stages do: a run with a manifest. Returns the run id."""
    run = create_run(store.workspace, stage, stage, {}, "ana", {})
    context = RunContext(run)
    context.start()
    for table, frame in tables.items():
        context.emit(table, frame)
    context.finish("finished")
    ingest_run(store, run)
    return run.run_id


def insert_system(store: Store, name: str) -> None:
    """An expert on the base model a/base, without its weights."""
    system = {"system": name, "kind": "expert", "base": "a/base", "path": name, "experts": [], "settings": "{}"}
    row = {**system, "sha256": "1", "created_at": datetime(2026, 11, 1)}
    insert_rows(store, "train", system=pd.DataFrame([row]))


def insert_questions(store: Store, n: int, task: str = "toy", split: str = "train") -> list[str]:
    """`n` questions of a task; returns their ids."""
    made_at = datetime(2026, 11, 1)
    tasks = pd.DataFrame(
        [{"task": task, "regime": "exact", "template": "{prompt}\nAnswer:", "source": "a test", "created_at": made_at}]
    )
    ids = [f"{task}-{split}-{number:04d}" for number in range(n)]
    questions = pd.DataFrame(
        {
            "question_id": ids,
            "task": task,
            "split": split,
            "prompt": [f"What is {number} plus {number}?" for number in range(n)],
            "answer": [str(2 * number) for number in range(n)],
            "position": range(n),
        }
    )
    insert_rows(store, "ingest", task=tasks, question=questions)
    return ids
