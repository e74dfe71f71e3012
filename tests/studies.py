"""A small workspace that a study can be made in, and a queue that this process works on itself."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from metamoe_backend.jobs import supervisor, worker
from metamoe_backend.jobs.run_folder import list_runs
from metamoe_backend.launch import run_now
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import save_plan
from metamoe_backend.store.skills import create_skill, label_questions
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_rows
from tests.tiny_models import make_tiny_adapter

TARGETS = ["colours", "sounds"]
BANK = {"east": ["sums"], "north": ["colours"], "west": ["sums", "pool"]}
SETTINGS: dict[str, Any] = {
    "name": "small", "targets": TARGETS, "device": "cpu", "k": 6, "draws": 2, "shortlist": 3, "experts": 2, "top_k": 1,
    "budget": 4, "eval_limit": 5, "ablations": ["sounds"], "max_new_tokens": 3, "activations": False,
    "lora": {"rank": 2, "alpha": 4.0}, "optim": {"steps": 2, "batch_size": 4, "eval_share": 0.0, "max_tokens": 64},
}  # fmt: skip


def fill_workspace(store: Store, folder: Path, base: Path) -> None:
    """Four tasks of choices, of which two have test questions, and a bank of three adapters on the tiny `base`."""
    for task, test in (("colours", 6), ("sounds", 6), ("sums", 0), ("pool", 0)):
        rows = [
            {
                "question_id": f"{task}-{split}-{number}", "task": task, "split": split, "position": number,
                "prompt": f"Which {task[:-1]} has number {number} of the {split}ing things?", "choices": ["one", "two"],
                "answer": ["one", "two"][number % 2], "gold": number % 2,
            }
            for split, n in (("train", 10), ("test", test)) for number in range(n)
        ]  # fmt: skip
        of_task = {"task": task, "regime": "choices", "template": "{prompt}\nAnswer:", "source": "a test"}
        tasks = pd.DataFrame([of_task | {"created_at": datetime(2026, 11, 1)}])
        insert_rows(store, "ingest", task=tasks, question=pd.DataFrame(rows))
    for seed, (name, tasks_read) in enumerate(BANK.items()):
        source = make_tiny_adapter(folder / name, base, seed=seed)
        values = {"source": str(source), "name": name, "base": str(base), "trained_on": tasks_read}
        run_now(store, "import", values, "ana")


def plan_bank(store: Store) -> str:
    """A plan over the bank: each expert gets the questions of one task; returns its name."""
    tasks = {"east": "sums", "north": "colours", "west": "pool"}
    for expert, task in tasks.items():
        skill = create_skill(store, f"skill of {expert}", "ana")
        ids = [f"{task}-train-{number}" for number in range(10)]
        label_questions(store, skill, ids, "ana", "question")
    run_now(store, "freeze", {"labelling": "all"}, "ana")
    save_plan(store, "over-all", "all", [(f"skill of {expert}", expert) for expert in tasks], "ana")
    return "over-all"


def hold_queue(monkeypatch: Any) -> None:
    """From now on queued runs wait for `work_off`."""
    monkeypatch.setattr(supervisor, "_ensure_supervisor", lambda _workspace: None)


def work_off(workspace: Workspace) -> int:
    """Do all queued runs in this process, the first one first; returns how many."""
    queued = [run for run in list_runs(workspace) if run.read_state_file().state == "queued"]
    for run in sorted(queued, key=lambda run: run.read_state_file().place or 0):
        worker.run(run.path, device="cpu")
    return len(queued)
