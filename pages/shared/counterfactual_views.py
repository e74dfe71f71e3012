"""Force an expert: one question answered as routed, by each expert alone, and by the bare base model."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import BASE_EXPERT, ForceConfig
from metamoe_backend.evaluate.counterfactual import ROUTED
from metamoe_backend.jobs.command_line import make_command_line
from metamoe_backend.jobs.run_folder import RunStatus
from metamoe_backend.launch import launch
from metamoe_backend.store.connection import Store
from metamoe_backend.store.ingestion import ingest_finished_runs
from metamoe_backend.store.results import fetch_counterfactuals
from pages.shared.errors import error_boundary, guarded
from pages.shared.i18n import _
from pages.shared.jobs_line import fetch_active_runs
from pages.shared.layout import confirm, plain
from pages.shared.run_reading import read_statuses
from pages.shared.run_words import progress_text
from pages.shared.state import get_person, get_store, get_workspace, per_version
from pages.shared.tables import show_table

STAGE = "force"
_ASKED = "force_asked"
"""Run of each mixture and question that this person started."""


@per_version
def load_counterfactuals(store: Store, system: str, question_id: str) -> pd.DataFrame:
    return fetch_counterfactuals(store, system, [question_id])


def render_counterfactual(store: Store, system: str, question: Mapping[str, Any]) -> None:
    """The answers side by side once they are there, and the button that asks for them.

    question: question_id, answer (the right one), choices (a list, or none).
    """
    question_id = str(question["question_id"])
    st.markdown(_("**What if every token went to one expert?**"))
    answers = load_counterfactuals(store, system, question_id)
    if len(answers):
        _render_answers(answers, question)
    running = _find_run(system, question_id)
    if running and running.state in ("queued", "running"):
        st.fragment(_render_running, run_every="2s")(running.run_id)
        return
    if running and running.state == "failed":
        st.error(_("It failed: {reason}").format(reason=plain(running.error)), icon=":material/error:")
    values = {"system": system, "questions": [question_id]}
    label = _("Ask again") if len(answers) else _("Force each expert")
    st.button(
        label, key=f"force_{question_id}", icon=":material/call_split:", on_click=guarded(_start), args=(values,),
        help=_("Answers this question as routed, once per expert with every token sent to it, and once by the bare base model."),
        type="secondary" if len(answers) else "primary",
    )  # fmt: skip
    with st.expander(_("The same on the command line, while this dashboard is closed")):
        line = make_command_line(get_workspace(), STAGE, ForceConfig(**values))
        st.code(line, language="bash", wrap_lines=True)


def _start(values: dict[str, Any]) -> None:
    run = launch(get_store(), STAGE, values, get_person())
    asked = st.session_state.setdefault(_ASKED, {})
    asked[values["system"], values["questions"][0]] = run.run_id
    confirm(_("Queued: the answers appear here as soon as they are there."))


def _find_run(system: str, question_id: str) -> RunStatus | None:
    """The run that this person started for this question, as its folder says."""
    run_id = st.session_state.get(_ASKED, {}).get((system, question_id))
    return next((status for status in read_statuses() if status.run_id == run_id), None) if run_id else None


@error_boundary()
def _render_running(run_id: str) -> None:
    status = next((status for status in fetch_active_runs() if status.run_id == run_id), None)
    if status is None:
        ingest_finished_runs(get_store())
        st.rerun()
    text = _("waits in the queue") if status.state == "queued" else progress_text(status)
    st.progress(min(1.0, status.done / max(status.total, 1)), text=_("Forcing each expert: {text}").format(text=text))


def _render_answers(answers: pd.DataFrame, question: Mapping[str, Any]) -> None:
    words = {ROUTED: _("as routed"), BASE_EXPERT: _("base: no adapter")}
    choices = list(question["choices"]) if pd.api.types.is_list_like(question["choices"]) else []
    shown = pd.DataFrame(
        {
            "way": [words.get(expert, expert) for expert in answers["expert"]],
            "output": answers["output"],
            "correct": answers["correct"],
        }
    )
    formats = {}
    for number, choice in enumerate(choices):
        shown[f"choice_{number}"] = [
            float(values[number]) if pd.api.types.is_list_like(values) and number < len(values) else None
            for values in answers["logliks"]
        ]
        formats[f"choice_{number}"] = st.column_config.NumberColumn(
            str(choice)[:30], format="%.2f", help=_("log-likelihood, nats")
        )
    st.caption(_force_sentence(answers))
    labels = {"way": _("Every token to"), "output": _("Answer"), "correct": _("Right")}
    show_table(shown, f"force_answers_{question['question_id']}", labels=labels, formats=formats)


def _force_sentence(answers: pd.DataFrame) -> str:
    """Who is right alone, and whether the routing is."""
    right = answers[answers["correct"]]["expert"].tolist()
    alone = [expert for expert in right if expert not in (ROUTED, BASE_EXPERT)]
    experts = [expert for expert in answers["expert"] if expert not in (ROUTED, BASE_EXPERT)]
    routed = _("right") if ROUTED in right else _("wrong")
    base = _("right") if BASE_EXPERT in right else _("wrong")
    return _(
        "As routed it is {routed}; {n} of {all} experts alone are right ({names}); the base model is {base}."
    ).format(routed=routed, n=len(alone), all=len(experts), names=plain(", ".join(alone)) or "–", base=base)
