"""The SQL console answers questions and can do nothing else."""

import hashlib
import math
import os
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamoe_backend.errors import NotFoundError, QueryError, UnavailableError
from metamoe_backend.store import console
from metamoe_backend.store.console import export_query, run_query
from metamoe_backend.store.publishing import publish
from tests.conftest import insert_questions


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "copy.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE question AS SELECT range AS position, 'q' || range AS prompt FROM range(5000)")
        connection.execute("CREATE TABLE empty (a INTEGER, b VARCHAR[])")
    return path


@pytest.fixture(params=["landlock", "bubblewrap"])
def each_sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    usable = {
        "landlock": lambda: console.console_process.landlock_version() >= console.LANDLOCK_VERSION_NEEDED,
        "bubblewrap": console.bubblewrap_works,
    }
    if not usable[request.param]():
        pytest.skip(f"no {request.param} on this machine")
    monkeypatch.setattr(console, "choose_sandbox", lambda: request.param)
    return request.param


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_types_and_time_come_back(published: Path) -> None:
    result = run_query(published, "SELECT position, prompt FROM question ORDER BY position LIMIT 2;")
    assert (result.columns, result.types) == (["position", "prompt"], ["BIGINT", "VARCHAR"])
    assert result.rows == [[0, "q0"], [1, "q1"]]
    assert not result.truncated and result.elapsed_s > 0


@pytest.mark.parametrize(
    ("expression", "kind", "expected"),
    [
        ("NULL::INTEGER", "INTEGER", None),
        ("[1, NULL, 3]", "INTEGER[]", [1, None, 3]),
        ("[1.5, 2.5]::FLOAT[2]", "FLOAT[2]", [1.5, 2.5]),
        ("{'a': [date '2026-11-01'], 'b': 'x'}", "STRUCT(a DATE[], b VARCHAR)", {"a": ["2026-11-01"], "b": "x"}),
        ("MAP {1: 'one'}", "MAP(INTEGER, VARCHAR)", {"1": "one"}),
        ("TIMESTAMP '2026-11-01 12:30:00.5'", "TIMESTAMP", "2026-11-01 12:30:00.500000"),
        ("'2026-11-01 10:00+02'::TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE", "2026-11-01 08:00:00+00:00"),
        ("0.1::DECIMAL(5,2)", "DECIMAL(5,2)", 0.1),
        ("12345678901234567890.123456789::DECIMAL(38,9)", "DECIMAL(38,9)", "12345678901234567890.123456789"),
        ("'nan'::DOUBLE", "DOUBLE", "NaN"),
        ("'-inf'::FLOAT", "FLOAT", "-Infinity"),
        ("170141183460469231731687303715884105727", "HUGEINT", 2**127 - 1),
        ("'\\x00\\xFF'::BLOB", "BLOB", "00ff"),
        ("true", "BOOLEAN", True),
        ("'混合 “text”\n,'", "VARCHAR", "混合 “text”\n,"),
    ],
)
def test_cells_are_right_and_fit_json(published: Path, expression: str, kind: str, expected: object) -> None:
    result = run_query(published, f"SELECT {expression} AS cell")
    assert (result.types, result.rows) == ([kind], [[expected]])


def test_columns_of_the_same_name_both_come_back(published: Path) -> None:
    result = run_query(published, "SELECT 1 AS a, 2 AS a")
    assert (result.columns, result.rows) == (["a", "a"], [[1, 2]])


def test_an_empty_result_keeps_its_columns(published: Path) -> None:
    result = run_query(published, "SELECT * FROM empty")
    assert (result.columns, result.types, result.rows) == (["a", "b"], ["INTEGER", "VARCHAR[]"], [])


