"""The Jobs page with many runs: CPU seconds of the server to open it, to draw it again, and to look at the folders.

Each run has a folder and a curve of 400 steps (loss, learning rate, speed, memory); all but one have ended. `open_s`: a
first visit in a warm process; `again_s`: what each later look costs, every two seconds while something runs; `poll_s`:
the part of it that reads the folders. `--keep DIR` leaves the workspace there.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.testing.v1 import AppTest
from timing import make_parser, report

from metamoe_backend.config import TrainConfig
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.jobs.supervisor import poll
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.workspace import Workspace

STEPS = 400
PAGE = Path(__file__).resolve().parent.parent / "pages" / "p07_jobs.py"


def make_workspace(folder: Path, runs: int, seed: int = 0) -> Workspace:
    """`runs` trainings with curves, taken in by the database; the newest one is still going."""
    rng = np.random.default_rng(seed)
    workspace = Workspace(folder).create()
    for number in range(runs):
        config = TrainConfig(name=f"expert-{number}", tasks=["toy"], optim={"steps": STEPS, "seed": number})
        run = create_run(workspace, "train", f"expert-{number}", config, "ana", {})
        context = RunContext(run)
        context.start("cpu")
        metrics = _make_curve(rng)
        _write_curve(run, metrics)
        context.progress(STEPS // 2, STEPS, loss=1.0)
        if number < runs - 1:
            context.progress(STEPS, STEPS, loss=0.5)
            context.emit("metric", metrics)
            context.finish("finished")
    with Store.open(workspace, "the benchmark") as store:
        ingest_finished_runs(store)
    return workspace


def _make_curve(rng: np.random.Generator) -> pd.DataFrame:
    steps = np.arange(1, STEPS + 1)
    values = {
        "loss": 3 * np.exp(-steps / 150) + 0.1 * rng.random(STEPS), "learning_rate": 1e-3 * (1 - steps / STEPS),
        "tokens_per_s": 900 + 50 * rng.random(STEPS), "memory_mb": 800 + 5 * rng.random(STEPS),
    }  # fmt: skip
    return pd.DataFrame(values, index=steps).rename_axis("step").melt(ignore_index=False, var_name="name").reset_index()


def _write_curve(run: RunFolder, metrics: pd.DataFrame) -> None:
    lines = [
        {"time": 0.0, "done": int(step), "total": STEPS, "metrics": part.set_index("name")["value"].to_dict()}
        for step, part in metrics.groupby("step")
    ]
    with run.progress_file.open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def measure(workspace: Workspace, rounds: int) -> dict[str, list[float]]:
    """CPU seconds by name, one value a round."""
    from pages.shared import state

    state.find_workspace = lambda *_: workspace  # type: ignore[assignment]
    seconds: dict[str, list[float]] = {"open_s": [], "again_s": [], "poll_s": []}
    AppTest.from_file(str(PAGE), default_timeout=600).run()  # imports
    seen: dict = {}
    poll(workspace, seen)
    for _ in range(rounds):
        st.cache_data.clear()
        app = AppTest.from_file(str(PAGE), default_timeout=600)
        for name, call in (("open_s", app.run), ("again_s", app.run), ("poll_s", lambda: poll(workspace, seen))):
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
        assert not app.exception and not app.error
    return seconds


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--runs", type=int, nargs="+", default=[2, 200], help="how many runs")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave the last workspace there")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for runs in options.runs:
            root = options.keep if options.keep and runs == options.runs[-1] else Path(folder) / str(runs)
            for name, values in measure(make_workspace(root, runs), 3 if options.quick else 7).items():
                figures[f"{runs}/{name}"] = {
                    "median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values),
                }  # fmt: skip
    report(figures, options)


if __name__ == "__main__":
    main()
