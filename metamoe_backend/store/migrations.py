"""The shape of the database, step by step. A step, once released, is never edited: add `m002_…` instead."""

from collections.abc import Callable

import duckdb

from metamoe_backend.rows import TABLES, columns


def m001_first_tables(cursor: duckdb.DuckDBPyConnection) -> None:
    """Every table of rows.py and the views that say which row counts."""
    cursor.execute("""
        CREATE TABLE task (task VARCHAR PRIMARY KEY, regime VARCHAR NOT NULL, template VARCHAR NOT NULL,
            source VARCHAR NOT NULL, run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
        CREATE TABLE question (question_id VARCHAR PRIMARY KEY, task VARCHAR NOT NULL, split VARCHAR NOT NULL,
            prompt VARCHAR NOT NULL, choices VARCHAR[], answer VARCHAR NOT NULL, gold BIGINT, explanation VARCHAR,
            metadata VARCHAR, position BIGINT NOT NULL, run_id VARCHAR NOT NULL);
        CREATE TABLE rejected_row (run_id VARCHAR NOT NULL, line BIGINT NOT NULL, reason VARCHAR NOT NULL,
            text VARCHAR NOT NULL);
        CREATE TABLE meta_question (question_id VARCHAR NOT NULL, method VARCHAR NOT NULL, text VARCHAR NOT NULL,
            source_hash VARCHAR NOT NULL, run_id VARCHAR NOT NULL);
        CREATE TABLE meta_question_edit (event_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
            method VARCHAR NOT NULL, text VARCHAR NOT NULL, author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL);
        CREATE TABLE embedding (question_id VARCHAR NOT NULL, encoder VARCHAR NOT NULL, of VARCHAR NOT NULL,
            text_hash VARCHAR NOT NULL, vector FLOAT[] NOT NULL, run_id VARCHAR NOT NULL);
        CREATE TABLE map (map_id VARCHAR PRIMARY KEY, of VARCHAR NOT NULL, encoder VARCHAR NOT NULL,
            neighbours BIGINT NOT NULL, min_dist DOUBLE NOT NULL, min_cluster_size BIGINT NOT NULL,
            seed BIGINT NOT NULL, questions BIGINT NOT NULL, clusters BIGINT NOT NULL, noise_share DOUBLE NOT NULL,
            nmi DOUBLE, ari DOUBLE, dbcv DOUBLE, silhouette DOUBLE, run_id VARCHAR NOT NULL,
            created_at TIMESTAMP NOT NULL);
        CREATE TABLE map_point (map_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, x DOUBLE NOT NULL,
            y DOUBLE NOT NULL, cluster BIGINT NOT NULL, strength DOUBLE NOT NULL);
        CREATE TABLE cluster (map_id VARCHAR NOT NULL, cluster BIGINT NOT NULL, size BIGINT NOT NULL,
            x DOUBLE NOT NULL, y DOUBLE NOT NULL, keywords VARCHAR[] NOT NULL, samples VARCHAR[] NOT NULL);
        CREATE TABLE skill (skill_id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, colour VARCHAR NOT NULL,
            merged_into VARCHAR, author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL);
        CREATE TABLE label (event_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, skill_id VARCHAR NOT NULL,
            author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL, how VARCHAR NOT NULL, retracted_by VARCHAR);
        CREATE TABLE suggestion (question_id VARCHAR NOT NULL, skill_id VARCHAR NOT NULL,
            probability DOUBLE NOT NULL, runner_up VARCHAR, margin DOUBLE NOT NULL, run_id VARCHAR NOT NULL);
        CREATE TABLE labelling (labelling VARCHAR PRIMARY KEY, labels BIGINT NOT NULL, suggestions BIGINT NOT NULL,
            threshold DOUBLE NOT NULL, author VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
            created_at TIMESTAMP NOT NULL);
        CREATE TABLE labelling_item (labelling VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
            skill VARCHAR NOT NULL, source VARCHAR NOT NULL, probability DOUBLE NOT NULL);
        CREATE TABLE plan (plan VARCHAR PRIMARY KEY, labelling VARCHAR NOT NULL, author VARCHAR NOT NULL,
            made_at TIMESTAMP NOT NULL);
        CREATE TABLE plan_entry (plan VARCHAR NOT NULL, skill VARCHAR NOT NULL, expert VARCHAR NOT NULL);
        CREATE TABLE adapter (adapter VARCHAR PRIMARY KEY, base VARCHAR NOT NULL, rank BIGINT NOT NULL,
            alpha DOUBLE NOT NULL, targets VARCHAR[] NOT NULL, parameters BIGINT NOT NULL, sha256 VARCHAR NOT NULL,
            source VARCHAR NOT NULL, plan VARCHAR, skills VARCHAR[] NOT NULL, trained_on VARCHAR[] NOT NULL,
            run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
        CREATE TABLE system (system VARCHAR PRIMARY KEY, kind VARCHAR NOT NULL, base VARCHAR NOT NULL,
            path VARCHAR NOT NULL, experts VARCHAR[] NOT NULL, settings VARCHAR NOT NULL, sha256 VARCHAR NOT NULL,
            run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);
        CREATE TABLE run (run_id VARCHAR PRIMARY KEY, stage VARCHAR NOT NULL, name VARCHAR NOT NULL,
            state VARCHAR NOT NULL, config VARCHAR NOT NULL, author VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL,
            started_at TIMESTAMP, ended_at TIMESTAMP, error VARCHAR);
        CREATE TABLE metric (run_id VARCHAR NOT NULL, step BIGINT NOT NULL, name VARCHAR NOT NULL,
            value DOUBLE NOT NULL);
        CREATE TABLE prediction (system VARCHAR NOT NULL, question_id VARCHAR NOT NULL, regime VARCHAR NOT NULL,
            n_shot BIGINT NOT NULL, output VARCHAR NOT NULL, choice BIGINT, correct BOOLEAN NOT NULL,
            score DOUBLE NOT NULL, logliks FLOAT[], prompt_hash VARCHAR NOT NULL, system_hash VARCHAR NOT NULL,
            base_hash VARCHAR NOT NULL, dtype VARCHAR NOT NULL, run_id VARCHAR NOT NULL);
        CREATE TABLE activation (run_id VARCHAR NOT NULL, system VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
            layer BIGINT NOT NULL, site VARCHAR NOT NULL, expert VARCHAR NOT NULL, weight DOUBLE NOT NULL,
            share DOUBLE NOT NULL, tokens BIGINT NOT NULL);
        CREATE TABLE token_activation (run_id VARCHAR NOT NULL, system VARCHAR NOT NULL,
            question_id VARCHAR NOT NULL, position BIGINT NOT NULL, token VARCHAR NOT NULL, layer BIGINT NOT NULL,
            expert VARCHAR NOT NULL, weight DOUBLE NOT NULL);
        CREATE TABLE route (run_id VARCHAR NOT NULL, system VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
            expert VARCHAR NOT NULL, probability DOUBLE NOT NULL);
        CREATE TABLE review (event_id VARCHAR NOT NULL, target_kind VARCHAR NOT NULL, target VARCHAR NOT NULL,
            verdict VARCHAR, comment VARCHAR NOT NULL, author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL);
        CREATE TABLE event (event_id VARCHAR PRIMARY KEY, made_at TIMESTAMP NOT NULL, author VARCHAR NOT NULL,
            kind VARCHAR NOT NULL, payload VARCHAR NOT NULL);
        CREATE TABLE part (run_id VARCHAR NOT NULL, part VARCHAR NOT NULL, target VARCHAR NOT NULL,
            rows BIGINT NOT NULL, sha256 VARCHAR NOT NULL, PRIMARY KEY (run_id, part));

        -- The meta-question that counts: the newest build, corrected by the newest edit.
        CREATE VIEW current_meta_question AS
            SELECT built.question_id, built.method, coalesce(edited.text, built.text) AS text,
                built.text AS built_text, built.source_hash, edited.text IS NOT NULL AS edited
            FROM (SELECT * FROM meta_question
                  QUALIFY row_number() OVER (PARTITION BY question_id, method ORDER BY run_id DESC) = 1) AS built
            LEFT JOIN (SELECT * FROM meta_question_edit
                  QUALIFY row_number() OVER (PARTITION BY question_id, method ORDER BY event_id DESC) = 1) AS edited
                USING (question_id, method);
        -- Each person's newest label that was not taken back; a merged skill answers under its new name.
        CREATE VIEW standing_label AS
            SELECT label.question_id, kept.skill_id, kept.name AS skill, kept.colour, label.author, label.made_at, label.how,
                label.event_id
            FROM (SELECT * FROM label WHERE retracted_by IS NULL
                  QUALIFY row_number() OVER (PARTITION BY question_id, author ORDER BY event_id DESC) = 1) AS label
            JOIN skill AS given ON given.skill_id = label.skill_id
            JOIN skill AS kept ON kept.skill_id = coalesce(given.merged_into, given.skill_id);
        -- One skill per question: the newest standing label of anyone.
        CREATE VIEW question_label AS
            SELECT * FROM standing_label QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY event_id DESC) = 1;
        -- What the newest suggestion run proposes for questions nobody has labelled.
        CREATE VIEW current_suggestion AS
            SELECT suggestion.question_id, kept.skill_id, kept.name AS skill, kept.colour, suggestion.probability,
                suggestion.runner_up, suggestion.margin, suggestion.run_id
            FROM suggestion
            JOIN skill AS given ON given.skill_id = suggestion.skill_id
            JOIN skill AS kept ON kept.skill_id = coalesce(given.merged_into, given.skill_id)
            WHERE suggestion.run_id = (SELECT max(run_id) FROM suggestion)
                AND suggestion.question_id NOT IN (SELECT question_id FROM question_label);
        -- The newest answer of each system to each question under each regime.
        CREATE VIEW current_prediction AS
            SELECT prediction.*, question.task, question.split
            FROM (SELECT * FROM prediction QUALIFY row_number() OVER (
                PARTITION BY system, question_id, regime, n_shot ORDER BY run_id DESC) = 1) AS prediction
            JOIN question USING (question_id);
    """)


