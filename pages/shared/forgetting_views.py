"""The parts of the Forgetting page."""

from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.forgetting import (
    compare_systems,
    compute_accuracies,
    compute_differences_to_base,
    compute_own_and_other,
    compute_sequence_accuracies,
    find_baselines,
    find_sequences,
    pivot_accuracies,
    summarise_sequence,
    summarise_training_sequence,
)
from metamoe_backend.figures.results import make_accuracy_figure, make_difference_figure
from pages.shared.charts import clicked_points, show_figure
from pages.shared.i18n import _
from pages.shared.layout import answer_line, plain, question_text
from pages.shared.state import open_page, select
from pages.shared.tables import accuracy_text, difference_text, show_table

Cell = tuple[str, str] | None


@st.cache_data(show_spinner=False, max_entries=16)
def _differences(predictions: pd.DataFrame) -> pd.DataFrame:
    return compute_differences_to_base(predictions)


@st.cache_data(show_spinner=False, max_entries=16)
def _own_and_other(predictions: pd.DataFrame, own: dict[str, list[str]]) -> pd.DataFrame:
    return compute_own_and_other(predictions, own)


@st.cache_data(show_spinner=False, max_entries=16)
def _compare(predictions: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    return compare_systems(predictions.assign(part="all"), pairs, "part")


def own_tasks(systems: pd.DataFrame, adapters: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, list[str]]:
    """Expert to the tasks it learned, for evaluated experts whose training tasks are known."""
    evaluated = set(predictions["system"])
    experts = set(systems.loc[systems["kind"] == "expert", "system"]) & evaluated
    return {
        row.adapter: list(row.trained_on)
        for row in adapters.itertuples()
        if row.adapter in experts and len(row.trained_on)
    }


def render_answer(predictions: pd.DataFrame, systems: pd.DataFrame, adapters: pd.DataFrame) -> None:
    """The sentence: the expert that lost most elsewhere, what it gained, and how the mixture fares."""
    own = own_tasks(systems, adapters, predictions)
    sentences = _say_what_was_lost(_own_and_other(predictions, own)) if own else []
    mixtures = [name for name in systems.loc[systems["kind"] == "moe", "system"] if name in set(predictions["system"])]
    baselines = [name for name in find_baselines(systems) if name in set(predictions["system"])]
    if mixtures and baselines:
        row = _compare(predictions, [(mixtures[0], baselines[0])]).iloc[0]
        sentences.append(
            _("The mixture {moe} stands {difference} against the mixed baseline over all tasks (n={n}).").format(
                moe=plain(mixtures[0]), difference=_difference(row), n=int(row["n"])
            )
        )
    answer_line(" ".join(sentences) or _("The difference of each system to the base model, task by task."))


def _say_what_was_lost(changes: pd.DataFrame) -> list[str]:
    """A sentence on the expert with the worst change on tasks that are not its own; none where own tasks are missing."""
    parts = changes.set_index(["system", "part"])
    by_part = parts["difference"].unstack("part").reindex(columns=["own", "other"]).dropna(subset="own")
    if by_part.empty:
        return []
    elsewhere = by_part["other"].dropna()
    expert = elsewhere.idxmin() if len(elsewhere) else by_part["own"].idxmax()
    sentence = _("Expert {expert} gained {gain} on its own tasks and changed by {other} on the others.").format(
        expert=plain(expert),
        gain=_difference(parts.loc[(expert, "own")]),
        other=_difference(parts.loc[(expert, "other")]) if len(elsewhere) else "–",
    )
    return [sentence]


def _difference(row: Any) -> str:
    return difference_text(row["difference"], row["low"], row["high"])


def render_matrix(predictions: pd.DataFrame, evaluated: list[str]) -> Cell:
    """Systems x tasks as differences or accuracies; returns the clicked (system, task)."""
    shown = st.segmented_control(
        _("Show"),
        ["difference", "accuracy"],
        default="difference",
        format_func={"difference": _("Difference to base"), "accuracy": _("Accuracy")}.get,
        key="forgetting_view",
        bind="query-params",
        label_visibility="collapsed",
    )
    tasks = sorted(predictions["task"].unique())
    if shown == "accuracy":
        figure = make_accuracy_figure(compute_accuracies(predictions), evaluated, tasks)
        note = _("Accuracy in percent; hover for the 95 % interval (Wilson) and n.")
    else:
        figure = make_difference_figure(
            _differences(predictions), [name for name in evaluated if name != "base"], tasks
        )
        note = _("Points against the base model; a dot marks a 95 % interval (paired bootstrap) that leaves 0 out.")
    event = show_figure(figure, key=f"forgetting_{shown}", alt=note, select="points")
    st.caption(note)
    points = clicked_points(event)
    if points and points[0].get("customdata"):
        system, task = points[0]["customdata"][:2]
        return str(system), str(task)
    return None


def render_cell(predictions: pd.DataFrame, cell: Cell) -> None:
    """The questions a system lost and gained on a task."""
    if cell is None:
        st.info(_("Click a cell to see which questions were lost and gained."), icon=":material/touch_app:")
        return
    system, task = cell
    st.markdown(f"**{plain(system)}** · {plain(task)}")
    of_task = predictions[predictions["task"] == task].set_index("question_id")
    base = of_task[of_task["system"] == "base"]["correct"]
    here = of_task[of_task["system"] == system]
    accuracy = compute_accuracies(predictions[(predictions["task"] == task) & (predictions["system"] == system)])
    if len(accuracy):
        row = accuracy.iloc[0]
        st.metric(_("Accuracy"), accuracy_text(row["accuracy"], row["low"], row["high"], int(row["n"])))
    joined = here.join(base.rename("base_correct"), how="inner")
    lost = joined[joined["base_correct"] & ~joined["correct"]]
    gained = joined[~joined["base_correct"] & joined["correct"]]
    for label, rows in ((_("Lost"), lost), (_("Gained"), gained)):
        st.caption(f"{label}: {len(rows)}")
        for question_id, row in rows.head(4).iterrows():
            with st.container(border=True):
                question_text(
                    str(row["prompt"]), key=f"forgetting_{system}_{question_id}", question_id=str(question_id)
                )
                st.text(_("answered: {answer}").format(answer=row["output"]))
    changed = [*lost.index, *gained.index]
    if changed and st.button(_("All {n} side by side").format(n=len(changed)), key="forgetting_open"):
        select(questions=changed, why=f"{system} × {task}")
        open_page("outcomes")


def render_own_and_other(predictions: pd.DataFrame, systems: pd.DataFrame, adapters: pd.DataFrame) -> None:
    """Each expert on the tasks it learned and on the others; each mixture against each baseline."""
    own = own_tasks(systems, adapters, predictions)
    if own:
        st.subheader(_("What each expert gained and lost"), anchor=False)
        st.caption(_("Experts trained side by side have no order: E[i,j] − b[j], pooled over own and other tasks."))
        _show_comparison(_own_and_other(predictions, own), "forgetting_own", "part")
    evaluated = set(predictions["system"])
    of_kind = {kind: [n for n in part["system"] if n in evaluated] for kind, part in systems.groupby("kind")}
    rivals = ["base", *of_kind.get("mixed", []), *of_kind.get("expert", [])]
    pairs = [(moe, rival) for moe in of_kind.get("moe", []) for rival in rivals if rival in evaluated]
    if pairs:
        st.subheader(_("Mixtures against everything else, over all tasks"), anchor=False)
        _show_comparison(_compare(predictions, pairs), "forgetting_versus", None)


def _show_comparison(frame: pd.DataFrame, key: str, part: str | None) -> None:
    names = {"own": _("own tasks"), "other": _("other tasks")}
    shown = pd.DataFrame(
        {
            "system": frame["system"],
            "reference": frame["reference"],
            **({"part": frame[part].map(lambda value: names.get(value, value))} if part else {}),
            "difference": [_difference(row) for _, row in frame.iterrows()],
            "accuracy": 100 * frame["accuracy"],
            "reference_accuracy": 100 * frame["reference_accuracy"],
            "gained": frame["gained"],
            "lost": frame["lost"],
            "p": frame["p"],
            "n": frame["n"],
        }
    )
    show_table(
        shown,
        key,
        labels={
            "system": _("System"),
            "reference": _("Against"),
            "part": _("Tasks"),
            "difference": _("Difference (95 % interval)"),
            "gained": _("Gained"),
            "lost": _("Lost"),
            "n": "n",
        },
        formats={
            "accuracy": st.column_config.NumberColumn(_("Accuracy, %"), format="%.1f"),
            "reference_accuracy": st.column_config.NumberColumn(_("Reference, %"), format="%.1f"),
            "p": st.column_config.NumberColumn("p (McNemar)", format="%.3f"),
        },
    )


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
    left, right = st.columns([2, 3], gap="medium")  # a formula is never cut off
    with left:
        note = _("R[i,j]: accuracy in percent after step i on what step j taught; hover for the interval and n.")
        figure = make_accuracy_figure(accuracies, [*sequence.steps, *others], sequence.labels, height=300)
        show_figure(figure, key="forgetting_sequence_matrix", alt=note)
        replay = _("{share} of earlier questions replayed").format(share=f"{100 * sequence.replay:g} %")
        st.caption(f"{note} {replay if sequence.replay else _('Nothing was replayed.')}")
    with right:
        frame = summarise_training_sequence(accuracies, sequence, mixed=mixed)
        _show_measures(frame, "forgetting_sequence")
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
        evaluated = [name for name in systems["system"] if name in set(predictions["system"]) and name != "base"]
        steps = st.multiselect(_("Steps, in order"), evaluated, key="forgetting_steps")
        tasks = st.multiselect(_("Tasks, in order"), sorted(predictions["task"].unique()), key="forgetting_tasks")
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
