"""The parts of the Outcomes page."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from metamoe_backend.evaluate.outcomes import (
    compare_with_best_expert,
    compute_error_rates,
    compute_outcomes,
    count_outcomes,
)
from metamoe_backend.figures.results import make_error_figure, make_outcomes_figure
from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_questions
from metamoe_backend.store.results import fetch_answers, fetch_mixtures_with_activations, fetch_routes
from pages.shared.charts import clicked_points, show_figure
from pages.shared.i18n import _
from pages.shared.layout import answer_line, plain, question_text
from pages.shared.state import open_page, select
from pages.shared.tables import difference_text, percent, show_table

Part = tuple[str | None, str]
"""Task (None: all) and outcome that the person is looking at."""

_outcomes = st.cache_data(show_spinner=False, max_entries=32)(compute_outcomes)
_errors = st.cache_data(show_spinner=False, max_entries=32)(compute_error_rates)
_best = st.cache_data(show_spinner=False, max_entries=32)(compare_with_best_expert)


def outcome_name(outcome: str) -> str:
    return {"all-correct": _("all correct"), "mixed": _("mixed"), "all-incorrect": _("all incorrect")}.get(
        outcome, outcome
    )


def choose_experts(predictions: pd.DataFrame, systems: pd.DataFrame) -> list[str]:
    """The experts whose answers define the outcomes; all evaluated ones unless the person says otherwise."""
    evaluated = set(predictions["system"])
    experts = [name for name in systems.loc[systems["kind"] == "expert", "system"] if name in evaluated]
    return st.pills(
        _("Over the experts"), experts, selection_mode="multi", default=experts, key="outcomes_experts",
        bind="query-params",
    )  # fmt: skip


def render_answer(predictions: pd.DataFrame, systems: pd.DataFrame, experts: Sequence[str]) -> None:
    """The mixture against the best expert on the mixed part, over all tasks."""
    evaluated = set(predictions["system"])
    mixtures = [name for name in systems.loc[systems["kind"] == "moe", "system"] if name in evaluated]
    counts = count_outcomes(_outcomes(predictions, list(experts)))
    total = counts[counts["task"] == "all tasks"].set_index("outcome")["questions"]
    mixed = int(total.get("mixed", 0))
    if not mixtures:
        answer_line(
            _(
                "{mixed} of {n} questions are mixed: some experts solve them, others do not. No mixture is evaluated yet."
            ).format(mixed=mixed, n=int(total.sum()))
        )
        return
    mixture = mixtures[0]
    table = _best(predictions, list(experts), mixture)
    row = table[table["task"] == "all tasks"].iloc[0] if len(table) else None
    if row is None or not row["n"]:
        answer_line(_("The experts never disagree here: no question is mixed."))
        return
    sentence = _(
        "Mixture {moe} solves {share} of the {n} mixed questions, the best expert ({expert}) {expert_share}: {difference}"
    ).format(
        moe=plain(mixture),
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
        ).format(p=f"{row['p']:.3f}")
    )


def render_outcome_bars(predictions: pd.DataFrame, experts: Sequence[str]) -> Part:
    """A stacked bar a task; returns the part that was clicked (default: the mixed part of all tasks)."""
    counts = count_outcomes(_outcomes(predictions, list(experts)))
    figure = make_outcomes_figure(counts, height=max(260, 42 * counts["task"].nunique() + 90))
    alt = _("Share of questions that all, some or none of the experts solve, per task.")
    points = clicked_points(show_figure(figure, key="outcomes_bars", alt=alt, select="points"))
    if points and points[0].get("customdata"):
        task, outcome = points[0]["customdata"][:2]
        return (None if task == "all tasks" else str(task)), str(outcome)
    return None, "mixed"


def render_errors(predictions: pd.DataFrame, systems: pd.DataFrame, experts: Sequence[str], part: Part) -> None:
    """Every system's error rate on the part, with the oracle as the bound."""
    task, outcome = part
    evaluated = [name for name in systems["system"] if name in set(predictions["system"])]
    errors = _errors(predictions, list(experts), evaluated, outcome)
    errors = errors[errors["task"] == (task or "all tasks")]
    n = int(errors["n"].max()) if len(errors) else 0
    st.markdown(
        _("**Error rate on the {outcome} part** of {task}, n={n}").format(
            outcome=outcome_name(outcome), task=plain(task or _("all tasks")), n=n
        )
    )
    if n == 0:
        st.info(_("No question of this kind here."), icon=":material/inbox:")
        return
    kinds = dict(zip(systems["system"], systems["kind"], strict=True))
    alt = _("Error rate per system with 95 % intervals; dotted line: oracle.")
    show_figure(make_error_figure(errors, kinds, height=60 + 34 * len(errors)), key="outcomes_errors", alt=alt)
    st.caption(alt)


