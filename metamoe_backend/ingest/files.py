"""Readers of .jsonl .json .csv .tsv .parquet: records with line numbers, piece by piece, however odd the file.

A line that cannot be read becomes a rejected row, so that a person may keep the others. What is wrong with the file as
a whole (encoding, a Parquet file cut short) raises `InputError`: dropping just the rows with accents would bias a set.
"""

import codecs
import csv
import json
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from metamoe_backend.errors import InputError
from metamoe_backend.ingest.records import SHOWN_CHARACTERS, Record, Records, make_rejected_row
from metamoe_backend.rows import RejectedRow

MAX_LINE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 128 * 2**20
"""A .json document is parsed in one piece; a larger one belongs into .jsonl."""
POSITIONAL_COLUMNS = {2: ["question", "answer"], 3: ["question", "answer", "explanation"]}
"""Columns of a TSV file without header, by their number; any other number of them is called 1, 2, 3 …"""


def read_records(path: Path, header_words: Collection[str] = ()) -> Records:
    """Records of a file, in order; a line that cannot be read comes as a `RejectedRow`.

    header_words: column names; the first line of a TSV file is its header if one of them stands in it.
    Raises `InputError` where the file as a whole cannot be used.
    """
    check_file(path)
    if path.suffix.lower() == ".tsv":
        return _read_tsv(path, {word.lower() for word in header_words})
    return _READERS[path.suffix.lower()](path)


def check_file(path: Path) -> None:
    """Raise `InputError` unless `path` is a regular, readable, non-empty file with a suffix known here."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a regular file; name a {_suffixes()} file.")
        if path.suffix.lower() not in _READERS:
            raise InputError(f"{path.name} has the suffix {path.suffix or 'none'!r}; name a {_suffixes()} file.")
        with open(path, "rb") as file:
            start = file.read(2)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{str(path)[:200]!r} cannot be read ({why}); check the path.") from None
    if not start:
        raise InputError(f"{path.name} is empty; choose a file with at least one row.")
    if path.suffix.lower() != ".parquet" and start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise InputError(f"{path.name} is UTF-16, not UTF-8; save it as UTF-8.")


def _suffixes() -> str:
    *others, last = _READERS
    return f"{', '.join(others)} or {last}"


def _decode(path: Path, line: int, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise InputError(
            f"{path.name} is not UTF-8: byte 0x{data[error.start]:02x} at position {column} of line {line}; "
            "save it as UTF-8 (often it is Windows-1252, Latin-1 or GB18030)."
        ) from None


def _read_lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line from 1, text with its line end, whole). Of a line over the limit only the beginning, and whole false."""
    with open(path, "rb") as file:
        line = 0
        while data := file.readline(MAX_LINE_BYTES + 1):
            line += 1
            whole = len(data) <= MAX_LINE_BYTES
            if whole:
                yield line, _decode(path, line, data), True
                continue
            yield line, data[:SHOWN_CHARACTERS].decode(errors="replace"), False
            while data and not data.endswith(b"\n"):
                data = file.readline(2**20)


_TOO_LONG = f"the line is longer than {MAX_LINE_BYTES // 2**20} MB, which no question is"


