"""Queries to start from, each answering something a page does not. A test runs them all."""

from pages.shared.i18n import _


def list_examples() -> dict[str, str]:
    """What it answers -> the statement."""
    return {
        _("Accuracy of each system on each task"): """\
SELECT system, task, avg(correct::INT) AS accuracy, count(*) AS n
FROM current_prediction
WHERE split = 'test'
GROUP BY ALL
ORDER BY task, accuracy DESC""",
        _("Questions that a mixture solves and the base model does not"): """\
SELECT moe.task, question.prompt, moe.system, moe.output, question.answer
FROM current_prediction AS moe
JOIN system ON system.system = moe.system AND system.kind = 'moe'
JOIN current_prediction AS base ON base.question_id = moe.question_id AND base.system = 'base'
JOIN question ON question.question_id = moe.question_id
WHERE moe.correct AND NOT base.correct
ORDER BY moe.task""",
        _("Labels and suggestions per skill"): """\
SELECT skill, count(*) FILTER (source = 'label') AS labelled, count(*) FILTER (source = 'suggested') AS suggested
FROM (SELECT skill, 'label' AS source FROM question_label
      UNION ALL SELECT skill, 'suggested' FROM current_suggestion)
GROUP BY skill
ORDER BY labelled DESC""",
        _("Mean gate weight of each expert at each layer"): """\
SELECT layer, expert, avg(weight) AS mean_weight, count(DISTINCT question_id) AS questions
FROM activation
GROUP BY ALL
ORDER BY layer, expert""",
        _("Where the task-level router sends each task"): """\
SELECT question.task, route.expert, avg(route.probability) AS probability, count(*) AS n
FROM route JOIN question USING (question_id)
GROUP BY ALL
ORDER BY task, probability DESC""",
        _("Questions most like the first one"): """\
WITH first AS (SELECT vector, encoder, "of" FROM embedding ORDER BY question_id LIMIT 1)
SELECT list_cosine_similarity(embedding.vector, first.vector) AS similarity, question.task, question.prompt
FROM embedding
JOIN first ON first.encoder = embedding.encoder AND first."of" = embedding."of"
JOIN question USING (question_id)
ORDER BY similarity DESC
LIMIT 20""",
        _("Meta-questions that many questions share"): """\
SELECT text, count(*) AS questions, count(DISTINCT task) AS tasks
FROM current_meta_question JOIN question USING (question_id)
GROUP BY text
ORDER BY questions DESC
LIMIT 50""",
        _("Clusters of the newest map, with their keywords"): """\
SELECT cluster, size, array_to_string(keywords, ', ') AS keywords
FROM cluster
WHERE map_id = (SELECT map_id FROM map ORDER BY created_at DESC LIMIT 1)
ORDER BY size DESC""",
        _("Loss of every training run"): """\
SELECT run.name, metric.step, metric.value AS loss
FROM metric JOIN run USING (run_id)
WHERE metric.name = 'loss'
ORDER BY run.run_id, metric.step""",
        _("Rows per table and run"): """\
SELECT run.stage, run.name, part.target AS filled, sum(part.rows) AS rows
FROM part JOIN run USING (run_id)
GROUP BY ALL
ORDER BY rows DESC""",
    }