def m002_rejections_and_decisions(cursor: duckdb.DuckDBPyConnection) -> None:
    """Refused suggestions are not offered again; a decision counts above everyone's labels."""
    cursor.execute("""
        CREATE TABLE rejection (event_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, skill_id VARCHAR NOT NULL,
            author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL, retracted_by VARCHAR);
        -- Refused suggestions that were not taken back; a merged skill answers under its new name.
        CREATE VIEW standing_rejection AS
            SELECT rejection.question_id, kept.skill_id, kept.name AS skill, rejection.author, rejection.made_at,
                rejection.event_id
            FROM rejection
            JOIN skill AS given ON given.skill_id = rejection.skill_id
            JOIN skill AS kept ON kept.skill_id = coalesce(given.merged_into, given.skill_id)
            WHERE rejection.retracted_by IS NULL;
        -- One skill per question: what a person decided, else the newest standing label of anyone.
        CREATE OR REPLACE VIEW question_label AS
            SELECT * FROM standing_label
            QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY how = 'decided' DESC, event_id DESC) = 1;
        -- What the newest suggestion run proposes for questions nobody has labelled, and nobody has refused.
        CREATE OR REPLACE VIEW current_suggestion AS
            SELECT suggestion.question_id, kept.skill_id, kept.name AS skill, kept.colour, suggestion.probability,
                suggestion.runner_up, suggestion.margin, suggestion.run_id
            FROM suggestion
            JOIN skill AS given ON given.skill_id = suggestion.skill_id
            JOIN skill AS kept ON kept.skill_id = coalesce(given.merged_into, given.skill_id)
            WHERE suggestion.run_id = (SELECT max(run_id) FROM suggestion)
                AND suggestion.question_id NOT IN (SELECT question_id FROM question_label)
                AND (suggestion.question_id, kept.skill_id) NOT IN (SELECT question_id, skill_id FROM standing_rejection);
    """)