@pytest.mark.parametrize(
    "sql",
    [
        "WITH a AS (SELECT 1 AS x) SELECT x FROM a",
        "FROM question LIMIT 1",
        "VALUES (1)",
        "DESCRIBE question",
        "SHOW TABLES",
        "SUMMARIZE question",
        "EXPLAIN SELECT 1",
        "explain analyze select 1",
        "-- why\nSELECT 1 -- end",
    ],
)
def test_statements_that_only_read_may_run(published: Path, sql: str) -> None:
    assert run_query(published, sql).rows


@pytest.mark.parametrize(
    "sql",
    [
        "", "  ", "-- nothing", ";", "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE question",
        "ATTACH ':memory:' AS other", "INSTALL json", "LOAD json", "PRAGMA version", "PRAGMA table_info('question')",
        "SET threads = 1", "RESET threads", "CALL pragma_version()", "USE memory", "CHECKPOINT", "VACUUM",
        "CREATE TABLE x AS SELECT 1", "CREATE TEMP TABLE x AS SELECT 1", "INSERT INTO empty VALUES (1, NULL)",
        "DELETE FROM question", "UPDATE question SET prompt = ''", "DROP TABLE question",
        "ALTER TABLE question RENAME TO x",
        "COPY question TO '/tmp/x.csv'", "EXPORT DATABASE '/tmp/x'", "PREPARE x AS SELECT 1", "EXECUTE x", "BEGIN",
        "EXPLAIN ANALYZE COPY question TO '/tmp/x.csv'", "EXPLAIN /* */ ANALYZE DELETE FROM question",
        "WITH a AS (SELECT 1) INSERT INTO empty SELECT 1, NULL", "PIVOT question ON prompt", "SELECT 1 +",
    ],
)  # fmt: skip
def test_every_other_statement_is_refused(published: Path, sql: str) -> None:
    before = digest(published)
    with pytest.raises(QueryError):
        run_query(published, sql)
    assert digest(published) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_parquet('https://example.org/x.parquet')",
        "FROM '/etc/passwd'",
        "SELECT * FROM glob('/**')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM request",  # a Python variable of the console process
        "SELECT * FROM query('COPY question TO ''/tmp/x.csv''')",
    ],
)
def test_nothing_outside_the_copy_can_be_read(published: Path, each_sandbox: str, sql: str) -> None:
    with pytest.raises(QueryError):
        run_query(published, sql)


