"""The database made again from events and manifests equals the one it replaces."""

import json

import pytest

from metamoe_backend.errors import BusyError, StorageError
from metamoe_backend.rows import TABLES, columns
from metamoe_backend.store.connection import Store
from metamoe_backend.store.rebuild import rebuild
from metamoe_backend.store.skills import fetch_undoable, undo


def _dump(store: Store) -> dict[str, list[str]]:
    return {table: sorted(map(str, store.cursor().execute(f'SELECT * FROM "{table}"').fetchall())) for table in TABLES}


def test_every_table_comes_back_equal(synthetic):
    with Store.open(synthetic) as store:
        undo(store, fetch_undoable(store, "ana")["event_id"], "ana")
        before = _dump(store)
    assert all(before[table] for table in TABLES if table not in ("rejected_row", "meta_question_edit"))
    counts = rebuild(synthetic)
    with Store.open(synthetic) as store:
        assert _dump(store) == before
    assert counts == {table: len(rows) for table, rows in before.items()}


def test_a_damaged_part_stops_the_rebuild_and_keeps_the_old_database(synthetic):
    part = next(synthetic.runs.glob("*-evaluate-*/output/prediction-*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(StorageError, match="differs from its manifest"):
        rebuild(synthetic)
    with Store.open(synthetic) as store:
        assert store.value("SELECT count(*) FROM prediction") > 0


def test_a_part_that_no_manifest_names_is_never_read(synthetic):
    run = next(synthetic.runs.glob("*-evaluate-*"))
    (run / "output" / "prediction-0099.parquet").write_bytes(b"half a file")
    with Store.open(synthetic) as store:
        before = store.value("SELECT count(*) FROM prediction")
    assert rebuild(synthetic)["prediction"] == before


def test_a_second_holder_is_told_who_has_it(workspace):
    with Store.open(workspace, "the dashboard"), pytest.raises(BusyError, match="held by the dashboard"):
        Store.open(workspace, "another")


def test_tables_are_those_of_rows(store):
    for table in TABLES:
        described = store.frame(f'DESCRIBE "{table}"')
        assert list(zip(described["column_name"], described["column_type"], strict=True)) == [
            (column.name, column.sql_type) for column in columns(table)
        ]
        comments = store.frame("SELECT column_name, comment FROM duckdb_columns() WHERE table_name = ?", [table])
        assert comments["comment"].notna().all(), table


def test_a_manifest_cannot_feed_what_people_write(synthetic):
    manifest = next(synthetic.runs.glob("*-evaluate-*")) / "manifest.json"
    content = json.loads(manifest.read_text())
    content["parts"][0]["target"] = "label"
    manifest.write_text(json.dumps(content))
    with pytest.raises(StorageError, match="do not feed"):
        rebuild(synthetic)