def m003_skill_constraints(cursor: duckdb.DuckDBPyConnection) -> None:
    """Two groups of questions need the same skill, or different ones."""
    cursor.execute("""
        CREATE TABLE skill_constraint (event_id VARCHAR NOT NULL, relation VARCHAR NOT NULL,
            first_ids VARCHAR[] NOT NULL, second_ids VARCHAR[] NOT NULL, author VARCHAR NOT NULL,
            made_at TIMESTAMP NOT NULL, retracted_by VARCHAR)
    """)


def m004_clusters_as_people_see_them(cursor: duckdb.DuckDBPyConnection) -> None:
    """People rename, merge and split clusters and move questions between them."""
    cursor.execute("""
        CREATE TABLE cluster_move (event_id VARCHAR NOT NULL, map_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
            cluster BIGINT NOT NULL, author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL, retracted_by VARCHAR);
        CREATE TABLE cluster_edit (event_id VARCHAR NOT NULL, map_id VARCHAR NOT NULL, cluster BIGINT NOT NULL,
            name VARCHAR, keywords VARCHAR[], samples VARCHAR[], author VARCHAR NOT NULL, made_at TIMESTAMP NOT NULL,
            retracted_by VARCHAR);
        -- Where each question lies, in the cluster where HDBSCAN or, since, a person put it.
        CREATE VIEW current_map_point AS
            SELECT point.map_id, point.question_id, point.x, point.y, coalesce(moved.cluster, point.cluster) AS cluster,
                point.strength
            FROM map_point AS point
            LEFT JOIN (SELECT map_id, question_id, cluster FROM cluster_move WHERE retracted_by IS NULL
                       QUALIFY row_number() OVER (PARTITION BY map_id, question_id ORDER BY event_id DESC) = 1) AS moved
                USING (map_id, question_id);
        -- Clusters that have questions, as they stand now.
        CREATE VIEW current_cluster AS
            SELECT map_id, cluster, member.size, member.x, member.y, nullif(said.name, '') AS name,
                coalesce(said.keywords, found.keywords, []) AS keywords,
                coalesce(said.samples, found.samples, []) AS samples
            FROM (SELECT map_id, cluster, count(*) AS size, median(x) AS x, median(y) AS y
                  FROM current_map_point WHERE cluster >= 0 GROUP BY map_id, cluster) AS member
            LEFT JOIN cluster AS found USING (map_id, cluster)
            LEFT JOIN (SELECT map_id, cluster,
                           arg_max(name, event_id) FILTER (name IS NOT NULL) AS name,
                           arg_max(keywords, event_id) FILTER (keywords IS NOT NULL) AS keywords,
                           arg_max(samples, event_id) FILTER (samples IS NOT NULL) AS samples
                       FROM cluster_edit WHERE retracted_by IS NULL GROUP BY map_id, cluster) AS said
                USING (map_id, cluster);
    """)


