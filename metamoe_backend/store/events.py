"""What people did: appended to events/*.jsonl and fsynced before the database commits, applied once, undone by name.

An event is {"event_id", "at", "by", "kind", "payload"}. `record` applies it inside a transaction first, so that an
event that cannot apply is never written; then appends and fsyncs; then commits. A crash in between leaves an event
that the next start replays.
"""

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

import duckdb

from metamoe_backend.errors import ConflictError, NotFoundError, StorageError, UserError
from metamoe_backend.store.connection import Store


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One line of the event log."""

    event_id: str
    at: datetime
    by: str
    kind: str
    payload: dict[str, Any]


Apply = Callable[[duckdb.DuckDBPyConnection, EventRecord], None]
_last_event_id = ""


def make_event_id() -> str:
    """Sortable by time, also within one microsecond of one process."""
    global _last_event_id
    stamp = f"{time.time_ns() // 1000:016d}"
    if stamp <= _last_event_id[:16]:
        stamp = f"{int(_last_event_id[:16]) + 1:016d}"
    _last_event_id = f"{stamp}-{secrets.token_hex(3)}"
    return _last_event_id


def record(store: Store, kind: str, by: str, payload: dict[str, Any]) -> str:
    """Apply an event, keep it for ever, and return its id.

    Raises `UserError` when it cannot apply (an unknown skill, a name taken); nothing is written then.
    """
    if not by.strip():
        raise UserError("Nobody is named as the author; say who you are (sidebar, or --by NAME).")
    with store.transaction() as cursor:
        event = EventRecord(make_event_id(), datetime.now(UTC).replace(tzinfo=None), by.strip(), kind, payload)
        _apply(cursor, event)
        _append(store, event)
    return event.event_id


def replay_events(store: Store) -> int:
    """Apply the logged events that the database does not have yet, in order; returns how many."""
    known = {row[0] for row in store.cursor().execute("SELECT event_id FROM event").fetchall()}
    missing = [event for event in read_events(store) if event.event_id not in known]
    if missing:
        with store.transaction() as cursor:
            for event in missing:
                _apply(cursor, event)
    return len(missing)


def read_events(store: Store) -> list[EventRecord]:
    """All logged events in order. A torn last line (a crash while appending, never acknowledged) is left out."""
    events: list[EventRecord] = []
    for path in sorted(store.workspace.events.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                raw = json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines):
                    continue
                raise StorageError(
                    f"{path} is damaged at line {number}; restore the file or remove that line, then start again."
                ) from None
            raw["at"] = datetime.fromisoformat(raw["at"])
            events.append(EventRecord(**raw))
    return sorted(events, key=lambda event: event.event_id)


def _append(store: Store, event: EventRecord) -> None:
    path = store.workspace.events / f"{event.at:%Y-%m}.jsonl"
    raw = {
        "event_id": event.event_id,
        "at": event.at.isoformat(),
        "by": event.by,
        "kind": event.kind,
        "payload": event.payload,
    }
    with open(path, "ab+") as file:
        _cut_torn_line(file)
        file.write(json.dumps(raw, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cut_torn_line(file: IO[bytes]) -> None:
    """A line without its end was being written when the process died: it was never acknowledged, so it goes."""
    end = file.seek(0, os.SEEK_END)
    if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _apply(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    apply = APPLY.get(event.kind)
    if apply is None:
        raise StorageError(
            f"The event log holds a {event.kind!r} event that this version does not know; update MetaMoE."
        )
    apply(cursor, event)
    cursor.execute(
        "INSERT INTO event VALUES (?, ?, ?, ?, ?)",
        [event.event_id, event.at, event.by, event.kind, json.dumps(event.payload, ensure_ascii=False)],
    )


# ---- skills -----------------------------------------------------------------------------------------------------


def _require_skill(cursor: duckdb.DuckDBPyConnection, skill_id: str) -> tuple[str, str]:
    row = cursor.execute("SELECT name, colour FROM skill WHERE skill_id = ?", [skill_id]).fetchone()
    if row is None:
        raise NotFoundError(f"Skill {skill_id!r} does not exist; create it first.")
    return row


def _require_free_name(cursor: duckdb.DuckDBPyConnection, name: str, but: str = "") -> None:
    taken = cursor.execute(
        "SELECT 1 FROM skill WHERE name = ? AND merged_into IS NULL AND skill_id <> ?", [name, but]
    ).fetchone()
    if taken:
        raise ConflictError(f"A skill called {name!r} exists already; choose another name or merge the two.")


def _apply_skill_created(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    _require_free_name(cursor, event.payload["name"])
    cursor.execute(
        "INSERT INTO skill VALUES (?, ?, ?, NULL, ?, ?)",
        [event.payload["skill_id"], event.payload["name"], event.payload["colour"], event.by, event.at],
    )


def _apply_skill_renamed(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    _require_skill(cursor, event.payload["skill_id"])
    _require_free_name(cursor, event.payload["name"], event.payload["skill_id"])
    cursor.execute("UPDATE skill SET name = ? WHERE skill_id = ?", [event.payload["name"], event.payload["skill_id"]])


def _apply_skill_recoloured(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    _require_skill(cursor, event.payload["skill_id"])
    cursor.execute(
        "UPDATE skill SET colour = ? WHERE skill_id = ?", [event.payload["colour"], event.payload["skill_id"]]
    )


def _apply_skill_merged(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    skill_id, into = event.payload["skill_id"], event.payload["into"]
    _require_skill(cursor, skill_id)
    _require_skill(cursor, into)
    if skill_id == into:
        raise ConflictError("A skill cannot be merged into itself; choose another one.")
    # Skills merged into this one earlier go along, so that one step of `merged_into` always reaches a skill in use.
    cursor.execute("UPDATE skill SET merged_into = ? WHERE skill_id = ? OR merged_into = ?", [into, skill_id, skill_id])


# ---- labels -----------------------------------------------------------------------------------------------------


def _apply_label(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    _require_skill(cursor, event.payload["skill_id"])
    if not event.payload["question_ids"]:
        raise UserError("No question is selected; select questions first.")
    cursor.execute(
        "INSERT INTO label SELECT ?, unnest(?::VARCHAR[]), ?, ?, ?, ?, NULL",
        [
            event.event_id,
            list(dict.fromkeys(event.payload["question_ids"])),
            event.payload["skill_id"],
            event.by,
            event.at,
            event.payload["how"],
        ],
    )


def _apply_unlabel(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    cursor.execute(
        "UPDATE label SET retracted_by = ? WHERE retracted_by IS NULL AND author = ? "
        "AND question_id IN (SELECT unnest(?::VARCHAR[]))",
        [event.event_id, event.by, event.payload["question_ids"]],
    )


# ---- everything else people do ----------------------------------------------------------------------------------


def _apply_meta_question_edited(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    if not event.payload["text"].strip():
        raise UserError("The meta-question is empty; write what the question asks in general.")
    cursor.execute(
        "INSERT INTO meta_question_edit VALUES (?, ?, ?, ?, ?, ?)",
        [
            event.event_id,
            event.payload["question_id"],
            event.payload["method"],
            event.payload["text"],
            event.by,
            event.at,
        ],
    )


def _apply_plan_saved(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    plan = event.payload["plan"]
    cursor.execute("DELETE FROM plan WHERE plan = ?", [plan])
    cursor.execute("DELETE FROM plan_entry WHERE plan = ?", [plan])
    cursor.execute("INSERT INTO plan VALUES (?, ?, ?, ?)", [plan, event.payload["labelling"], event.by, event.at])
    for skill, expert in event.payload["entries"]:
        cursor.execute("INSERT INTO plan_entry VALUES (?, ?, ?)", [plan, skill, expert])


def _apply_review(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    values = event.payload
    if values["verdict"] is None and not values["comment"].strip():
        raise UserError("The review is empty; write a comment or choose a verdict.")
    cursor.execute(
        "INSERT INTO review VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            event.event_id,
            values["target_kind"],
            values["target"],
            values["verdict"],
            values["comment"],
            event.by,
            event.at,
        ],
    )


# ---- undo -------------------------------------------------------------------------------------------------------


def _apply_undo(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """Take back an event. Undoing an undo is a redo."""
    target = event.payload["event_id"]
    row = cursor.execute("SELECT kind, payload FROM event WHERE event_id = ?", [target]).fetchone()
    if row is None:
        raise NotFoundError(f"There is no act {target!r} to take back.")
    kind, payload = row[0], json.loads(row[1])
    if kind == "undo":
        _redo(cursor, payload["event_id"])
    elif kind in UNDO:
        UNDO[kind](cursor, target, payload, event.event_id)
    else:
        raise ConflictError(f"A {kind.replace('_', ' ')!r} act cannot be taken back; make the opposite change instead.")


def _redo(cursor: duckdb.DuckDBPyConnection, event_id: str) -> None:
    row = cursor.execute("SELECT event_id, made_at, author, kind, payload FROM event WHERE event_id = ?", [event_id])
    first = row.fetchone()
    if first is None:
        raise NotFoundError(f"There is no act {event_id!r} to do again.")
    again = EventRecord(first[0], first[1], first[2], first[3], json.loads(first[4]))
    if again.kind == "label":
        cursor.execute("UPDATE label SET retracted_by = NULL WHERE event_id = ?", [event_id])
    else:
        APPLY[again.kind](cursor, again)


def _undo_label(cursor: duckdb.DuckDBPyConnection, target: str, _: dict[str, Any], undo_id: str) -> None:
    cursor.execute("UPDATE label SET retracted_by = ? WHERE event_id = ? AND retracted_by IS NULL", [undo_id, target])


def _undo_unlabel(cursor: duckdb.DuckDBPyConnection, target: str, _: dict[str, Any], _undo_id: str) -> None:
    cursor.execute("UPDATE label SET retracted_by = NULL WHERE retracted_by = ?", [target])


def _undo_skill_renamed(cursor: duckdb.DuckDBPyConnection, _: str, payload: dict[str, Any], _undo_id: str) -> None:
    _require_free_name(cursor, payload["before"], payload["skill_id"])
    cursor.execute("UPDATE skill SET name = ? WHERE skill_id = ?", [payload["before"], payload["skill_id"]])


def _undo_skill_recoloured(cursor: duckdb.DuckDBPyConnection, _: str, payload: dict[str, Any], _undo_id: str) -> None:
    cursor.execute("UPDATE skill SET colour = ? WHERE skill_id = ?", [payload["before"], payload["skill_id"]])


def _undo_skill_merged(cursor: duckdb.DuckDBPyConnection, _: str, payload: dict[str, Any], _undo_id: str) -> None:
    for skill_id in [payload["skill_id"], *payload["along"]]:
        back_to = None if skill_id == payload["skill_id"] else payload["skill_id"]
        cursor.execute("UPDATE skill SET merged_into = ? WHERE skill_id = ?", [back_to, skill_id])


def _undo_meta_question_edited(
    cursor: duckdb.DuckDBPyConnection, target: str, _: dict[str, Any], _undo_id: str
) -> None:
    cursor.execute("DELETE FROM meta_question_edit WHERE event_id = ?", [target])


APPLY: dict[str, Apply] = {
    "skill_created": _apply_skill_created,
    "skill_renamed": _apply_skill_renamed,
    "skill_recoloured": _apply_skill_recoloured,
    "skill_merged": _apply_skill_merged,
    "label": _apply_label,
    "unlabel": _apply_unlabel,
    "meta_question_edited": _apply_meta_question_edited,
    "plan_saved": _apply_plan_saved,
    "review": _apply_review,
    "undo": _apply_undo,
}

UNDO: dict[str, Callable[[duckdb.DuckDBPyConnection, str, dict[str, Any], str], None]] = {
    "label": _undo_label,
    "unlabel": _undo_unlabel,
    "skill_renamed": _undo_skill_renamed,
    "skill_recoloured": _undo_skill_recoloured,
    "skill_merged": _undo_skill_merged,
    "meta_question_edited": _undo_meta_question_edited,
}
