"""Several processes train one model: what comes out, and what happens when one of them is stopped or killed."""

import errno
import os
import signal
import subprocess
import tempfile
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file
from torch.distributed import HashStore
from torch.testing import assert_close

from metamoe_backend.config import MoeConfig, OptimSettings, parse_config
from metamoe_backend.errors import ConfigError, DiskFullError, TeamBrokenError, UnavailableError
from metamoe_backend.jobs import member, team
from metamoe_backend.jobs.records import StateFile
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.jobs.supervisor import find_slot
from metamoe_backend.train import expert
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import STAGES, wait_for
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_base
from tests.two_processes import assert_same_adapter, find_members, make_config, make_questions, make_run, start


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def start_and_wait_for_step(run: RunFolder, step: int) -> "subprocess.Popen[bytes]":
    process = start(run)
    wait_for(lambda: process.poll() is not None or (run.read_state().done or 0) >= step)
    assert process.poll() is None, run.read_log()
    return process


@pytest.fixture
def alone(workspace: Workspace, base_folder: Path) -> Any:
    """The adapter `alone`, trained by one process."""

    def train(**optim: Any) -> pd.DataFrame:
        run = make_run(workspace, make_config(base_folder, "alone", 1, **optim))
        assert start(run).wait() == 0, run.read_log()
        return run.read_progress()

    return train


def test_two_processes_make_the_adapter_of_one(workspace: Workspace, base_folder: Path, alone) -> None:
    before = alone()
    run = make_run(workspace, make_config(base_folder, "pair", 2))
    assert start(run).wait() == 0, run.read_log()
    assert run.read_state().state == "finished"
    assert (
        "2 processes train together (gloo) on the CPU, 1 thread each:\naccelerate launch --multi_gpu" in run.read_log()
    )
    assert "Traceback" not in run.read_log()
    assert_same_adapter(workspace, "pair", "alone")
    assert sorted(path.name for path in workspace.adapters.iterdir()) == ["alone", "pair"], "one process publishes"
    losses, expected = (each.query("name == 'loss'")["value"].tolist() for each in (run.read_progress(), before))
    assert len(losses) == 12 and losses == pytest.approx(expected, rel=1e-3)
    assert [len(pd.read_parquet(part.path)) for part in run.parts() if part.target == "adapter"] == [1]


def test_a_killed_process_ends_the_run_with_a_sentence_and_it_goes_on_from_its_checkpoint(
    workspace: Workspace, base_folder: Path, alone
) -> None:
    alone(steps=40)
    run = make_run(workspace, make_config(base_folder, "pair", 2, steps=40))
    process = start_and_wait_for_step(run, 6)
    find_members(run)[1].kill()
    assert process.wait() == 2
    status = run.read_state()
    assert status.state == "failed" and status.error is not None
    assert status.error.startswith("One of 2 processes ended before its time; read the log, which says which, then")
    assert "exitcode: -9" in run.read_log()
    assert not (workspace.adapters / "pair").exists()

    run.write_state(StateFile(state="queued", attempt=1))
    assert start(run).wait() == 0, run.read_log()
    assert "Going on from checkpoint-" in run.read_log()
    assert_same_adapter(workspace, "pair", "alone", tolerance=2e-4)


