"""Finding questions by their words, by what is known of them, and by what they are like."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.evaluate.outcomes import OUTCOMES
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_cluster_question_ids, require_map
from metamoe_backend.store.questions import require_tasks
from metamoe_backend.store.results import fetch_expert_outcomes
from metamoe_backend.store.skills import fetch_skills, find_skill

NO_SKILL = "none"
"""Stands among skill ids for: neither a label nor a suggestion."""
_WORDS = re.compile(r'"([^"]+)"|(\S+)')


@dataclass(frozen=True, slots=True)
class Filters:
    """What a question has to be. Empty parts ask for nothing; several values of one part: any of them."""

    text: str = ""
    """Words that all occur, in any case, in the question, its options, its meta-question, or its task's or skill's
    name; what stands in double quotes occurs as it is written."""
    tasks: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()
    """Ids, or `NO_SKILL`."""
    clusters: tuple[str, ...] = ()
    """`make_cluster_code`: a cluster's number means nothing without its map."""
    authors: tuple[str, ...] = ()
    """People with a standing label on the question."""
    confidence_from: float | None = None
    """1 for a label, the probability for a suggestion; 0..1."""
    confidence_below: float | None = None
    outcomes: tuple[str, ...] = ()
    """Of all evaluated experts: evaluate.outcomes.OUTCOMES."""
    like: str | None = None
    """Id of a question: the others follow, the most similar first."""

    def __post_init__(self) -> None:
        low, below = self.confidence_from, self.confidence_below
        if not (0 if low is None else low) < (1.1 if below is None else below) or not all(
            0 <= bound <= 1 for bound in (low, below) if bound is not None
        ):
            raise ConfigError("Confidence lies between 0 and 1, and its lower bound below its upper one; mend them.")
        unknown = set(self.outcomes) - set(OUTCOMES)
        if unknown:
            raise ConfigError(f"There is no outcome {min(unknown)!r}; choose of {', '.join(OUTCOMES)}.")

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self != Filters()


def make_cluster_code(map_id: str, cluster: int) -> str:
    """One text for a cluster (-1: the noise) of one map."""
    return f"{map_id}:{cluster}"


def find_questions(store: Store, filters: Filters) -> list[str]:
    """Ids of the questions that are all that is asked for: nearest first with `like`, else by task and position.

    With `like`, only embedded questions are found, and not the question itself. Raises `NotFoundError` where it has no
    vector.
    """
    conditions, parameters = _make_conditions(store, filters)
    source, order = "question", "task, position, question_id"
    if filters.like is not None:
        source += f" JOIN ({_similarity(store, filters.like, parameters)}) USING (question_id)"
        order = f"similarity DESC, {order}"
    rows = store.cursor().execute(
        f"SELECT question_id FROM {source} WHERE {' AND '.join(conditions) or 'true'} ORDER BY {order}", parameters
    )
    return [row[0] for row in rows.fetchall()]


_KNOWN = """(SELECT question_id, skill_id, skill, 1.0 AS confidence FROM question_label
    UNION ALL SELECT question_id, skill_id, skill, probability FROM current_suggestion)"""