def m005_expert_selection(cursor: duckdb.DuckDBPyConnection) -> None:
    """A few questions of a task guide which adapters of the bank become its experts."""
    cursor.execute("""
        CREATE TABLE candidate_shot (run_id VARCHAR NOT NULL, adapter VARCHAR NOT NULL, draw BIGINT NOT NULL,
            shot BIGINT NOT NULL, question_id VARCHAR NOT NULL, nll DOUBLE NOT NULL, tokens BIGINT NOT NULL,
            explained BOOLEAN NOT NULL, output VARCHAR NOT NULL, correct BOOLEAN NOT NULL);
        CREATE TABLE candidate (run_id VARCHAR NOT NULL, task VARCHAR NOT NULL, base VARCHAR NOT NULL,
            adapter VARCHAR NOT NULL, adapter_hash VARCHAR NOT NULL, shots BIGINT NOT NULL, draws BIGINT NOT NULL,
            perplexity DOUBLE NOT NULL, accuracy DOUBLE NOT NULL, perplexity_rank DOUBLE NOT NULL,
            accuracy_rank DOUBLE NOT NULL, rank_sum DOUBLE NOT NULL, shortlisted BOOLEAN NOT NULL,
            chosen BOOLEAN NOT NULL);
        CREATE TABLE candidate_pair (run_id VARCHAR NOT NULL, adapter VARCHAR NOT NULL, other VARCHAR NOT NULL,
            similarity DOUBLE NOT NULL, raw_similarity DOUBLE);
    """)


