"""Skills, labels, suggestions and labellings: reads, and what people do to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from metamoe_backend.errors import ConfigError, ConflictError, NotFoundError
from metamoe_backend.rows import How, Relation
from metamoe_backend.skills.palette import next_colour
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import make_event_id, record

LONGEST_SKILL_NAME = 60
"""Characters."""

# ---- reads ------------------------------------------------------------------------------------------------------


def fetch_skills(store: Store) -> pd.DataFrame:
    """Skills in use: skill_id, name, colour, author, made_at, labels (questions), suggestions (questions)."""
    return store.frame("""
        SELECT skill.skill_id, skill.name, skill.colour, skill.author, skill.made_at,
            (SELECT count(*) FROM question_label AS l WHERE l.skill_id = skill.skill_id) AS labels,
            (SELECT count(*) FROM current_suggestion AS s WHERE s.skill_id = skill.skill_id) AS suggestions
        FROM skill WHERE merged_into IS NULL ORDER BY skill.made_at, skill.skill_id
    """)


def fetch_labels(store: Store) -> pd.DataFrame:
    """Standing labels, one row per question and person.

    question_id, skill_id, skill, colour, author, made_at, how, event_id.
    """
    return store.frame("SELECT * FROM standing_label ORDER BY event_id, question_id")


def fetch_votes(store: Store) -> pd.DataFrame:
    """What each person said of each question, one row a question and person: question_id, author, skill, how.

    Decisions and restored labels are left out: they were made knowing what the others had said.
    """
    return store.frame("""
        SELECT vote.question_id, vote.author, kept.name AS skill, vote.how
        FROM (SELECT * FROM label WHERE retracted_by IS NULL AND how NOT IN ('decided', 'restored')
              QUALIFY row_number() OVER (PARTITION BY question_id, author ORDER BY event_id DESC) = 1) AS vote
        JOIN skill AS given ON given.skill_id = vote.skill_id
        JOIN skill AS kept ON kept.skill_id = coalesce(given.merged_into, given.skill_id)
        ORDER BY vote.question_id, vote.author
    """)


def fetch_conflicts(store: Store) -> pd.DataFrame:
    """Standing labels of the questions on which people disagree and nobody has decided (columns of `fetch_labels`).

    Questions with the most labels first, the labels of one question beside each other, oldest first.
    """
    return store.frame("""
        WITH conflict AS (
            SELECT question_id, count(*) AS people FROM standing_label GROUP BY question_id
            HAVING count(DISTINCT skill_id) > 1 AND NOT bool_or(how = 'decided'))
        SELECT standing_label.* FROM standing_label JOIN conflict USING (question_id)
        ORDER BY people DESC, question_id, event_id
    """)


def fetch_suggestions(store: Store, question_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """What stands proposed for unlabelled questions, most certain first.

    question_id, skill_id, skill, colour, probability, runner_up, margin, run_id, task, prompt.
    """
    return store.frame(
        """
        SELECT suggestion.*, question.task, question.prompt FROM current_suggestion AS suggestion
        JOIN question USING (question_id)
        WHERE $ids IS NULL OR question_id IN (SELECT unnest($ids))
        ORDER BY probability DESC, question_id
        """,
        {"ids": None if question_ids is None else list(question_ids)},
    )


def fetch_rejections(store: Store) -> pd.DataFrame:
    """Suggestions people refused, by question: question_id, skill_id, skill, author, made_at, event_id."""
    return store.frame("SELECT * FROM standing_rejection ORDER BY event_id, question_id")


def fetch_constraints(store: Store) -> pd.DataFrame:
    """Standing constraints, oldest first: event_id, relation, first_ids, second_ids, author, made_at."""
    return store.frame(
        "SELECT * EXCLUDE (retracted_by) FROM skill_constraint WHERE retracted_by IS NULL ORDER BY event_id"
    )


def fetch_question_labels(store: Store) -> pd.DataFrame:
    """One skill a question: question_id, skill_id, skill, source (label or suggestion), probability.

    A label of a person wins over any suggestion; among people a decision wins, then the newest label.
    """
    return store.frame("""
        SELECT question_id, skill_id, skill, 'label' AS source, 1.0 AS probability FROM question_label
        UNION ALL
        SELECT question_id, skill_id, skill, 'suggestion', probability FROM current_suggestion
        ORDER BY question_id
    """)


def fetch_question_states(store: Store) -> pd.DataFrame:
    """question_id and whether a person labelled it, of every question, by id."""
    return store.frame(
        "SELECT question_id, question_id IN (SELECT question_id FROM standing_label) AS labelled FROM question "
        "ORDER BY question_id"
    )


def fetch_questions_to_label(store: Store, map_id: str | None) -> pd.DataFrame:
    """Every question with what is known of its skill and its place on a map, in one pass: read after each label.

    question_id, task, split, x, y, cluster (-1: none), strength (NULL where it has no place), skill (label or
    suggestion), labelled (by a person), probability (1 for a label), margin and runner_up (skill_id) of a suggestion.
    """
    return store.frame(
        """
        SELECT question.question_id, question.task, question.split, point.x, point.y,
            coalesce(point.cluster, -1) AS cluster, point.strength, coalesce(label.skill, suggestion.skill) AS skill,
            label.skill IS NOT NULL AS labelled, if(label.skill IS NULL, suggestion.probability, 1.0) AS probability,
            suggestion.margin, suggestion.runner_up
        FROM question LEFT JOIN (SELECT * FROM current_map_point WHERE map_id = $map) AS point USING (question_id)
        LEFT JOIN question_label AS label USING (question_id)
        LEFT JOIN current_suggestion AS suggestion USING (question_id)
        ORDER BY question.task, question.position, question.question_id
        """,
        {"map": map_id},
    )


def fetch_labellings(store: Store) -> pd.DataFrame:
    """Frozen labellings, newest first (rows.Labelling columns)."""
    return store.frame("SELECT * FROM labelling ORDER BY created_at DESC")


def fetch_labelling_skills(store: Store, labelling: str) -> pd.DataFrame:
    """Skills of one labelling: skill, questions, train (those of the train split), labels, suggestions.

    Raises `NotFoundError` for an unknown name.
    """
    require_labelling(store, labelling)
    return store.frame(
        "SELECT skill, count(*) AS questions, count(*) FILTER (question.split = 'train') AS train, "
        "count(*) FILTER (item.source = 'label') AS labels, count(*) FILTER (item.source = 'suggestion') AS suggestions "
        "FROM labelling_item AS item LEFT JOIN question USING (question_id) "
        "WHERE labelling = ? GROUP BY skill ORDER BY skill",
        [labelling],
    )


def require_labelling(store: Store, labelling: str) -> None:
    """Raise `NotFoundError` unless the labelling exists."""
    if store.value("SELECT 1 FROM labelling WHERE labelling = ?", [labelling]) is None:
        there = (
            ", ".join(fetch_labellings(store)["labelling"])
            or "none; freeze one on the Skills page or with `label --freeze`"
        )
        raise NotFoundError(f"Labelling {labelling!r} does not exist (there are: {there}).")


# ---- what people do ---------------------------------------------------------------------------------------------


def create_skill(store: Store, name: str, by: str, colour: str | None = None) -> str:
    """Create a skill and return its id; raises `ConflictError` when the name is taken."""
    skill_id = _make_skill_id()
    payload = {"skill_id": skill_id, "name": _clean_name(name), "colour": colour or next_colour(_used_colours(store))}
    record(store, "skill_created", by, payload)
    return skill_id


def find_skill(store: Store, name: str) -> str | None:
    """Id of the skill in use with this name, or None."""
    return store.value("SELECT skill_id FROM skill WHERE name = ? AND merged_into IS NULL", [name.strip()])


def find_or_create_skill(store: Store, name: str, by: str) -> str:
    """Id of the skill called `name`, created if it does not exist."""
    return find_skill(store, name) or create_skill(store, name, by)


def rename_skill(store: Store, skill_id: str, name: str, by: str) -> str:
    """Rename a skill; returns the event id."""
    before = _require_skill_row(store, skill_id)["name"]
    return record(store, "skill_renamed", by, {"skill_id": skill_id, "name": _clean_name(name), "before": before})


def recolour_skill(store: Store, skill_id: str, colour: str, by: str) -> str:
    """Give a skill another colour (#rrggbb); returns the event id."""
    before = _require_skill_row(store, skill_id)["colour"]
    return record(store, "skill_recoloured", by, {"skill_id": skill_id, "colour": colour, "before": before})


def merge_skills(store: Store, skill_id: str, into: str, by: str) -> str:
    """Let skill `into` take over `skill_id` with its labels; returns the event id."""
    along = [
        row[0]
        for row in store.cursor().execute("SELECT skill_id FROM skill WHERE merged_into = ?", [skill_id]).fetchall()
    ]
    return record(store, "skill_merged", by, {"skill_id": skill_id, "into": into, "along": along})


def split_skill(store: Store, skill_id: str, name: str, question_ids: Sequence[str], by: str) -> str:
    """Let a new skill take over everyone's standing labels of `skill_id` on these questions; returns the event id.

    Raises `ConfigError` where that moves no label, or all of them (rename the skill then).
    """
    before = _require_skill_row(store, skill_id)["name"]
    rows = store.cursor().execute(
        "SELECT event_id, question_id, label.skill_id, question_id IN (SELECT unnest(?::VARCHAR[])) "
        "FROM standing_label JOIN label USING (event_id, question_id) WHERE standing_label.skill_id = ?",
        [list(question_ids), skill_id],
    )
    labels = rows.fetchall()
    moved = [list(row[:3]) for row in labels if row[3]]
    if not moved or len(moved) == len(labels):
        raise ConfigError(
            f"Splitting moves {len(moved)} of the {len(labels)} labels {before!r}; choose some of its questions, not all."
        )
    payload = {
        "skill_id": _make_skill_id(), "name": _clean_name(name), "colour": next_colour(_used_colours(store)),
        "from": skill_id, "question_ids": list(dict.fromkeys(row[1] for row in moved)), "labels": moved,
    }  # fmt: skip
    return record(store, "skill_split", by, payload)


def accept_suggestions(store: Store, suggested: Mapping[str, str], by: str) -> str:
    """Make labels of suggestions ({question_id: skill_id}), in one act; returns the event id."""
    _require_questions(store, list(suggested))
    return record(store, "suggestions_accepted", by, _describe_suggested(suggested))


def reject_suggestions(store: Store, suggested: Mapping[str, str], by: str) -> str:
    """State that these questions do not need the skills suggested ({question_id: skill_id}); returns the event id.

    They are not suggested for them again, now or by a later run.
    """
    _require_questions(store, list(suggested))
    return record(store, "suggestions_rejected", by, _describe_suggested(suggested))


def _describe_suggested(suggested: Mapping[str, str]) -> dict[str, Any]:
    """Payload of both: `skill_id` stands there, too, where it is the same for all."""
    skill_ids = list(suggested.values())
    same = {"skill_id": skill_ids[0]} if len(set(skill_ids)) == 1 else {}
    return {**same, "question_ids": list(suggested), "skill_ids": skill_ids}


def decide_label(store: Store, skill_id: str, question_id: str, by: str, why: str = "") -> str:
    """End a disagreement: this label counts above everyone's until it is taken back; returns the event id."""
    _require_questions(store, [question_id])
    payload = {"skill_id": skill_id, "question_ids": [question_id], "how": "decided", "why": why.strip()}
    return record(store, "label", by, payload)


def label_questions(store: Store, skill_id: str, question_ids: Sequence[str], by: str, how: How) -> str:
    """State that these questions need this skill; returns the event id.

    Raises `NotFoundError` when a question does not exist: nothing is labelled then.
    """
    ids = list(dict.fromkeys(question_ids))
    _require_questions(store, ids)
    return record(store, "label", by, {"skill_id": skill_id, "question_ids": ids, "how": how})


def constrain_questions(
    store: Store, relation: Relation, first_ids: Sequence[str], second_ids: Sequence[str], by: str
) -> str:
    """State that two groups of questions need the same skill, or different ones; returns the event id.

    Raises `NotFoundError` for an unknown question, `ConflictError` where a group is empty or the groups overlap.
    """
    first, second = list(dict.fromkeys(first_ids)), list(dict.fromkeys(second_ids))
    if not first or not second or set(first) & set(second):
        raise ConflictError("A constraint joins two groups of questions without a question in common; choose others.")
    _require_questions(store, [*first, *second])
    return record(store, "constraint", by, {"relation": relation, "first_ids": first, "second_ids": second})


def _require_questions(store: Store, ids: Sequence[str]) -> None:
    unknown = store.frame(
        "SELECT id FROM (SELECT unnest($ids::VARCHAR[]) AS id) WHERE id NOT IN (SELECT question_id FROM question) LIMIT 1",
        {"ids": list(ids)},
    )
    if len(unknown):
        raise NotFoundError(
            f"Question {unknown['id'][0]!r} does not exist in workspace {store.workspace.name}; nothing was changed."
        )


def _require_skill_row(store: Store, skill_id: str) -> dict[str, str]:
    row = store.cursor().execute("SELECT name, colour FROM skill WHERE skill_id = ?", [skill_id]).fetchone()
    if row is None:
        raise NotFoundError(f"Skill {skill_id!r} does not exist; create it first.")
    return {"name": row[0], "colour": row[1]}


def _make_skill_id() -> str:
    return f"skill-{make_event_id()[-13:]}"


def _used_colours(store: Store) -> list[str]:
    return [row[0] for row in store.cursor().execute("SELECT colour FROM skill WHERE merged_into IS NULL").fetchall()]


def _clean_name(name: str) -> str:
    cleaned = " ".join(name.split())
    if not cleaned or len(cleaned) > LONGEST_SKILL_NAME:
        raise ConflictError(f"A skill needs a name of 1 to {LONGEST_SKILL_NAME} characters; shorten or write it.")
    return cleaned
