"""What a set of experts knows together: all-correct, mixed, all-incorrect, and who solves the mixed part.

METHODS: Rocket (arXiv 2408.15915) Fig. 11 and Table 5. All functions take predictions (rows.Prediction columns joined
with question.task), one regime per task, and return tidy frames.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from metamoe_backend.errors import ConfigError
from metamoe_backend.evaluate.answers import ALL_TASKS, compute_answer_table
from metamoe_backend.evaluate.intervals import compare_pair, compute_wilson_interval

OUTCOMES = ("all-correct", "mixed", "all-incorrect")
BEST_SINGLE = "best single expert"
MAJORITY = "majority vote"
ORACLE = "oracle"


def compute_outcomes(predictions: pd.DataFrame, experts: Sequence[str]) -> pd.DataFrame:
    """One row a question that all `experts` answered: task, question_id, outcome, correct_experts, experts.

    outcome: all-correct, mixed or all-incorrect over `experts`. Raises `ConfigError` for fewer than two experts.
    """
    if len(set(experts)) < 2:
        raise ConfigError("Outcomes compare experts with each other: choose at least two.")
    solved = compute_answer_table(predictions, experts)
    right = solved.sum(axis=1).to_numpy()
    outcome = np.select([right == solved.shape[1], right == 0], [OUTCOMES[0], OUTCOMES[2]], OUTCOMES[1])
    return solved.index.to_frame(index=False).assign(
        outcome=outcome.astype(object), correct_experts=right, experts=solved.shape[1]
    )


def count_outcomes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Questions of each outcome per task and over all tasks: task, outcome, questions, n (the task's), share."""
    if outcomes.empty:
        return pd.DataFrame(columns=["task", "outcome", "questions", "n", "share"])
    both = pd.concat([outcomes, outcomes.assign(task=ALL_TASKS)])
    tasks = [*sorted(outcomes["task"].unique()), ALL_TASKS]
    every = pd.MultiIndex.from_product([tasks, OUTCOMES], names=["task", "outcome"])
    counts = both.groupby(["task", "outcome"]).size().reindex(every, fill_value=0)
    frame = counts.rename("questions").reset_index()
    frame["n"] = frame.groupby("task")["questions"].transform("sum")
    frame["share"] = frame["questions"] / frame["n"]
    return frame


def compute_majority_vote(predictions: pd.DataFrame, experts: Sequence[str]) -> pd.Series:
    """Whether the answer most `experts` gave is right, per (task, question_id).

    Answers are equal when their text is, up to case and spaces. A tie goes to the answer of the expert named first.
    """
    order = list(dict.fromkeys(experts))
    table = compute_answer_table(predictions, order)
    votes = predictions[predictions["system"].isin(order)]
    votes = votes.assign(
        answer=votes["output"].str.split().str.join(" ").str.casefold(),
        rank=votes["system"].map({name: rank for rank, name in enumerate(order)}),
    )
    answers = votes.groupby(["task", "question_id", "answer"]).agg(
        votes=("system", "size"), rank=("rank", "min"), correct=("correct", "max")
    )
    answers = answers.reset_index().sort_values(["votes", "rank"], ascending=[False, True], kind="stable")
    winners = answers.drop_duplicates("question_id").set_index(["task", "question_id"])["correct"]
    return winners.astype(bool).reindex(table.index).rename(MAJORITY)


def compute_error_rates(
    predictions: pd.DataFrame,
    experts: Sequence[str],
    systems: Sequence[str] = (),
    part: str | None = "mixed",
) -> pd.DataFrame:
    """Error rate per task (and over all tasks) of each expert, each of `systems`, and three references.

    part: the outcome whose questions count (over `experts`), or None for all questions. Columns: task, system, role
    (expert, system, reference), errors, n, error_rate, low, high (Wilson), regret (error rate above the oracle's).
    References: the best single expert (fewest errors there, so chosen on these very questions: a generous rival),
    the majority vote, the oracle (right where any expert is: a bound, never a result). Only questions that all of
    them answered count.
    """
    others = [name for name in dict.fromkeys(systems) if name not in set(experts)]
    names = [*dict.fromkeys(experts), *others]
    outcomes = compute_outcomes(predictions, experts).set_index(["task", "question_id"])["outcome"]
    solved = compute_answer_table(predictions, names)
    if part is not None:
        solved = solved[outcomes.reindex(solved.index).eq(part)]
    votes = compute_majority_vote(predictions, experts).reindex(solved.index)
    solved = solved.assign(**{MAJORITY: votes, ORACLE: solved[list(dict.fromkeys(experts))].any(axis=1)})
    rows = [
        _count_errors(part_solved, str(task), experts, others)
        for task, part_solved in [*solved.groupby(level="task"), (ALL_TASKS, solved)]
    ]
    frame = pd.concat(rows, ignore_index=True)
    frame["low"], frame["high"] = compute_wilson_interval(frame["errors"], frame["n"])
    return frame[["task", "system", "role", "errors", "n", "error_rate", "low", "high", "regret"]]


def _count_errors(solved: pd.DataFrame, task: str, experts: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    errors = (~solved).sum()
    errors[BEST_SINGLE] = errors[list(experts)].min()
    roles = dict.fromkeys(experts, "expert") | dict.fromkeys(others, "system")
    roles |= dict.fromkeys((BEST_SINGLE, MAJORITY, ORACLE), "reference")
    frame = pd.DataFrame({"task": task, "system": list(roles), "role": list(roles.values()), "n": len(solved)})
    frame["errors"] = errors[frame["system"]].to_numpy().astype(int)
    frame["error_rate"] = frame["errors"] / len(solved) if len(solved) else np.nan
    frame["regret"] = frame["error_rate"] - frame["error_rate"].iloc[-1]
    return frame


def compare_with_best_expert(
    predictions: pd.DataFrame, experts: Sequence[str], system: str, part: str | None = "mixed", seed: int = 0
) -> pd.DataFrame:
    """`system` against the best single expert on one part, per task and over all tasks: the answer sentence's numbers.

    Columns: task, system, expert (the best there, chosen on these very questions), n, accuracy, expert_accuracy,
    difference, low, high (paired bootstrap), only_system, only_expert (questions only one of the two solved), p
    (exact McNemar), shown (the interval leaves 0 out), regimes (which ways of scoring are pooled).
    """
    names = list(dict.fromkeys([*experts, system]))
    outcomes = compute_outcomes(predictions, experts).set_index(["task", "question_id"])["outcome"]
    solved = compute_answer_table(predictions, names)
    if part is not None:
        solved = solved[outcomes.reindex(solved.index).eq(part)]
    regimes = predictions.drop_duplicates("task").set_index("task")["regime"]
    rows = []
    for task, part_solved in [*solved.groupby(level="task"), (ALL_TASKS, solved)]:
        expert = str(part_solved[list(experts)].sum().idxmax())
        pooled = sorted(regimes.reindex(part_solved.index.get_level_values("task").unique()).unique())
        about = {"task": task, "system": system, "expert": expert, "regimes": ", ".join(pooled)}
        rows.append(about | compare_pair(part_solved[system].to_numpy(), part_solved[expert].to_numpy(), seed))
    frame = pd.DataFrame(rows).rename(columns={"reference_accuracy": "expert_accuracy"})
    return frame.rename(columns={"gained": "only_system", "lost": "only_expert"})
