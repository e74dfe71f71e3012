"""Where a training's questions come from: a plan, whole tasks, or what a data selection chose."""

from typing import TYPE_CHECKING

import pandas as pd

from metamoe_backend.config import SourceSettings
from metamoe_backend.errors import NotFoundError

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

COLUMNS = ["question_id", "task", "template", "prompt", "answer", "skill", "expert", "meta_question"]


def fetch_training_rows(store: "Store", config: SourceSettings) -> pd.DataFrame:
    """The questions that `plan`, `tasks` or `data` names (columns COLUMNS), in the order of their source.

    Without a plan, skill and expert are NULL. Rows of a data selection have no meta-question and carry the template
    of their target task. Raises `NotFoundError` for an unknown plan, task or data selection.
    """
    from metamoe_backend.store.experts import fetch_task_questions, fetch_training_questions

    if config.plan is not None:
        return fetch_training_questions(store, config.plan, config.split)[COLUMNS]
    rows = fetch_task_questions(store, config.tasks, config.split) if config.tasks else _fetch_selected(store, config)
    return rows.assign(skill=None, expert=None)[COLUMNS].astype({"skill": object, "expert": object})


def _fetch_selected(store: "Store", config: SourceSettings) -> pd.DataFrame:
    from metamoe_backend.store.experts import fetch_selected_questions

    rows = fetch_selected_questions(store, str(config.data))
    if rows.empty:
        raise NotFoundError(
            f"Data selection {config.data!r} does not exist or chose no row; give the run id that `select-data` says."
        )
    return rows


def describe_source(config: SourceSettings) -> str:
    """The source in words, as the beginning of a sentence."""
    if config.plan is not None:
        return f"Plan {config.plan!r}"
    return f"Tasks {', '.join(config.tasks)}" if config.tasks else f"Data selection {config.data!r}"
