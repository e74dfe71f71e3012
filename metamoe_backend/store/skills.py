"""Skills, labels, suggestions and labellings: reads, and what people do to them."""

import json
from collections.abc import Sequence

import pandas as pd

from metamoe_backend.errors import ConflictError, NotFoundError
from metamoe_backend.rows import How
from metamoe_backend.skills.palette import next_colour
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import UNDO, make_event_id, record

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


def fetch_question_labels(store: Store) -> pd.DataFrame:
    """One skill a question: question_id, skill_id, skill, source (label or suggestion), probability.

    A label of a person wins over any suggestion; the newest label wins among people.
    """
    return store.frame("""
        SELECT question_id, skill_id, skill, 'label' AS source, 1.0 AS probability FROM question_label
        UNION ALL
        SELECT question_id, skill_id, skill, 'suggestion', probability FROM current_suggestion
        ORDER BY question_id
    """)


def fetch_label_history(store: Store, question_id: str) -> pd.DataFrame:
    """All labels a question ever had, newest first: skill, author, made_at, how, taken_back."""
    return store.frame(
        "SELECT skill.name AS skill, label.author, label.made_at, label.how, label.retracted_by IS NOT NULL AS taken_back "
        "FROM label JOIN skill USING (skill_id) WHERE question_id = ? ORDER BY label.event_id DESC",
        [question_id],
    )


def fetch_events(store: Store, limit: int = 50) -> pd.DataFrame:
    """The newest acts of people, newest first (rows.Event columns), with `undone` (taken back and not done again)."""
    events = store.frame("SELECT * FROM event ORDER BY event_id DESC LIMIT ?", [limit])
    undone = _undone_events(store)
    return events.assign(undone=events["event_id"].isin(undone))


def fetch_labellings(store: Store) -> pd.DataFrame:
    """Frozen labellings, newest first (rows.Labelling columns)."""
    return store.frame("SELECT * FROM labelling ORDER BY created_at DESC")


def fetch_labelling_skills(store: Store, labelling: str) -> pd.DataFrame:
    """Skills of one labelling: skill, questions, train (those of the train split), labels, suggestions.

    Raises `NotFoundError` for an unknown name.
    """
    if store.value("SELECT 1 FROM labelling WHERE labelling = ?", [labelling]) is None:
        there = (
            ", ".join(fetch_labellings(store)["labelling"])
            or "none; freeze one on the Skills page or with `label --freeze`"
        )
        raise NotFoundError(f"Labelling {labelling!r} does not exist (there are: {there}).")
    return store.frame(
        "SELECT skill, count(*) AS questions, count(*) FILTER (question.split = 'train') AS train, "
        "count(*) FILTER (item.source = 'label') AS labels, count(*) FILTER (item.source = 'suggestion') AS suggestions "
        "FROM labelling_item AS item LEFT JOIN question USING (question_id) "
        "WHERE labelling = ? GROUP BY skill ORDER BY skill",
        [labelling],
    )


# ---- what people do ---------------------------------------------------------------------------------------------


def create_skill(store: Store, name: str, by: str, colour: str | None = None) -> str:
    """Create a skill and return its id; raises `ConflictError` when the name is taken."""
    used = [row[0] for row in store.cursor().execute("SELECT colour FROM skill WHERE merged_into IS NULL").fetchall()]
    skill_id = f"skill-{make_event_id()[-13:]}"
    payload = {"skill_id": skill_id, "name": _clean_name(name), "colour": colour or next_colour(used)}
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


def label_questions(store: Store, skill_id: str, question_ids: Sequence[str], by: str, how: How) -> str:
    """State that these questions need this skill; returns the event id.

    Raises `NotFoundError` when a question does not exist: nothing is labelled then.
    """
    ids = list(dict.fromkeys(question_ids))
    unknown = store.frame(
        "SELECT id FROM (SELECT unnest($ids::VARCHAR[]) AS id) WHERE id NOT IN (SELECT question_id FROM question) LIMIT 1",
        {"ids": ids},
    )
    if len(unknown):
        raise NotFoundError(
            f"Question {unknown['id'][0]!r} does not exist in workspace {store.workspace.name}; nothing was labelled."
        )
    return record(store, "label", by, {"skill_id": skill_id, "question_ids": ids, "how": how})


