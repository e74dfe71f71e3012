"""The parts of the Forgetting page."""

from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.forgetting import (
    compare_systems,
    compute_accuracies,
    compute_differences_to_base,
    compute_own_and_other,
    find_baselines,
    find_changed,
    find_own_tasks,
)
from metamoe_backend.figures.results import make_accuracy_figure, make_difference_figure
from metamoe_backend.store.connection import Store
from pages.shared.charts import clicked_points, show_figure
from pages.shared.i18n import _
from pages.shared.layout import answer_line, plain
from pages.shared.outcome_questions import Chosen, render_question_list, render_side_by_side
from pages.shared.state import open_page, select
from pages.shared.tables import accuracy_text, difference_text, p_column, p_text, show_table

Cell = tuple[str, str] | None
_MOST_WIDE_ROWS = 20
"""The most systems whose rows are high; those of more are lower, so that they can be seen together."""


@st.cache_data(show_spinner=False, max_entries=16)
def _differences(predictions: pd.DataFrame) -> pd.DataFrame:
    return compute_differences_to_base(predictions)


@st.cache_data(show_spinner=False, max_entries=16)
def _own_and_other(predictions: pd.DataFrame, own: dict[str, list[str]]) -> pd.DataFrame:
    return compute_own_and_other(predictions, own)


@st.cache_data(show_spinner=False, max_entries=16)
def _compare(predictions: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    return compare_systems(predictions.assign(part="all"), pairs, "part")


def render_answer(predictions: pd.DataFrame, systems: pd.DataFrame, adapters: pd.DataFrame) -> None:
    """The sentence: the expert that lost most elsewhere, what it gained, and how the mixture fares."""
    evaluated = set(predictions["system"])
    own = find_own_tasks(systems, adapters, evaluated)
    sentences = _say_what_was_lost(_own_and_other(predictions, own)) if own else []
    mixtures = [name for name in systems.loc[systems["kind"] == "moe", "system"] if name in evaluated]
    baselines = [name for name in find_baselines(systems) if name in evaluated]
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
        figure = make_accuracy_figure(compute_accuracies(predictions), evaluated, tasks, _matrix_height(evaluated))
        note = _("Accuracy in percent; hover for the 95 % interval (Wilson) and n.")
    else:
        figure = make_difference_figure(
            _differences(predictions), [name for name in evaluated if name != "base"], tasks,
            height=_matrix_height(evaluated),
        )  # fmt: skip
        note = _(
            "Points against the base model. * exact McNemar p below 0.05 after Holm's correction over the {cells} cells; • the cell's own 95 % interval (paired bootstrap) leaves 0 out."
        ).format(cells=len(_differences(predictions)))
    event = show_figure(figure, key=f"forgetting_{shown}", alt=note, select="points")
    st.caption(note)
    points = clicked_points(event)
    if points and points[0].get("customdata"):
        system, task = points[0]["customdata"][:2]
        return str(system), str(task)
    return None


def _matrix_height(systems: list[str]) -> int:
    return max(360, (32 if len(systems) <= _MOST_WIDE_ROWS else 22) * len(systems) + 140)


def render_cell(predictions: pd.DataFrame, cell: Cell) -> None:
    """The numbers of a system on a task: its accuracy, the base model's, and the test between the two."""
    if cell is None:
        st.info(_("Click a cell to see which questions were lost and gained."), icon=":material/touch_app:")
        return
    system, task = cell
    st.markdown(f"**{plain(system)}** · {plain(task)}")
    of_task = predictions[predictions["task"] == task]
    accuracies = compute_accuracies(of_task).set_index("system")
    row = accuracies.loc[system]
    st.metric(_("Accuracy"), accuracy_text(row["accuracy"], row["low"], row["high"], int(row["n"])))
    if system == "base":
        return
    base = accuracies.loc["base"]
    st.text(
        _("Base: {accuracy}").format(
            accuracy=accuracy_text(base["accuracy"], base["low"], base["high"], int(base["n"]))
        )
    )
    cells = _differences(predictions)
    found = cells[(cells["system"] == system) & (cells["task"] == task)].iloc[0]
    st.text(_("Difference: {difference}").format(difference=_difference(found)))
    st.text(_("Lost: {lost}, gained: {gained}").format(lost=int(found["lost"]), gained=int(found["gained"])))
    st.text(
        _("Exact McNemar p = {p}; after Holm's correction over {cells} cells {adjusted}").format(
            p=f"{found['p']:.2g}", cells=len(cells), adjusted=f"{found['p_holm']:.2g}"
        )
    )


def render_changed(store: Store, predictions: pd.DataFrame, cell: Cell) -> None:
    """The questions a system lost and those it gained on a task, and the one that is picked with all its answers."""
    if cell is None or cell[0] == "base":
        return
    system, task = cell
    lost, gained = find_changed(predictions, system, task)
    picked = None
    for column, name, ids in zip(st.columns(2), ("lost", "gained"), (lost, gained), strict=True):
        title = _("Lost: {n} questions") if name == "lost" else _("Gained: {n} questions")
        with column:
            chosen = Chosen(title.format(n=len(ids)), ids)
            key = f"forgetting_{name}_{system}_{task}"
            picked = render_question_list(predictions, chosen, key, ["base", system], about=(), height=240) or picked
    changed = [*lost, *gained]
    if changed and st.button(_("All {n} on the Outcomes page").format(n=len(changed)), key="forgetting_open"):
        select(questions=changed, why=f"{system} × {task}")
        open_page("outcomes")
    if picked:
        render_side_by_side(store, picked)


def render_own_and_other(predictions: pd.DataFrame, systems: pd.DataFrame, adapters: pd.DataFrame) -> None:
    """Each expert on the tasks it learned and on the others; each mixture against each baseline."""
    own = find_own_tasks(systems, adapters, set(predictions["system"]))
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
            "p": frame["p"].map(p_text),
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
            "p": p_column(),
        },
    )
