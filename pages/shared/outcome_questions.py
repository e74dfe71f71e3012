"""A list of questions, and one of them with what every system answered and what the routers did."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.store.connection import Store
from metamoe_backend.store.questions import fetch_questions
from metamoe_backend.store.results import fetch_answers, fetch_mixtures_with_activations, fetch_routing
from pages.shared.i18n import _
from pages.shared.layout import question_text
from pages.shared.state import open_page, select
from pages.shared.tables import show_table


@dataclass(frozen=True)
class Chosen:
    """Questions that a click opened, and what they are in words."""

    title: str
    question_ids: list[str] = field(default_factory=list)
    clicked: bool = False
    """False for what stands there before anything is clicked."""


def render_question_list(
    predictions: pd.DataFrame,
    chosen: Chosen,
    key: str,
    systems: Sequence[str] = (),
    about: Sequence[str] = ("task", "skill"),
    height: int = 280,
) -> str | None:
    """The questions of a click with who solved them; returns the one that is picked.

    systems: whose answers stand in columns of their own. about: what is said of each question before its text.
    """
    st.subheader(chosen.title, anchor=False)
    if not chosen.question_ids:
        st.caption(_("No question of this kind here."))
        return None
    rows = pd.DataFrame({"question_id": chosen.question_ids})
    texts = predictions.drop_duplicates("question_id").set_index("question_id")[["task", "skill", "prompt", "answer"]]
    texts["skill"] = texts["skill"].fillna("–")
    solved = predictions[predictions["correct"]].groupby("question_id")["system"].agg(lambda names: ", ".join(names))
    shown = rows.join(texts, on="question_id").assign(solved_by=rows["question_id"].map(solved).fillna("–"))
    for number, system in enumerate(systems):
        answers = predictions[predictions["system"] == system].set_index("question_id")["output"]
        shown[f"answer_{number}"] = shown["question_id"].map(answers)
    answered = [f"answer_{number}" for number in range(len(systems))]
    picked = show_table(
        shown[["question_id", *about, "prompt", "answer", *answered, "solved_by"]],
        key,
        labels={
            "task": _("Task"),
            "skill": _("Skill"),
            "answer": _("Right answer"),
            "solved_by": _("Solved by"),
            **dict(zip(answered, systems, strict=True)),
        },
        formats={"prompt": st.column_config.TextColumn(_("Question"), width="large" if about else "medium")},
        select="single-row",
        hide=("question_id",),
        height=height,
    )
    if picked.empty:
        st.caption(_("Pick a row to see all answers side by side."))
        return None
    return str(picked["question_id"].iloc[0])


def render_side_by_side(store: Store, question_id: str) -> None:
    """One question: every system's answer, its log-likelihoods, and what the routers did."""
    question = fetch_questions(store, question_ids=[question_id])
    if question.empty:
        return
    row = question.iloc[0]
    with st.container(border=True):
        question_text(row["prompt"], key=f"side_{question_id}", question_id=question_id)
        st.text(_("Right answer: {answer}").format(answer=row["answer"]))
        _render_answers(fetch_answers(store, question_id), row)
        _render_routing(store, question_id)
        label = _("Token by token, and by each expert alone, on the Router page")
        routed = len(fetch_mixtures_with_activations(store))
        if routed and st.button(label, key=f"side_router_{question_id}", icon=":material/alt_route:"):
            select(questions=[question_id], why=_("one question"))
            open_page("router")


def _render_answers(answers: pd.DataFrame, question: pd.Series) -> None:
    choices = list(question["choices"]) if pd.api.types.is_list_like(question["choices"]) else []
    shown = answers[["system", "output", "correct"]].copy()
    for number in range(len(choices)):
        shown[f"choice_{number}"] = [
            float(logliks[number]) if pd.api.types.is_list_like(logliks) and number < len(logliks) else None
            for logliks in answers["logliks"]
        ]
    formats: dict[str, Any] = {
        f"choice_{number}": st.column_config.NumberColumn(
            str(choice)[:30], format="%.2f", help=_("log-likelihood, nats")
        )
        for number, choice in enumerate(choices)
    }
    labels = {"system": _("System"), "output": _("Answer"), "correct": _("Right")}
    if any(shown[name].notna().any() for name in formats):
        st.caption(_("Answers, and the log-likelihood of each option in nats"))
    else:  # a question with options that was answered in free text
        shown = shown[["system", "output", "correct"]]
    show_table(shown, f"side_table_{question['question_id']}", labels=labels, formats=formats)


def _render_routing(store: Store, question_id: str) -> None:
    routing = fetch_routing(store, question_id=question_id)
    captions = {
        "probability": _("What the task-level router gave each expert (probability)"),
        "weight": _("What the token-level router gave each expert (gate weight, mean over tokens and layers)"),
    }
    known = [value for value in captions if routing[value].notna().any()]
    for column, value in zip(st.columns(len(known)) if known else [], known, strict=True):
        wide = routing.pivot(index="system", columns="expert", values=value).dropna(how="all")
        wide = wide.dropna(axis="columns", how="all").reset_index()
        formats = {
            name: st.column_config.ProgressColumn(str(name), min_value=0, max_value=1, format="%.2f")
            for name in wide.columns
            if name != "system"
        }
        with column:
            st.caption(captions[value])
            show_table(wide, f"side_{value}_{question_id}", labels={"system": _("Mixture")}, formats=formats)
