"""Up to four runs beside each other: what was set differently first, then what came of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.figures.results import RUN_COLOURS, make_run_comparison_figure
from metamoe_backend.jobs.run_folder import RunStatus, find_run
from pages.shared.charts import show_figure
from pages.shared.config_form import field_label
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.run_reading import flatten_settings, read_metrics
from pages.shared.run_words import metric_name, metric_text, run_title, state_name
from pages.shared.state import get_workspace
from pages.shared.tables import show_table

NOT_SET = "–"
LETTERS = ("A", "B", "C", "D")[: len(RUN_COLOURS)]


def compare_settings(configs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Settings in which the runs differ, as text: setting (dotted), then a column a run; in the order of the settings."""
    flat = {run: flatten_settings(dict(config)) for run, config in configs.items()}
    names = dict.fromkeys(name for settings in flat.values() for name in settings)
    rows = [
        [name, *(_as_text(settings.get(name)) for settings in flat.values())]
        for name in names
        if len({_as_text(settings.get(name)) for settings in flat.values()}) > 1
    ]
    return pd.DataFrame(rows, columns=["setting", *flat])


def _as_text(value: Any) -> str:
    if value is None:
        return NOT_SET
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def compare_results(metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The last value of every metric that any run reported: metric, then a column a run (NaN where one has none)."""
    last = {run: frame.groupby("name", sort=False)["value"].last() for run, frame in metrics.items()}
    names = list(dict.fromkeys(name for values in last.values() for name in values.index))
    return pd.DataFrame({"metric": names, **{run: values.reindex(names).array for run, values in last.items()}})


def render_comparison(statuses: Sequence[RunStatus], shown: RunStatus) -> None:
    """The drawer: nothing is read before it is opened."""
    others = [other for other in statuses if other.stage == shown.stage and other.run_id != shown.run_id]
    if not others:
        return
    with st.expander(
        _("Compare with other runs"), icon=":material/compare_arrows:", on_change="rerun", key="jobs_compare"
    ) as drawer:
        if not drawer.open:
            return
        words = {other.run_id: describe(other) for other in others}
        chosen = st.multiselect(
            _("Compare with"), list(words), default=[_choose_first(others).run_id], max_selections=len(LETTERS) - 1,
            format_func=lambda run_id: words.get(run_id, run_id), key=f"jobs_others_{shown.run_id}",
        )  # fmt: skip
        if chosen:
            words[shown.run_id] = describe(shown)
            _render_runs(dict(zip(LETTERS, [shown.run_id, *chosen], strict=False)), words)
        else:
            st.caption(_("Choose up to {n} runs.").format(n=len(LETTERS) - 1))


def _choose_first(others: Sequence[RunStatus]) -> RunStatus:
    """The newest that has something to compare."""
    return next((other for other in others if other.metrics), others[0])


def describe(status: RunStatus) -> str:
    """A run so that two of the same name are told apart."""
    return f"{run_title(status)}, {status.created_at:%m-%d %H:%M:%S} ({state_name(status)})"


def _render_runs(runs: Mapping[str, str], words: Mapping[str, str]) -> None:
    """runs: letter to run id; words: what each run is called."""
    workspace = get_workspace()
    metrics = {letter: read_metrics(run_id) for letter, run_id in runs.items()}
    st.markdown("  \n".join(f"**{letter}** {plain(words[run_id])}" for letter, run_id in runs.items()))
    if len(runs) == 2:
        settings, canvas = st.columns(2, gap="medium")
    else:
        settings, canvas = st.container(), st.container()  # more columns than fit beside the figure
    with settings:
        differing = compare_settings(
            {letter: find_run(workspace, run_id).read_spec().config for letter, run_id in runs.items()}
        )
        if differing.empty:
            st.caption(_("All settings are equal."))
        else:
            named = differing.assign(setting=[_setting_label(name) for name in differing["setting"]])
            show_table(named, "jobs_differing", labels={"setting": _("Set differently")})
        results = compare_results(metrics)
        for letter in runs:
            results[letter] = [
                NOT_SET if pd.isna(value) else metric_text(name, float(value))
                for name, value in zip(results["metric"], results[letter], strict=True)
            ]
        if len(results):
            named = results.assign(metric=results["metric"].map(metric_name))
            show_table(named, "jobs_results", labels={"metric": _("Last reported")})
    curves = pd.concat([frame.assign(run=letter) for letter, frame in metrics.items()], ignore_index=True)
    losses = curves[curves["name"].isin(["loss", "eval_loss"])]
    if len(losses):
        with canvas:
            words = {"loss": _("training"), "eval_loss": "eval"}
            figure = make_run_comparison_figure(
                losses.assign(name=losses["name"].map(words)), _("loss, nats per token"), height=360
            )
            show_figure(figure, key="jobs_compared", alt=_("Loss of {n} runs over steps").format(n=len(runs)))


def _setting_label(path: str) -> str:
    outer, _dot, name = path.rpartition(".")
    return f"{field_label(name)} ({outer})" if outer else field_label(name)
