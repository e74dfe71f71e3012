"""A process that labels and takes in runs, killed at any moment: what it acknowledged is there once, and soon."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from metamoe_backend.errors import DiskFullError, StorageError
from metamoe_backend.store import events
from metamoe_backend.store.connection import Store
from metamoe_backend.store.rebuild import rebuild
from metamoe_backend.store.repair import repair
from metamoe_backend.store.skills import create_skill, fetch_labels, fetch_skills, label_questions
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_questions
from tests.faults import LONG, SEED, Ended, Job, Server, choose_points, open_server, report

POINTS = {False: 4, True: 50}
ROUNDS = 12
PEOPLE = ("skill", "skill_constraint", "label", "event")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with open_server() as opened:
        yield opened


@pytest.fixture
def labelled(workspace: Workspace) -> Workspace:
    """A workspace with questions, and nothing that people did."""
    with Store.open(workspace, "a test") as store:
        insert_questions(store, 40)
    return workspace


def label(server: Server, workspace: Workspace, seed: int, **kill: float) -> Ended:
    job = Job("label", [str(workspace.root), str(seed), str(ROUNDS)], str(workspace.root), **kill)
    return server.run(job)


class Acknowledged:
    """What the killed processes had said before they died."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []

    def add(self, ended: Ended) -> None:
        complete, _, _ = ended.said.rpartition("\n")
        self.lines += [line.split("\t") for line in complete.splitlines()]

    def of(self, kind: str) -> list[list[str]]:
        return [line[1:] for line in self.lines if line[0] == kind]

    def assert_there_once(self, store: Store) -> None:
        found = store.frame("SELECT event_id, question_id, skill_id, count(*) AS n FROM label GROUP BY ALL")
        assert (found["n"] == 1).all()
        there = set(found[["event_id", "question_id", "skill_id"]].itertuples(index=False, name=None))
        for event, skill, *questions in self.of("label"):
            assert {(event, question, skill) for question in questions} <= there
        acts = store.frame("SELECT event_id FROM event")["event_id"].tolist()
        logged = [event.event_id for event in events.read_events(store)]
        assert sorted(acts) == logged == sorted(set(logged))
        assert {event for event, _ in self.of("undo")} <= set(acts)
        assert {skill for (skill,) in self.of("skill")} <= set(store.frame("SELECT skill_id FROM skill")["skill_id"])
        rows = store.frame("SELECT run_id, line, count(*) AS n FROM rejected_row GROUP BY ALL")
        assert (rows["n"] == 1).all()
        for (run,) in self.of("run"):
            assert sorted(rows.loc[rows["run_id"] == run, "line"]) == [1, 2, 3]


def dump(workspace: Workspace) -> dict[str, list[str]]:
    with Store.open(workspace, "a test") as store:
        return {
            table: sorted(map(str, store.cursor().execute(f"SELECT * FROM {table}").fetchall())) for table in PEOPLE
        }


def open_timed(workspace: Workspace) -> tuple[Store, float]:
    begun = time.monotonic()
    return Store.open(workspace, "a test"), time.monotonic() - begun


