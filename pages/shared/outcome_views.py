"""The parts of the Outcomes page."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.answers import ALL_TASKS, compute_answer_table
from metamoe_backend.evaluate.outcomes import (
    BEST_SINGLE,
    MAJORITY,
    NO_SKILL,
    compare_with_best_expert,
    compute_error_rates,
    compute_outcomes,
    count_intersections,
    count_outcomes,
    count_solvers,
    find_best_single,
    find_complete,
    find_solved_by,
    tabulate_part,
)
from metamoe_backend.figures.outcomes import (
    make_error_figure,
    make_intersections_figure,
    make_outcomes_figure,
    make_solvers_figure,
)
from pages.shared.charts import clicked_points, show_figure
from pages.shared.i18n import _, ngettext
from pages.shared.layout import answer_line, plain
from pages.shared.outcome_questions import Chosen
from pages.shared.state import segment_in_address, select_in_address
from pages.shared.tables import difference_text, p_column, p_text, percent, show_table

MOST_SETS = 24
"""Sets of solvers that are drawn; the smaller ones are counted."""
MOST_LEFT_OUT = 4
"""Systems left out of a figure that are named; the others are counted."""

_outcomes = st.cache_data(show_spinner=False, max_entries=32)(compute_outcomes)
_errors = st.cache_data(show_spinner=False, max_entries=32)(compute_error_rates)
_best = st.cache_data(show_spinner=False, max_entries=32)(compare_with_best_expert)
_part = st.cache_data(show_spinner=False, max_entries=32)(tabulate_part)
_solved = st.cache_data(show_spinner=False, max_entries=32)(compute_answer_table)


@dataclass(frozen=True)
class View:
    """What the page is about: the experts compared, the mixture held against them, and what is counted apart."""

    predictions: pd.DataFrame
    systems: pd.DataFrame
    experts: list[str]
    mixture: str | None
    group: str
    """task or skill."""

    @property
    def evaluated(self) -> list[str]:
        there = set(self.predictions["system"])
        return [name for name in self.systems["system"] if name in there]


Part = tuple[str | None, str]
"""Task or skill (None: all tasks) and outcome that the person is looking at."""


def outcome_name(outcome: str) -> str:
    return {"all-correct": _("all correct"), "mixed": _("mixed"), "all-incorrect": _("all incorrect")}.get(
        outcome, outcome
    )


def group_name(name: str | None) -> str:
    """A task or skill as it is called, and what stands for all or none of them."""
    return {None: _("all tasks"), ALL_TASKS: _("all tasks"), NO_SKILL: _("no skill")}.get(name) or plain(str(name))


def choose_view(predictions: pd.DataFrame, systems: pd.DataFrame) -> View:
    """The experts whose answers define the outcomes (all evaluated ones unless the person says otherwise), and more."""
    evaluated = set(predictions["system"])
    of_kind = {
        kind: [name for name in systems.loc[systems["kind"] == kind, "system"] if name in evaluated]
        for kind in ("expert", "moe")
    }
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        experts = st.pills(
            _("Over the experts"), of_kind["expert"], selection_mode="multi", default=of_kind["expert"],
            key="outcomes_experts", bind="query-params", width="content", wrap=True,
        )  # fmt: skip
        groups = {"task": _("Tasks"), "skill": _("Skills")}
        group = segment_in_address(_("Counted apart"), groups, "outcomes_by")
        mixture = of_kind["moe"][0] if of_kind["moe"] else None
        if len(of_kind["moe"]) > 1:
            names = {name: name for name in of_kind["moe"]}
            mixture = select_in_address(_("Mixture"), list(names), "outcomes_mixture", lambda name: name)
    return View(predictions, systems, list(experts), mixture, group)


def render_answer(view: View) -> None:
    """The mixture against the best expert on the mixed part, over all tasks."""
    counts = count_outcomes(_outcomes(view.predictions, view.experts))
    total = counts[counts["task"] == ALL_TASKS].set_index("outcome")["questions"]
    mixed = int(total.get("mixed", 0))
    if view.mixture is None:
        answer_line(
            _(
                "{mixed} of {n} questions are mixed: some experts solve them, others do not. No mixture is evaluated yet."
            ).format(mixed=mixed, n=int(total.sum()))
        )
        return
    table = _best(view.predictions, view.experts, view.mixture)
    row = table[table["task"] == ALL_TASKS].iloc[0] if len(table) else None
    if row is None or not row["n"]:
        answer_line(_("The experts never disagree here: no question is mixed."))
        return
    sentence = _(
        "Mixture {moe} solves {share} of the {n} mixed questions, the best expert ({expert}) {expert_share}: {difference}"
    ).format(
        moe=plain(view.mixture),
        share=percent(row["accuracy"]),
        n=int(row["n"]),
        expert=plain(row["expert"]),
        expert_share=percent(row["expert_accuracy"]),
        difference=difference_text(row["difference"], row["low"], row["high"]),
    )
    answer_line(sentence + (_(".") if row["shown"] else _(": not yet shown.")))
    st.caption(
        _(
            "95 % interval by paired bootstrap; exact McNemar p = {p}. The best expert is picked on these very questions: a generous rival."
        ).format(p=f"{row['p']:.2g}")
    )


# ---- the figures, each of which opens questions ----------------------------------------------------------------------


def render_outcome_bars(view: View) -> tuple[Part, Chosen]:
    """A stacked bar a task or skill; returns the part that was clicked (default: the mixed part of all tasks)."""
    outcomes = _outcomes(view.predictions, view.experts)
    counts = count_outcomes(outcomes, view.group)
    figure = make_outcomes_figure(counts, view.group, height=_bars_height(counts[view.group].nunique()))
    alt = _("Share of questions that all, some or none of the experts solve, per task.")
    points = clicked_points(show_figure(figure, key=f"outcomes_bars_{view.group}", alt=alt, select="points"))
    name, outcome = _clicked_group(points) or (None, "mixed")
    ids = outcomes.loc[outcomes["outcome"].eq(outcome) & _is_of(outcomes, view.group, name), "question_id"].tolist()
    title = _("{n} questions: {outcome}, {task}").format(
        n=len(ids), outcome=outcome_name(outcome), task=group_name(name)
    )
    return (name, outcome), Chosen(title, ids, bool(points))


def render_solver_bars(view: View) -> tuple[Part, Chosen]:
    """A stacked bar a task or skill: how many of the experts solve a question."""
    outcomes = _outcomes(view.predictions, view.experts)
    counts = count_solvers(outcomes, view.group)
    figure = make_solvers_figure(counts, view.group, height=_bars_height(counts[view.group].nunique()))
    alt = _("Share of questions that exactly so many of the experts solve, per task.")
    points = clicked_points(show_figure(figure, key=f"outcomes_solvers_{view.group}", alt=alt, select="points"))
    name, number = _clicked_group(points) or (None, 1)
    ids = outcomes.loc[
        outcomes["correct_experts"].eq(int(number)) & _is_of(outcomes, view.group, name), "question_id"
    ].tolist()
    title = _("{n} questions that {k} of {experts} experts solve, {task}").format(
        n=len(ids), k=number, experts=len(view.experts), task=group_name(name)
    )
    return (name, "mixed"), Chosen(title, ids, bool(points))


def render_intersections(view: View) -> tuple[Part, Chosen]:
    """Who solves what: the sets of solvers, largest first."""
    outcomes = _outcomes(view.predictions, view.experts)
    names = [ALL_TASKS, *sorted(outcomes[view.group].unique())]
    label = _("Questions of the task") if view.group == "task" else _("Questions of the skill")
    name: str | None = select_in_address(label, names, f"outcomes_of_{view.group}", group_name)
    name = None if name == ALL_TASKS else name
    ids = outcomes.loc[_is_of(outcomes, view.group, name), "question_id"]
    solved = _solved(view.predictions, view.experts)
    solved = solved[solved.index.get_level_values("question_id").isin(ids)]
    found = count_intersections(solved)
    drawn = found.head(MOST_SETS)
    figure = make_intersections_figure(drawn, view.experts, height=260 + 28 * len(view.experts))
    alt = _("Number of questions that exactly these experts solve, the largest set first.")
    points = clicked_points(show_figure(figure, key=f"outcomes_sets_{view.group}_{name}", alt=alt, select="points"))
    note = _(
        "A bar counts the questions that exactly the experts marked below it solve; beside each expert, all it solves."
    )
    if len(found) > len(drawn):
        note += " " + _("{sets} smaller sets with {n} questions are not drawn.").format(
            sets=len(found) - len(drawn), n=int(found["questions"].iloc[MOST_SETS:].sum())
        )
    st.caption(note)
    solvers: list[str] = drawn["solvers"].iloc[0] if len(drawn) else []
    if points and points[0].get("customdata"):
        place = int(points[0]["customdata"][0])
        solvers = drawn["solvers"].iloc[place] if place < len(drawn) else solvers
    chosen = find_solved_by(solved, solvers)
    who = ", ".join(plain(each) for each in solvers) or _("nobody")
    title = _("{n} questions solved by exactly: {who}; {task}").format(n=len(chosen), who=who, task=group_name(name))
    return (name, "mixed"), Chosen(title, chosen, bool(points))


def _bars_height(bars: int) -> int:
    return max(260, 42 * bars + 90)


def _clicked_group(points: Sequence[dict]) -> tuple[str | None, str] | None:
    """The task or skill (None: all) and the value of a clicked bar."""
    if not points or not points[0].get("customdata"):
        return None
    name, value = points[0]["customdata"][:2]
    return (None if name == ALL_TASKS else str(name)), str(value)


def _is_of(frame: pd.DataFrame, group: str, name: str | None) -> pd.Series:
    return frame[group].eq(name) if name else pd.Series(True, index=frame.index)


# ---- who errs, and by how much ---------------------------------------------------------------------------------------


def render_errors(view: View, part: Part) -> Chosen | None:
    """Every system's error rate on the part, with the oracle as the bound; returns the errors that were clicked."""
    name, outcome = part
    others = _find_comparable(view, name)
    errors = _errors(view.predictions, view.experts, others, outcome, view.group)
    errors = errors[errors[view.group] == (name or ALL_TASKS)]
    n = int(errors["n"].max()) if len(errors) else 0
    st.markdown(
        _("**Error rate on the {outcome} part** of {task}, n={n}").format(
            outcome=outcome_name(outcome), task=group_name(name), n=n
        )
    )
    if n == 0:
        st.info(_("No question of this kind here."), icon=":material/inbox:")
        return None
    kinds = dict(zip(view.systems["system"], view.systems["kind"], strict=True))
    alt = _("Error rate per system with 95 % intervals; dotted line: oracle.")
    figure = make_error_figure(errors, kinds)
    event = show_figure(figure, key=f"outcomes_errors_{view.group}_{name}_{outcome}", alt=alt, select="points")
    st.caption(f"{alt} {_('Click a point to see the errors.')}")
    left_out = [each for each in view.evaluated if each not in others]
    if left_out:
        names = ", ".join(left_out[:MOST_LEFT_OUT]) + (" …" if len(left_out) > MOST_LEFT_OUT else "")
        text = ngettext("{n} system that did not answer all of these questions is left out: {names}", "{n} systems that did not answer all of these questions are left out: {names}", len(left_out))  # fmt: skip
        st.caption(text.format(n=len(left_out), names=plain(names)))
    points = clicked_points(event)
    if not points or not points[0].get("customdata"):
        return None
    return _find_errors(view, part, str(points[0]["customdata"][0]))


