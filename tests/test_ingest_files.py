"""Reading files: every kind, and every way a file can be wrong, gives records or one sentence."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.errors import InputError
from metamoe_backend.ingest import files
from metamoe_backend.ingest.files import read_records
from metamoe_backend.ingest.records import Record
from metamoe_backend.rows import RejectedRow

ROWS = [{"question": "What is 2 plus 3?", "answer": "5"}, {"question": "北京在哪里?", "answer": "中国"}]
WORDS = {"question", "answer"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[RejectedRow]]:
    found = list(read_records(path, WORDS))
    good = [(one.line, dict(one.values)) for one in found if isinstance(one, Record)]
    return good, [one for one in found if isinstance(one, RejectedRow)]


def check_refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        list(read_records(path, WORDS))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert message.endswith(".")


def test_every_kind_of_file_gives_the_same_records(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    paths = [
        write(tmp_path, "a.jsonl", "\n".join(lines)),
        write(tmp_path, "list.json", json.dumps(ROWS, indent=2)),
        write(tmp_path, "columns.json", json.dumps(columns)),
        write(tmp_path, "lines.json", "\n".join(lines)),
        write(tmp_path, "a.csv", "question,answer\nWhat is 2 plus 3?,5\n北京在哪里?,中国\n"),
        write(tmp_path, "semicolon.csv", "question;answer\nWhat is 2 plus 3?;5\n北京在哪里?;中国\n"),
        write(tmp_path, "header.tsv", "question\tanswer\nWhat is 2 plus 3?\t5\n北京在哪里?\t中国\n"),
        write(tmp_path, "bare.TSV", "What is 2 plus 3?\t5\n北京在哪里?\t中国\n"),
    ]
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    for path in [*paths, tmp_path / "a.parquet"]:
        good, bad = read(path)
        assert [values for _, values in good] == ROWS, path.name
        assert bad == [], path.name


def test_a_byte_order_mark_and_windows_line_ends_do_not_show(tmp_path: Path) -> None:
    for name, content in (
        ("a.jsonl", '{"question": "q", "answer": "a"}\r\n'),
        ("a.csv", "question,answer\r\nq,a\r\n"),
        ("a.tsv", "question\tanswer\r\nq\ta\r\n"),
    ):
        good, _ = read(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))
        assert [values for _, values in good] == [{"question": "q", "answer": "a"}], name


def test_records_know_their_lines(tmp_path: Path) -> None:
    jsonl = write(tmp_path, "a.jsonl", '{"question": "1"}\n\n{"question": "2"}\n')
    assert [line for line, _ in read(jsonl)[0]] == [1, 3]
    quoted = write(tmp_path, "a.csv", 'question,answer\n"two\nlines",a\nq,b\n')
    assert [(line, values["question"]) for line, values in read(quoted)[0]] == [(2, "two\nlines"), (4, "q")]
    tsv = write(tmp_path, "a.tsv", "question\tanswer\nq\ta\n")
    assert [line for line, _ in read(tsv)[0]] == [2]


def test_broken_json_is_named_by_its_line_and_the_other_lines_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{number}", "answer": "a"}) for number in range(20)]
    lines[16] = '{"question": "q16", "answer": '
    good, bad = read(write(tmp_path, "a.jsonl", "\n".join(lines)))
    assert len(good) == 19
    assert [(row.line, row.text) for row in bad] == [(17, lines[16])]
    assert "not valid JSON" in bad[0].reason
    document = json.dumps([{"question": "q"}] * 20, indent=0).splitlines()
    document[16] = '{"question": oops}'
    check_refused(write(tmp_path, "a.json", "\n".join(document)), "a.json", "line 17")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"answer": ' + "9" * 5000 + "}", "too many digits"),
    ],
)
def test_hostile_json_is_a_rejected_row(tmp_path: Path, line: str, reason: str) -> None:
    good, bad = read(write(tmp_path, "a.jsonl", line + '\n{"question": "q"}\n'))
    assert [number for number, _ in good] == [2]
    assert reason in bad[0].reason
    assert len(bad[0].text) <= 500


def test_a_line_over_the_limit_is_rejected_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    long = '{"question": "' + "x" * 5000 + '"}'
    good, bad = read(write(tmp_path, "a.jsonl", f'{{"question": "q"}}\n{long}\n{{"question": "r"}}'))
    assert [line for line, _ in good] == [1, 3]
    assert [(row.line, len(row.text)) for row in bad] == [(2, 500)]
    assert "longer than" in bad[0].reason
    good, bad = read(write(tmp_path, "a.tsv", "q\ta\n" + "x" * 5000 + "\n"))
    assert ([line for line, _ in good], [row.line for row in bad]) == ([1], [2])
    check_refused(write(tmp_path, "a.csv", "question,answer\n" + "x" * 5000 + "\n"), "line 2", "longer than")


def test_two_hundred_megabytes_in_one_line_cost_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"question": "')
        file.seek(200 * 2**20)  # a hole: takes no room on the disk
        file.write(b'"}\n{"question": "q"}\n')
    tracemalloc.start()
    good, bad = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ([line for line, _ in good], [row.line for row in bad]) == ([2], [1])
    assert peak < 4 * files.MAX_LINE_BYTES
    path.rename(tmp_path / "a.json")
    check_refused(tmp_path / "a.json", "200", ".jsonl")


def test_wrong_encoding_names_byte_and_line(tmp_path: Path) -> None:
    latin = '{"question": "a"}\n{"question": "café"}\n'.encode("latin-1")
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        check_refused(write(tmp_path, name, latin), name, "0xe9", "line 2", "UTF-8")
    check_refused(write(tmp_path, "a.json", '[\n{"question": "café"}]'.encode("latin-1")), "0xe9", "line 2", "UTF-8")
    check_refused(write(tmp_path, "b.csv", "question,answer\nq,a\n".encode("utf-16")), "UTF-16", "UTF-8")


def test_a_file_without_content_is_refused(tmp_path: Path) -> None:
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        check_refused(write(tmp_path, f"a.{suffix}", ""), f"a.{suffix}", "empty")
    check_refused(write(tmp_path, "b.json", " \n"), "empty")


def test_a_parquet_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pd.DataFrame(ROWS * 500).to_parquet(whole)
    data = whole.read_bytes()
    for size in (3, 100, len(data) // 2, len(data) - 1):
        check_refused(write(tmp_path, "cut.parquet", data[:size]), "cut.parquet", "Parquet", "cut short")
    damaged = data[:40] + bytes(60) + data[100:]
    check_refused(write(tmp_path, "damaged.parquet", damaged), "damaged.parquet", "Parquet")


def test_only_regular_files_of_known_kinds_are_read(tmp_path: Path) -> None:
    import os

    check_refused(tmp_path / "missing.jsonl", "missing.jsonl", "cannot be read")
    (tmp_path / "folder.jsonl").mkdir()
    check_refused(tmp_path / "folder.jsonl", "not a regular file")
    os.mkfifo(tmp_path / "pipe.jsonl")
    check_refused(tmp_path / "pipe.jsonl", "not a regular file")
    check_refused(write(tmp_path, "a.xlsx", "x"), "a.xlsx", ".parquet")
    check_refused(Path("a" * 5000 + ".jsonl"), "cannot be read")
    check_refused(Path("a\0b.jsonl"), "cannot be read")


def test_other_json_documents_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    check_refused(write(tmp_path, "a.json", '{"name": "x"}'), "list of objects")
    check_refused(write(tmp_path, "a.json", "3"), "list of objects")
    check_refused(write(tmp_path, "a.json", '{"question": ["a", "b"], "answer": ["c"]}'), "question 2", "answer 1")
    check_refused(write(tmp_path, "a.json", "[" * 100_000), "nested too deeply")
    good, bad = read(write(tmp_path, "a.json", '[{"question": "q"}, 7]'))
    assert len(good) == 1
    assert (bad[0].line, bad[0].text) == (2, "7")


def test_csv_rows_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    good, bad = read(write(tmp_path, "a.csv", 'question,answer\nq\nq,a\nq,a,b\nq,"a"x\nr,b\n'))
    assert [line for line, _ in good] == [3, 6]
    assert [row.line for row in bad] == [2, 4, 5]
    assert "1 columns where 2" in bad[0].reason
    _, bad = read(write(tmp_path, "a.csv", 'question,answer\nq,a\n"open,b\nr,c\n'))
    assert [(row.line, row.reason) for row in bad] == [(3, "a quote opened here is not closed")]
    check_refused(write(tmp_path, "a.csv", "question,question\nq,a\n"), "question", "twice")


def test_tsv_takes_quotes_as_they_are_and_written_line_breaks_as_breaks(tmp_path: Path) -> None:
    good, _ = read(write(tmp_path, "a.tsv", '"Is it?"\\nOptions:\\n- yes\\n- no\tyes\t"so\n'))
    assert good[0][1] == {"question": '"Is it?"\nOptions:\n- yes\n- no', "answer": "yes", "explanation": '"so'}
    good, bad = read(write(tmp_path, "b.tsv", "a\tb\tc\td\ne\tf\n"))
    assert good[0][1] == {"1": "a", "2": "b", "3": "c", "4": "d"}
    assert bad[0].line == 2


@given(content=st.binary(max_size=300), suffix=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet"]))
def test_any_bytes_give_records_rejected_rows_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = write(tmp_path_factory.mktemp("fuzz"), f"a.{suffix}", content)
    try:
        found = list(read_records(path, WORDS))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(one, (Record, RejectedRow)) for one in found)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.fixed_dictionaries({"question": cells, "answer": cells}), min_size=1, max_size=5))
def test_what_pandas_and_json_write_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "a.csv", index=False, lineterminator="\n", quoting=1)
    frame.to_parquet(folder / "a.parquet")
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        good, bad = read(folder / name)
        assert ([values for _, values in good], bad) == (rows, []), name