def test_the_first_process_tells_a_full_disk_as_one(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = create_run(workspace, "count", "a test", {}, "ana", {})
    life, talk = Pipe(), Pipe()
    ends = iter([life[1], talk[1]])
    monkeypatch.setattr(member, "Client", lambda _: next(ends))
    monkeypatch.setattr(member, "_join", HashStore)
    member.lead(run, "cpu", "nowhere", {"count": replace(STAGES["count"], compute=compute)})
    end = talk[0].recv()
    assert isinstance(end.error, DiskFullError) and str(run.path) in str(end.error)


@pytest.mark.parametrize("save", [True, False])
def test_stop_and_cancel_end_all_processes(workspace: Workspace, base_folder: Path, alone, save: bool) -> None:
    run = make_run(workspace, make_config(base_folder, "pair", 2, steps=100_000 if not save else 300))
    process = start_and_wait_for_step(run, 3)
    members = find_members(run)
    if save:
        os.killpg(process.pid, signal.SIGTERM)  # as a cluster does: to all of them
    else:
        run.write_request(save=False)
    assert process.wait() == 0, run.read_log()
    assert run.read_state().state == ("stopped" if save else "cancelled")
    assert not any(member.is_running() for member in members) and "Traceback" not in run.read_log()
    assert (workspace.adapters / "pair").exists() == save


def test_a_mixture_learns_the_same_in_two_processes(workspace: Workspace, base_folder: Path) -> None:
    found = []
    for processes in (1, 2):
        config = MoeConfig(
            name=f"by-{processes}", experts=["one", "two"], base=str(base_folder), device="cpu", mode="token",
            tasks=["task0"], train="router+experts", from_scratch=True, processes=processes,
            optim=OptimSettings(steps=8, batch_size=7, max_tokens=64, learning_rate=0.01),
        )  # fmt: skip
        inputs = {
            "questions": make_questions(), "adapters": pd.DataFrame({"adapter": [], "sha256": []}),
            "vectors": pd.DataFrame({"question_id": [], "text_hash": [], "vector": []}),
            "target": pd.DataFrame({"mixture": [config.name]}),
        }  # fmt: skip
        run = create_run(workspace, "moe", config.name, config.model_dump(mode="json"), "ana", inputs)
        assert start(run).wait() == 0, run.read_log()
        folder = workspace.mixtures / config.name
        found.append([load_file(path) for path in sorted(folder.rglob("*.safetensors"))])
    assert len(found[0]) == len(found[1]) > 1
    for one, two in zip(*found, strict=True):
        for name, values in one.items():
            assert_close(two[name], values, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_done_together(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {
        "questions": make_questions(), "target": pd.DataFrame({"adapter": ["copy"]}),
        "start": pd.DataFrame({"adapter": [], "sha256": []}),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="processes is 2, but 1 works on this; hand the training to the queue"):
        expert.compute(inputs, make_config(base_folder, "copy", 2), RecordingContext(tmp_path))
    settings = {"name": "duo", "experts": ["a", "b"], "plan": "p", "processes": 2}
    with pytest.raises(ConfigError, match="balance is of whole batches"):
        parse_config(MoeConfig, settings | {"balance": 0.1})
    with pytest.raises(ConfigError, match="no gates or experts are trained here"):
        parse_config(MoeConfig, settings | {"mode": "uniform"})
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UnavailableError, match=f"processes is {cores + 1}, but device auto has {cores} cores here"):
        find_slot("auto", cores + 1, ["cpu"], set())
    with pytest.raises(UnavailableError, match="processes is 3, but device cuda has 2 GPUs here"):
        find_slot("cuda", 3, ["cuda:0", "cuda:1", "cpu"], set())


@pytest.mark.parametrize("length", [10, 200])
def test_the_processes_talk_whatever_the_folder_of_temporary_files_is_called(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(team, "_make_command", lambda *_: ["true"])
    run = create_run(workspace, "count", "a test", {}, "ana", {})
    with pytest.raises(TeamBrokenError, match="One of 2 processes ended before its time"):
        team.work_together(run, 2, 1, "cpu", RecordingContext(tmp_path))


@pytest.mark.parametrize(
    ("scontrol", "why"),
    [
        (None, "SLURM_JOB_NODELIST is not set: this is no job of Slurm"),
        ("", "scontrol: .*No such file"),
        ("#!/bin/sh\necho no such node >&2; exit 1", "scontrol: no such node"),
        ("#!/bin/sh\n", "scontrol names none"),
    ],
)
def test_nodes_that_cannot_be_found_are_told(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str | None, why: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if scontrol else str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    if scontrol is not None:
        monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    if scontrol:
        (tmp_path / "scontrol").write_text(scontrol)
        (tmp_path / "scontrol").chmod(0o755)
    run = create_run(workspace, "count", "a test", {}, "ana", {})
    with pytest.raises(UnavailableError, match=rf"The nodes of this job cannot be found \({why}"):
        team.work_together(run, 2, 2, "cpu", RecordingContext(tmp_path))


def test_as_many_gpus_are_reserved_as_were_asked_for() -> None:
    devices = ["cuda:0", "cuda:1", "cuda:2", "cpu"]
    assert find_slot("auto", 2, devices, {"cuda:1"}) == "cuda:0,cuda:2"
    assert find_slot("auto", 2, devices, {"cuda:1", "cuda:2"}) is None
    assert find_slot("cpu", 1, devices, {"cuda:1"}) == "cpu"
