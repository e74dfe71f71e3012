"""How good meta-questions are: equal across particulars, telling about the task, and easy to learn skills from."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

FEW_LABELS = 5
"""Questions per task that the few-label test learns from."""
DRAWS = 10
MOST_TESTED = 1000
"""Questions that each draw is tested on, at most: bounds the time of a large workspace."""


def compare_methods(meta_questions: pd.DataFrame, questions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row a method, and one for the questions as they stand, to hold against.

    meta_questions: question_id, method, text, edited, task. questions: question_id, task, prompt.
    Returns method ("question" for the questions themselves), built, distinct, edited, nmi, accuracy, low, high, labels.
    """
    rows = [{"method": "question", "edited": 0, **measure_texts(questions["prompt"], questions["task"], seed)}]
    for method, part in meta_questions.groupby("method"):
        row = {"method": method, "edited": int(part["edited"].sum())}
        rows.append(row | measure_texts(part["text"], part["task"], seed))
    return pd.DataFrame(rows)


def measure_texts(texts: Sequence[str], tasks: Sequence[str], seed: int = 0) -> dict[str, float]:
    """built (texts), distinct, nmi (texts as groups against tasks) and few-label accuracy with its spread."""
    found = {"built": len(texts), "distinct": len(set(texts)), "nmi": compute_text_nmi(texts, tasks)}
    return found | score_few_labels(texts, tasks, seed)


def compute_text_nmi(texts: Sequence[str], tasks: Sequence[str]) -> float:
    """Normalised mutual information, arithmetic mean, 0 to 1, of "reads alike" and "is of the same task".

    NaN for fewer than two tasks: there is nothing to tell apart. Texts that all differ score above 0, by chance.
    """
    from sklearn.metrics import normalized_mutual_info_score

    if len(set(tasks)) < 2:
        return float("nan")
    return float(normalized_mutual_info_score(pd.factorize(np.asarray(tasks))[0], pd.factorize(np.asarray(texts))[0]))


def score_few_labels(texts: Sequence[str], tasks: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Share of texts whose task a logistic regression on words tells after FEW_LABELS examples a task.

    accuracy: mean over DRAWS random choices of the examples; low, high: the 2.5 % and 97.5 % quantiles of the draws;
    labels: examples used per draw. Tasks with no more than FEW_LABELS texts are left out; NaN when fewer than two stay.
    """
    frame = pd.DataFrame({"text": list(texts), "task": list(tasks)})
    frame = frame[frame.groupby("task")["task"].transform("size") > FEW_LABELS].reset_index(drop=True)
    if frame["task"].nunique() < 2:
        return {"accuracy": float("nan"), "low": float("nan"), "high": float("nan"), "labels": 0}
    scores = [_score_draw(frame, np.random.default_rng([seed, draw])) for draw in range(DRAWS)]
    low, high = np.quantile(scores, [0.025, 0.975])
    labels = FEW_LABELS * frame["task"].nunique()
    return {"accuracy": float(np.mean(scores)), "low": float(low), "high": float(high), "labels": labels}


def _score_draw(frame: pd.DataFrame, rng: np.random.Generator) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    order = frame.iloc[rng.permutation(len(frame))]
    shown = order.groupby("task", sort=True).head(FEW_LABELS)
    rest = order.drop(shown.index).head(MOST_TESTED)
    # Words and, for scripts without spaces, single characters; placeholders in brackets count as words.
    words = TfidfVectorizer(token_pattern=r"\[\w+\]|[a-zA-Z]+|\d+|[^\W\da-zA-Z_]", sublinear_tf=True)
    try:
        learned = words.fit_transform(shown["text"])
    except ValueError:  # no word in any example
        return float((rest["task"] == shown["task"].mode()[0]).mean())
    model = LogisticRegression(C=100.0, max_iter=1000).fit(learned, shown["task"])
    return float((model.predict(words.transform(rest["text"])) == rest["task"].to_numpy()).mean())
