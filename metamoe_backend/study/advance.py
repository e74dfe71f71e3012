"""Letting a study go on: look what is done, start what can start, say what is left.

Runs go through the ordinary queue, so they outlive whoever started them; a study has no process of its own. Whoever
looks at it (the verb, or the page while it is open) lets it go on.
"""

from functools import lru_cache, partial
from typing import TYPE_CHECKING

from metamoe_backend.errors import ConflictError, UserError
from metamoe_backend.jobs.run_folder import find_run
from metamoe_backend.jobs.supervisor import poll, request_stop, resume
from metamoe_backend.launch import launch
from metamoe_backend.study.progress import Look, describe_content, describe_steps, follow
from metamoe_backend.study.recipe import Selection
from metamoe_backend.study.studies import Study, fetch_facts, read_study, set_paused

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

STAGES_OF_STUDIES = ("select", "select-data", "embed", "train", "moe", "evaluate")


def look_at(store: "Store", study: Study) -> Look:
    """How the study stands, the results of runs that have ended taken in."""
    from metamoe_backend.store.experts import fetch_systems
    from metamoe_backend.store.ingestion import ingest_finished_runs
    from metamoe_backend.store.runs import fetch_runs

    ingest_finished_runs(store)
    runs = fetch_runs(store, STAGES_OF_STUDIES)
    facts = fetch_facts(store, study.config)
    steps, made, matched = follow(study.config, facts, runs, fetch_systems(store), partial(_read_selection, store))
    active = {str(run["run_id"]) for run in matched.values() if run["state"] == "running"}
    remaining = {run_id: find_run(store.workspace, run_id).read_state().eta_s for run_id in sorted(active)}
    return Look(describe_steps(steps, matched, study.config.base, runs, remaining), made)


@lru_cache(maxsize=128)
def _read_selection(store: "Store", run_id: str) -> Selection:
    """Of a finished run, whose rows never change."""
    from metamoe_backend.store.expert_selections import fetch_candidate_pairs, fetch_candidate_shots

    return Selection(fetch_candidate_shots(store, run_id), fetch_candidate_pairs(store, run_id))


def advance(store: "Store", study: Study, by: str, again: bool = False) -> Look:
    """Start every step that is ready, and return how the study stands then; a study that rests is only looked at.

    With `again`, steps that stopped or failed go on from where they were.

    Raises the `UserError` of a step that cannot be started, naming it.
    """
    look = look_at(store, study)
    if study.paused:
        return look
    started = {describe_content(status.step) for status in look.statuses if status.run_id is not None}
    acted = False
    for status in look.own:
        step = status.step
        if status.state == "ready" and step.settings is not None and describe_content(step) not in started:
            try:
                launch(store, step.stage, step.settings, by)
            except UserError as error:
                raise type(error)(f"Step {step.key} of study {study.config.name!r} cannot start: {error}") from None
            started.add(describe_content(step))
            acted = True
        elif again and status.state in ("stopped", "failed") and status.run_id is not None:
            resume(find_run(store.workspace, status.run_id))
            acted = True
    poll(store.workspace)  # starts a supervisor where the last one was killed
    return look_at(store, study) if acted else look


def go_on(store: "Store", name: str, by: str) -> Look:
    """Let a study go on that is new, was stopped, or broke off."""
    return advance(store, set_paused(store.workspace, name, paused=False), by, again=True)


def stop(store: "Store", name: str) -> Look:
    """Let a study rest: what runs is asked to save and stop, and nothing is started until it goes on."""
    study = set_paused(store.workspace, name, paused=True)
    for status in look_at(store, study).active:
        try:
            request_stop(find_run(store.workspace, str(status.run_id)))
        except ConflictError:
            continue  # it has ended meanwhile
    return look_at(store, read_study(store.workspace, name))