def unlabel_questions(store: Store, question_ids: Sequence[str], by: str) -> str:
    """Take back this person's standing labels on these questions; returns the event id."""
    return record(store, "unlabel", by, {"question_ids": list(question_ids)})


def undo(store: Store, event_id: str, by: str) -> str:
    """Take back an act (or, given an undo, do it again); returns the event id of the undo."""
    if event_id in _undone_events(store):
        raise ConflictError("That act is taken back already; look at the history below.")
    return record(store, "undo", by, {"event_id": event_id})


def fetch_undoable(store: Store, by: str) -> dict[str, str] | None:
    """This person's newest act that still stands and can be taken back: event_id, description; or None."""
    undone = _undone_events(store)
    rows = store.cursor().execute(
        "SELECT event_id, kind, payload FROM event WHERE author = ? AND list_contains(?, kind) ORDER BY event_id DESC "
        "LIMIT 200",
        [by, list(UNDO)],
    )
    for event_id, kind, payload in rows.fetchall():
        if event_id not in undone:
            return {"event_id": event_id, "description": describe_event(store, kind, json.loads(payload))}
    return None


def fetch_redoable(store: Store, by: str) -> dict[str, str] | None:
    """This person's newest undo that can be taken back (a redo): event_id, description; or None."""
    undone = _undone_events(store)
    rows = store.cursor().execute(
        "SELECT undo.event_id, undo.kind, done.kind, done.payload FROM event AS undo "
        "LEFT JOIN event AS done ON done.event_id = json_extract_string(undo.payload, '$.event_id') "
        "WHERE undo.author = ? ORDER BY undo.event_id DESC LIMIT 50",
        [by],
    )
    for event_id, kind, done_kind, payload in rows.fetchall():
        if kind != "undo":
            return None  # a new act closes the way forward, as in every editor
        if event_id not in undone and done_kind != "undo":
            return {"event_id": event_id, "description": describe_event(store, done_kind, json.loads(payload))}
    return None


def describe_event(store: Store, kind: str, payload: dict) -> str:
    """What an act did, in a few plain words: "412 labels 'algebra'"."""
    name = store.value("SELECT name FROM skill WHERE skill_id = ?", [payload.get("skill_id")]) or ""
    n = len(payload.get("question_ids", []))
    plural = "" if n == 1 else "s"
    if kind == "label":
        return f"{n} label{plural} '{name}'"
    if kind == "unlabel":
        return f"taking back {n} label{plural}"
    if kind == "skill_merged":
        into = store.value("SELECT name FROM skill WHERE skill_id = ?", [payload["into"]])
        return f"merging '{name}' into '{into}'"
    if kind == "skill_renamed":
        return f"renaming '{payload['before']}' to '{payload['name']}'"
    if kind == "skill_created":
        return f"skill '{payload['name']}'"
    if kind == "plan_saved":
        return f"plan '{payload['plan']}'"
    if kind == "review":
        return f"{payload['verdict'] or 'comment'} on {payload['target_kind']} {payload['target']}"
    return kind.replace("_", " ")


def _undone_events(store: Store) -> set[str]:
    """Events taken back: targets of undo events that were not themselves taken back."""
    rows = store.cursor().execute(
        "SELECT event_id, json_extract_string(payload, '$.event_id') FROM event WHERE kind = 'undo' ORDER BY event_id"
    )
    undone: set[str] = set()
    undo_target: dict[str, str] = {}
    for event_id, target in rows.fetchall():
        undo_target[event_id] = target
        undone.add(target)
        if target in undo_target:
            undone.discard(undo_target[target])
    return undone


def _require_skill_row(store: Store, skill_id: str) -> dict[str, str]:
    row = store.cursor().execute("SELECT name, colour FROM skill WHERE skill_id = ?", [skill_id]).fetchone()
    if row is None:
        raise NotFoundError(f"Skill {skill_id!r} does not exist; create it first.")
    return {"name": row[0], "colour": row[1]}


def _clean_name(name: str) -> str:
    cleaned = " ".join(name.split())
    if not cleaned or len(cleaned) > LONGEST_SKILL_NAME:
        raise ConflictError(f"A skill needs a name of 1 to {LONGEST_SKILL_NAME} characters; shorten or write it.")
    return cleaned