def render_question_list(
    predictions: pd.DataFrame, experts: Sequence[str], part: Part, selected: Sequence[str]
) -> list[str]:
    """Questions of the clicked part (or of the selection that came along); returns the one that is picked, first."""
    outcomes = _outcomes(predictions, list(experts))
    task, outcome = part
    if selected:
        rows = outcomes[outcomes["question_id"].isin(selected)]
        st.subheader(_("Selected questions ({n})").format(n=len(rows)), anchor=False)
    else:
        rows = outcomes[(outcomes["outcome"] == outcome) & (outcomes["task"].eq(task) if task else True)]
        st.subheader(
            _("{n} questions: {outcome}, {task}").format(
                n=len(rows), outcome=outcome_name(outcome), task=plain(task or _("all tasks"))
            ),
            anchor=False,
        )
    texts = predictions.drop_duplicates("question_id").set_index("question_id")[["prompt", "answer", "skill"]]
    solved = predictions[predictions["correct"]].groupby("question_id")["system"].agg(lambda names: ", ".join(names))
    shown = rows.join(texts, on="question_id").assign(solved_by=rows["question_id"].map(solved).fillna("–"))
    picked = show_table(
        shown[["question_id", "task", "skill", "prompt", "answer", "solved_by"]],
        "outcomes_questions",
        labels={
            "task": _("Task"),
            "skill": _("Skill"),
            "prompt": _("Question"),
            "answer": _("Right answer"),
            "solved_by": _("Solved by"),
        },
        select="single-row",
        hide=("question_id",),
        height=280,
    )
    if picked.empty:
        st.caption(_("Pick a row to see all answers side by side."))
        return []
    return picked["question_id"].tolist()


def render_side_by_side(store: Store, question_id: str) -> None:
    """One question: every system's answer, its log-likelihoods, and what the routers did."""
    question = fetch_questions(store, question_ids=[question_id])
    if question.empty:
        return
    row = question.iloc[0]
    answers = fetch_answers(store, question_id)
    with st.container(border=True):
        question_text(row["prompt"], key=f"side_{question_id}", question_id=question_id)
        st.text(_("Right answer: {answer}").format(answer=row["answer"]))
        choices = list(row["choices"]) if pd.api.types.is_list_like(row["choices"]) else None
        shown = pd.DataFrame({"system": answers["system"], "output": answers["output"], "correct": answers["correct"]})
        if choices:
            for number in range(len(choices)):
                shown[f"choice_{number}"] = [
                    float(logliks[number]) if pd.api.types.is_list_like(logliks) and number < len(logliks) else None
                    for logliks in answers["logliks"]
                ]
        labels = {"system": _("System"), "output": _("Answer"), "correct": _("Right")}
        formats = {
            f"choice_{number}": st.column_config.NumberColumn(
                str(choice)[:30], format="%.2f", help=_("log-likelihood, nats")
            )
            for number, choice in enumerate(choices or [])
        }
        show_table(shown, f"side_table_{question_id}", labels=labels, formats=formats)
        _render_routes(store, question_id)
        label = _("Token by token, and by each expert alone, on the Router page")
        routed = len(fetch_mixtures_with_activations(store))
        if routed and st.button(label, key=f"side_router_{question_id}", icon=":material/alt_route:"):
            select(questions=[question_id], why=_("one question"))
            open_page("router")


def _render_routes(store: Store, question_id: str) -> None:
    routes = fetch_routes(store, question_id=question_id)
    if routes.empty:
        return
    wide = routes.pivot(index="system", columns="expert", values="probability").reset_index()
    st.caption(_("What the task-level router gave each expert (probability)"))
    formats = {
        name: st.column_config.ProgressColumn(str(name), min_value=0, max_value=1, format="%.2f")
        for name in wide.columns
        if name != "system"
    }
    show_table(wide, f"side_routes_{question_id}", labels={"system": _("Mixture")}, formats=formats)
