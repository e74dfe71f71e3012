"""Where a training's questions come from: a plan, whole tasks, or what a data selection chose."""

from typing import TYPE_CHECKING

import pandas as pd

from metamoe_backend.config import SourceSettings

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

COLUMNS = ["question_id", "task", "template", "prompt", "answer", "skill", "expert", "meta_question"]
NULLABLE = ["skill", "expert", "meta_question"]


def fetch_training_rows(store: "Store", config: SourceSettings) -> pd.DataFrame:
    """The questions that `plan`, `tasks` or `data` names (columns COLUMNS), in the order of their source.

    No rows where no source is named. Without a plan, skill and expert are NULL. Rows of a data selection have no
    meta-question and carry the template of their target task. Raises `NotFoundError` for an unknown plan, task or data
    selection.
    """
    from metamoe_backend.store.data_selections import fetch_selected_questions
    from metamoe_backend.store.experts import fetch_task_questions, fetch_training_questions

    if config.plan is not None:
        return fetch_training_questions(store, config.plan, config.split)[COLUMNS]
    if not config.tasks and config.data is None:
        return pd.DataFrame(columns=COLUMNS, dtype=object)  # nothing learns (`needs_questions`)
    if config.data is not None:
        rows = fetch_selected_questions(store, config.data).assign(meta_question=None)
    else:
        rows = fetch_task_questions(store, config.tasks, config.split)
    return rows.assign(skill=None, expert=None)[COLUMNS].astype(dict.fromkeys(NULLABLE, object))


def describe_source(config: SourceSettings) -> str:
    """The source in words, as the beginning of a sentence."""
    if config.plan is not None:
        return f"Plan {config.plan!r}"
    return f"Tasks {', '.join(config.tasks)}" if config.tasks else f"Data selection {config.data!r}"
