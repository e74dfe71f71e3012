"""The report says what was measured, and of what was scored in two ways which of them counts."""

from metamoe_backend.report import make_report
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_predictions
from metamoe_backend.workspace import Workspace
from tests.conftest import insert_rows

COLUMNS = [
    "system", "question_id", "regime", "n_shot", "output", "choice", "correct", "score", "logliks", "prompt_hash",
    "system_hash", "base_hash", "dtype",
]  # fmt: skip


def test_of_a_task_scored_in_two_ways_the_commonest_counts_and_is_said(synthetic: Workspace) -> None:
    with Store.open(synthetic, "a test") as store:
        before = make_report(store)
        assert "scored in several ways" not in before
        once = fetch_predictions(store).iloc[:3]
        ids = ", ".join(f"'{name}'" for name in once["question_id"])
        rows = store.frame(f"SELECT * FROM prediction WHERE question_id IN ({ids})")
        rows = rows.drop_duplicates(["system", "question_id"])[COLUMNS]
        wrong = ~rows["correct"].astype(bool)
        insert_rows(store, "evaluate", prediction=rows.assign(n_shot=5, correct=wrong, logliks=None))
        after = make_report(store)
    assert "Of a task scored in several ways (" in after and "5-shot) the commonest counts." in after
    assert cut_tables(after) == cut_tables(before)


def cut_tables(text: str) -> str:
    return text[text.index("| task | n |") : text.index("## Reviews")]
