"""Processes that are killed in the middle of their work, for the fault tests.

As a script this file is a server: it imports what is slow to import once and forks a process for every job it is told,
so that a test can afford many of them. Each is a process of its own, and dies of a real SIGKILL:

    worker RUN_DIR                the worker's own `main`
    count RUN_DIR                 the same, for the stage of `fake_jobs`
    label WORKSPACE SEED ROUNDS   labels questions and takes in runs; says on standard output what was acknowledged

A point is a moment just before this process opens a file of the watched folder for writing, renames, removes or makes
something there, and before and after each fsync. What Python does not do itself (DuckDB, safetensors) is met by timers.
"""

import itertools
import json
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pytest

SCRIPT = Path(__file__).resolve()
SEED = 20261121
ENDING = 40
_ALONE = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
LONG = [pytest.param(False, id="short"), pytest.param(True, id="long", marks=pytest.mark.faults)]
"""For `parametrize`: the few points of `make test`, and the many of `make test-faults`."""


@dataclass(frozen=True)
class Job:
    """What a forked process does, and when it is killed: at its Nth point, after so many seconds, or not at all."""

    what: str
    arguments: list[str]
    watched: str
    at: int | None = None
    after_s: float | None = None
    file_bytes: int | None = None
    """No file may grow beyond this (RLIMIT_FSIZE)."""


@dataclass(frozen=True)
class Ended:
    """How it ended: exit status (negative: a signal), points it came to, standard output."""

    code: int
    points: int
    said: str
    s: float


class Server:
    """The other end of the script's pipes. With `models` it has imported what trains and evaluates."""

    def __init__(self, models: bool) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *(["models"] if models else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, job: Job) -> Ended:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def open_server(models: bool = False) -> Iterator[Server]:
    server = Server(models)
    try:
        yield server
    finally:
        server.close()


def choose_points(count: int, whole: Ended, seed: int, by_timer: float = 0.3) -> list[dict[str, Any]]:
    """`count` ways to be killed, drawn from the points and the seconds of an undisturbed process; a share by timers.

    Half of the points lie among the last `ENDING`, where everything is published and handed over. Points are drawn one
    from each of equal stretches, so that few of them still cover the whole.
    """
    draw = random.Random(seed)
    timers = round(count * by_timer)
    ending, before = (count - timers) // 2, count - timers - (count - timers) // 2
    edge = max(1, whole.points - ENDING)
    at = [*_spread(draw, 1, edge, before), *_spread(draw, edge, whole.points + 1, ending)]
    return [{"at": point} for point in at] + [{"after_s": draw.uniform(0.0, whole.s)} for _ in range(timers)]


def _spread(draw: random.Random, first: int, end: int, count: int) -> list[int]:
    edges = [first + (end - first) * number // count for number in range(count)] + [end]
    return [draw.randrange(low, max(low + 1, high)) for low, high in itertools.pairwise(edges)]


def report(name: str, figures: dict[str, Any]) -> None:
    """Figures for docs/reliability.md: one JSON line in the file that METAMOE_FAULTS names."""
    path = os.environ.get("METAMOE_FAULTS")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"fault": name, **figures}) + "\n")


# ---- the server ------------------------------------------------------------------------------------------------------


def _import_models() -> None:
    import accelerate  # noqa: F401
    import peft  # noqa: F401

    import metamoe_backend.evaluate.stage
    import metamoe_backend.jobs.worker
    import metamoe_backend.models.lora_moe
    import metamoe_backend.train.trainer

    metamoe_backend.evaluate.stage.PART_QUESTIONS = 3


def serve(jobs: IO[str]) -> None:
    """Fork a process for each line, wait for it, and say how it ended."""
    import duckdb  # noqa: F401

    import metamoe_backend.jobs.worker  # noqa: F401
    import tests.conftest  # noqa: F401

    for line in jobs:
        job = Job(**json.loads(line))
        counter = mmap.mmap(-1, 8)
        reading, writing = os.pipe()
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _be(job, writing, counter)
        os.close(writing)
        if job.after_s is not None:
            time.sleep(job.after_s)
            os.kill(pid, signal.SIGKILL)  # of a process that has ended and still has this parent: nothing
        with open(reading) as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ended = Ended(code, int.from_bytes(counter[:], "little"), said, time.monotonic() - begun)
        print(json.dumps(asdict(ended)), flush=True)


def _be(job: Job, output: int, counter: mmap.mmap) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        if job.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_bytes, job.file_bytes))
        watch(job.watched, job.at, counter)
        code = _DO[job.what](*job.arguments)
    except BaseException:  # noqa: BLE001 - a forked process must not return
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def watch(folder: str, at: int | None, counter: mmap.mmap) -> None:
    """Count the points of this process, and kill it at point `at`."""

    def point() -> None:
        passed = int.from_bytes(counter[:], "little") + 1
        counter[:] = passed.to_bytes(8, "little")
        if passed == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event in _ALONE:
            path, writes = arguments[0], True
        else:
            return
        if writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder):
            point()

    sync = os.fsync

    def fsync(handle: int) -> None:
        point()
        sync(handle)
        point()

    os.fsync = fsync
    sys.addaudithook(see)


def _work(run_dir: str) -> int:
    from metamoe_backend.jobs import worker

    return worker.main([run_dir, "--device", "cpu"])


def _count(run_dir: str) -> int:
    from metamoe_backend.jobs import worker
    from tests.fake_jobs import STAGES

    return worker.main([run_dir, "--device", "cpu"], STAGES)


def _label(root: str, seed: str, rounds: str) -> int:
    """Acts of a person at the dashboard, one after the other; each is said once it has returned."""
    import pandas as pd

    from metamoe_backend.store.acts import undo
    from metamoe_backend.store.connection import Store
    from metamoe_backend.store.skills import create_skill, fetch_skills, label_questions
    from metamoe_backend.workspace import Workspace
    from tests.conftest import insert_rows

    draw = random.Random(int(seed))
    with Store.open(Workspace(Path(root)), "the dashboard") as store:
        questions = store.frame("SELECT question_id FROM question ORDER BY ALL")["question_id"].tolist()
        if fetch_skills(store).empty:
            _say("skill", create_skill(store, "逻辑", "安娜"))
        for number in range(int(rounds)):
            skills = fetch_skills(store)["skill_id"].tolist()
            some, skill = draw.sample(questions, draw.randint(1, 5)), draw.choice(skills)
            event = label_questions(store, skill, some, draw.choice(["安娜", "ben"]), "question")
            _say("label", event, skill, *some)
            if number % 3 == 1:
                _say("undo", undo(store, event, "ben"), event)
            if number % 4 == 2:
                _say("skill", create_skill(store, f"skill {seed} {number}", "ben"))
            if number % 3 == 2:
                lines = pd.DataFrame({"line": [1, 2, 3], "reason": ["counted"] * 3, "text": [seed] * 3})
                _say("run", insert_rows(store, "ingest", rejected_row=lines))
    return 0


def _say(*words: str) -> None:
    os.write(1, ("\t".join(words) + "\n").encode())


_DO: dict[str, Callable[..., int]] = {"worker": _work, "count": _count, "label": _label}


if __name__ == "__main__":
    if "models" in sys.argv:
        _import_models()
    serve(sys.stdin)
    os._exit(0)  # nanobind would list what DuckDB has left