def test_the_open_copy_cannot_be_destroyed(published: Path, each_sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with the statement check gone, the kernel refuses what DuckDB would do (its own switches do not)."""
    monkeypatch.setattr(console.console_process, "__file__", str(_without_the_check(published.parent)))
    before = digest(published)
    for target in (published, published.parent / "new.csv", Path("/dev/shm/metamoe-console-test")):
        with pytest.raises(QueryError):
            run_query(published, f"COPY (SELECT 1) TO '{target}' (FORMAT csv)")
    assert digest(published) == before
    assert not (published.parent / "new.csv").exists()
    assert not Path("/dev/shm/metamoe-console-test").exists()
    if each_sandbox == "landlock":
        with pytest.raises(QueryError):
            run_query(published, "SELECT * FROM read_text('/etc/passwd')")


def _without_the_check(folder: Path) -> Path:
    """The console process with its statement check and DuckDB's own switches taken out: only the kernel is left."""
    import importlib

    source = Path(importlib.import_module("metamoe_backend.store.console_process").__spec__.origin).read_text()
    assert '_check_statement(request["sql"])' in source and '"enable_external_access": False' in source
    source = source.replace('_check_statement(request["sql"])', "pass")
    source = source.replace('"enable_external_access": False', '"enable_external_access": True')
    path = folder / "process_without_check.py"
    path.write_text(source)
    return path


def test_the_sandbox_denies_writing_to_python_itself(published: Path, tmp_path: Path) -> None:
    """What a hole in DuckDB would give: the process may not write, may not read others' files, may not connect."""
    if console.console_process.landlock_version() < console.LANDLOCK_VERSION_NEEDED:
        pytest.skip("no Landlock on this machine")
    probe = f"""
import socket, sys
sys.path.insert(0, {str(Path.cwd())!r})
from metamoe_backend.store.console_process import restrict_files
server = socket.create_server(("127.0.0.1", 0))
restrict_files([{str(published)!r}])
done = []
for attempt in (
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: open({str(published)!r}, "r+b"),
    lambda: open("/etc/passwd"),
    lambda: socket.create_connection(server.getsockname(), 1),
):
    try:
        attempt()
        done.append(True)
    except PermissionError:
        done.append(False)
open({str(published)!r}, "rb").read(1)
print(done)
"""
    run = subprocess.run([os.sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    expected_network = console.console_process.landlock_version() < 4
    assert run.stdout.strip() == str([False, False, False, expected_network])


def _console_processes() -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if any(a.endswith(b"console_process.py") for a in arguments) and parent[1] == str(os.getpid()):
                found.add(int(folder.name))
    return found


def test_a_runaway_query_is_really_ended(published: Path, each_sandbox: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"stopped after 1\.5 s"):
        run_query(published, "SELECT count(*) FROM range(10000000) a, range(10000000) b", timeout_s=1.5)
    assert time.monotonic() - started < 60
    assert not _console_processes()


def test_a_memory_hog_is_contained(published: Path) -> None:
    with pytest.raises(QueryError, match=r"memory|stopped"):
        run_query(published, "SELECT len(list(range || 'x')) FROM range(1000000000)", timeout_s=30)
    assert not _console_processes()
    assert run_query(published, "SELECT 1").rows == [[1]]


def test_rows_are_capped_without_reading_on(published: Path) -> None:
    result = run_query(published, "SELECT * FROM range(1000000000000)", limit=10)
    assert (len(result.rows), result.truncated) == (10, True)
    assert not run_query(published, "SELECT * FROM range(10)", limit=10).truncated


def test_bytes_are_capped(published: Path) -> None:
    result = run_query(published, "SELECT repeat('x', 1000) FROM range(1000)", max_bytes=20_000)
    assert (len(result.rows), result.truncated) == (19, True)
    with pytest.raises(QueryError, match="fewer columns"):
        run_query(published, "SELECT repeat('x', 100000)", max_bytes=20_000)


def test_duckdbs_words_reach_the_person(published: Path) -> None:
    with pytest.raises(QueryError, match=r'questions.*Did you mean "question"') as told:
        run_query(published, "SELECT 1 FROM questions")
    assert "\n" not in str(told.value)
    with pytest.raises(QueryError, match=r"promt.*at line 2.*prompt"):
        run_query(published, "SELECT\npromt FROM question")


def test_a_copy_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="publish again"):
        run_query(tmp_path / "gone.duckdb", "SELECT 1")


def test_without_a_sandbox_nothing_runs(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.console_process, "landlock_version", lambda: 2)
    monkeypatch.setattr(console, "bubblewrap_works", lambda: False)
    with pytest.raises(UnavailableError, match="sandbox"):
        run_query(published, "SELECT 1")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(), TEXT), min_size=1, max_size=8),
)
def test_what_was_stored_comes_back(tmp_path: Path, rows: list[tuple[int, float, str]]) -> None:
    path = tmp_path / f"{abs(hash(repr(rows)))}.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE OR REPLACE TABLE t (a BIGINT, b DOUBLE, c VARCHAR)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    found = run_query(path, "SELECT * FROM t").rows
    for (a, b, c), (found_a, found_b, found_c) in zip(rows, found, strict=True):
        assert (found_a, found_c) == (a, c)
        assert float(found_b) == b or (math.isnan(b) and found_b == "NaN")


