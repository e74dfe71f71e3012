"""Plans, adapters and systems: reads, and saving a plan."""

import json
from collections.abc import Sequence

import pandas as pd

from metamoe_backend.errors import ConflictError, NotFoundError
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record
from metamoe_backend.store.questions import require_tasks
from metamoe_backend.store.skills import fetch_labelling_skills


def fetch_plans(store: Store) -> pd.DataFrame:
    """Plans, newest first: plan, labelling, author, made_at, skills, experts, stale.

    stale: a labelling was frozen after the one the plan rests on.
    """
    return store.frame("""
        SELECT plan.plan, plan.labelling, plan.author, plan.made_at,
            list(entry.skill ORDER BY entry.skill) AS skills, list(DISTINCT entry.expert) AS experts,
            any_value(labelling.created_at) < (SELECT max(created_at) FROM labelling) AS stale
        FROM plan JOIN plan_entry AS entry USING (plan) LEFT JOIN labelling USING (labelling)
        GROUP BY ALL ORDER BY plan.made_at DESC
    """)


def fetch_plan_entries(store: Store, plan: str) -> pd.DataFrame:
    """skill, expert, questions (train split), labels of a plan; raises `NotFoundError` for an unknown plan."""
    require_plan(store, plan)
    return store.frame(
        """
        SELECT entry.skill, entry.expert, count(question.question_id) FILTER (question.split = 'train') AS train,
            count(question.question_id) AS questions, count(*) FILTER (item.source = 'label') AS labels
        FROM plan JOIN plan_entry AS entry USING (plan)
        LEFT JOIN labelling_item AS item ON item.labelling = plan.labelling AND item.skill = entry.skill
        LEFT JOIN question USING (question_id)
        WHERE plan.plan = ? GROUP BY entry.skill, entry.expert ORDER BY entry.expert, entry.skill
        """,
        [plan],
    )


def require_plan(store: Store, plan: str) -> None:
    """Raise `NotFoundError` unless the plan exists."""
    known = [row[0] for row in store.cursor().execute("SELECT plan FROM plan ORDER BY plan").fetchall()]
    if plan not in known:
        there = ", ".join(known) if known else "none; save one on the Experts page or with `plan`"
        raise NotFoundError(f"Plan {plan!r} does not exist (there are: {there}).")


def fetch_training_questions(store: Store, plan: str, split: str) -> pd.DataFrame:
    """Questions of a plan's labelling in one split, with the skill and expert they go to.

    question_id, task, regime, template, prompt, choices, answer, explanation, skill, expert, meta_question.
    """
    require_plan(store, plan)
    return store.frame(
        """
        SELECT question_id, question.task, regime, template, prompt, choices, answer, explanation, entry.skill,
            entry.expert, meta.text AS meta_question
        FROM plan JOIN plan_entry AS entry USING (plan)
        JOIN labelling_item AS item ON item.labelling = plan.labelling AND item.skill = entry.skill
        JOIN question USING (question_id) JOIN task ON task.task = question.task
        LEFT JOIN (SELECT question_id, text FROM current_meta_question
                   QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY method) = 1) AS meta USING (question_id)
        WHERE plan.plan = $plan AND split = $split
        ORDER BY question.task, position, question_id
        """,
        {"plan": plan, "split": split},
    )


def fetch_task_questions(store: Store, tasks: Sequence[str], split: str) -> pd.DataFrame:
    """Questions of whole tasks in one split; `fetch_training_questions` columns without skill and expert.

    Raises `NotFoundError` for an unknown task.
    """
    require_tasks(store, tasks)
    return store.frame(
        """
        SELECT question_id, question.task, regime, template, prompt, choices, answer, explanation,
            meta.text AS meta_question
        FROM question JOIN task USING (task)
        LEFT JOIN (SELECT question_id, text FROM current_meta_question
                   QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY method) = 1) AS meta USING (question_id)
        WHERE list_contains($tasks, question.task) AND split = $split
        ORDER BY question.task, position, question_id
        """,
        {"tasks": list(tasks), "split": split},
    )


def fetch_adapters(store: Store, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Adapters of the bank (rows.Adapter columns), newest first; raises `NotFoundError` for an unknown name."""
    adapters = store.frame("SELECT * FROM adapter ORDER BY created_at DESC, adapter")
    if names is None:
        return adapters
    _require(names, adapters["adapter"].tolist(), "Expert", "train or import one on the Experts page")
    return adapters.set_index("adapter", drop=False).loc[list(names)].reset_index(drop=True)


def fetch_bank(store: Store) -> pd.DataFrame:
    """Adapters of the bank as `fetch_adapters` gives them, each with the `kind` of system it is (see rows.System)."""
    return store.frame("""
        SELECT adapter.*, system.kind FROM adapter JOIN system ON system.system = adapter.adapter
        ORDER BY adapter.created_at DESC, adapter
    """)


def fetch_systems(store: Store, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Systems (rows.System columns), oldest first; raises `NotFoundError` for an unknown name.

    `base` may be missing from the table while nothing was evaluated yet; it is never an unknown name.
    """
    systems = store.frame("SELECT * FROM system ORDER BY kind <> 'base', created_at, system")
    if names is None:
        return systems
    _require(
        [name for name in names if name != "base"],
        systems["system"].tolist(),
        "System",
        "train an expert or a mixture first",
    )
    return systems[systems["system"].isin(list(names))].reset_index(drop=True)


def _require(names: Sequence[str], known: Sequence[str], what: str, remedy: str) -> None:
    for name in names:
        if name not in known:
            there = ", ".join(known[:12]) if len(known) else f"none; {remedy}"
            raise NotFoundError(f"{what} {name!r} does not exist (there are: {there}).")


def save_plan(store: Store, plan: str, labelling: str, entries: Sequence[tuple[str, str]], by: str) -> str:
    """Save which skills go to which expert; returns the event id.

    A plan that has trained an adapter is kept as it was (`ConflictError`): the adapter's provenance rests on it.
    """
    known = set(fetch_labelling_skills(store, labelling)["skill"])
    for skill, _ in entries:
        if skill not in known:
            raise NotFoundError(
                f"Skill {skill!r} is not in labelling {labelling!r} (it has: {', '.join(sorted(known))})."
            )
    skills = [skill for skill, _ in entries]
    if len(set(skills)) != len(skills):
        raise ConflictError("A skill stands twice in the plan; give each skill to one expert.")
    if not entries:
        raise ConflictError("The plan is empty; give at least one skill to an expert.")
    trained = store.value("SELECT adapter FROM adapter WHERE plan = ? LIMIT 1", [plan])
    if trained and _plan_differs(store, plan, labelling, entries):
        raise ConflictError(
            f"Plan {plan!r} has trained {trained!r} and is kept as it was; save this one under a new name."
        )
    return record(
        store, "plan_saved", by, {"plan": plan, "labelling": labelling, "entries": [list(e) for e in entries]}
    )


def _plan_differs(store: Store, plan: str, labelling: str, entries: Sequence[tuple[str, str]]) -> bool:
    kept = store.frame("SELECT skill, expert FROM plan_entry WHERE plan = ?", [plan])
    same_labelling = store.value("SELECT labelling FROM plan WHERE plan = ?", [plan]) == labelling
    return not same_labelling or set(map(tuple, kept.to_numpy())) != set(map(tuple, entries))


def fetch_system_settings(store: Store, system: str) -> dict:
    """The settings that made a system."""
    settings = store.value("SELECT settings FROM system WHERE system = ?", [system])
    return json.loads(settings) if settings else {}
