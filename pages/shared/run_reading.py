"""How runs stand and what they report, read off their folders often and cheaply: ended runs are remembered."""

import threading
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, find_run
from metamoe_backend.jobs.supervisor import Seen, poll
from metamoe_backend.store.connection import Store
from metamoe_backend.store.runs import fetch_losses, fetch_metrics
from pages.shared.state import get_store, get_workspace, per_version, per_version_shared

ACTIVE = ("queued", "running")
LEARNING_STAGES = ("train", "moe")
_SPARKLINE_POINTS = 30


@st.cache_resource(show_spinner=False, max_entries=8)
def _remembered(root: str) -> tuple[threading.Lock, Seen]:  # noqa: ARG001 - one memory a workspace
    return threading.Lock(), {}


def read_statuses() -> list[RunStatus]:
    """All runs, newest first. Sees to it that somebody works on the queue, too."""
    workspace = get_workspace()
    lock, seen = _remembered(str(workspace.root))
    with lock:
        return poll(workspace, seen)


def read_metrics(run_id: str) -> pd.DataFrame:
    """What a run reported so far: step, name, value. From its folder, or from the database where that tells nothing."""
    run = find_run(get_workspace(), run_id)
    size = run.progress_file.stat().st_size if run.progress_file.is_file() else 0
    reported = _read_progress(str(run.path), size)
    return reported if len(reported) else _load_metrics(get_store(), run_id)


def read_losses(statuses: list[RunStatus]) -> dict[str, list[float]]:
    """Training loss by run, thinned for a sparkline. Runs that do not learn are left out."""
    ended = _load_losses(get_store())
    found = {}
    for status in statuses:
        if status.stage not in LEARNING_STAGES:
            continue
        values = ended.get(status.run_id)
        if values is None or status.state in ACTIVE:
            metrics = read_metrics(status.run_id)
            values = metrics.loc[metrics["name"] == "loss", "value"].tolist()
        found[status.run_id] = thin_out(values)
    return found


def thin_out(values: list[float], points: int = _SPARKLINE_POINTS) -> list[float]:
    """At most `points` of the values, evenly spread, the last one always among them."""
    step = -(-len(values) // points) or 1
    return values[::-1][::step][::-1]


def flatten_settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@st.cache_data(show_spinner=False, max_entries=256)
def _read_progress(path: str, size: int) -> pd.DataFrame:  # noqa: ARG001 - read again when the file has grown
    return RunFolder(Path(path)).read_progress()[["step", "name", "value"]]


@per_version
def _load_metrics(store: Store, run_id: str) -> pd.DataFrame:
    return fetch_metrics(store, run_id)


@per_version_shared
def _load_losses(store: Store) -> dict[str, list[float]]:
    return fetch_losses(store)
