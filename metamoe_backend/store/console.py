"""SQL for people: one SELECT, in a process of its own, on a published copy of the database.

Nothing a statement does can reach the workspace: see `console_process` for what that process gives up. Here are the
parts that stay outside of it: choosing the sandbox, the deadline, the caps, and words for what went wrong.
"""

import fcntl
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from metamoe_backend.errors import NotFoundError, QueryError, UnavailableError
from metamoe_backend.store import console_process

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

logger = logging.getLogger(__name__)

MAX_RESULT_BYTES = 32 * 2**20
MAX_EXPORT_ROWS = 5_000_000
MAX_EXPORT_BYTES = 512 * 2**20
MAX_STATEMENT_CHARACTERS = 100_000
MEMORY_BYTES = 2**30
"""What DuckDB aims to stay below. It may overshoot, hence the hard limit:"""
ADDRESS_BYTES = 4 * 2**30
THREADS = 2
LANDLOCK_VERSION_NEEDED = 3


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Rows of a SELECT, ready for JSON: NaN and infinities are the words NaN, Infinity and -Infinity."""

    columns: list[str]
    types: list[str]
    """DuckDB's names: BIGINT, VARCHAR[], DECIMAL(5,2) …"""
    rows: list[list[Any]]
    truncated: bool
    """True when the row or byte cap cut the result short."""
    elapsed_s: float
    """Inside the database, without starting the process."""


@dataclass(slots=True)
class _Query:
    """A running console process."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    complaints: IO[bytes]
    status_fd: int
    timeout_s: float
    out_of_time: threading.Event = field(default_factory=threading.Event)

    def kill(self) -> None:
        """End it and whatever it started, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop_at_deadline(self) -> None:
        self.out_of_time.set()
        self.kill()

    def has_ended(self, within_s: float) -> bool:
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def status(self) -> dict[str, Any]:
        """What the process says happened, after it ended; raises `QueryError` for anything but success."""
        code = self.process.wait()
        with os.fdopen(self.status_fd, encoding="utf-8") as pipe:
            text = pipe.read(2**20)
        self.status_fd = -1
        if self.out_of_time.is_set() or -code == signal.SIGXCPU:
            raise QueryError(f"The query was stopped after {self.timeout_s:g} s; narrow it or raise the time limit.")
        if not text:
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            self.complaints.seek(0)
            logger.error(
                "The console process ended with %s: %s", reason, self.complaints.read(4000).decode(errors="replace")
            )
            raise QueryError(
                f"The query ended without a result ({reason}); most likely it ran out of memory: narrow it."
            )
        status = json.loads(text)
        if "error" in status:
            raise QueryError(_explain(status["error"], status["kind"]))
        return dict(status)


def run_query(
    published: Path,
    sql: str,
    limit: int = 1000,
    timeout_s: float = 20.0,
    max_bytes: int = MAX_RESULT_BYTES,
) -> QueryResult:
    """Run one SELECT on a published copy.

    At most `limit` rows and `max_bytes` of JSON come back (`truncated` says whether more there were). Raises
    `QueryError` for a statement that may not run, that fails, or that passes `timeout_s`; `UnavailableError` on a machine
    where it cannot be locked up; `NotFoundError` when the copy is gone.
    """
    with _start(published, sql, "rows", limit, timeout_s, max_bytes) as query:
        lines = query.output.read(max_bytes + 1).splitlines()
        status = query.status()
    return QueryResult(
        columns=status["columns"],
        types=status["types"],
        rows=[json.loads(line) for line in lines],
        truncated=status["truncated"],
        elapsed_s=status["elapsed_s"],
    )


def as_frame(result: QueryResult) -> "pd.DataFrame":
    """The rows as a table with proper numbers and times; columns of the same name are numbered, structs become JSON."""
    import pandas as pd

    found: dict[str, pd.Series[Any]] = {}
    for place, (name, kind) in enumerate(zip(result.columns, result.types, strict=True)):
        cells = [row[place] for row in result.rows]
        found[name if name not in found else f"{name}_{place}"] = _as_column(cells, kind)
    return pd.DataFrame(found)


def _as_column(cells: list[Any], kind: str) -> "pd.Series[Any]":
    """Cells of one column as the pandas type nearest to DuckDB's."""
    import pandas as pd

    if kind in ("DOUBLE", "FLOAT") or (kind.startswith("DECIMAL") and not kind.endswith("]")):
        return pd.Series([math.nan if cell is None else float(cell) for cell in cells], dtype="float64")
    if kind in ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"):
        return pd.Series(pd.to_datetime(cells, errors="coerce", format="ISO8601"))
    if kind.endswith(("INT", "INTEGER")):
        if all(cell is None or -(2**63) <= cell < 2**63 for cell in cells):
            return pd.Series(cells, dtype="Int64")
        return pd.Series([None if cell is None else str(cell) for cell in cells], dtype=object)
    if kind.startswith(("STRUCT", "MAP", "UNION")) and not kind.endswith("]"):
        return pd.Series(
            [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells], dtype=object
        )
    return pd.Series(cells, dtype="boolean" if kind == "BOOLEAN" else object)


def export_query(
    published: Path,
    sql: str,
    target: Path,
    kind: Literal["csv", "parquet"],
    limit: int = MAX_EXPORT_ROWS,
    timeout_s: float = 120.0,
    max_bytes: int = MAX_EXPORT_BYTES,
) -> QueryResult:
    """Write the rows of one SELECT to `target`, batch by batch; the result that comes back holds no rows.

    The file appears under its name only when complete. Lists and structs become JSON text in CSV. Errors as `run_query`.
    """
    import pyarrow as pa

    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _start(published, sql, "arrow", limit, timeout_s, max_bytes) as query:
            try:
                _write_file(pa.ipc.open_stream(query.output), unfinished, kind)
            except (pa.ArrowException, OSError):
                if query.has_ended(within_s=1.0):
                    query.status()  # the stream broke off: the status says why
                raise
            status = query.status()
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return QueryResult(status["columns"], status["types"], [], status["truncated"], status["elapsed_s"])