def _find_comparable(view: View, name: str | None) -> list[str]:
    """The systems that answered all questions of a task or skill: one that did not would take some from all others."""
    predictions = view.predictions
    asked = predictions if name is None else predictions[predictions[view.group].fillna(NO_SKILL) == name]
    return find_complete(asked, view.experts, view.evaluated)


def _find_errors(view: View, part: Part, system: str) -> Chosen:
    name, outcome = part
    others = [each for each in _find_comparable(view, name) if each not in view.experts]
    solved = _part(view.predictions, view.experts, others, outcome)
    outcomes = _outcomes(view.predictions, view.experts)
    ids = set(outcomes.loc[_is_of(outcomes, view.group, name), "question_id"])
    solved = solved[solved.index.get_level_values("question_id").isin(ids)]
    system = find_best_single(solved, view.experts) if system == BEST_SINGLE else system
    wrong = solved.index[~solved[system]].get_level_values("question_id").tolist()
    title = _("{n} errors of {system}: {outcome}, {task}").format(
        n=len(wrong),
        system=_("majority vote") if system == MAJORITY else plain(system),
        outcome=outcome_name(outcome),
        task=group_name(name),
    )
    return Chosen(title, wrong, True)


def render_comparison(view: View) -> Chosen | None:
    """The mixture against the best expert on the mixed part of each task; returns the questions of a picked row."""
    if view.mixture is None:
        st.info(_("No mixture is evaluated yet."), icon=":material/inbox:")
        return None
    frame = _best(view.predictions, view.experts, view.mixture, "mixed", view.group)
    frame = frame[frame["n"] > 0].reset_index(drop=True)
    st.markdown(_("**Mixture {moe} against the best expert** on the mixed part").format(moe=plain(view.mixture)))
    shown = pd.DataFrame(
        {
            "name": frame[view.group].map(lambda name: _("all tasks") if name == ALL_TASKS else name),
            "expert": frame["expert"],
            "difference": [difference_text(row.difference, row.low, row.high) for row in frame.itertuples()],
            "accuracy": 100 * frame["accuracy"],
            "expert_accuracy": 100 * frame["expert_accuracy"],
            "only_system": frame["only_system"],
            "only_expert": frame["only_expert"],
            "p": frame["p"].map(p_text),
            "n": frame["n"],
        }
    )
    picked = show_table(
        shown,
        f"outcomes_versus_{view.group}",
        labels={
            "name": _("Task") if view.group == "task" else _("Skill"),
            "expert": _("Best expert"),
            "difference": _("Difference (95 % interval)"),
            "only_system": _("Only the mixture"),
            "only_expert": _("Only the expert"),
            "n": "n",
        },
        formats={
            "accuracy": st.column_config.NumberColumn(_("Mixture, %"), format="%.1f"),
            "expert_accuracy": st.column_config.NumberColumn(_("Best expert, %"), format="%.1f"),
            "p": p_column(),
        },
        select="single-row",
    )
    st.caption(_("Questions only one of the two solves decide; pick a row to see them. Intervals: paired bootstrap."))
    if picked.empty:
        return None
    row = frame.loc[picked.index[0]]
    name = None if row[view.group] == ALL_TASKS else str(row[view.group])
    outcomes = _outcomes(view.predictions, view.experts)
    ids = set(outcomes.loc[_is_of(outcomes, view.group, name), "question_id"])
    solved = _part(view.predictions, view.experts, [view.mixture], "mixed")
    one_only = solved[view.mixture] != solved[row["expert"]]
    found = [each for each in solved.index[one_only].get_level_values("question_id") if each in ids]
    title = _("{n} mixed questions that only one of {moe} and {expert} solves, {task}").format(
        n=len(found), moe=plain(view.mixture), expert=plain(row["expert"]), task=group_name(name)
    )
    return Chosen(title, found, True)
