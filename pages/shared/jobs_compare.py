"""Two runs side by side: what was set differently first, then what came of it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.figures.results import make_run_comparison_figure
from metamoe_backend.jobs.run_folder import RunStatus, find_run
from pages.shared.charts import show_figure
from pages.shared.config_form import field_label
from pages.shared.i18n import _
from pages.shared.run_reading import flatten_settings, read_metrics
from pages.shared.run_words import metric_name, metric_text, run_title, state_name
from pages.shared.state import get_workspace
from pages.shared.tables import show_table

NOT_SET = "–"


def compare_settings(first: dict[str, Any], second: dict[str, Any]) -> pd.DataFrame:
    """Settings that differ, as text: setting (dotted), first, second, in the order of the settings class."""
    a, b = flatten_settings(first), flatten_settings(second)
    rows = [
        (name, _as_text(a.get(name)), _as_text(b.get(name)))
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]
    return pd.DataFrame(rows, columns=["setting", "first", "second"])


def _as_text(value: Any) -> str:
    if value is None:
        return NOT_SET
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def compare_results(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The last value of every metric either run reported: metric, first, second (NaN where one has none)."""
    last = [frame.groupby("name", sort=False)["value"].last() for frame in (first, second)]
    names = list(dict.fromkeys([*last[0].index, *last[1].index]))
    return pd.DataFrame(
        {"metric": names, "first": last[0].reindex(names).array, "second": last[1].reindex(names).array}
    )


def render_comparison(statuses: Sequence[RunStatus], shown: RunStatus) -> None:
    """The drawer: nothing is read before it is opened."""
    others = [other for other in statuses if other.stage == shown.stage and other.run_id != shown.run_id]
    if not others:
        return
    with st.expander(
        _("Compare with another run"), icon=":material/compare_arrows:", on_change="rerun", key="jobs_compare"
    ) as drawer:
        if not drawer.open:
            return
        words = {other.run_id: describe(other) for other in others}
        chosen = st.selectbox(
            _("Compare with"), list(words), format_func=lambda run_id: words.get(run_id, run_id),
            key=f"jobs_other_{shown.run_id}",
        )  # fmt: skip
        _render_two(shown.run_id, chosen, describe(shown), words[chosen])


def describe(status: RunStatus) -> str:
    """A run so that two of the same name are told apart."""
    return f"{run_title(status)}, {status.created_at:%m-%d %H:%M:%S} ({state_name(status)})"


def _render_two(first: str, second: str, first_name: str, second_name: str) -> None:
    workspace = get_workspace()
    configs = [find_run(workspace, run_id).read_spec().config for run_id in (first, second)]
    metrics = [read_metrics(first), read_metrics(second)]
    settings, canvas = st.columns([2, 3], gap="medium")
    labels = {"first": first_name, "second": second_name}
    with settings:
        differing = compare_settings(*configs)
        if differing.empty:
            st.caption(_("All settings are equal."))
        else:
            named = differing.assign(setting=[_setting_label(name) for name in differing["setting"]])
            show_table(named, "jobs_differing", labels={"setting": _("Set differently"), **labels})
        results = compare_results(*metrics)
        for column in ("first", "second"):
            results[column] = [
                NOT_SET if pd.isna(value) else metric_text(name, float(value))
                for name, value in zip(results["metric"], results[column], strict=True)
            ]
        if len(results):
            named = results.assign(metric=results["metric"].map(metric_name))
            show_table(named, "jobs_results", labels={"metric": _("Last reported"), **labels})
    curves = pd.concat(
        [frame.assign(run=name) for frame, name in zip(metrics, ("A", "B"), strict=True)], ignore_index=True
    )
    losses = curves[curves["name"].isin(["loss", "eval_loss"])]
    if len(losses):
        with canvas:
            st.caption(_("A: {first}; B: {second}").format(first=first_name, second=second_name))
            words = {"loss": _("training"), "eval_loss": "eval"}
            figure = make_run_comparison_figure(
                losses.assign(name=losses["name"].map(words)), _("loss, nats per token")
            )
            show_figure(figure, key="jobs_compared", alt=_("Loss of two runs over steps"))


def _setting_label(path: str) -> str:
    outer, _dot, name = path.rpartition(".")
    return f"{field_label(name)} ({outer})" if outer else field_label(name)
