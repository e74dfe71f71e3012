"""The ingest stage: a source becomes a task's questions, or nothing happens and a sentence says why."""

import hashlib
import itertools
import json
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from metamoe_backend.config import IngestConfig
from metamoe_backend.errors import ConfigError, ConflictError, InputError
from metamoe_backend.ingest.files import read_records
from metamoe_backend.ingest.formats import (
    FIELDS,
    GENERATED,
    HEADER_WORDS,
    Format,
    Item,
    RowRejected,
    add_opening,
    choose_from,
    choose_template,
    find_format,
    is_number,
)
from metamoe_backend.ingest.generators import DEFAULT_SIZE, read_generator
from metamoe_backend.ingest.hub import read_hub
from metamoe_backend.ingest.human_eval import read_human_eval
from metamoe_backend.ingest.records import Record, Records, make_rejected_row
from metamoe_backend.rows import Regime, RejectedRow, columns
from metamoe_backend.stage import NOTE, Context, Inputs

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

PEEKED_RECORDS = 100
"""So many first rows show a source's columns."""
MAX_REJECTED = 100_000
"""A source with more bad rows than this is the wrong file or mapping; reading stops."""
QUESTIONS_PER_PART = 50_000
PROGRESS_EVERY_S = 0.5


class RejectedRowsError(InputError):
    """Some rows cannot be used, and the person has not said to keep the others."""

    def __init__(self, message: str, rejected: list[RejectedRow]) -> None:
        super().__init__(message)
        self.rejected = rejected


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: its records are read as they are asked for."""

    name: str
    """As the task table names it."""
    unit: str
    """What a record's number counts: line or row."""
    records: Records
    columns: list[str]
    first: list[Record]
    generated: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a source as they would be ingested, without touching a database."""

    task: str
    rows: pd.DataFrame
    """line, split, prompt, choices, answer, explanation."""
    rejected: list[RejectedRow]
    records: pd.DataFrame
    """The same rows as the source has them, for mapping by hand."""
    columns: list[str]
    format_name: str | None
    """None where no format fits and a mapping is needed."""
    mapping: dict[str, str]
    """Field to column, as the format reads them."""
    regime: Regime | None
    template: str | None
    problem: str | None
    """Why the source cannot be read as it is set now, or None."""


def make_question_id(task: str, prompt: str, choices: Sequence[str] | None, answer: str) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of [task, prompt, choices, answer]."""
    content = [task, prompt, None if choices is None else list(choices), answer]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------- sources


def make_task_name(config: IngestConfig) -> str:
    """The task's name: as set, else made from the source so that it is a valid `TaskName`.

    `reasoning_gym:NAME` gives reasoning_gym/NAME, `humaneval:` humaneval, `hub:OWNER/REPO:CONFIG` REPO/CONFIG, a file
    its name without suffix.
    """
    if config.task:
        return config.task
    kind, name, detail = _split_source(config.source)
    if kind == "reasoning_gym":
        parts = ["reasoning_gym", name]
    elif kind == "hub":
        parts = [name.rsplit("/", 1)[-1], *([detail] if detail else [])]
    else:
        parts = [Path(name).stem]
    safe = [_safe_name(part) for part in parts]
    if not all(safe):
        raise InputError(f"No task name can be made from {config.source[:80]!r}; give one with --task NAME.")
    return "/".join(safe)


def _safe_name(text: str) -> str:
    """Letters (with their accents), digits, '.', '_' and '-', beginning with a letter or digit."""
    plain = unicodedata.normalize("NFC", text)
    kept = "".join(one if one in "._-" or _is_letter_or_digit(one) else " " for one in plain)
    name = "_".join(kept.split())
    start = next((place for place, one in enumerate(name) if one not in "._-"), len(name))
    return name[start : start + 64]


