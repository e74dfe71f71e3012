"""Tasks, questions and meta-questions: reads, and a person's correction of a meta-question."""

from collections.abc import Sequence

import pandas as pd

from metamoe_backend.errors import ConflictError, NotFoundError
from metamoe_backend.rows import MetaQuestionMethod
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record


def fetch_tasks(store: Store) -> pd.DataFrame:
    """One row a task: rows.Task columns, questions per split, mean prompt length in characters, its length histogram.

    lengths: 12 equal bins up to the task's longest prompt, as a list of counts.
    """
    return store.frame("""
        WITH measured AS (SELECT task, split, length(prompt) AS characters FROM question),
        span AS (SELECT task, max(characters) AS longest FROM measured GROUP BY task),
        binned AS (
            SELECT task, least(11, floor(12.0 * characters / greatest(longest, 1)))::INT AS bin, count(*) AS n
            FROM measured JOIN span USING (task) GROUP BY ALL),
        histogram AS (
            SELECT task, list(coalesce(n, 0) ORDER BY bins.bin) AS lengths
            FROM (SELECT DISTINCT task FROM measured) CROSS JOIN (SELECT unnest(range(12)) AS bin) AS bins
            LEFT JOIN binned USING (task, bin) GROUP BY task)
        SELECT task.*, count(measured.task) AS questions, count(*) FILTER (split = 'train') AS train,
            count(*) FILTER (split = 'validation') AS validation, count(*) FILTER (split = 'test') AS test,
            avg(characters) AS mean_characters, any_value(histogram.lengths) AS lengths
        FROM task LEFT JOIN measured USING (task) LEFT JOIN histogram USING (task)
        GROUP BY ALL ORDER BY task.task
    """)


def fetch_task_names(store: Store) -> list[str]:
    """Names of all tasks, in order."""
    return [row[0] for row in store.cursor().execute("SELECT task FROM task ORDER BY task").fetchall()]


def require_tasks(store: Store, tasks: Sequence[str]) -> None:
    """Raise `NotFoundError` for the first name that is no task, naming those there are."""
    known = fetch_task_names(store)
    for task in tasks:
        if task not in known:
            there = ", ".join(known[:12]) if known else "none yet; ingest one first"
            raise NotFoundError(
                f"Task {task!r} does not exist in workspace {store.workspace.name} (there are: {there})."
            )


def fetch_question_places(store: Store, task: str) -> pd.DataFrame:
    """Which questions a task has: question_id, split, position."""
    return store.frame("SELECT question_id, split, position FROM question WHERE task = ?", [task])


def fetch_questions(
    store: Store, tasks: Sequence[str] = (), question_ids: Sequence[str] | None = None, split: str | None = None
) -> pd.DataFrame:
    """Questions (rows.Question columns) with their task's regime and template, in source order.

    tasks empty means all tasks; question_ids, when given, keeps only those. Raises `NotFoundError` for an unknown task.
    """
    require_tasks(store, tasks)
    return store.frame(
        """
        SELECT question.*, task.regime, task.template
        FROM question JOIN task USING (task)
        WHERE (len($tasks) = 0 OR list_contains($tasks, question.task))
            AND ($ids IS NULL OR question_id IN (SELECT unnest($ids)))
            AND ($split IS NULL OR split = $split)
        ORDER BY question.task, split, position, question_id
        """,
        {"tasks": list(tasks), "ids": None if question_ids is None else list(question_ids), "split": split},
    )


def fetch_evaluation_questions(
    store: Store, tasks: Sequence[str], split: str, limit: int | None, seed: int
) -> pd.DataFrame:
    """Questions to evaluate: question_id, task, regime, template, source, prompt, choices, answer, gold, explanation,
    metadata, meta_question (NULL where none is built). With a limit, a seeded draw of so many per task.
    """
    require_tasks(store, tasks)
    return store.frame(
        """
        SELECT question_id, question.task, split, regime, template, source, prompt, choices, answer, gold,
            explanation, metadata, meta.text AS meta_question
        FROM question JOIN task USING (task)
        LEFT JOIN (SELECT question_id, text FROM current_meta_question
                   QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY method) = 1) AS meta USING (question_id)
        WHERE list_contains($tasks, question.task) AND split = $split
        QUALIFY $limit IS NULL
            OR row_number() OVER (PARTITION BY question.task ORDER BY md5(question_id || $seed::VARCHAR)) <= $limit
        ORDER BY question.task, position, question_id
        """,
        {"tasks": list(tasks), "split": split, "limit": limit, "seed": seed},
    )


def fetch_meta_questions(store: Store, method: str | None = None, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """question_id, method, text (as edited), built_text, source_hash, edited, task, prompt."""
    return store.frame(
        """
        SELECT meta.*, question.task, question.prompt
        FROM current_meta_question AS meta JOIN question USING (question_id)
        WHERE ($method IS NULL OR method = $method) AND (len($tasks) = 0 OR list_contains($tasks, task))
        ORDER BY task, position, question_id
        """,
        {"method": method, "tasks": list(tasks)},
    )


def fetch_meta_question_history(store: Store, question_id: str) -> pd.DataFrame:
    """Edits of one question's meta-question, newest first: method, text, author, made_at, event_id."""
    return store.frame(
        "SELECT method, text, author, made_at, event_id FROM meta_question_edit WHERE question_id = ? "
        "ORDER BY event_id DESC",
        [question_id],
    )


def fetch_prompts(store: Store, question_ids: Sequence[str]) -> dict[str, str]:
    """Texts of these questions by id; unknown ids are left out."""
    rows = store.cursor().execute(
        "SELECT question_id, prompt FROM question WHERE question_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(question_ids)],
    )
    return dict(rows.fetchall())


def edit_meta_question(store: Store, question_id: str, method: MetaQuestionMethod, text: str, by: str) -> str:
    """Let a person's text stand for what `method` built, also after it is built anew; returns the event id.

    Raises `NotFoundError` where nothing was built yet, `ConflictError` when the text says what stands there already,
    `UserError` when it is empty.
    """
    row = (
        store.cursor()
        .execute("SELECT text FROM current_meta_question WHERE question_id = ? AND method = ?", [question_id, method])
        .fetchone()
    )
    if row is None:
        raise NotFoundError(f"Question {question_id!r} has no meta-question by {method}; build it first.")
    if text.strip() == row[0].strip():
        raise ConflictError("The meta-question reads like this already; change it, or leave it.")
    return record(
        store, "meta_question_edited", by, {"question_id": question_id, "method": method, "text": text.strip()}
    )


def fetch_rejected_rows(store: Store, run_id: str) -> pd.DataFrame:
    """Rows one ingest left out: line, reason, text."""
    return store.frame("SELECT line, reason, text FROM rejected_row WHERE run_id = ? ORDER BY line", [run_id])


def count_ingested(store: Store, run_id: str) -> int:
    """Questions that one ingest added."""
    return int(store.value("SELECT count(*) FROM question WHERE run_id = ?", [run_id]))