def parse_json(text: str) -> Any:
    """`json.loads`, with every way it can fail on hostile text turned into a `ValueError` of one clause."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not usable JSON (nested too deeply)") from None
    except ValueError:
        raise ValueError("not usable JSON (a number has too many digits)") from None


def _read_jsonl(path: Path) -> Records:
    for line, text, whole in _read_lines(path):
        if not whole:
            yield make_rejected_row(line, _TOO_LONG, text)
            continue
        if not text.strip():
            continue
        try:
            values = parse_json(text)
        except ValueError as error:
            yield make_rejected_row(line, str(error), text)
            continue
        if isinstance(values, dict):
            yield Record(line, values)
        else:
            yield make_rejected_row(line, "the line is not a JSON object", text)


def _read_json(path: Path) -> Records:
    """A list of objects (perhaps with remarks around it), an object of equally long lists, or one object a line."""
    if _is_jsonl(path):
        yield from _read_jsonl(path)
        return
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise InputError(
            f"{path.name} is one JSON document of {size // 2**20} MB (limit {MAX_JSON_BYTES // 2**20}); "
            "write it as .jsonl, one object a line."
        )
    text = _decode(path, 1, path.read_bytes())
    if not text.strip():
        raise InputError(f"{path.name} is empty; choose a file with at least one row.")
    try:
        rows = _json_rows(path, json.loads(text))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path.name}: line {error.lineno} is not valid JSON ({error.msg} at column {error.colno}); mend that line."
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{path.name} is nested too deeply or holds a number with too many digits; write a list of plain objects."
        ) from None
    for number, values in enumerate(rows, start=1):
        if isinstance(values, dict):
            yield Record(number, values)
        else:
            yield make_rejected_row(number, "the item is not a JSON object", json.dumps(values, ensure_ascii=False))


def _is_jsonl(path: Path) -> bool:
    lines = (text for _, text, _ in _read_lines(path) if text.strip())
    try:
        return isinstance(parse_json(next(lines, "")), dict) and next(lines, None) is not None
    except ValueError:
        return False


def _json_rows(path: Path, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    columns = list(document.values()) if isinstance(document, dict) else []
    tables = [column for column in columns if isinstance(column, list)]
    if len(columns) > len(tables) == 1 and tables[0] and all(isinstance(row, dict) for row in tables[0]):
        return tables[0]  # BBH: a remark and the examples
    if not columns or not all(isinstance(column, list) for column in columns):
        raise InputError(f"{path.name} is neither a list of objects nor an object of lists; write it as one of these.")
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in list(document.items())[:8])
        raise InputError(f"{path.name}: the lists differ in length ({lengths}); make them equally long.")
    return [dict(zip(document, row, strict=True)) for row in zip(*columns, strict=True)]


def _read_csv(path: Path) -> Records:
    csv.field_size_limit(MAX_LINE_BYTES)
    seen: list[str] = []
    """Lines of the row being read, for the message."""

    def lines() -> Iterator[str]:
        for line, text, whole in _read_lines(path):
            if not whole:
                raise InputError(f"{path.name}: line {line}: {_TOO_LONG}; mend it.")
            seen.append(text)
            yield text

    with open(path, "rb") as file:
        first = file.readline(MAX_LINE_BYTES).decode(errors="replace")
    reader = csv.reader(lines(), delimiter=max(",;\t", key=first.count), strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        seen.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end of data" in str(error) or "field larger" in str(error)
            reason = "a quote opened here is not closed" if open_quote else f"not valid CSV ({error})"
            yield make_rejected_row(start, reason, "".join(seen))
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _check_header(path, cells)
        else:
            yield _row(start, header, cells, "".join(seen))


def _read_tsv(path: Path, header_words: Collection[str] = ()) -> Records:
    r"""Tab-separated without quoting, as the FLAN collection has it; a written `\n` in a cell is a line break."""
    header: list[str] | None = None
    for line, text, whole in _read_lines(path):
        if not whole:
            yield make_rejected_row(line, _TOO_LONG, text)
            continue
        text = text.rstrip("\r\n")
        if not text.strip():
            continue
        cells = text.split("\t")
        if header is None:
            if any(cell.strip().lower() in header_words for cell in cells):
                header = _check_header(path, cells)
                continue
            header = POSITIONAL_COLUMNS.get(len(cells)) or [str(number + 1) for number in range(len(cells))]
        yield _row(line, header, [cell.replace("\\n", "\n") for cell in cells], text)


def _check_header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    for name in header:
        if header.count(name) > 1:
            what = f"the column {name!r} stands twice" if name else "two columns have no name"
            raise InputError(f"{path.name}: {what} in the header; give each column a name of its own.")
    return header


def _row(line: int, header: list[str], cells: list[str], text: str) -> Record | RejectedRow:
    if len(cells) != len(header):
        return make_rejected_row(line, f"the row has {len(cells)} columns where {len(header)} are expected", text)
    return Record(line, dict(zip(header, cells, strict=True)))


def _read_parquet(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=512):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(number, values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0][:160]
        raise InputError(
            f"{path.name} is not a complete Parquet file (cut short or damaged: {why}); copy or download it again."
        ) from None


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_tsv, ".parquet": _read_parquet}
