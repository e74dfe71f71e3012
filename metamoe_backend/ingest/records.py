"""What every source yields: records with the line they stand on, or a rejected row where no record could be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from metamoe_backend.rows import RejectedRow

SHOWN_CHARACTERS = 500
"""Of a rejected row, so many characters are kept."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the source has it."""

    line: int
    """Line of a text file, row of any other source, from 1."""
    values: dict[str, Any]
    """Column name to value."""


Records = Iterator[Record | RejectedRow]


def make_rejected_row(line: int, reason: str, text: str) -> RejectedRow:
    """A rejected row; the run's id is filled in when it is emitted. Half surrogates are shown as '?'."""
    return RejectedRow("", line, reason, text.rstrip("\r\n")[:SHOWN_CHARACTERS].encode(errors="replace").decode())
