"""What a set of experts knows together: all-correct, mixed, all-incorrect, and who solves the mixed part.

METHODS: Rocket (arXiv 2408.15915) Fig. 11 and Table 5. All functions take predictions (rows.Prediction columns joined
with question.task), one regime per task, and return tidy frames. group: what is counted apart, task or (where the
predictions have that column) skill; questions without a skill are counted as `NO_SKILL`. The order in which systems
and questions are named changes no number.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metamoe_backend.errors import ConfigError
from metamoe_backend.evaluate.answers import ALL_TASKS, compute_answer_table
from metamoe_backend.evaluate.intervals import compare_pair, compute_wilson_interval

OUTCOMES = ("all-correct", "mixed", "all-incorrect")
BEST_SINGLE = "best single expert"
MAJORITY = "majority vote"
ORACLE = "oracle"
NO_SKILL = "no skill"


def compute_outcomes(predictions: pd.DataFrame, experts: Sequence[str]) -> pd.DataFrame:
    """One row a question that all `experts` answered: task, question_id, outcome, correct_experts, experts.

    outcome: all-correct, mixed or all-incorrect over `experts`. With a column skill where the predictions have one.
    Raises `ConfigError` for fewer than two experts.
    """
    if len(set(experts)) < 2:
        raise ConfigError("Outcomes compare experts with each other: choose at least two.")
    solved = compute_answer_table(predictions, experts)
    right = solved.sum(axis=1).to_numpy()
    outcome = np.select([right == solved.shape[1], right == 0], [OUTCOMES[0], OUTCOMES[2]], OUTCOMES[1])
    found = solved.index.to_frame(index=False).assign(
        outcome=outcome.astype(object), correct_experts=right, experts=solved.shape[1]
    )
    return found.assign(skill=_find_groups(predictions, solved, "skill")) if "skill" in predictions else found


def count_outcomes(outcomes: pd.DataFrame, group: str = "task") -> pd.DataFrame:
    """Questions of each outcome per group and over all tasks: `group`, outcome, questions, n (the group's), share."""
    return _count(outcomes, group, "outcome", OUTCOMES)


def count_solvers(outcomes: pd.DataFrame, group: str = "task") -> pd.DataFrame:
    """How many of the n experts solve a question, per group and over all tasks: `group`, correct_experts (0 to n),
    questions, n (the group's), share."""
    experts = int(outcomes["experts"].max()) if len(outcomes) else 0
    return _count(outcomes, group, "correct_experts", range(experts + 1))


def _count(outcomes: pd.DataFrame, group: str, value: str, values: Sequence[str] | range) -> pd.DataFrame:
    if outcomes.empty:
        return pd.DataFrame(columns=[group, value, "questions", "n", "share"])
    both = pd.concat([outcomes, outcomes.assign(**{group: ALL_TASKS})])
    groups = [*sorted(outcomes[group].unique()), ALL_TASKS]
    every = pd.MultiIndex.from_product([groups, values], names=[group, value])
    counts = both.groupby([group, value]).size().reindex(every, fill_value=0)
    frame = counts.rename("questions").reset_index()
    frame["n"] = frame.groupby(group)["questions"].transform("sum")
    frame["share"] = frame["questions"] / frame["n"]
    return frame


def count_intersections(solved: pd.DataFrame) -> pd.DataFrame:
    """Which systems solve which questions, the largest set first: solvers (list; empty: nobody), questions, n, share.

    solved: [questions, systems] of `compute_answer_table`. Each question counts once, under exactly those who solve
    it: the exclusive intersections of an UpSet plot (Lex et al. 2014, IEEE TVCG 20(12), 1983-1992).
    """
    names = sorted(solved.columns)
    counts = solved[names].value_counts(sort=False)
    rows = [
        ([name for name, right in zip(names, key, strict=True) if right], int(questions))
        for key, questions in counts.items()
    ]
    rows.sort(key=lambda row: (-row[1], len(row[0]), row[0]))
    frame = pd.DataFrame(rows, columns=["solvers", "questions"]).assign(n=len(solved))
    return frame.assign(share=frame["questions"] / frame["n"])


def find_solved_by(solved: pd.DataFrame, solvers: Sequence[str]) -> list[str]:
    """Ids of the questions that exactly `solvers` solve, of [questions, systems] of `compute_answer_table`."""
    exactly = solved.eq(solved.columns.isin(list(solvers))).all(axis=1)
    return solved.index[exactly].get_level_values("question_id").tolist()


def compute_majority_vote(predictions: pd.DataFrame, experts: Sequence[str]) -> pd.Series:
    """Whether the answer most `experts` gave is right, per (task, question_id).

    Answers are equal when they choose the same option, else when their text is, up to case and spaces. A tie goes to
    the answer of the expert whose name comes first in the alphabet, so that the order of asking decides nothing.
    """
    order = sorted(set(experts))
    table = compute_answer_table(predictions, order)
    votes = predictions[predictions["system"].isin(order)]
    said = votes["output"].str.split().str.join(" ").str.casefold()
    if "choice" in votes:  # an option may be named in many words
        said = said.where(votes["choice"].isna(), "option " + votes["choice"].astype(str))
    votes = votes.assign(
        answer=said,
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
    group: str = "task",
) -> pd.DataFrame:
    """Error rate per group (and over all tasks) of each expert, each of `systems`, and three references.

    part: the outcome whose questions count (over `experts`), or None for all questions. Columns: `group`, system, role
    (expert, system, reference), errors, n, error_rate, low, high (Wilson), regret (error rate above the oracle's).
    References: the best single expert (fewest errors there, so chosen on these very questions: a generous rival),
    the majority vote, the oracle (right where any expert is: a bound, never a result). Only questions that all of
    them answered count.
    """
    others = [name for name in dict.fromkeys(systems) if name not in set(experts)]
    solved = tabulate_part(predictions, experts, others, part)
    groups = _find_groups(predictions, solved, group)
    rows = [
        _count_errors(part_solved, experts, others).assign(**{group: str(name)})
        for name, part_solved in [*solved.groupby(groups), (ALL_TASKS, solved)]
    ]
    frame = pd.concat(rows, ignore_index=True)
    frame["low"], frame["high"] = compute_wilson_interval(frame["errors"], frame["n"])
    return frame[[group, "system", "role", "errors", "n", "error_rate", "low", "high", "regret"]]


def tabulate_part(
    predictions: pd.DataFrame, experts: Sequence[str], systems: Sequence[str] = (), part: str | None = "mixed"
) -> pd.DataFrame:
    """Who solved which question of one part (see `compute_error_rates`): Boolean, index task and question_id.

    A column for each expert, each of `systems`, the majority vote and the oracle.
    """
    names = list(dict.fromkeys([*experts, *systems]))
    outcomes = compute_outcomes(predictions, experts).set_index(["task", "question_id"])["outcome"]
    solved = compute_answer_table(predictions, names)
    if part is not None:
        solved = solved[outcomes.reindex(solved.index).eq(part)]
    votes = compute_majority_vote(predictions, experts).reindex(solved.index)
    return solved.assign(**{MAJORITY: votes, ORACLE: solved[list(dict.fromkeys(experts))].any(axis=1)})


def find_complete(predictions: pd.DataFrame, experts: Sequence[str], systems: Sequence[str]) -> list[str]:
    """Of `systems`, those that answered every question that all `experts` did: comparing them costs no question."""
    answered = predictions.groupby("system")["question_id"].agg(set)
    asked = set.intersection(*(answered.get(expert, set()) for expert in experts))
    return [name for name in systems if asked <= answered.get(name, set())]


def find_best_single(solved: pd.DataFrame, experts: Sequence[str]) -> str:
    """The expert that solves most of these questions; of equals, the first in the alphabet."""
    return str(solved[sorted(set(experts))].sum().idxmax())


def _find_groups(predictions: pd.DataFrame, solved: pd.DataFrame, group: str) -> NDArray[np.object_]:
    """The task or skill of each row of `solved`."""
    if group not in predictions:
        raise ConfigError(f"The predictions have no column {group!r} to group by.")
    of_question = predictions.drop_duplicates("question_id").set_index("question_id")[group]
    found = of_question.reindex(solved.index.get_level_values("question_id")).astype(object)
    return found.where(found.notna(), NO_SKILL).to_numpy()


def _count_errors(solved: pd.DataFrame, experts: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    errors = (~solved).sum()
    errors[BEST_SINGLE] = errors[list(experts)].min()
    roles = dict.fromkeys(experts, "expert") | dict.fromkeys(others, "system")
    roles |= dict.fromkeys((BEST_SINGLE, MAJORITY, ORACLE), "reference")
    frame = pd.DataFrame({"system": list(roles), "role": list(roles.values()), "n": len(solved)})
    frame["errors"] = errors[frame["system"]].to_numpy().astype(int)
    frame["error_rate"] = frame["errors"] / len(solved) if len(solved) else np.nan
    frame["regret"] = frame["error_rate"] - frame["error_rate"].iloc[-1]
    return frame


def compare_with_best_expert(
    predictions: pd.DataFrame,
    experts: Sequence[str],
    system: str,
    part: str | None = "mixed",
    group: str = "task",
    seed: int = 0,
) -> pd.DataFrame:
    """`system` against the best single expert on one part, per group and over all tasks: the answer sentence's numbers.

    Columns: `group`, system, expert (the best there, chosen on these very questions), n, accuracy, expert_accuracy,
    difference, low, high (paired bootstrap), only_system, only_expert (questions only one of the two solved), p
    (exact McNemar), shown (the interval leaves 0 out), regimes (which ways of scoring are pooled).
    """
    solved = tabulate_part(predictions, experts, [system], part)
    groups = _find_groups(predictions, solved, group)
    regimes = predictions.drop_duplicates("task").set_index("task")["regime"]
    rows = []
    for name, of_group in [*solved.groupby(groups), (ALL_TASKS, solved)]:
        expert = find_best_single(of_group, experts)
        pooled = sorted(regimes.reindex(of_group.index.get_level_values("task").unique()).unique())
        about = {group: str(name), "system": system, "expert": expert, "regimes": ", ".join(pooled)}
        rows.append(about | compare_pair(of_group[system].to_numpy(), of_group[expert].to_numpy(), seed))
    frame = pd.DataFrame(rows).rename(columns={"reference_accuracy": "expert_accuracy"})
    return frame.rename(columns={"gained": "only_system", "lost": "only_expert"})


def find_regret(predictions: pd.DataFrame, experts: Sequence[str], mixture: str, routing: pd.DataFrame) -> pd.DataFrame:
    """The questions that some expert solves and `mixture` does not, and what its routers gave the right experts.

    routing: question_id, expert, probability (task level), weight (mean gate weight), NaN where that router is not
    there. Columns: task, question_id, right (list of experts that solve it), probability, weight (of the right
    experts together; NaN as above), by_question, by_token (the expert, or base, each router gave most; None without
    it), fault: absent (no right expert belongs to the mixture), routing (the routers that are there all favour somebody
    who is wrong), mixing (one of them favours a right expert, and still the answer is wrong), or unknown (no routing of
    the question was recorded).
    """
    names = sorted(set(experts))
    solved = compute_answer_table(predictions, list(dict.fromkeys([*names, mixture])))
    missed = solved[~solved[mixture] & solved[names].any(axis=1)]
    right = pd.Series([[name for name in names if row[name]] for _, row in missed.iterrows()], index=missed.index)
    frame = missed.index.to_frame(index=False).assign(right=right.to_list())
    pairs = frame[["question_id", "right"]].explode("right").rename(columns={"right": "expert"})
    given = pairs.merge(routing, on=["question_id", "expert"], how="left").groupby("question_id")
    for value, favoured in (("probability", "by_question"), ("weight", "by_token")):
        frame[value] = frame["question_id"].map(given[value].sum(min_count=1)).astype(float)
        known = routing[routing[value].notna()].sort_values([value, "expert"], ascending=[False, True])
        most = known.drop_duplicates("question_id").set_index("question_id")["expert"]
        chosen = frame["question_id"].map(most).astype(object)
        frame[favoured] = chosen.where(chosen.notna(), None)
    inside = set(routing["expert"])
    frame["fault"] = [
        _say_fault(inside & set(row.right), [row.by_question, row.by_token]) for row in frame.itertuples(index=False)
    ]
    return frame


def _say_fault(right: Collection[str], favoured: Sequence[str | None]) -> str:
    """right: the right experts that belong to the mixture. favoured: by each router; None where nothing is known."""
    there = [name for name in favoured if name is not None]
    if not there:
        return "unknown"
    if not right:
        return "absent"
    return "mixing" if set(there) & set(right) else "routing"


def summarise_regret(regret: pd.DataFrame, routing: pd.DataFrame, experts: Sequence[str]) -> pd.DataFrame:
    """Per expert, the questions it solves and the mixture does not: expert, questions, alone (no other expert solves
    them), probability, weight (the mean it was given on them; NaN without that router). Most questions first.

    regret: of `find_regret`, with the same routing.
    """
    pairs = regret.explode("right").rename(columns={"right": "expert"})
    pairs = pairs.assign(alone=pairs["question_id"].map(pairs["question_id"].value_counts()).eq(1))
    given = pairs[["question_id", "expert", "alone"]].merge(routing, on=["question_id", "expert"], how="left")
    summed = given.groupby("expert").agg(
        questions=("question_id", "size"), alone=("alone", "sum"), probability=("probability", "mean"),
        weight=("weight", "mean"),
    )  # fmt: skip
    summed = summed.reindex(sorted(set(experts))).fillna({"questions": 0, "alone": 0})
    summed = summed.astype({"questions": int, "alone": int}).rename_axis("expert").reset_index()
    return summed.sort_values(["questions", "expert"], ascending=[False, True], ignore_index=True)