def _write_file(reader: "pa.RecordBatchStreamReader", path: Path, kind: Literal["csv", "parquet"]) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    fields: list[pa.Field] = []
    for column in reader.schema:
        taken = [field.name for field in fields]
        name = column.name if column.name not in taken else f"{column.name}_{len(taken)}"
        fields.append(pa.field(name, column.type if _writable(column.type, kind) else pa.string()))
    schema = pa.schema(fields)
    make_writer = pa.parquet.ParquetWriter if kind == "parquet" else pa.csv.CSVWriter
    with make_writer(path, schema) as writer:
        for batch in reader:
            arrays = [_as_type(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _writable(data_type: "pa.DataType", kind: Literal["csv", "parquet"]) -> bool:
    """Whether that kind of file has a cell for it."""
    import pyarrow as pa

    if pa.types.is_interval(data_type):
        return False
    return kind == "parquet" or not (pa.types.is_nested(data_type) or pa.types.is_binary(data_type))


def _as_type(column: "pa.Array", data_type: "pa.DataType") -> "pa.Array":
    """The column itself, or its cells as JSON text."""
    import pyarrow as pa

    if column.type == data_type:
        return column
    cells = [console_process.as_json(cell) for cell in column.to_pylist()]
    return pa.array(
        [cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells],
        pa.string(),
    )


@contextmanager
def _start(
    published: Path, sql: str, kind: Literal["rows", "arrow"], limit: int, timeout_s: float, max_bytes: int
) -> Iterator[_Query]:
    """A console process at work on `sql`; it is gone when the block ends, whatever happens in it."""
    if not sql.strip():
        raise QueryError("There is no statement; write one SELECT.")
    if len(sql) > MAX_STATEMENT_CHARACTERS:
        raise QueryError(
            f"The statement has {len(sql):,} characters; {MAX_STATEMENT_CHARACTERS:,} are the most that may run."
        )
    sandbox = choose_sandbox()
    with _held_open(published), tempfile.TemporaryFile() as complaints:
        status_read, status_write = os.pipe()
        process = subprocess.Popen(
            [*_wrapper(sandbox), sys.executable, "-I", "-B", console_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=(status_write,),
            start_new_session=True,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "TZ": "UTC", "MALLOC_ARENA_MAX": "2", "LC_ALL": "C.UTF-8"},
        )
        os.close(status_write)
        assert process.stdin is not None and process.stdout is not None
        query = _Query(process, process.stdout, complaints, status_read, timeout_s)
        deadline = threading.Timer(timeout_s, query.stop_at_deadline)
        deadline.daemon = True
        deadline.start()
        request = {
            "sql": sql, "database": str(published.resolve()), "kind": kind, "limit": limit, "max_bytes": max_bytes,
            "timeout_s": timeout_s, "memory_bytes": MEMORY_BYTES, "address_bytes": ADDRESS_BYTES, "threads": THREADS,
            "sandbox": sandbox, "status": status_write,
        }  # fmt: skip
        try:
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            yield query
        finally:
            deadline.cancel()
            query.kill()
            process.wait()
            process.stdout.close()
            if query.status_fd >= 0:
                os.close(query.status_fd)


@contextmanager
def _held_open(published: Path) -> Iterator[None]:
    """A shared lock on the copy: `publish` removes only copies that nobody reads."""
    try:
        file = published.open("rb")
    except FileNotFoundError:
        raise NotFoundError(
            f"The published copy {published.name} is gone; publish again and repeat the query."
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def choose_sandbox() -> Literal["landlock", "bubblewrap"]:
    """How the console process is locked up on this machine; raises `UnavailableError` if it cannot be."""
    if console_process.landlock_version() >= LANDLOCK_VERSION_NEEDED:
        return "landlock"
    if bubblewrap_works():
        return "bubblewrap"
    raise UnavailableError(
        "SQL runs only inside a sandbox, and this machine has neither Landlock (Linux 6.2 or newer) nor a working "
        "bubblewrap; install bubblewrap (on Debian: apt install bubblewrap)."
    )


@cache
def bubblewrap_works() -> bool:
    """Whether bwrap is installed and may make namespaces here."""
    program = shutil.which("bwrap")
    if program is None:
        return False
    return subprocess.run([program, "--ro-bind", "/", "/", "true"], capture_output=True, check=False).returncode == 0


def _wrapper(sandbox: str) -> list[str]:
    if sandbox == "landlock":
        return []
    return [
        shutil.which("bwrap") or "bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
        "--unshare-all", "--die-with-parent", "--new-session", "--",
    ]  # fmt: skip


def _explain(message: str, kind: str) -> str:
    """DuckDB's first line, its hints, and the line that points at the place."""
    if kind == "OutOfMemoryException" or "bad_alloc" in message or message == "out of memory":
        return f"The query needs more than {MEMORY_BYTES // 2**20} MiB of memory; narrow it or aggregate earlier."
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate bindings", "HINT", "Hint"))]
    at = next((line.split(":", 1)[0] for line in lines[1:] if line.startswith("LINE ")), None)
    first = lines[0] if at is None else f"{lines[0]} (at {at.lower()})"
    return " ".join([first, *hints])
