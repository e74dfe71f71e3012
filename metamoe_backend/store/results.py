"""Predictions, activations and routes: reads."""

from collections.abc import Sequence

import pandas as pd

from metamoe_backend.evaluate.outcomes import compute_outcomes
from metamoe_backend.store.connection import Store

_QUESTION_SKILL = """
    question_skill AS (
        SELECT question_id, skill FROM question_label
        UNION ALL SELECT question_id, skill FROM current_suggestion)
"""


def fetch_predictions(
    store: Store, systems: Sequence[str] = (), tasks: Sequence[str] = (), split: str | None = "test"
) -> pd.DataFrame:
    """The newest answer of each system to each question.

    rows.Prediction columns without logliks, task, split, skill (may be NULL), prompt, answer (the right one).
    """
    return store.frame(
        f"""
        WITH {_QUESTION_SKILL}
        SELECT prediction.* EXCLUDE (logliks), skill, question.prompt, question.answer
        FROM current_prediction AS prediction JOIN question USING (question_id)
        LEFT JOIN question_skill USING (question_id)
        WHERE (len($systems) = 0 OR list_contains($systems, system))
            AND (len($tasks) = 0 OR list_contains($tasks, prediction.task))
            AND ($split IS NULL OR prediction.split = $split)
        ORDER BY prediction.task, question_id, system
        """,
        {"systems": list(systems), "tasks": list(tasks), "split": split},
    )


def fetch_expert_outcomes(store: Store) -> pd.Series:
    """Outcome (evaluate.outcomes.OUTCOMES) over all evaluated experts by question_id; empty with fewer than two."""
    experts = store.frame(
        "SELECT DISTINCT system FROM system JOIN prediction USING (system) WHERE kind = 'expert' ORDER BY system"
    )["system"].tolist()
    if len(experts) < 2:
        return pd.Series(dtype=object)
    return compute_outcomes(fetch_predictions(store, experts, split=None), experts).set_index("question_id")["outcome"]


def fetch_answers(store: Store, question_id: str) -> pd.DataFrame:
    """All systems' newest answers to one question, with log-likelihoods: rows.Prediction columns."""
    return store.frame("SELECT * FROM current_prediction WHERE question_id = ? ORDER BY system", [question_id])


def fetch_evaluated(store: Store) -> pd.DataFrame:
    """What needs no second run: system, system_hash, question_id, regime, n_shot, prompt_hash, dtype."""
    return store.frame(
        "SELECT DISTINCT system, system_hash, question_id, regime, n_shot, prompt_hash, dtype FROM prediction"
    )


def fetch_evaluated_systems(store: Store) -> list[str]:
    """Names of the systems that have answered anything, in order of name."""
    return store.frame("SELECT DISTINCT system FROM prediction ORDER BY system")["system"].tolist()


def fetch_mixtures_with_activations(store: Store) -> pd.DataFrame:
    """system, run_id (the newest with activations), questions; in the order the mixtures were made."""
    return store.frame("""
        SELECT used.system, used.run_id, used.questions
        FROM (SELECT system, run_id, count(DISTINCT question_id) AS questions FROM activation GROUP BY system, run_id
              QUALIFY row_number() OVER (PARTITION BY system ORDER BY run_id DESC) = 1) AS used
        LEFT JOIN system USING (system) ORDER BY system.created_at, used.system
    """)


def fetch_activations(store: Store, system: str, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """Gate use of a mixture averaged over questions: task, skill, layer, site, expert, weight, share, questions, tokens.

    weight and share are means over questions of the newest evaluation of each question.
    """
    return store.frame(
        f"""
        WITH {_QUESTION_SKILL},
        newest AS (SELECT question_id, max(run_id) AS run_id FROM activation WHERE system = $system GROUP BY question_id)
        SELECT question.task, skill, layer, site, expert, avg(weight) AS weight, avg(share) AS share,
            count(DISTINCT question_id) AS questions, sum(tokens) AS tokens
        FROM activation JOIN newest USING (question_id, run_id) JOIN question USING (question_id)
        LEFT JOIN question_skill USING (question_id)
        WHERE system = $system AND (len($tasks) = 0 OR list_contains($tasks, question.task))
        GROUP BY question.task, skill, layer, site, expert ORDER BY question.task, layer, site, expert
        """,
        {"system": system, "tasks": list(tasks)},
    )


def fetch_question_activations(
    store: Store, system: str, layer: int | None = None, expert: str | None = None, limit: int = 200
) -> pd.DataFrame:
    """Questions that use an expert most, at one layer or over all: question_id, task, skill, prompt, weight, share."""
    return store.frame(
        f"""
        WITH {_QUESTION_SKILL}
        SELECT question_id, question.task, skill, prompt, avg(weight) AS weight, avg(share) AS share
        FROM activation JOIN question USING (question_id) LEFT JOIN question_skill USING (question_id)
        WHERE system = $system AND ($layer IS NULL OR layer = $layer) AND ($expert IS NULL OR expert = $expert)
        GROUP BY ALL ORDER BY share DESC, question_id LIMIT $limit
        """,
        {"system": system, "layer": layer, "expert": expert, "limit": limit},
    )


def fetch_token_questions(store: Store, system: str) -> pd.DataFrame:
    """Questions whose gates were kept token by token: question_id, task, skill, prompt; those that used experts first."""
    return store.frame(
        f"""
        WITH {_QUESTION_SKILL}
        SELECT question_id, question.task, skill, prompt FROM token_activation
        JOIN question USING (question_id) LEFT JOIN question_skill USING (question_id)
        WHERE system = ? GROUP BY ALL ORDER BY max(weight) = 0, question.task, question_id
        """,
        [system],
    )


def fetch_token_activations(store: Store, system: str, question_id: str) -> pd.DataFrame:
    """position, token, layer, expert, weight of one question in its newest evaluation."""
    return store.frame(
        """
        SELECT position, token, layer, expert, weight FROM token_activation
        WHERE system = $system AND question_id = $question
            AND run_id = (SELECT max(run_id) FROM token_activation WHERE system = $system AND question_id = $question)
        ORDER BY position, layer, expert
        """,
        {"system": system, "question": question_id},
    )


def fetch_counterfactuals(store: Store, system: str, question_ids: Sequence[str]) -> pd.DataFrame:
    """Answers of the newest run that forced experts on each question: rows.Counterfactual columns.

    In the mixture's order: as routed, its experts, the base model.
    """
    return store.frame(
        """
        SELECT counterfactual.* FROM counterfactual LEFT JOIN system USING (system)
        WHERE system = $system AND list_contains($questions, question_id)
        QUALIFY dense_rank() OVER (PARTITION BY question_id ORDER BY counterfactual.run_id DESC) = 1
        ORDER BY question_id, expert <> 'routed', expert = 'base', list_position(experts, expert), expert
        """,
        {"system": system, "questions": list(question_ids)},
    )


def fetch_routes(store: Store, system: str | None = None, question_id: str | None = None) -> pd.DataFrame:
    """Task-level router: system, question_id, task, skill, expert, probability (newest evaluation)."""
    return store.frame(
        f"""
        WITH {_QUESTION_SKILL}
        SELECT route.system, question_id, question.task, skill, expert, probability FROM route
        JOIN question USING (question_id) LEFT JOIN question_skill USING (question_id)
        WHERE ($system IS NULL OR route.system = $system) AND ($question IS NULL OR question_id = $question)
        QUALIFY dense_rank() OVER (PARTITION BY route.system, question_id ORDER BY route.run_id DESC) = 1
        ORDER BY route.system, question.task, question_id, expert
        """,
        {"system": system, "question": question_id},
    )
