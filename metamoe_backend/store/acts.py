"""What people did: the history of everything and of one question, and taking acts back by name."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metamoe_backend.errors import ConflictError
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import UNDO, find_standing_undos, record

_FIELDS = (
    "skill_id", "into", "from", "name", "before", "plan", "labelling", "how", "why", "text", "target_kind", "target",
    "verdict", "comment", "relation", "event_id",
)  # fmt: skip
SKILL_WORK = tuple(kind for kind in UNDO if kind not in ("plan_saved", "review", "meta_question_edited"))
"""What people do to skills and labels: undone by a key where they label."""
_SKILL_FIELDS = ("skill_id", "into", "from")


@dataclass(frozen=True, slots=True)
class Act:
    """One event in the terms of who reads it. Without question ids: an act may touch 100,000 questions."""

    event_id: str
    at: datetime
    by: str
    kind: str
    n: int
    """Questions it touches."""
    values: dict[str, str]
    """What its payload says, skills by their present name: skill, into, from, name, before, plan, labelling, how, why …"""
    undone_by: str | None
    """The undo that took it back and still stands."""
    of: "Act | None" = None
    """Of an undo: the act it takes back; of an undo that was done again: see `undone_by`."""


def fetch_acts(store: Store, limit: int = 50) -> list[Act]:
    """The newest acts of everyone, newest first."""
    return _read(store, "ORDER BY event_id DESC LIMIT $limit", {"limit": limit})


def fetch_question_acts(store: Store, question_id: str) -> list[Act]:
    """Every act that touched one question, undos too, newest first."""
    condition = """
        WHERE contains(payload, $id) AND kind <> 'undo' OR kind = 'undo' AND json_extract_string(payload, '$.event_id') IN (
            SELECT event_id FROM event WHERE contains(payload, $id) AND kind <> 'undo' UNION ALL
            SELECT event_id FROM event WHERE kind = 'undo' AND json_extract_string(payload, '$.event_id') IN (
                SELECT event_id FROM event WHERE contains(payload, $id)))
        ORDER BY event_id DESC
    """
    return _read(store, condition, {"id": f'"{question_id}"'})


def fetch_act(store: Store, event_id: str) -> Act | None:
    """One act by its id, or None."""
    found = _read(store, "WHERE event_id = $id", {"id": event_id})
    return found[0] if found else None


def fetch_undoable(store: Store, by: str, kinds: Collection[str] = tuple(UNDO)) -> Act | None:
    """This person's newest act of these kinds that still stands and can be taken back; or None."""
    undone = find_standing_undos(store.cursor())
    rows = store.cursor().execute(
        "SELECT event_id FROM event WHERE author = ? AND list_contains(?, kind) ORDER BY event_id DESC",
        [by, list(kinds)],
    )
    while row := rows.fetchone():
        if row[0] not in undone:
            return fetch_act(store, row[0])
    return None


def fetch_redoable(store: Store, by: str) -> Act | None:
    """The act that this person's newest undo took back and that can be done again; or None.

    A new act closes the way forward, as in every editor. `undone_by` is the undo to take back.
    """
    undone = find_standing_undos(store.cursor())
    rows = store.cursor().execute("SELECT event_id, kind FROM event WHERE author = ? ORDER BY event_id DESC", [by])
    while row := rows.fetchone():
        event_id, kind = row
        if kind != "undo":
            return None
        act = fetch_act(store, event_id)
        if event_id not in undone and act is not None and act.of is not None and act.of.kind != "undo":
            return act.of
    return None


def undo(store: Store, event_id: str, by: str) -> str:
    """Take back an act (or, given an undo, do its act again); returns the event id of the undo."""
    if event_id in find_standing_undos(store.cursor()):
        raise ConflictError("That act is taken back already; look at the history below.")
    return record(store, "undo", by, {"event_id": event_id})


def _read(store: Store, condition: str, parameters: dict[str, Any]) -> list[Act]:
    paths = [f"$.{field}" for field in _FIELDS]
    rows = (
        store.cursor()
        .execute(
            "SELECT event_id, made_at, author, kind, coalesce(json_array_length(payload, '$.question_ids'), "
            "json_array_length(payload, '$.first_ids') + json_array_length(payload, '$.second_ids'), 0), "
            f"json_extract_string(payload, {paths}), json_extract_string(payload, '$.question_id') FROM event {condition}",
            parameters,
        )
        .fetchall()
    )
    undone = find_standing_undos(store.cursor())
    names = _name_skills(store)
    targets = _read_targets(
        store, [dict(zip(_FIELDS, row[5], strict=True))["event_id"] for row in rows if row[3] == "undo"]
    )
    acts = []
    for event_id, at, by, kind, n, found, question_id in rows:
        values = {name: value for name, value in zip(_FIELDS, found, strict=True) if value is not None}
        of = targets.get(values.pop("event_id", ""))
        for field in _SKILL_FIELDS:
            if field in values:
                skill_id = values.pop(field)
                values["skill" if field == "skill_id" else field] = names.get(skill_id, skill_id)
        acts.append(Act(event_id, at, by, kind, n or int(question_id is not None), values, undone.get(event_id), of))
    return acts


def _read_targets(store: Store, event_ids: Collection[str]) -> dict[str, Act]:
    if not event_ids:
        return {}
    found = _read(store, "WHERE list_contains($ids, event_id)", {"ids": list(set(event_ids))})
    return {act.event_id: act for act in found}


def _name_skills(store: Store) -> dict[str, str]:
    """Present name of every skill there ever was; of one whose making was taken back, its first."""
    rows = store.cursor().execute("""
        WITH made AS (
            SELECT json_extract_string(payload, '$.skill_id') AS skill_id, json_extract_string(payload, '$.name') AS first
            FROM event WHERE kind IN ('skill_created', 'skill_split'))
        SELECT skill_id, coalesce(skill.name, made.first) FROM made LEFT JOIN skill USING (skill_id)
    """)
    return dict(rows.fetchall())
