"""The Router page's reads on twenty million rows of activation: CPU seconds each, on two mixtures of 32 experts.

Two mixtures of 30 layers x 32 experts read 10,417 questions of 20 tasks (`--quick`: 521), all of six skills; a sample
of eight questions a task is there token by token. Each read is repeated as a page opens it anew: `wall_s/…` is what a
person waits for it, on whatever the machine has free; `slowest_read_s` the slowest of them.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from timing import parse_options, report

from metamoe_backend.store import results
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace

MIXTURES = ("first", "second")
TASKS, SKILLS, LAYERS, EXPERTS, TOKENS = 20, 6, 30, 32, 60
QUESTIONS, QUESTIONS_QUICK = 10_417, 521
SAMPLE = 8
"""Questions a task whose gates are there token by token."""


def fill(store: Store, questions: int) -> int:
    """Insert the rows by SQL; returns how many rows of activation there are."""
    with store.transaction() as cursor:
        cursor.execute("SELECT setseed(0.5)")
        cursor.execute(
            f"""
            INSERT INTO skill SELECT 's' || i, 'skill ' || i, '#112233', NULL, 'ana', now()
            FROM range({SKILLS}) AS each(i);
            INSERT INTO question
            SELECT md5(i::VARCHAR)[:16], 'task' || i % {TASKS}, 'test', 'Question ' || i || repeat(' and so on', 20),
                NULL, '4', NULL, NULL, NULL, i, 'run-0'
            FROM range({questions}) AS each(i);
            INSERT INTO suggestion
            SELECT question_id, 's' || position % {TASKS} % {SKILLS}, 0.9, NULL, 0.8, 'run-1' FROM question;
            """
        )
        for mixture in MIXTURES:
            cursor.execute(
                f"""
                INSERT INTO activation
                SELECT 'run-2', '{mixture}', question_id, layer, 'mlp', 'expert' || expert, random() / 16,
                    random() / 16, 60, random() / 8
                FROM question CROSS JOIN range({LAYERS}) AS layers(layer)
                    CROSS JOIN range({EXPERTS}) AS experts(expert);
                INSERT INTO token_activation
                SELECT 'run-2', '{mixture}', question_id, token, 'word', layer, 'expert' || expert,
                    if((expert * 7 + token * 5 + layer * layer) % 16 = 0, 0.5, 0)
                FROM (SELECT question_id FROM question WHERE position < {SAMPLE * TASKS})
                    CROSS JOIN range({TOKENS}) AS tokens(token) CROSS JOIN range({LAYERS}) AS layers(layer)
                    CROSS JOIN range({EXPERTS}) AS experts(expert);
                INSERT INTO route
                SELECT 'run-2', '{mixture}', question_id, 'expert' || expert, random() / 16
                FROM question CROSS JOIN range({EXPERTS}) AS experts(expert);
                """
            )
    store.cursor().execute("CHECKPOINT")
    return int(store.value("SELECT count(*) FROM activation"))


def reads(store: Store) -> dict[str, Callable[[], object]]:
    """What the page reads to open, and what a click reads."""
    system = MIXTURES[0]
    question = store.value("SELECT min(question_id) FROM token_activation")
    return {
        "mixtures": lambda: results.fetch_mixtures_with_activations(store),
        "means": lambda: results.fetch_activations(store, system),
        "means_of_a_task": lambda: results.fetch_activations(store, system, ["task3"]),
        "routes": lambda: results.fetch_routes(store, system),
        "choices": lambda: results.fetch_question_choices(store, system),
        "chosen_together": lambda: results.fetch_gate_patterns(store, system),
        "clicked_layer_cell": lambda: results.fetch_question_activations(store, system, 3, "expert5"),
        "clicked_skill_cell": lambda: results.fetch_question_activations(store, system, None, "expert5"),
        "sampled_questions": lambda: results.fetch_token_questions(store, system),
        "clicked_pair": lambda: results.fetch_pair_questions(store, system, "expert0", "expert16"),
        "one_question": lambda: results.fetch_token_activations(store, system, question),
    }


def measure(store: Store, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a read: median, least and greatest of the rounds, after one that is not counted."""
    figures = {}
    for name, read in reads(store).items():
        read()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - start)
        figures[f"wall_s/{name}"] = {
            "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "n": rounds,
        }  # fmt: skip
    return {"slowest_read_s": max(figures.values(), key=lambda figure: figure["median"]), **figures}


def main() -> None:
    """Measure and report."""
    options = parse_options(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder, Store.open(Workspace(Path(folder) / "many"), "a benchmark") as store:
        rows = fill(store, QUESTIONS_QUICK if options.quick else QUESTIONS)
        print(f"{rows:,} rows of activation")
        report(measure(store, 3 if options.quick else 5), options)


if __name__ == "__main__":
    main()
