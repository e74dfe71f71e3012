"""What people did: appended to events/*.jsonl and fsynced before the database commits, applied once, undone by name.

An event is {"event_id", "at", "by", "kind", "payload"}. `record` applies it inside a transaction first, so that an
event that cannot apply is never written; then appends and fsyncs; then commits. A crash in between leaves an event
that the next start replays; a commit that fails takes the line back. Ids only grow, also where the clock was set back:
they are the order in which acts count.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import duckdb

from metamoe_backend.errors import ConflictError, NotFoundError, StorageError, UserError
from metamoe_backend.jobs.durable import sync_folder
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
Reverse = Callable[[duckdb.DuckDBPyConnection, EventRecord, str], None]
"""Takes the act that is taken back (or done again) and the id of the undo that does it (or is itself taken back)."""
CLUSTER_ACTS = ("cluster_renamed", "clusters_merged", "cluster_split", "noise_absorbed", "questions_moved")
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

    Raises `UserError` when it cannot apply (an unknown skill, a name taken, a full disk); nothing is written then.
    """
    if not by.strip():
        raise UserError("Nobody is named as the author; say who you are (sidebar, or --by NAME).")
    with store.writers_held_back():
        event = EventRecord(make_event_id(), datetime.now(UTC).replace(tzinfo=None), by.strip(), kind, payload)
        log = store.workspace.events / f"{event.at:%Y-%m}.jsonl"
        with _taken_back_on_error(log), store.transaction() as cursor:
            _apply(cursor, event)
            _append(log, event)
    return event.event_id


