"""Predictions, activations and routes: reads."""

from collections.abc import Sequence

import pandas as pd

from metamoe_backend.evaluate.answers import choose_commonest_way
from metamoe_backend.evaluate.outcomes import compute_outcomes
from metamoe_backend.store.connection import Store

_QUESTION_SKILL = """
    question_skill AS (
        SELECT question_id, skill FROM question_label
        UNION ALL SELECT question_id, skill FROM current_suggestion)
"""


def fetch_predictions(
    store: Store,
    systems: Sequence[str] = (),
    tasks: Sequence[str] = (),
    split: str | None = "test",
    options: bool = False,
) -> pd.DataFrame:
    """The newest answer of each system to each question.

    rows.Prediction columns without logliks, task, split, skill (may be NULL), prompt, answer (the right one); with
    `options` logliks, choices and gold, too.
    """
    more = ", prediction.logliks, question.choices, question.gold" if options else ""
    return store.frame(
        f"""
        WITH {_QUESTION_SKILL}
        SELECT prediction.* EXCLUDE (logliks), skill, question.prompt, question.answer{more}
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
    predictions = choose_commonest_way(fetch_predictions(store, experts, split=None))
    return compute_outcomes(predictions, experts).set_index("question_id")["outcome"]


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
    """system, run_id (the newest with activations); in the order the mixtures were made."""
    return store.frame("""
        SELECT used.system, used.run_id
        FROM (SELECT system, max(run_id) AS run_id FROM activation GROUP BY system) AS used
        LEFT JOIN system USING (system) ORDER BY system.created_at, used.system
    """)


_READ_QUESTION = f"""
    {_QUESTION_SKILL},
    -- Questions of $tasks that a mixture read, with the newest evaluation of each. One layer tells: all are written.
    read_question AS (
        SELECT question_id, max(activation.run_id) AS run_id, any_value(task) AS task, any_value(skill) AS skill
        FROM activation JOIN question USING (question_id) LEFT JOIN question_skill USING (question_id)
        WHERE system = $system AND layer = (SELECT min(layer) FROM activation WHERE system = $system)
            AND (len($tasks) = 0 OR list_contains($tasks, task))
        GROUP BY question_id)
"""


def fetch_activations(store: Store, system: str, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """Gate use of a mixture averaged over questions: task, skill, layer, site, expert, weight, share, chosen,
    questions, tokens.

    weight, share and chosen are means over questions of the newest evaluation of each question; chosen is NaN where
    some recording is older than that column.
    """
    return store.frame(
        f"""
        WITH {_READ_QUESTION}
        SELECT task, skill, layer, site, expert, avg(weight) AS weight, avg(share) AS share,
            if(count(chosen) = count(*), avg(chosen), NULL) AS chosen, count(*) AS questions, sum(tokens) AS tokens
        FROM activation JOIN read_question USING (question_id, run_id)
        WHERE system = $system
        GROUP BY task, skill, layer, site, expert ORDER BY task, layer, site, expert
        """,
        {"system": system, "tasks": list(tasks)},
    )


def fetch_question_choices(store: Store, system: str, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """Where both routers sent each question: question_id, task, skill, labelled, by_question, by_token.

    by_question: the task-level router's most probable route (NULL without one). by_token: the expert of the largest
    mean gate weight over layers and sites; base where no expert was used. labelled: a person gave the skill.
    """
    return store.frame(
        f"""
        WITH {_READ_QUESTION},
        used AS (
            SELECT question_id, expert, avg(weight) AS weight FROM activation JOIN read_question USING (question_id, run_id)
            WHERE system = $system GROUP BY question_id, expert),
        by_token AS (
            SELECT question_id, if(max(weight) > 0, arg_max(expert, weight), 'base') AS by_token
            FROM used GROUP BY question_id),
        by_question AS (
            SELECT question_id, arg_max(expert, probability) AS by_question
            FROM route JOIN read_question USING (question_id, run_id) WHERE system = $system GROUP BY question_id)
        SELECT question_id, task, skill,
            question_id IN (SELECT question_id FROM question_label) AS labelled, by_question, by_token
        FROM read_question JOIN by_token USING (question_id) LEFT JOIN by_question USING (question_id)
        ORDER BY task, question_id
        """,
        {"system": system, "tasks": list(tasks)},
    )


def fetch_question_activations(
    store: Store,
    system: str,
    layer: int | None = None,
    expert: str | None = None,
    tasks: Sequence[str] = (),
    limit: int = 200,
) -> pd.DataFrame:
    """Questions that use an expert most, at one layer or over all: question_id, task, skill, prompt, weight, share."""
    return store.frame(
        f"""
        WITH {_READ_QUESTION},
        used AS (
            SELECT question_id, avg(weight) AS weight, avg(share) AS share
            FROM activation JOIN read_question USING (question_id, run_id)
            WHERE system = $system AND ($layer IS NULL OR layer = $layer) AND ($expert IS NULL OR expert = $expert)
            GROUP BY question_id ORDER BY share DESC, question_id LIMIT $limit)
        SELECT question_id, read_question.task, skill, prompt, weight, share
        FROM used JOIN read_question USING (question_id) JOIN question USING (question_id)
        ORDER BY share DESC, question_id
        """,
        {"system": system, "layer": layer, "expert": expert, "tasks": list(tasks), "limit": limit},
    )


_SAMPLED_GATE = f"""
    {_QUESTION_SKILL},
    -- Questions of $tasks that are there token by token, with the newest evaluation of each.
    sampled AS (
        SELECT question_id, max(token_activation.run_id) AS run_id, any_value(task) AS task
        FROM token_activation JOIN question USING (question_id)
        WHERE system = $system AND token_activation.position = 0 AND (len($tasks) = 0 OR list_contains($tasks, task))
        GROUP BY question_id),
    -- Of each of their tokens at each layer: the experts chosen, and the entropy of their weights in nats.
    gate AS (
        SELECT question_id, list(expert ORDER BY expert) AS experts, -sum(weight * ln(weight)) AS entropy
        FROM token_activation JOIN sampled USING (question_id, run_id)
        WHERE system = $system AND weight > 0
        GROUP BY question_id, position, layer)
"""


def fetch_gate_patterns(store: Store, system: str, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """Which experts were chosen together, over the sampled questions' tokens and layers: experts (a list), gates (how
    often exactly these were chosen), entropy (mean over them, of the weights of one gate, in nats).

    A layer with several sites counts as one gate: what any of its sites chose. Questions answered by the bare base
    model have no gates.
    """
    return store.frame(
        f"WITH {_SAMPLED_GATE} SELECT experts, count(*) AS gates, avg(entropy) AS entropy FROM gate "
        "GROUP BY experts ORDER BY gates DESC, experts",
        {"system": system, "tasks": list(tasks)},
    )


def fetch_pair_questions(store: Store, system: str, first: str, second: str, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """Sampled questions by how often both experts were chosen for one token: question_id, task, skill, prompt, share.

    With the same expert twice: by how often it was chosen.
    """
    return store.frame(
        f"""
        WITH {_SAMPLED_GATE}
        SELECT question_id, any_value(question.task) AS task, any_value(skill) AS skill, any_value(prompt) AS prompt,
            avg(list_has_all(experts, [$first, $second])::INT) AS share
        FROM gate JOIN question USING (question_id) LEFT JOIN question_skill USING (question_id)
        GROUP BY question_id HAVING share > 0 ORDER BY share DESC, question_id
        """,
        {"system": system, "tasks": list(tasks), "first": first, "second": second},
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


def fetch_routing(store: Store, system: str | None = None, question_id: str | None = None) -> pd.DataFrame:
    """What both routers of the mixtures gave each expert on each question, in the newest evaluation: system, question_id,
    expert, probability (task level), weight (gate weight, mean over layers and sites); NULL where there was no such router.
    """
    return store.frame(
        """
        WITH given AS (
            SELECT system, question_id, expert, probability FROM route
            WHERE ($system IS NULL OR system = $system) AND ($question IS NULL OR question_id = $question)
            QUALIFY run_id = max(run_id) OVER (PARTITION BY system, question_id)),
        newest AS (
            SELECT system, question_id, max(run_id) AS run_id FROM activation
            WHERE ($system IS NULL OR system = $system) AND ($question IS NULL OR question_id = $question)
            GROUP BY system, question_id),
        used AS (
            SELECT system, question_id, expert, avg(weight) AS weight
            FROM activation JOIN newest USING (system, question_id, run_id) GROUP BY system, question_id, expert)
        SELECT system, question_id, expert, probability, weight
        FROM given FULL JOIN used USING (system, question_id, expert) ORDER BY system, question_id, expert
        """,
        {"system": system, "question": question_id},
    )