def _is_letter_or_digit(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd"


def _split_source(source: str) -> tuple[str, str, str | None]:
    """Kind (file, hub, humaneval, reasoning_gym), name, and the hub's configuration."""
    kind, colon, name = source.partition(":")
    if not colon or kind not in ("hub", "humaneval", "reasoning_gym"):
        return "file", source, None
    if kind == "humaneval":
        return kind, kind, name or None
    if kind == "reasoning_gym":
        return kind, name, None
    repo, _, config_name = name.partition(":")
    return kind, repo, config_name or None


def open_source(config: IngestConfig) -> Source:
    """Open the source and look at its first rows.

    Raises `InputError`, `NotFoundError`, `ConfigError` or `UnavailableError`, each with one sentence.
    """
    kind, name, detail = _split_source(config.source)
    unit = "row"
    if config.options and kind != "reasoning_gym":
        raise ConfigError("options: these belong to a reasoning_gym generator; leave them out for another source.")
    if kind == "reasoning_gym":
        shown = config.source
        records = read_generator(name, config.options, config.limit or DEFAULT_SIZE, config.seed)
    elif kind == "humaneval":
        shown = config.source
        records = read_human_eval(detail)
    elif kind == "hub":
        shown = config.source
        records = read_hub(name, detail, config.split)
    else:
        path = Path(name).expanduser()
        shown = path.name
        unit = "row" if path.suffix.lower() in (".parquet", ".json") else "line"
        records = read_records(path, HEADER_WORDS | set(config.mapping.values()) - set("123456789"))
    peeked = list(itertools.islice(records, PEEKED_RECORDS))
    first = [record for record in peeked if isinstance(record, Record)]
    if not peeked:
        raise InputError(f"{shown} holds no rows; choose a source with at least one.")
    if not first:
        rejected = [row for row in peeked if isinstance(row, RejectedRow)]
        raise RejectedRowsError(
            f"None of the first {len(peeked)} rows of {shown} can be read; {_first(unit, rejected)}; check the file.",
            rejected,
        )
    names = list(dict.fromkeys(column for record in first for column in record.values))
    return Source(shown, unit, itertools.chain(peeked, records), names, first, kind == "reasoning_gym")


def _find_format(source: Source, config: IngestConfig) -> Format:
    if source.generated:
        one = GENERATED
    else:
        one = find_format(source.columns, config.mapping, [record.values for record in source.first], source.name)
    task = make_task_name(config)
    return add_opening(replace(one, template=config.template or choose_template(one, task)), task)


# ------------------------------------------------------------------------------------------------------------- items


@dataclass(slots=True)
class Read:
    """What was read: (line, position, item) of each good row, and the others."""

    items: list[tuple[int, int, Item]]
    rejected: list[RejectedRow]

    @property
    def rows(self) -> int:
        return len(self.items) + len(self.rejected)


def _read_items(
    source: Source, one: Format, config: IngestConfig, limit: int | None, tick: Callable[[int], None]
) -> Read:
    read = Read([], [])
    for record in source.records:
        if limit is not None and len(read.items) >= limit:
            break
        if isinstance(record, RejectedRow):
            read.rejected.append(record)
        else:
            try:
                read.items.append((record.line, read.rows, _read_item(record, one, config.choices)))
            except RowRejected as reason:
                text = json.dumps(record.values, ensure_ascii=False, default=str)
                read.rejected.append(make_rejected_row(record.line, str(reason), text))
        if len(read.rejected) > MAX_REJECTED:
            raise RejectedRowsError(
                f"More than {MAX_REJECTED} rows of {source.name} cannot be used; "
                f"{_first(source.unit, read.rejected)}; check the file and the mapping.",
                read.rejected,
            )
        tick(read.rows)
    return read


def _read_item(record: Record, one: Format, choices: list[str] | None) -> Item:
    item = one.read(record.values)
    if choices:
        item = choose_from(item.free or item, choices)
    for text in (item.prompt, item.answer, item.explanation or "", *(item.choices or ())):
        if not text.isascii() and not _is_encodable(text):
            raise RowRejected("the row holds half a character (a lone surrogate such as \\ud800)")
    return item


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(unit: str, rejected: list[RejectedRow]) -> str:
    return f"first: {unit} {rejected[0].line}: {rejected[0].reason}"


def _check_choices(config: IngestConfig, source: Source, one: Format) -> None:
    if config.choices is None:
        return
    if (
        len({choice.strip().casefold() for choice in config.choices} - {""}) != len(config.choices)
        or len(config.choices) < 2
    ):
        raise ConfigError("choices: give at least two different options, none of them empty.")
    if "choices" in one.mapping:
        raise ConfigError(f"choices: the rows of {source.name} have options of their own; leave the fixed ones out.")


def _decide_regime(items: Iterable[Item], one: Format, config: IngestConfig, existing: str | None) -> Regime:
    """One regime for all rows; what could be scored more strictly bends to an existing task scored as exact."""
    items = list(items)
    if config.choices:
        return "choices"
    if one.regime:
        return one.regime
    if all(item.choices for item in items) and not (
        existing in ("exact", "number") and all(item.free for item in items)
    ):
        return "choices"
    if existing != "exact" and all(is_number((item.free or item).answer) for item in items):
        return "number"
    return "exact"


def _for_regime(item: Item, regime: Regime) -> Item:
    return item if regime == "choices" or item.free is None else item.free


# ------------------------------------------------------------------------------------------------------------- stage


def prepare(store: "Store", config: IngestConfig) -> Inputs:
    """question: id, split and position of what the task already has. task: its row, if it exists."""
    from metamoe_backend.store.questions import fetch_question_places, fetch_tasks

    name = make_task_name(config)
    tasks = fetch_tasks(store)
    known = tasks.loc[tasks["task"] == name, ["task", "regime", "template", "source"]]
    return {"question": fetch_question_places(store, name), "task": known}


def compute(inputs: Inputs, config: IngestConfig, context: Context) -> None:
    """Read the source, drop duplicates and emit task, question and rejected_row; all rows or, on an error, none.

    The last progress report carries the metrics added, duplicates, rejected and changed. Raises `RejectedRowsError` if
    a row cannot be used and `config.keep_good` is not set, `ConflictError` if the task exists and is scored
    differently.
    """
    task = make_task_name(config)
    source = open_source(config)
    one = _find_format(source, config)
    _check_choices(config, source, one)
    read = _read_items(source, one, config, config.limit, _make_tick(config, context))
    _check_rejected(source, read, config)
    known = inputs["task"]
    existing = str(known["regime"].iloc[0]) if len(known) else None
    regime = _decide_regime((item for _, _, item in read.items), one, config, existing)
    if existing and regime != existing:
        raise ConflictError(
            f"Task {task} is scored as {existing}, but the rows of {source.name} ask for {regime}; "
            "give them a task of their own with --task NAME."
        )
    if existing and config.template not in (None, known["template"].iloc[0]):
        raise ConflictError(
            f"Task {task} is shown as {known['template'].iloc[0]!r}, not as {config.template!r}; give these rows a "
            "task of their own with --task NAME."
        )
    rows, duplicates = _make_questions(task, read, regime, config.split, set(inputs["question"]["question_id"]))
    changed = _count_changed(task, read, regime, config, inputs) if is_file_source(config.source) else 0
    if changed:
        context.log(
            f"{NOTE}{changed} rows of {source.name} read differently now than when {task} was made of them; their old "
            "questions stay beside the new ones, with all answers; ingest a changed file as a new task (--task NAME)."
        )
    if not existing:
        row = {"task": task, "regime": regime, "template": one.template, "source": source.name}
        context.emit("task", pd.DataFrame([{**row, "created_at": context.created_at}]))
    for start in range(0, len(rows), QUESTIONS_PER_PART):
        context.emit("question", _question_frame(rows[start : start + QUESTIONS_PER_PART]))
    if read.rejected:
        frame = pd.DataFrame([asdict(row) for row in read.rejected])
        context.emit("rejected_row", frame.drop(columns="run_id"))
    context.log(
        f"{source.name} read as {one.name} into {task} ({regime}): {len(rows)} added, {duplicates} duplicates, "
        f"{len(read.rejected)} rejected."
    )
    context.progress(
        read.rows, read.rows, added=len(rows), duplicates=duplicates, rejected=len(read.rejected), changed=changed
    )


def _make_tick(config: IngestConfig, context: Context) -> Callable[[int], None]:
    """Reports progress now and then; how long a source is shows only at its end."""
    last = time.monotonic()

    def tick(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY_S:
            last = time.monotonic()
            context.progress(rows, max(rows, config.limit or 0))

    return tick


def _check_rejected(source: Source, read: Read, config: IngestConfig) -> None:
    if not read.rejected or (config.keep_good and read.items):
        return
    first = _first(source.unit, read.rejected)
    if not read.items:
        message = f"None of the {read.rows} rows of {source.name} can be used; {first}; check the file and the mapping."
    else:
        message = (
            f"{len(read.rejected)} of {read.rows} rows of {source.name} cannot be used; {first}; "
            "mend them or keep the good rows (--keep-good)."
        )
    raise RejectedRowsError(message, read.rejected)


def _make_questions(
    task: str, read: Read, regime: Regime, split: str, known: set[str]
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the question table, and how many were left out as already known or seen before in the source."""
    rows = []
    for _, position, full in read.items:
        item = _for_regime(full, regime)
        question_id = make_question_id(task, item.prompt, item.choices, item.answer)
        if question_id in known:
            continue
        known.add(question_id)
        rows.append(
            {
                "question_id": question_id,
                "task": task,
                "split": item.split or split,
                "prompt": item.prompt,
                "choices": item.choices,
                "answer": item.answer,
                "gold": item.gold,
                "explanation": item.explanation,
                "metadata": None if item.metadata is None else json.dumps(item.metadata, default=str),
                "position": position,
            }
        )
    return rows, len(read.items) - len(rows)


def _count_changed(task: str, read: Read, regime: Regime, config: IngestConfig, inputs: Inputs) -> int:
    """Rows of a file that gave the task a question before, and now give it another one."""
    known, before = inputs["task"], inputs["question"]
    if known.empty or "source" not in known or known["source"].iloc[0] != Path(config.source).name:
        return 0
    now = [(position, item.split or config.split, _for_regime(item, regime)) for _, position, item in read.items]
    ids = {make_question_id(task, item.prompt, item.choices, item.answer) for _, _, item in now}
    places = {(split, position) for position, split, _ in now}
    gone = before[~before["question_id"].isin(ids)]
    return sum(place in places for place in zip(gone["split"], gone["position"], strict=True))


def _question_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = [column.name for column in columns("question") if column.name != "run_id"]
    return pd.DataFrame(rows, columns=names).astype({"gold": "Int64", "position": "int64"})


def is_file_source(source: str) -> bool:
    """Whether a source names a file, not a hub data set or a generator."""
    return _split_source(source)[0] == "file"


def read_rows(
    config: IngestConfig, regime: str | None, on_rows: Callable[[int], None]
) -> tuple[pd.DataFrame, list[RejectedRow]]:
    """All rows of a source as a task scored by `regime` would have them, duplicates too, and those that cannot be used.

    position (row number in the source, from 0), split (None unless the source says), prompt, answer, explanation.
    `on_rows` is told how many are read. Raises like `compute`.
    """
    source = open_source(config)
    one = _find_format(source, config)
    _check_choices(config, source, one)
    read = _read_items(source, one, config, config.limit, on_rows)
    _check_rejected(source, read, config)
    own = _decide_regime((item for _, _, item in read.items), one, config, regime)
    items = [(position, _for_regime(item, own)) for _, position, item in read.items]
    rows = [(position, item.split, item.prompt, item.answer, item.explanation) for position, item in items]
    return pd.DataFrame(rows, columns=["position", "split", "prompt", "answer", "explanation"]), read.rejected


def read_preview(config: IngestConfig, limit: int = 20) -> Preview:
    """The first rows of a source as they would be ingested under these settings.

    Where no format fits or the mapping is not right yet, `problem` says so and `records` still shows the rows. Raises
    like `open_source` where the source itself cannot be read.
    """
    short = config.model_copy(update={"limit": min(limit, config.limit or limit)})
    source = open_source(short)
    shown = pd.DataFrame([record.values for record in source.first[:limit]], columns=source.columns)
    try:
        one = _find_format(source, config)
        _check_choices(config, source, one)
    except (InputError, ConfigError) as error:
        mapping = {field: field for field in FIELDS if field in source.columns} | config.mapping
        empty = _preview_frame([], "exact", config.split)
        return Preview(make_task_name(config), empty, [], shown, source.columns, None, mapping, None, None, str(error))
    head = Source(
        source.name, source.unit, itertools.islice(source.records, limit), source.columns, source.first, False
    )
    read = _read_items(head, one, config, limit, lambda _: None)
    regime = _decide_regime((item for _, _, item in read.items), one, config, None) if read.items else None
    rows = _preview_frame(read.items, regime or "exact", config.split)
    mapping = dict(one.mapping)
    return Preview(
        make_task_name(config),
        rows,
        read.rejected,
        shown,
        source.columns,
        one.name,
        mapping,
        regime,
        one.template,
        None,
    )


def _preview_frame(items: Iterable[tuple[int, int, Item]], regime: Regime, split: str) -> pd.DataFrame:
    return pd.DataFrame(list(_preview_rows(items, regime, split)), columns=_PREVIEW_COLUMNS)


_PREVIEW_COLUMNS = ["line", "split", "prompt", "choices", "answer", "explanation"]


def _preview_rows(items: Iterable[tuple[int, int, Item]], regime: Regime, split: str) -> Iterator[list[Any]]:
    for line, _, full in items:
        item = _for_regime(full, regime)
        yield [line, item.split or split, item.prompt, item.choices, item.answer, item.explanation]
