"""The process that runs one SQL statement and can do nothing else. Started by `console`, never imported by pages.

It is a file of its own without imports from the rest of the project, because it locks itself up before it reads
anything: it loads duckdb, then gives away the right to write any file, to read any file but the published copy and
Python's own modules, and to open a connection, and only then opens the database. DuckDB's own switches are not enough:
with all of them set, `COPY … TO '<the open database>'` still destroys that file.

Reads a JSON request from standard input. Writes rows as one JSON array a line (kind "rows") or as an Arrow stream (kind
"arrow") to standard output, and at the end one JSON object to the file descriptor named in the request's `status`.
"""

import ctypes
import json
import math
import os
import re
import resource
import signal
import sys
import time
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_READ = 0b1101
"""execute, read file, read folder: bits 0, 2 and 3 of LANDLOCK_ACCESS_FS_* (linux/landlock.h)."""
_READ_FILE = 0b100
_BATCH_ROWS = 256
_OPEN_FILES = 64


class StatementRefused(Exception):
    """The text is not exactly one statement that only reads."""


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scope", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def landlock_version() -> int:
    """Landlock ABI of this kernel; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1))


def restrict_files(readable: list[str]) -> None:
    """Landlock: from here on this thread and those it starts may read below `readable`, and write nowhere.

    Needs ABI 3 (with 2, truncation is not covered). From ABI 4 on TCP is closed as well, from 6 on signals and abstract
    sockets. May be called again to take away more. Raises `OSError` when the kernel refuses.
    """
    version = landlock_version()
    attributes = _RulesetAttributes(
        files=(1 << (16 if version >= 5 else 15)) - 1,
        network=0b11 if version >= 4 else 0,
        scope=0b11 if version >= 6 else 0,
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), f"Landlock call {number} failed")
        return result

    ruleset = call(_LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    for path in readable:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = _READ if os.path.isdir(path) else _READ_FILE  # noqa: PTH112
        call(_LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(_PathBeneath(allowed, opened)), 0)
        os.close(opened)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    call(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _limit_resources(request: dict[str, Any]) -> None:
    """Kernel limits: they hold even if the parent dies or the code inside goes wrong."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    cpu_s = math.ceil(request["timeout_s"] * request["threads"]) + 2
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, request["address_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(limit, (value, value))


def _still_readable() -> list[str]:
    """What is read after the locking up: late imports such as time zones, and how many cores and bytes there are."""
    modules = {*sys.path, sys.prefix, sys.base_prefix}
    machine = {"/proc/self/cgroup", "/proc/meminfo", "/proc/stat", "/sys/fs/cgroup", "/sys/devices/system/cpu"}
    return [path for path in modules | machine if path and os.path.exists(path)]  # noqa: PTH110


def _check_statement(sql: str) -> None:
    """Exactly one SELECT (or DESCRIBE, SHOW, SUMMARIZE, FROM …, VALUES …), or an EXPLAIN of one."""
    import duckdb

    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        count = len(statements) or "none"
        raise StatementRefused(f"Write exactly one SELECT; this text holds {count} statements.")
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        # EXPLAIN ANALYZE runs what it explains, so that must be a SELECT too.
        inner = re.sub(r"^\s*EXPLAIN(\s+ANALYZE)?(\s*\([^()]*\))?\s+", "", sql, count=1, flags=re.IGNORECASE)
        if inner != sql:
            _check_statement(inner)
            return
    if kind != duckdb.StatementType.SELECT:
        hint = " (a PIVOT needs its values listed: ON column IN (…))" if kind == duckdb.StatementType.MULTI else ""
        raise StatementRefused(f"Only a SELECT may run here, and this is {kind.name}{hint}.")


def as_json(value: Any) -> Any:
    """One cell as JSON can hold it: NaN and infinity as words, exact decimals as numbers where nothing is lost."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Decimal):
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, (datetime, date, time_of_day)):
        return value.isoformat(sep=" ") if isinstance(value, datetime) else value.isoformat()
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return str(value)


def _write_rows(result: Any, limit: int, max_bytes: int) -> tuple[int, bool]:
    """Rows as JSON lines, at most `limit` of them and `max_bytes` in all. Returns (rows, cut short)."""
    written, rows = 0, 0
    while batch := result.fetchmany(min(_BATCH_ROWS, limit + 1 - rows)):
        for row in batch:
            if rows == limit:
                return rows, True
            line = json.dumps([as_json(cell) for cell in row], ensure_ascii=False).encode() + b"\n"
            if written + len(line) > max_bytes:
                if rows == 0:
                    raise StatementRefused("One row is larger than a result may be; select fewer columns.")
                return rows, True
            sys.stdout.buffer.write(line)
            written, rows = written + len(line), rows + 1
    return rows, False


def _write_arrow(result: Any, limit: int, max_bytes: int) -> tuple[int, bool]:
    """Rows as an Arrow stream under the same caps. Returns (rows, cut short)."""
    import pyarrow as pa

    written, rows, cut = 0, 0, False
    reader = result.to_arrow_reader(2048)
    with pa.ipc.new_stream(sys.stdout.buffer, reader.schema) as stream:
        for batch in reader:
            kept = batch.slice(0, limit - rows)
            cut = kept.num_rows < batch.num_rows
            if written + kept.nbytes > max_bytes:
                cut = True
                break
            stream.write_batch(kept)
            written, rows = written + kept.nbytes, rows + kept.num_rows
            if cut:
                break
    return rows, cut


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Lock up, run, write the rows; returns the status."""
    import duckdb

    if request["kind"] == "arrow":
        import pyarrow  # noqa: F401 - its shared libraries must be loaded before reading is taken away

    if request["sandbox"] == "landlock":
        restrict_files([*_still_readable(), request["database"]])
    try:
        _check_statement(request["sql"])
        connection = duckdb.connect(
            request["database"],
            read_only=True,
            config={
                "enable_external_access": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                "temp_directory": "",
                "memory_limit": f"{request['memory_bytes'] // 2**20}MiB",
                "threads": request["threads"],
                "lock_configuration": True,
            },
        )
        started = time.perf_counter()
        result = connection.execute(request["sql"])
        described = [(column[0], str(column[1]).strip('"')) for column in result.description]
        write = _write_arrow if request["kind"] == "arrow" else _write_rows
        rows, cut = write(result, request["limit"], request["max_bytes"])
    except duckdb.Error as error:
        return {"error": str(error), "kind": type(error).__name__}
    except StatementRefused as error:
        return {"error": str(error), "kind": "refused"}
    except MemoryError:
        return {"error": "out of memory", "kind": "OutOfMemoryException"}
    return {
        "columns": [name for name, _ in described],
        "types": [kind for _, kind in described],
        "rows": rows,
        "truncated": cut,
        "elapsed_s": time.perf_counter() - started,
    }


def main() -> None:
    """Serve the one request on standard input."""
    request = json.load(sys.stdin)
    _limit_resources(request)
    if request["sandbox"] == "landlock":
        restrict_files(["/"])  # nothing may be written from here on, not even while modules load
    status = _run(request)
    sys.stdout.buffer.flush()
    with os.fdopen(request["status"], "w", encoding="utf-8") as pipe:
        json.dump(status, pipe)
    os._exit(0)  # at once: DuckDB's threads may still be at work on rows nobody wants


if __name__ == "__main__":
    main()
