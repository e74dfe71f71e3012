"""All runs as a table: state, what, progress, loss, time, device. Kept up to date by whoever draws it again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.jobs.run_folder import RunStatus, utc_now
from pages.shared.i18n import _
from pages.shared.relabelling import describe_changes, load_label_changes, since_help
from pages.shared.run_reading import read_losses
from pages.shared.run_words import place_text, run_title, stage_name, state_name, time_text
from pages.shared.state import get_selection, get_store, select

_PICKED = "jobs_picked"
_ROW_PX, _MOST_ROWS = 36, 7


def make_rows(
    statuses: Sequence[RunStatus],
    losses: Mapping[str, list[float]],
    now: datetime,
    since: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """One row a run: state, what, progress (0 to 100, NaN while unknown), loss, time, device, author, created_at.

    With `since` (run_id to what relabelling has changed for what it made) there is a column of that name, too, and with
    runs on Slurm a column `where`.
    """
    rows = [
        {
            "state": state_name(status),
            "what": run_title(status),
            "progress": 100.0 * status.done / status.total if status.total else None,
            "loss": losses.get(status.run_id, []),
            "time": time_text(status, now),
            "device": status.device or "–",
            "created_at": status.created_at,
            "author": status.by,
        }
        for status in statuses
    ]
    columns = ["state", "what", "progress", "loss", "time", "device", "created_at", "author"]
    table = pd.DataFrame(rows, columns=columns).astype({"progress": "float64", "created_at": "datetime64[us]"})
    if any(status.profile is not None for status in statuses):
        table.insert(2, "where", [place_text(status) for status in statuses])
    if since:
        table.insert(2, "since", [since.get(status.run_id, "–") for status in statuses])
    return table


def choose_shown(statuses: Sequence[RunStatus], wanted: str | None) -> RunStatus | None:
    """The selected run; without one what runs, else what is newest."""
    by_id = {status.run_id: status for status in statuses}
    if wanted in by_id:
        return by_id[wanted]
    running = [status for status in statuses if status.state == "running"]
    return next(iter([*running, *statuses]), None)


def filter_by_stage(statuses: Sequence[RunStatus]) -> list[RunStatus]:
    """Pills of the stages there are; nothing chosen shows all."""
    stages = list(dict.fromkeys(status.stage for status in statuses if status.stage))
    if len(stages) < 2:
        return list(statuses)
    chosen = st.pills(
        _("Show"), stages, selection_mode="multi", format_func=stage_name, key="jobs_stages",
        label_visibility="collapsed", wrap=True,
    )  # fmt: skip
    return [status for status in statuses if not chosen or status.stage in chosen]


def render_table(statuses: Sequence[RunStatus], shown: RunStatus | None) -> None:
    """The table; a click selects the run and draws the whole page again."""
    if st.session_state.pop(_PICKED, False):
        st.rerun()
    ids = [status.run_id for status in statuses]
    since = describe_changes(load_label_changes(get_store()), "run_id")
    rows = make_rows(statuses, read_losses(list(statuses)), utc_now(), since)
    # The rows a person picked are kept by number, so a table with other rows is another table.
    key = f"jobs_table_{hash(tuple(ids)) & 0xFFFFFFFF:x}"
    at = [ids.index(shown.run_id)] if shown is not None and shown.run_id in ids else []
    st.dataframe(
        rows,
        hide_index=True,
        key=key,
        height=45 + _ROW_PX * min(max(len(ids), 2), _MOST_ROWS),
        column_config=_describe_columns(),
        on_select=lambda: _pick(key, ids),
        selection_mode="single-row",
        selection_default={"selection": {"rows": at, "columns": [], "cells": []}},
        alt=_("Runs, newest first"),
    )


def _describe_columns() -> dict[str, Any]:
    return {
        "state": st.column_config.TextColumn(_("State"), width=80),
        "what": st.column_config.TextColumn(_("What"), width=150),
        "since": st.column_config.TextColumn(_("Labels since"), help=since_help(), width=80),
        "progress": st.column_config.ProgressColumn(
            _("Progress"), format="%.0f%%", min_value=0, max_value=100, width=90
        ),
        "loss": st.column_config.LineChartColumn(_("Loss"), help=_("Training loss over the steps"), width=75),
        "time": st.column_config.TextColumn(_("Time"), help=_("Time left, else how long it took"), width=80),
        "where": st.column_config.TextColumn(
            _("Where"), help=_("This computer, or Slurm: the profile and the job's number"), width=95
        ),
        "device": st.column_config.TextColumn(_("Device"), width=60),
        "created_at": st.column_config.DatetimeColumn(_("Asked for (UTC)"), format="YYYY-MM-DD HH:mm", width=125),
        "author": st.column_config.TextColumn(_("By"), width=70),
    }


def _pick(key: str, ids: Sequence[str]) -> None:
    rows = [row for row in st.session_state[key]["selection"]["rows"] if row < len(ids)]
    run = ids[rows[0]] if rows else None
    if run != get_selection().run:
        select(run=run)
        st.session_state[_PICKED] = True