def _make_conditions(store: Store, filters: Filters) -> tuple[list[str], dict[str, Any]]:
    """One SQL condition for each part that is given, and the values of its parameters."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {}

    def add(condition: str, **values: Any) -> None:
        conditions.append(condition)
        parameters.update(values)

    words = {f"word_{n}": quoted or word for n, (quoted, word) in enumerate(_WORDS.findall(filters.text))}
    if words:
        found = " AND ".join(f"contains(words, lower(${name}))" for name in words)
        add(
            f"""question_id IN (SELECT question_id FROM (
                SELECT question_id, lower(concat_ws(chr(10), prompt, array_to_string(choices, chr(10)), meta.text, task,
                    known.skill)) AS words
                FROM question LEFT JOIN {_KNOWN} AS known USING (question_id)
                LEFT JOIN (SELECT question_id, string_agg(text, chr(10)) AS text FROM current_meta_question
                           GROUP BY question_id) AS meta USING (question_id)) WHERE {found})""",
            **words,
        )
    if filters.tasks:
        add("task IN (SELECT unnest($tasks))", tasks=list(filters.tasks))
    if filters.skills:
        skills = f"""question_id IN (SELECT question_id FROM {_KNOWN} WHERE skill_id IN (
            SELECT coalesce(merged_into, skill_id) FROM skill WHERE skill_id IN (SELECT unnest($skills))))"""
        if NO_SKILL in filters.skills:
            skills = f"({skills} OR question_id NOT IN (SELECT question_id FROM {_KNOWN}))"
        add(skills, skills=list(filters.skills))
    if filters.clusters:
        add(
            "question_id IN (SELECT question_id FROM current_map_point "
            "WHERE map_id IN (SELECT unnest($maps)) AND map_id || ':' || cluster IN (SELECT unnest($clusters)))",
            clusters=list(filters.clusters),
            maps=[code.rpartition(":")[0] for code in filters.clusters],
        )
    if filters.authors:
        add(
            "question_id IN (SELECT question_id FROM standing_label WHERE author IN (SELECT unnest($authors)))",
            authors=list(filters.authors),
        )
    if filters.confidence_from is not None or filters.confidence_below is not None:
        add(
            f"question_id IN (SELECT question_id FROM {_KNOWN} "
            "WHERE ($low IS NULL OR confidence >= $low) AND ($below IS NULL OR confidence < $below))",
            low=filters.confidence_from,
            below=filters.confidence_below,
        )
    if filters.outcomes:
        outcomes = fetch_expert_outcomes(store)
        add(
            "question_id IN (SELECT unnest($outcome_ids::VARCHAR[]))",
            outcome_ids=outcomes.index[outcomes.isin(filters.outcomes)].tolist(),
        )
    return conditions, parameters


def _similarity(store: Store, like: str, parameters: dict[str, Any]) -> str:
    """SELECT of question_id, similarity (cosine: the vectors are unit) of all others; adds to `parameters`.

    The vectors are those of the newest map, where there is none those that were made last; where a map reads questions
    and meta-questions, the mean over both.
    """
    row = (
        store.cursor().execute("SELECT encoder, of FROM map ORDER BY created_at DESC, map_id DESC LIMIT 1").fetchone()
        or store.cursor().execute("SELECT encoder, of FROM embedding ORDER BY run_id DESC LIMIT 1").fetchone()
        or (None, "question")
    )
    encoder, sides = row[0], ["question", "meta-question"] if row[1] == "both" else [row[1]]
    dims = (
        store.cursor()
        .execute(
            "SELECT max(len(vector)), count(DISTINCT of) FROM embedding "
            "WHERE question_id = ? AND encoder = ? AND list_contains(?, of)",
            [like, encoder, sides],
        )
        .fetchone()
    )
    if dims is None or dims[1] < len(sides):
        raise NotFoundError(
            f"Question {like!r} has no vector to compare with others; check its id, or run `embed` again."
        )
    parameters |= {"like": like, "encoder": encoder, "sides": sides}
    unit = f"FLOAT[{dims[0]}]"
    newest = """(SELECT question_id, of, vector FROM embedding WHERE encoder = $encoder AND list_contains($sides, of)
        AND (question_id, of, run_id) IN (SELECT (question_id, of, max(run_id)) FROM embedding
            WHERE encoder = $encoder GROUP BY question_id, of))"""
    return f"""
        SELECT other.question_id, avg(array_inner_product(other.vector::{unit}, this.vector::{unit})) AS similarity
        FROM {newest} AS other JOIN (SELECT of, vector FROM {newest} WHERE question_id = $like) AS this USING (of)
        WHERE other.question_id <> $like GROUP BY other.question_id HAVING count(*) = len($sides)
    """


# ---- names a person writes ---------------------------------------------------------------------------------------


def fetch_authors(store: Store) -> list[str]:
    """People with standing labels, in order of name."""
    rows = store.cursor().execute("SELECT DISTINCT author FROM standing_label ORDER BY author")
    return [row[0] for row in rows.fetchall()]


def parse_filters(
    store: Store,
    tasks: Sequence[str] = (),
    skills: Sequence[str] = (),
    clusters: Sequence[int] = (),
    authors: Sequence[str] = (),
    **others: Any,
) -> Filters:
    """Filters by the names of skills (`NO_SKILL` where no skill is called so) and clusters of the newest map.

    others: further parts of `Filters`. Raises `NotFoundError` for a name that does not exist, saying which do.
    """
    require_tasks(store, tasks)
    _require_each("Skill", skills, [*fetch_skills(store)["name"], NO_SKILL], store)
    _require_each("Author", authors, fetch_authors(store), store)
    map_id = require_map(store, None) if clusters else ""
    for cluster in clusters:
        fetch_cluster_question_ids(store, map_id, cluster)
    return Filters(
        tasks=tuple(tasks),
        skills=tuple(find_skill(store, name) or NO_SKILL for name in skills),
        clusters=tuple(make_cluster_code(map_id, cluster) for cluster in clusters),
        authors=tuple(authors),
        **others,
    )


def _require_each(what: str, names: Sequence[str], there: Sequence[str], store: Store) -> None:
    for name in names:
        if name not in there:
            known = ", ".join(there) or "none yet"
            raise NotFoundError(
                f"{what} {name!r} does not exist in workspace {store.workspace.name} (there are: {known})."
            )