def find_standing_undos(cursor: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Acts that are taken back at present, with the undo that did it: {event_id: event_id of the undo}.

    An undo that was itself taken back (a redo) no longer counts.
    """
    undos = cursor.execute(
        "SELECT event_id, json_extract_string(payload, '$.event_id') FROM event WHERE kind = 'undo' ORDER BY event_id DESC"
    )
    undone: dict[str, str] = {}
    for event_id, target in undos.fetchall():
        if event_id not in undone:
            undone[target] = event_id
    return undone


def replay_events(store: Store) -> int:
    """Apply the logged events that the database does not have yet, in order; returns how many."""
    global _last_event_id
    known = {row[0] for row in store.cursor().execute("SELECT event_id FROM event").fetchall()}
    logged = read_events(store)
    missing = [event for event in logged if event.event_id not in known]
    _last_event_id = max([_last_event_id, *known, *(event.event_id for event in logged)])
    if missing:
        with store.transaction() as cursor:
            for event in missing:
                _apply(cursor, event)
    return len(missing)


def read_events(store: Store) -> list[EventRecord]:
    """All logged events in order. A line without its end (a crash while appending, never acknowledged) is left out."""
    events: list[EventRecord] = []
    for path in sorted(store.workspace.events.glob("*.jsonl")):
        *lines, _ = path.read_bytes().split(b"\n")  # texts may hold what `splitlines` takes for the end of a line
        for number, line in enumerate(lines, start=1):
            try:
                raw = json.loads(line)
            except ValueError:
                raise StorageError(
                    f"{path} is damaged at line {number}; restore the file or remove that line, then start again."
                ) from None
            raw["at"] = datetime.fromisoformat(raw["at"])
            events.append(EventRecord(**raw))
    return sorted(events, key=lambda event: event.event_id)


def _append(path: Path, event: EventRecord) -> None:
    raw = {
        "event_id": event.event_id,
        "at": event.at.isoformat(),
        "by": event.by,
        "kind": event.kind,
        "payload": event.payload,
    }
    begins = not path.exists()
    with open(path, "ab+", buffering=0) as file:
        _cut_torn_line(file)
        line = json.dumps(raw, ensure_ascii=False).encode() + b"\n"
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    if begins:
        sync_folder(path.parent)


@contextmanager
def _taken_back_on_error(path: Path) -> Iterator[None]:
    """Whatever the block appended goes again where it fails: an act that was not acknowledged is not replayed."""
    size = path.stat().st_size if path.exists() else 0
    try:
        yield
    except BaseException:
        if path.exists() and path.stat().st_size > size:
            with open(path, "ab") as file:
                file.truncate(size)
                os.fsync(file.fileno())
        raise


def _cut_torn_line(file: FileIO) -> None:
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


def _apply_skill_split(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """Labels of a skill go over to a new one: they stay their authors', as when skills are merged."""
    _require_skill(cursor, event.payload["from"])
    _apply_skill_created(cursor, event)
    _move_split_labels(cursor, event.payload)


def _move_split_labels(cursor: duckdb.DuckDBPyConnection, payload: dict[str, Any], back: bool = False) -> None:
    """`labels` of the payload: [event_id, question_id, skill_id before] of each label that went over."""
    cursor.execute(
        "UPDATE label SET skill_id = if(?, moved.before, ?) FROM (SELECT unnest(?::VARCHAR[]) AS event_id, "
        "unnest(?::VARCHAR[]) AS question_id, unnest(?::VARCHAR[]) AS before) AS moved "
        "WHERE label.event_id = moved.event_id AND label.question_id = moved.question_id",
        [back, payload["skill_id"], *(list(part) for part in zip(*payload["labels"], strict=True))],
    )


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


def _apply_suggestions_accepted(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """`question_ids` get the `skill_ids` beside them."""
    _require_suggested(event)
    cursor.execute(
        "INSERT INTO label SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), ?, ?, 'accepted', NULL",
        [event.event_id, event.payload["question_ids"], event.payload["skill_ids"], event.by, event.at],
    )


def _apply_suggestions_rejected(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """`question_ids` do not need the `skill_ids` beside them."""
    _require_suggested(event)
    cursor.execute(
        "INSERT INTO rejection SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), ?, ?, NULL",
        [event.event_id, event.payload["question_ids"], event.payload["skill_ids"], event.by, event.at],
    )


def _require_suggested(event: EventRecord) -> None:
    if not event.payload["question_ids"]:
        raise UserError("No question with a suggestion is selected; select some first.")


def _apply_labels_restored(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """`question_ids` get the `skill_ids` beside them again; all labels of the `cleared` questions are taken back."""
    cursor.execute(
        "INSERT INTO label SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), ?, ?, 'restored', NULL",
        [event.event_id, event.payload["question_ids"], event.payload["skill_ids"], event.by, event.at],
    )
    _make_room_for_restored(cursor, event)


def _make_room_for_restored(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """A decision would count above a restored label, so it goes, too."""
    cursor.execute(
        "UPDATE label SET retracted_by = $event WHERE retracted_by IS NULL AND event_id <> $event AND ("
        "question_id IN (SELECT unnest($cleared::VARCHAR[])) OR "
        "how = 'decided' AND question_id IN (SELECT unnest($labelled::VARCHAR[])))",
        {"event": event.event_id, "cleared": event.payload["cleared"], "labelled": event.payload["question_ids"]},
    )


# ---- constraints ------------------------------------------------------------------------------------------------


def _apply_constraint(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    values = event.payload
    cursor.execute(
        "INSERT INTO skill_constraint VALUES (?, ?, ?, ?, ?, ?, NULL)",
        [event.event_id, values["relation"], values["first_ids"], values["second_ids"], event.by, event.at],
    )


# ---- clusters ---------------------------------------------------------------------------------------------------


def _apply_clusters_changed(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """`question_ids` go into the `clusters` beside them; `edits` say what the changed clusters are called and hold."""
    values = event.payload
    cursor.execute(
        "INSERT INTO cluster_move SELECT ?, ?, unnest(?::VARCHAR[]), unnest(?::BIGINT[]), ?, ?, NULL",
        [event.event_id, values["map_id"], values["question_ids"], values["clusters"], event.by, event.at],
    )
    for edit in values["edits"]:
        said = [edit["cluster"], edit.get("name"), edit.get("keywords"), edit.get("samples")]
        cursor.execute(
            "INSERT INTO cluster_edit VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            [event.event_id, values["map_id"], *said, event.by, event.at],
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
    _remove_plan(cursor, plan)
    cursor.execute("INSERT INTO plan VALUES (?, ?, ?, ?)", [plan, event.payload["labelling"], event.by, event.at])
    for skill, expert in event.payload["entries"]:
        cursor.execute("INSERT INTO plan_entry VALUES (?, ?, ?)", [plan, skill, expert])


def _remove_plan(cursor: duckdb.DuckDBPyConnection, plan: str) -> None:
    cursor.execute("DELETE FROM plan WHERE plan = ?", [plan])
    cursor.execute("DELETE FROM plan_entry WHERE plan = ?", [plan])


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


# ---- undo and redo ----------------------------------------------------------------------------------------------


def _apply_undo(cursor: duckdb.DuckDBPyConnection, event: EventRecord) -> None:
    """Take back an act. Taking back an undo does its act again."""
    act = _find_event(cursor, event.payload["event_id"])
    if act.kind != "undo":
        if act.kind not in UNDO:
            raise ConflictError(
                f"A {act.kind.replace('_', ' ')!r} act cannot be taken back; make the opposite change instead."
            )
        UNDO[act.kind](cursor, act, event.event_id)
        return
    again = _find_event(cursor, act.payload["event_id"])
    if again.kind == "undo":
        raise ConflictError("What was done again is taken back by taking back the act itself.")
    if again.kind in REDO:
        REDO[again.kind](cursor, again, act.event_id)
    else:
        APPLY[again.kind](cursor, again)


def _find_event(cursor: duckdb.DuckDBPyConnection, event_id: str) -> EventRecord:
    found = cursor.execute("SELECT event_id, made_at, author, kind, payload FROM event WHERE event_id = ?", [event_id])
    row = found.fetchone()
    if row is None:
        raise NotFoundError(f"There is no act {event_id!r}; look at the history.")
    return EventRecord(row[0], row[1], row[2], row[3], json.loads(row[4]))


def _undo_statements(*tables: str) -> Reverse:
    """For acts that made rows of tables with `retracted_by` (label, rejection …): the rows are taken back."""

    def undo(cursor: duckdb.DuckDBPyConnection, act: EventRecord, undo_id: str) -> None:
        for table in tables:
            cursor.execute(
                f"UPDATE {table} SET retracted_by = ? WHERE event_id = ? AND retracted_by IS NULL",
                [undo_id, act.event_id],
            )

    return undo


def _redo_statements(*tables: str) -> Reverse:
    """What the undo took back stands again; what was taken back otherwise does not."""

    def redo(cursor: duckdb.DuckDBPyConnection, act: EventRecord, undo_id: str) -> None:
        for table in tables:
            cursor.execute(
                f"UPDATE {table} SET retracted_by = NULL WHERE event_id = ? AND retracted_by = ?",
                [act.event_id, undo_id],
            )

    return redo


def _let_labels_stand_again(cursor: duckdb.DuckDBPyConnection, retracted_by: str) -> None:
    """Labels that `retracted_by` took back, but for those whose own act has been taken back since."""
    undone = find_standing_undos(cursor)
    acts = cursor.execute("SELECT DISTINCT event_id FROM label WHERE retracted_by = ?", [retracted_by]).fetchall()
    for (act,) in acts:
        cursor.execute(
            "UPDATE label SET retracted_by = ? WHERE event_id = ? AND retracted_by = ?",
            [undone.get(act), act, retracted_by],
        )


def _undo_unlabel(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    _let_labels_stand_again(cursor, act.event_id)


def _undo_labels_restored(cursor: duckdb.DuckDBPyConnection, act: EventRecord, undo_id: str) -> None:
    _let_labels_stand_again(cursor, act.event_id)
    _undo_statements("label")(cursor, act, undo_id)


def _redo_labels_restored(cursor: duckdb.DuckDBPyConnection, act: EventRecord, undo_id: str) -> None:
    _redo_statements("label")(cursor, act, undo_id)
    _make_room_for_restored(cursor, act)


def _undo_skill_created(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    skill_id, name = act.payload["skill_id"], act.payload["name"]
    used = cursor.execute(
        "SELECT 1 FROM label WHERE skill_id = $id AND retracted_by IS NULL UNION ALL "
        "SELECT 1 FROM skill WHERE merged_into = $id OR (skill_id = $id AND merged_into IS NOT NULL)",
        {"id": skill_id},
    ).fetchone()
    if used:
        raise ConflictError(f"Skill {name!r} has labels or was merged; take those acts back first, or merge it.")
    cursor.execute("DELETE FROM skill WHERE skill_id = ?", [skill_id])


def _undo_skill_renamed(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    _require_free_name(cursor, act.payload["before"], act.payload["skill_id"])
    cursor.execute("UPDATE skill SET name = ? WHERE skill_id = ?", [act.payload["before"], act.payload["skill_id"]])


def _undo_skill_recoloured(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    cursor.execute("UPDATE skill SET colour = ? WHERE skill_id = ?", [act.payload["before"], act.payload["skill_id"]])


def _undo_skill_merged(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    for skill_id in [act.payload["skill_id"], *act.payload["along"]]:
        back_to = None if skill_id == act.payload["skill_id"] else act.payload["skill_id"]
        cursor.execute("UPDATE skill SET merged_into = ? WHERE skill_id = ?", [back_to, skill_id])


def _undo_skill_split(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    """The labels go back; those that the new skill got since answer under the old one."""
    new, old = act.payload["skill_id"], act.payload["from"]
    if cursor.execute("SELECT 1 FROM skill WHERE merged_into = ?", [new]).fetchone():
        raise ConflictError("Skills have been merged into it since; take that back first.")
    _move_split_labels(cursor, act.payload, back=True)
    cursor.execute(
        "UPDATE skill SET merged_into = (SELECT coalesce(merged_into, skill_id) FROM skill WHERE skill_id = ?) "
        "WHERE skill_id = ?",
        [old, new],
    )


def _redo_skill_split(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    _require_free_name(cursor, _require_skill(cursor, act.payload["skill_id"])[0], act.payload["skill_id"])
    cursor.execute("UPDATE skill SET merged_into = NULL WHERE skill_id = ?", [act.payload["skill_id"]])
    _move_split_labels(cursor, act.payload)


def _undo_meta_question_edited(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    cursor.execute("DELETE FROM meta_question_edit WHERE event_id = ?", [act.event_id])


def _undo_review(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    cursor.execute("DELETE FROM review WHERE event_id = ?", [act.event_id])


def _undo_plan_saved(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    """The plan becomes what its newest other save said, or goes."""
    taken_back = {*find_standing_undos(cursor), act.event_id}
    _settle_plan(cursor, act.payload["plan"], taken_back)


def _redo_plan_saved(cursor: duckdb.DuckDBPyConnection, act: EventRecord, _undo_id: str) -> None:
    taken_back = set(find_standing_undos(cursor)) - {act.event_id}
    _settle_plan(cursor, act.payload["plan"], taken_back)


def _settle_plan(cursor: duckdb.DuckDBPyConnection, plan: str, taken_back: set[str]) -> None:
    saves = cursor.execute(
        "SELECT event_id FROM event WHERE kind = 'plan_saved' AND json_extract_string(payload, '$.plan') = ? "
        "ORDER BY event_id DESC",
        [plan],
    )
    newest = next((event_id for (event_id,) in saves.fetchall() if event_id not in taken_back), None)
    before = _describe_plan(cursor, plan)
    if newest is None:
        _remove_plan(cursor, plan)
    else:
        _apply_plan_saved(cursor, _find_event(cursor, newest))
    trained = cursor.execute("SELECT adapter FROM adapter WHERE plan = ? LIMIT 1", [plan]).fetchone()
    if trained and _describe_plan(cursor, plan) != before:
        raise ConflictError(
            f"Plan {plan!r} has trained {trained[0]!r} and is kept as it is; save a plan of a new name."
        )


def _describe_plan(cursor: duckdb.DuckDBPyConnection, plan: str) -> list[tuple[Any, ...]]:
    return cursor.execute(
        "SELECT labelling, skill, expert FROM plan JOIN plan_entry USING (plan) WHERE plan = ? ORDER BY ALL", [plan]
    ).fetchall()


APPLY: dict[str, Apply] = {
    "skill_created": _apply_skill_created,
    "skill_renamed": _apply_skill_renamed,
    "skill_recoloured": _apply_skill_recoloured,
    "skill_merged": _apply_skill_merged,
    "skill_split": _apply_skill_split,
    "label": _apply_label,
    "unlabel": _apply_unlabel,
    "suggestions_accepted": _apply_suggestions_accepted,
    "suggestions_rejected": _apply_suggestions_rejected,
    "constraint": _apply_constraint,
    **dict.fromkeys(CLUSTER_ACTS, _apply_clusters_changed),
    "labels_restored": _apply_labels_restored,
    "meta_question_edited": _apply_meta_question_edited,
    "plan_saved": _apply_plan_saved,
    "review": _apply_review,
    "undo": _apply_undo,
}

UNDO: dict[str, Reverse] = {
    "skill_created": _undo_skill_created,
    "skill_renamed": _undo_skill_renamed,
    "skill_recoloured": _undo_skill_recoloured,
    "skill_merged": _undo_skill_merged,
    "skill_split": _undo_skill_split,
    "label": _undo_statements("label"),
    "unlabel": _undo_unlabel,
    "suggestions_accepted": _undo_statements("label"),
    "suggestions_rejected": _undo_statements("rejection"),
    "constraint": _undo_statements("skill_constraint"),
    **dict.fromkeys(CLUSTER_ACTS, _undo_statements("cluster_move", "cluster_edit")),
    "labels_restored": _undo_labels_restored,
    "meta_question_edited": _undo_meta_question_edited,
    "plan_saved": _undo_plan_saved,
    "review": _undo_review,
}
"""How an act of each kind is taken back."""

REDO: dict[str, Reverse] = {
    "skill_split": _redo_skill_split,
    "label": _redo_statements("label"),
    "suggestions_accepted": _redo_statements("label"),
    "suggestions_rejected": _redo_statements("rejection"),
    "constraint": _redo_statements("skill_constraint"),
    **dict.fromkeys(CLUSTER_ACTS, _redo_statements("cluster_move", "cluster_edit")),
    "labels_restored": _redo_labels_restored,
    "plan_saved": _redo_plan_saved,
}
"""How an act is done again where that differs from doing it the first time."""