@pytest.mark.parametrize("long", LONG)
def test_acknowledged_acts_and_rows_are_there_once_whenever_it_is_killed(
    labelled: Workspace, server: Server, tmp_path: Path, long: bool
) -> None:
    aside = Workspace(Path(shutil.copytree(labelled.root, tmp_path / "aside")))
    whole = label(server, aside, seed=0)
    assert whole.code == 0

    said, took, hit = Acknowledged(), [], 0
    for number, kill in enumerate(choose_points(POINTS[long], whole, SEED + 2), start=1):
        ended = label(server, labelled, seed=number, **kill)
        assert ended.code in (0, -9)
        hit += ended.code == -9
        said.add(ended)
        store, seconds = open_timed(labelled)
        took.append(seconds)
        with store:
            said.assert_there_once(store)
    assert hit >= POINTS[long] // 2
    before = dump(labelled)
    rebuild(labelled)
    assert dump(labelled) == before
    report(
        "kill -9, labelling and ingesting",
        {"points": POINTS[long], "kills": hit, "of": whole.points, "seed": SEED + 2, "acknowledged": len(said.lines),
         "recovery_median_s": sorted(took)[len(took) // 2], "recovery_max_s": max(took)},
    )  # fmt: skip


@pytest.mark.parametrize("long", LONG)
def test_a_damaged_write_ahead_log_costs_no_acknowledged_act(
    labelled: Workspace, server: Server, tmp_path: Path, long: bool
) -> None:
    """A byte of the log is changed, or its end is lost; `repair` cuts it there and events bring the rest back."""
    said = Acknowledged()
    ended = label(server, labelled, seed=1)  # closes the database, which empties the log
    said.add(ended)
    ended = label(server, labelled, seed=2, at=ended.points - 12)
    said.add(ended)
    assert ended.code == -9 and len(said.of("label")) > ROUNDS

    draw, repaired, rebuilt = random.Random(SEED + 3), 0, 0
    for number in range(POINTS[long]):
        workspace = Workspace(Path(shutil.copytree(labelled.root, tmp_path / str(number))))
        wal = workspace.database.with_name("metamoe.duckdb.wal")
        content = bytearray(wal.read_bytes())
        if draw.random() < 0.3:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        wal.write_bytes(content)
        try:
            store = Store.open(workspace, "a test")
        except StorageError as error:
            assert "rebuild" in str(error)
            try:
                repair(workspace)
                repaired += 1
            except StorageError as beyond:
                assert "rebuild" in str(beyond)
                rebuild(workspace)
                rebuilt += 1
            store = Store.open(workspace, "a test")
        with store:
            said.assert_there_once(store)
        shutil.rmtree(workspace.root)
    report("damaged WAL", {"points": POINTS[long], "repaired": repaired, "rebuilt": rebuilt, "seed": SEED + 3})


def test_a_clock_set_back_leaves_the_order_of_acts_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: the later label had the smaller id, so the earlier one counted, and a rebuild could fail."""
    now = time.time_ns()
    monkeypatch.setattr(events, "_last_event_id", "")
    with Store.open(workspace) as store:
        ids = insert_questions(store, 1)
        first = create_skill(store, "logic", "ana")
        label_questions(store, first, ids, "ana", "question")
    monkeypatch.setattr(events, "_last_event_id", "")  # a new process
    monkeypatch.setattr(events.time, "time_ns", lambda: now - 10**18)
    with Store.open(workspace) as store:
        second = create_skill(store, "algebra", "ana")
        label_questions(store, second, ids, "ana", "question")
        assert fetch_labels(store)["skill"].tolist() == ["algebra"]
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert fetch_labels(store)["skill"].tolist() == ["algebra"]


def test_text_with_any_separator_is_one_line_of_the_log(workspace: Workspace) -> None:
    name = "a\u2028b\u2029c\x85d\x1ee"
    with Store.open(workspace) as store:
        events.record(store, "skill_created", "ana", {"skill_id": "s", "name": name, "colour": "#000000"})
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert fetch_skills(store)["name"].tolist() == [name]


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_line_that_lacks_its_end_was_never_acknowledged(workspace: Workspace, lost: int) -> None:
    """Cut within the line's end, within a Chinese letter, and in the middle."""
    with Store.open(workspace) as store:
        create_skill(store, "logic", "ana")
    log = next(workspace.events.glob("*.jsonl"))
    good = log.read_bytes()
    line = json.dumps({**json.loads(good), "event_id": "9", "payload": {"skill_id": "s", "name": "算", "colour": "#000000"}},
                      ensure_ascii=False).encode()  # fmt: skip
    cut = line.index("算".encode()) + 2 if lost == 2 else len(line) + 1 - lost
    log.write_bytes(good + (line + b"\n")[:cut])
    with Store.open(workspace) as store:
        assert fetch_skills(store)["name"].tolist() == ["logic"]
        create_skill(store, "algebra", "ana")
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert fetch_skills(store)["name"].tolist() == ["logic", "algebra"]


def test_an_act_whose_commit_fails_is_not_replayed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the commit: nothing of the act stays, and doing it again does not clash with itself."""
    cursor = store.cursor

    class NoRoom:
        def __init__(self) -> None:
            self.real = cursor()

        def execute(self, sql: str, *rest: object) -> object:
            if sql == "COMMIT":
                self.real.execute("ROLLBACK")
                raise duckdb.TransactionException("Failed to commit: Could not write file: No space left on device")
            return self.real.execute(sql, *rest)

    monkeypatch.setattr(store, "cursor", NoRoom)
    with pytest.raises(DiskFullError, match=r"metamoe\.duckdb is full"):
        create_skill(store, "logic", "ana")
    monkeypatch.undo()
    create_skill(store, "logic", "ana")
    store.close()
    rebuild(store.workspace)
    with Store.open(store.workspace) as again:
        assert fetch_skills(again)["name"].tolist() == ["logic"]
