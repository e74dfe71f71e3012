"""One adapter trained task after task: what was kept after each step."""

import pandas as pd
import streamlit as st

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.forgetting import (
    compute_accuracies,
    compute_sequence_accuracies,
    find_baselines,
    find_sequences,
    pivot_accuracies,
    summarise_sequence,
    summarise_training_sequence,
)
from metamoe_backend.figures.results import make_accuracy_figure, make_sequence_figure
from pages.shared.charts import show_figure
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.tables import show_table


def render_sequences(predictions: pd.DataFrame, systems: pd.DataFrame) -> None:
    """R[i,j] and the measures of a training sequence whose steps were all evaluated."""
    evaluated = set(predictions["system"])
    found = {each.name: each for each in reversed(find_sequences(systems)) if set(each.steps) <= evaluated}
    if not found:
        _render_chosen_sequence(predictions, systems)
        return
    st.subheader(_("Training in sequence"), anchor=False)
    names = list(reversed(found))
    name = names[0]
    if len(names) > 1:
        name = st.segmented_control(_("Sequence"), names, default=name, required=True, key="forgetting_sequence_name")
    sequence = found[name]
    mixed = next((each for each in find_baselines(systems) if each in evaluated), None)
    others = [each for each in ("base", mixed) if each is not None and each in evaluated]
    try:
        accuracies = compute_sequence_accuracies(predictions, sequence, others)
    except NotFoundError as error:
        st.info(plain(str(error)), icon=":material/play_arrow:")
        return
    before = "base" if "base" in others else None
    left, right = st.columns(2, gap="medium")
    with left:
        note = _("R[i,j]: accuracy in percent after step i on what step j taught; hover for the interval and n.")
        height = max(300, 32 * (len(sequence.steps) + len(others)) + 140)
        figure = make_accuracy_figure(accuracies, [*sequence.steps, *others], sequence.labels, height=height)
        show_figure(figure, key="forgetting_sequence_matrix", alt=note)
        replay = _("{share} of earlier questions replayed").format(share=f"{100 * sequence.replay:g} %")
        st.caption(f"{note} {replay if sequence.replay else _('Nothing was replayed.')}")
    with right:
        note = _("Accuracy over the training steps on what each step taught; the large dot is the step that taught it.")
        figure = make_sequence_figure(accuracies, sequence.steps, sequence.labels, before, height=height)
        show_figure(figure, key="forgetting_sequence_lines", alt=note)
        st.caption(f"{note} {_('Bars: 95 % intervals (Wilson).')}")
    _show_measures(summarise_training_sequence(accuracies, sequence, mixed=mixed), "forgetting_sequence")
    st.caption(_("b: base model; R*: the mixed baseline."))


def _show_measures(frame: pd.DataFrame, key: str) -> None:
    show_table(
        frame.assign(value=100 * frame["value"]),
        key,
        labels={"measure": _("Measure"), "formula": _("Formula")},
        formats={"value": st.column_config.NumberColumn(_("Points"), format="%.1f")},
    )


def _render_chosen_sequence(predictions: pd.DataFrame, systems: pd.DataFrame) -> None:
    """Backward transfer and forgetting, where systems are the steps of one training sequence."""
    with st.expander(_("Training in sequence: backward transfer and forgetting")):
        st.caption(
            _(
                "For systems trained one after the other, each from the one before. Step i learned task i: choose as many steps as tasks, in order."
            )
        )
        there = set(predictions["system"]) - {"base"}
        evaluated = [name for name in systems["system"] if name in there]
        steps = st.multiselect(_("Steps, in order"), evaluated, key="forgetting_steps", placeholder=_("choose steps"))
        tasks = st.multiselect(
            _("Tasks, in order"),
            sorted(predictions["task"].unique()),
            key="forgetting_tasks",
            placeholder=_("choose tasks"),
        )
        if len(steps) < 2 or len(steps) != len(tasks):
            st.info(_("Choose at least two steps and as many tasks."), icon=":material/format_list_numbered:")
            return
        accuracies = compute_accuracies(predictions)
        try:
            after = pivot_accuracies(accuracies, steps, tasks)
            base = pivot_accuracies(accuracies, ["base"], tasks)[0]
        except ConfigError as error:
            st.warning(plain(str(error)))
            return
        _show_measures(summarise_sequence(after, base), "forgetting_chosen_sequence")
