"""The dashboard, and in its process twenty threads that label through the library as soon as the file GO is there.

    python -m tests.browser.labelling_dashboard READY GO --server.port PORT

Each thread is a person who gives 100 labels, one act a label. READY then says how many threads came to their end.
"""

import runpy
import sys
import threading
import time
from pathlib import Path

THREADS, LABELS = 20, 100


def label(number: int, done: list[int]) -> None:
    """100 questions of the one open store, as person thread-NUMBER."""
    from metamoe_backend.store.skills import fetch_skills, label_questions
    from pages.shared.state import get_store

    store = get_store()
    skill_id = fetch_skills(store)["skill_id"].iloc[0]
    ids = store.frame("SELECT question_id FROM question ORDER BY question_id DESC LIMIT ?", [LABELS])["question_id"]
    for question_id in ids:
        label_questions(store, skill_id, [question_id], f"thread-{number}", "question")
    done.append(number)


def wait_and_label(ready: Path, go: Path) -> None:
    while not go.exists():
        time.sleep(0.05)
    done: list[int] = []
    threads = [threading.Thread(target=label, args=(number, done)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = ready.with_suffix(".part")
    written.write_text(str(len(done)))
    written.replace(ready)


if __name__ == "__main__":
    ready, go = map(Path, sys.argv[1:3])
    del sys.argv[1:3]
    threading.Thread(target=wait_and_label, args=(ready, go), daemon=True).start()
    runpy.run_module("pages", run_name="__main__")