def m006_data_selection(cursor: duckdb.DuckDBPyConnection) -> None:
    """Rows that were chosen from a pool for a target task, and why the others were not."""
    cursor.execute("""
        CREATE TABLE selected_row (run_id VARCHAR NOT NULL, position BIGINT NOT NULL, task VARCHAR NOT NULL,
            prompt VARCHAR NOT NULL, answer VARCHAR NOT NULL, explanation VARCHAR, score DOUBLE NOT NULL,
            nearest VARCHAR NOT NULL, decision VARCHAR NOT NULL, reason VARCHAR, other VARCHAR)
    """)


def m007_counterfactuals(cursor: duckdb.DuckDBPyConnection) -> None:
    """What each expert alone would have answered; for how many tokens an expert was among the chosen."""
    cursor.execute("""
        ALTER TABLE activation ADD COLUMN chosen DOUBLE;
        CREATE TABLE counterfactual (run_id VARCHAR NOT NULL, system VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
            expert VARCHAR NOT NULL, regime VARCHAR NOT NULL, output VARCHAR NOT NULL, choice BIGINT,
            correct BOOLEAN NOT NULL, score DOUBLE NOT NULL, logliks FLOAT[], system_hash VARCHAR NOT NULL);
    """)


def m008_cut_prompts(cursor: duckdb.DuckDBPyConnection) -> None:
    """How much of a question was cut because the model reads no more; the view takes the new column in."""
    cursor.execute("""
        ALTER TABLE prediction ADD COLUMN cut_tokens BIGINT;
        -- The newest answer of each system to each question under each regime.
        CREATE OR REPLACE VIEW current_prediction AS
            SELECT prediction.*, question.task, question.split
            FROM (SELECT * FROM prediction QUALIFY row_number() OVER (
                PARTITION BY system, question_id, regime, n_shot ORDER BY run_id DESC) = 1) AS prediction
            JOIN question USING (question_id);
    """)


def _describe_columns(cursor: duckdb.DuckDBPyConnection) -> None:
    """Columns carry their meaning from rows.py as comments."""
    for table in TABLES:
        for column in columns(table):
            comment = column.description.replace("'", "''")
            cursor.execute(f'COMMENT ON COLUMN "{table}"."{column.name}" IS \'{comment}\'')


MIGRATIONS: tuple[Callable[[duckdb.DuckDBPyConnection], None], ...] = (
    m001_first_tables,
    m002_rejections_and_decisions,
    m003_skill_constraints,
    m004_clusters_as_people_see_them,
    m005_expert_selection,
    m006_data_selection,
    m007_counterfactuals,
    m008_cut_prompts,
)


def migrate(cursor: duckdb.DuckDBPyConnection) -> None:
    """Apply the steps not yet applied, each in a transaction of its own."""
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS migration (name VARCHAR PRIMARY KEY, made_at TIMESTAMP DEFAULT current_timestamp)"
    )
    done = {name for (name,) in cursor.execute("SELECT name FROM migration").fetchall()}
    missing = [step for step in MIGRATIONS if step.__name__ not in done]
    for step in missing:
        cursor.execute("BEGIN")
        try:
            step(cursor)
            cursor.execute("INSERT INTO migration (name) VALUES (?)", [step.__name__])
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")
    if missing:
        _describe_columns(cursor)
        cursor.execute("CHECKPOINT")
