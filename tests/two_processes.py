"""Trainings of a tiny model by one process and by two, here and on a cluster, and what they have to show."""

import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from safetensors.torch import load_file
from torch.testing import assert_close

from metamoe_backend.config import OptimSettings, TrainConfig
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.jobs.supervisor import WORKER_COMMAND, make_environment
from metamoe_backend.workspace import Workspace

WORDS = ["red", "turquoise", "blue"]


def make_questions(count: int = 60) -> pd.DataFrame:
    """Answers of different lengths, so that the shares of a batch weigh differently."""
    rows = [
        {
            "question_id": f"q{i}", "task": f"task{i % 2}", "template": "Q: {prompt}\nA:", "skill": "copying",
            "prompt": f"say {WORDS[i % 3]} {'x' * (i % 11)}", "answer": WORDS[i % 3], "expert": "copy",
            "meta_question": None,
        }
        for i in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_config(base_folder: Path, name: str, processes: int, **optim: Any) -> TrainConfig:
    settings = {"steps": 12, "batch_size": 7, "learning_rate": 0.01, "max_tokens": 64, "save_every": 5} | optim
    return TrainConfig(
        name=name, plan="p", base=str(base_folder), device="cpu", processes=processes, optim=OptimSettings(**settings)
    )


def make_run(workspace: Workspace, config: TrainConfig) -> RunFolder:
    inputs = {
        "questions": make_questions(), "target": pd.DataFrame({"adapter": [config.name]}),
        "start": pd.DataFrame({"adapter": [], "sha256": []}),
    }  # fmt: skip
    return create_run(workspace, "train", config.name, config.model_dump(mode="json"), "ana", inputs)


def start(run: RunFolder) -> "subprocess.Popen[bytes]":
    """The worker of a run, as the queue starts it."""
    environment = make_environment() | {"OMP_NUM_THREADS": "1"}
    command = [*WORKER_COMMAND, str(run.path), "--device", "cpu"]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def find_members(run: RunFolder) -> list[psutil.Process]:
    """The two processes that train, the first one first."""
    ranks: dict[str, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if "metamoe_backend.jobs.member" in words and str(run.path) in words and "LOCAL_RANK" in environment:
            ranks[environment["RANK"]] = process
    assert sorted(ranks) == ["0", "1"]
    return [ranks["0"], ranks["1"]]


def weights(workspace: Workspace, name: str) -> dict[str, Any]:
    return load_file(workspace.adapters / name / "adapter_model.safetensors")


def assert_same_adapter(workspace: Workspace, name: str, other: str, tolerance: float = 1e-5) -> None:
    """Equal up to `tolerance`: sums in another order differ in the last digit, and Adam carries that on."""
    ours, theirs = weights(workspace, name), weights(workspace, other)
    assert ours.keys() == theirs.keys()
    for module, values in ours.items():
        assert_close(values, theirs[module], rtol=10 * tolerance, atol=tolerance)
