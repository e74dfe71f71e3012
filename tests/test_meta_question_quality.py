"""Meta-question methods are compared: how many texts are left, what they tell about the task, how easily learned."""

import math

import pandas as pd

from metamoe_backend.meta_question_quality import compare_methods, compute_text_nmi, score_few_labels
from pages.shared.meta_question_views import filter_rows


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = []
    for n in range(40):
        rows.append((f"a{n}", "sums", f"What is {n} plus {n + 1}?", "What is [number] plus [number]?"))
        rows.append((f"b{n}", "days", f"Which weekday was {n} days ago?", "Which weekday was [number] days ago?"))
    questions = pd.DataFrame(rows, columns=["question_id", "task", "prompt", "text"])
    metas = questions[["question_id", "task", "text"]].assign(method="template", edited=False)
    metas.loc[0, "edited"] = True
    return metas, questions[["question_id", "task", "prompt"]]


def test_template_texts_are_few_and_name_the_task_exactly():
    table = compare_methods(*frames()).set_index("method")
    assert list(table.index) == ["question", "template"]
    assert table["distinct"].to_dict() == {"question": 80, "template": 2}
    assert table.loc["template", ["built", "edited", "nmi", "accuracy"]].tolist() == [80, 1, 1.0, 1.0]
    assert table.loc["question", "nmi"] < 0.5
    assert table.loc["template", "labels"] == 10


def test_one_task_has_nothing_to_tell_apart():
    assert math.isnan(compute_text_nmi(["x", "y"], ["t", "t"]))
    assert math.isnan(score_few_labels(["x"] * 20, ["t"] * 20)["accuracy"])


def test_texts_that_say_nothing_about_the_task_score_like_guessing():
    scores = score_few_labels(["same words"] * 200, ["a", "b"] * 100)
    assert abs(scores["accuracy"] - 0.5) < 0.1


def test_texts_without_any_word_are_guessed():
    assert score_few_labels(["?!"] * 40, ["a", "b"] * 20)["labels"] == 10


def test_the_search_finds_every_word_in_either_text_whatever_the_case():
    metas, questions = frames()
    rows = metas.merge(questions, on=["question_id", "task"])
    assert set(filter_rows(rows, "WEEKDAY [number]", False, set())["task"]) == {"days"}
    assert filter_rows(rows, "plus 7", False, {"a6"})["question_id"].tolist() == ["a6"]
    assert filter_rows(rows, "", True, set())["question_id"].tolist() == ["a0"]
    assert filter_rows(rows, "(", False, set()).empty
