"""The database made again from events and manifests equals the one it replaces."""

import json

import pytest

from metamoe_backend.errors import BusyError, StorageError
from metamoe_backend.rows import TABLES, columns
from metamoe_backend.skills.clusters import (
    absorb_map_noise,
    merge_clusters,
    move_questions,
    rename_cluster,
    split_cluster,
)
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import APPLY, record
from metamoe_backend.store.experts import save_plan
from metamoe_backend.store.labellings import restore_labelling
from metamoe_backend.store.maps import require_map
from metamoe_backend.store.questions import edit_meta_question
from metamoe_backend.store.rebuild import rebuild
from metamoe_backend.store.reviews import leave_review
from metamoe_backend.store.skills import (
    accept_suggestions,
    decide_label,
    fetch_labels,
    fetch_skills,
    fetch_suggestions,
    label_questions,
    merge_skills,
    recolour_skill,
    reject_suggestions,
    rename_skill,
    split_skill,
)


def _dump(store: Store) -> dict[str, list[str]]:
    return {table: sorted(map(str, store.cursor().execute(f'SELECT * FROM "{table}"').fetchall())) for table in TABLES}


def _do_everything(store: Store) -> None:
    """Acts of every kind there is, each done, taken back and done again; some are then taken back for good."""
    ids = store.frame("SELECT question_id FROM question ORDER BY ALL")["question_id"].tolist()
    skills = fetch_skills(store)["skill_id"].tolist()
    map_id = require_map(store, None)
    suggested = fetch_suggestions(store).head(3)
    refused = dict(zip(suggested["question_id"], suggested["skill_id"], strict=True))
    labelled = fetch_labels(store)
    some = labelled.loc[labelled["skill_id"] == skills[0], "question_id"].tolist()[:3]
    acts = [
        lambda: record(store, "skill_created", "ben", {"skill_id": "skill-new", "name": "new", "colour": "#123456"}),
        lambda: rename_skill(store, skills[0], "sums", "ben"),
        lambda: recolour_skill(store, skills[0], "#654321", "ben"),
        lambda: split_skill(store, skills[0], "long sums", some, "ben"),
        lambda: label_questions(store, skills[1], ids[:9], "ben", "lasso"),
        lambda: record(store, "unlabel", "ben", {"question_ids": ids[:2]}),
        lambda: reject_suggestions(store, refused, "ben"),
        lambda: accept_suggestions(store, refused, "cy"),
        lambda: decide_label(store, skills[2], ids[0], "cy", "it is so"),
        lambda: restore_labelling(store, "v1", "cy"),
        lambda: merge_skills(store, skills[2], skills[3], "ben"),
        lambda: save_plan(store, "second", "v1", [("logic", "one")], "ben"),
        lambda: edit_meta_question(store, ids[0], "template", "What else?", "ben"),
        lambda: leave_review(store, "expert", "logic", None, "See the log.", "ben"),
        lambda: record(store, "constraint", "ben", {"relation": "same", "first_ids": ids[:1], "second_ids": ids[1:2]}),
        lambda: rename_cluster(store, map_id, 2, "adding", "ben"),
        lambda: merge_clusters(store, map_id, [1], 0, "ben"),
        lambda: split_cluster(store, map_id, 3, 2, "ben"),
        lambda: move_questions(store, map_id, ids[:4], None, "ben"),
        lambda: absorb_map_noise(store, map_id, "ben"),
    ]
    done = []
    for act in acts:
        event = act()
        undo(store, undo(store, event, "ben"), "ben")
        done.append(event)
    assert set(store.frame("SELECT DISTINCT kind FROM event")["kind"]) == set(APPLY)
    for event in done[4:11:2]:
        undo(store, event, "ana")


def test_every_table_comes_back_equal(synthetic):
    with Store.open(synthetic) as store:
        _do_everything(store)
        before = _dump(store)
    assert all(before[table] for table in TABLES if table != "rejected_row")
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