def test_parquet_export_keeps_types_and_all_rows(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.parquet"
    sql = "SELECT position, prompt, [position, NULL] AS pair, INTERVAL 2 DAY AS span, 1 AS a, 2 AS a FROM question"
    result = export_query(published, sql, target, "parquet")
    frame = pd.read_parquet(target)
    assert list(frame.columns) == ["position", "prompt", "pair", "span", "a", "a_5"]
    assert frame["position"].tolist() == list(range(5000))
    assert not result.truncated and frame["pair"][3][0] == 3 and frame["a_5"].unique().tolist() == [2]


def test_csv_export_writes_lists_as_json(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.csv"
    export_query(
        published, "SELECT ['a', '混'] AS names, NULL AS none, 'x,\"y' AS text, 'nan'::DOUBLE AS n", target, "csv"
    )
    frame = pd.read_csv(target)
    assert frame.loc[0, "names"] == '["a", "混"]'
    assert frame.loc[0, "text"] == 'x,"y' and pd.isna(frame.loc[0, "none"]) and pd.isna(frame.loc[0, "n"])


def test_an_export_that_fails_leaves_no_file(published: Path, tmp_path: Path) -> None:
    for sql, timeout_s in (
        ("SELECT promt FROM question", 20),
        ("SELECT repeat('x', 500) || range FROM range(100000000000)", 1),
        ("SELECT error('no') FROM question WHERE position = 4999 AND prompt = 'q4999'", 20),
    ):
        with pytest.raises(QueryError):
            export_query(published, sql, tmp_path / "rows.csv", "csv", timeout_s=timeout_s, limit=10**12)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_capped(published: Path, tmp_path: Path) -> None:
    result = export_query(published, "FROM question", tmp_path / "rows.parquet", "parquet", limit=100)
    assert result.truncated and len(pd.read_parquet(tmp_path / "rows.parquet")) == 100


def test_publishing_copies_everything_and_only_when_something_changed(store) -> None:
    insert_questions(store, 12)
    first = publish(store)
    assert run_query(first, "SELECT count(*) FROM question").rows == [[12]]
    assert run_query(
        first, "SELECT comment FROM duckdb_columns() WHERE table_name = 'task' AND column_name = 'task'"
    ).rows == [["name of the task"]]
    assert run_query(first, "SELECT count(*) FROM current_prediction").rows == [[0]]
    assert publish(store) == first
    with store.transaction() as cursor:
        cursor.execute("INSERT INTO embedding VALUES ('q', 'minilm', 'question', 'h', [0.6, 0.8], 'r')")
    second = publish(store)
    assert second != first
    assert run_query(second, "SELECT vector, list_cosine_similarity(vector, vector) FROM embedding").rows[0][
        0
    ] == pytest.approx([0.6, 0.8])
    assert not list(second.parent.glob("*.wal")) and not list(second.parent.glob("*unfinished*"))


def test_old_copies_go_once_nobody_reads_them(store) -> None:
    def change() -> Path:
        with store.transaction() as cursor:
            cursor.execute("INSERT INTO metric VALUES ('r', 1, 'loss', 0.5)")
        return publish(store)

    first = change()
    with console._held_open(first):
        for _ in range(3):
            change()
        assert first.exists()
    newest = change()
    copies = set(newest.parent.glob("*.duckdb"))
    assert newest in copies and first not in copies and len(copies) == 2


def test_the_database_stays_locked_and_writable_while_it_is_published(store) -> None:
    insert_questions(store, 3)
    counts = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with store.transaction() as cursor:
                cursor.execute("INSERT INTO metric SELECT 'r', range, 'loss', 0.5 FROM range(10)")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            counts.append(run_query(publish(store), "SELECT count(*) FROM metric").rows[0][0])
    finally:
        stop.set()
        writer.join()
    assert counts == sorted(counts) and all(count % 10 == 0 for count in counts)
    probe = f"import duckdb; duckdb.connect({str(store.workspace.database)!r})"
    outside = subprocess.run([os.sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert outside.returncode != 0 and "lock" in outside.stderr.lower()


def test_times_are_utc(published: Path) -> None:
    cell = run_query(published, "SELECT now()::VARCHAR").rows[0][0]
    assert datetime.fromisoformat(cell).utcoffset().total_seconds() == 0
