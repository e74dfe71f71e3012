"""The rows of every table: one dataclass a table, one comment a column.

Each table is fed by exactly one source, so that `rebuild` can make the database again:

    runs (Parquet parts named in a manifest)    task question rejected_row meta_question embedding map map_point
                                                cluster suggestion labelling labelling_item adapter system metric
                                                prediction activation token_activation route candidate_shot
                                                candidate candidate_pair counterfactual selected_row
    the run folder itself                       run part
    events (what people did)                    cluster_move cluster_edit skill label rejection skill_constraint
                                                meta_question_edit plan plan_entry review event

`Annotated` carries the sentence that the schema browser shows. A test keeps this file and the migrations equal.
"""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

Regime = Literal["choices", "exact", "number", "reasoning_gym", "code"]
"""How a task is scored; an evaluation may ask for more (`evaluate.asking`).

choices: argmax of the log-likelihood over the question's options. exact: greedy generation, normalised exact match.
number: greedy generation, last number in the output. reasoning_gym: greedy generation, the generator's own
`score_answer`. code: generated program against unit tests inside a sandbox.
"""
Of = Literal["question", "meta-question"]
Reading = Literal["question", "meta-question", "both"]
"""What is read of a question; both: the two vectors joined, each weighing the same."""
MetaQuestionMethod = Literal["template", "llm"]
How = Literal["question", "lasso", "cluster", "file", "accepted", "decided", "restored"]
"""How a label came about.

accepted: a person accepted a suggestion. decided: a person ended a disagreement; it counts above everyone's labels.
restored: it stood in a frozen labelling that a person brought back.
"""
Decision = Literal["shot", "selected", "similar", "leak", "beyond"]
"""What a data selection does with a row; `shot` and `selected` rows are trained on."""
Verdict = Literal["approve", "question", "reject"]
Relation = Literal["same", "different"]
"""What a person says of two groups of questions: they need the same skill, or different ones."""
RunState = Literal["queued", "running", "finished", "stopped", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Task:
    """A named set of questions with one scoring regime."""

    task: Annotated[str, "name of the task"]
    regime: Annotated[str, "how it is scored: choices, exact, number, reasoning_gym or code"]
    template: Annotated[str, "what the model is shown; {prompt} stands for the question"]
    source: Annotated[str, "where it came from: a file name, hub:REPO or reasoning_gym:NAME"]
    run_id: Annotated[str, "run that ingested it"]
    created_at: Annotated[datetime, "when it was ingested (UTC)"]


@dataclass(frozen=True, slots=True)
class Question:
    """One item of a task."""

    question_id: Annotated[str, "hash of task, prompt, choices and answer"]
    task: Annotated[str, "task it belongs to"]
    split: Annotated[str, "train, validation or test"]
    prompt: Annotated[str, "the question as asked"]
    choices: Annotated[list[str] | None, "options in order, or NULL for a free answer"]
    answer: Annotated[str, "the right answer as text"]
    gold: Annotated[int | None, "index of the right option, or NULL"]
    explanation: Annotated[str | None, "gold chain of thought, where the source has one"]
    metadata: Annotated[str | None, "JSON of whatever else the source said (tests, generator state)"]
    position: Annotated[int, "row number in the source, from 0"]
    run_id: Annotated[str, "run that ingested it"]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A source row that could not be used, and why."""

    run_id: Annotated[str, "run that read it"]
    line: Annotated[int, "line or row number in the source, from 1"]
    reason: Annotated[str, "one sentence"]
    text: Annotated[str, "the row, cut at 500 characters"]


@dataclass(frozen=True, slots=True)
class MetaQuestion:
    """What a question asks in general, as built by one method."""

    question_id: Annotated[str, "question it was built from"]
    method: Annotated[str, "template or llm"]
    text: Annotated[str, "the question with its particulars removed"]
    source_hash: Annotated[str, "hash of the question text, method and prompt version: nothing is built twice"]
    run_id: Annotated[str, "run that built it"]


@dataclass(frozen=True, slots=True)
class MetaQuestionEdit:
    """A person's correction of a meta-question; the newest one counts."""

    event_id: Annotated[str, "event that made it"]
    question_id: Annotated[str, "question"]
    method: Annotated[str, "which method's text was corrected"]
    text: Annotated[str, "the corrected text"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class Embedding:
    """One vector of one text by one encoder, of length 1."""

    question_id: Annotated[str, "question"]
    encoder: Annotated[str, "minilm, e5 or a hub id"]
    of: Annotated[str, "question or meta-question"]
    text_hash: Annotated[str, "hash of the embedded text: nothing is embedded twice"]
    vector: Annotated[list[float], "unit vector"]
    run_id: Annotated[str, "run that embedded it"]


@dataclass(frozen=True, slots=True)
class Map:
    """One UMAP projection with HDBSCAN clusters, its parameters and its quality."""

    map_id: Annotated[str, "id (the run's)"]
    of: Annotated[str, "question, meta-question or both"]
    encoder: Annotated[str, "encoder of the vectors"]
    neighbours: Annotated[int, "UMAP n_neighbors"]
    min_dist: Annotated[float, "UMAP min_dist"]
    min_cluster_size: Annotated[int, "HDBSCAN min_cluster_size"]
    seed: Annotated[int, "random seed"]
    questions: Annotated[int, "points on the map"]
    clusters: Annotated[int, "clusters found, noise not counted"]
    noise_share: Annotated[float, "share of points in no cluster"]
    nmi: Annotated[float | None, "normalised mutual information of clusters and task names, noise left out"]
    ari: Annotated[float | None, "adjusted Rand index of clusters and task names, noise left out"]
    dbcv: Annotated[float | None, "density-based cluster validity (HDBSCAN relative_validity_)"]
    silhouette: Annotated[float | None, "mean silhouette on the embeddings (cosine), noise left out"]
    run_id: Annotated[str, "run that made it"]
    created_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class MapPoint:
    """Where one question lies on one map."""

    map_id: Annotated[str, "map"]
    question_id: Annotated[str, "question"]
    x: Annotated[float, "UMAP axis 1, no unit"]
    y: Annotated[float, "UMAP axis 2, no unit"]
    cluster: Annotated[int, "cluster, -1 is noise"]
    strength: Annotated[float, "HDBSCAN membership strength, 0 to 1"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A group HDBSCAN found on a map."""

    map_id: Annotated[str, "map"]
    cluster: Annotated[int, "number, from 0"]
    size: Annotated[int, "questions in it"]
    x: Annotated[float, "median x: where its name stands"]
    y: Annotated[float, "median y"]
    keywords: Annotated[list[str], "most telling words, c-TF-IDF"]
    samples: Annotated[list[str], "question ids nearest to the centre"]


@dataclass(frozen=True, slots=True)
class ClusterMove:
    """A question that a person put into another cluster; the newest move counts."""

    event_id: Annotated[str, "event that made it"]
    map_id: Annotated[str, "map"]
    question_id: Annotated[str, "question"]
    cluster: Annotated[int, "its cluster from then on, -1 is noise"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]
    retracted_by: Annotated[str | None, "event that took it back, or NULL while it stands"]


@dataclass(frozen=True, slots=True)
class ClusterEdit:
    """What is said of a cluster since a person named or changed it; the newest that is not NULL counts."""

    event_id: Annotated[str, "event that made it"]
    map_id: Annotated[str, "map"]
    cluster: Annotated[int, "cluster"]
    name: Annotated[str | None, "a person's name for it; empty: its keywords again"]
    keywords: Annotated[list[str] | None, "most telling words, c-TF-IDF"]
    samples: Annotated[list[str] | None, "question ids nearest to the middle"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]
    retracted_by: Annotated[str | None, "event that took it back, or NULL while it stands"]


@dataclass(frozen=True, slots=True)
class Skill:
    """A researcher's name for a kind of reasoning."""

    skill_id: Annotated[str, "id, stable under renaming"]
    name: Annotated[str, "name"]
    colour: Annotated[str, "#rrggbb, equal on every page"]
    merged_into: Annotated[str | None, "skill_id that took it over, or NULL while it is in use"]
    author: Annotated[str, "who created it"]
    made_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class Label:
    """A person's statement that a question needs a skill."""

    event_id: Annotated[str, "event that made it"]
    question_id: Annotated[str, "question"]
    skill_id: Annotated[str, "skill"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]
    how: Annotated[str, "question, lasso, cluster, file, accepted (suggestion), decided (disagreement) or restored"]
    retracted_by: Annotated[str | None, "event that took it back, or NULL while it stands"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A person's statement that a question does not need the skill that was suggested for it."""

    event_id: Annotated[str, "event that made it"]
    question_id: Annotated[str, "question"]
    skill_id: Annotated[str, "skill that was refused"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]
    retracted_by: Annotated[str | None, "event that took it back, or NULL while it stands"]


@dataclass(frozen=True, slots=True)
class SkillConstraint:
    """A person's statement that two groups of questions need the same skill, or different ones."""

    event_id: Annotated[str, "event that made it"]
    relation: Annotated[str, "same or different"]
    first_ids: Annotated[list[str], "question ids of the one side: a question, or all of a cluster"]
    second_ids: Annotated[list[str], "question ids of the other side"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]
    retracted_by: Annotated[str | None, "event that took it back, or NULL while it stands"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A skill proposed by the semi-supervised step. Never a label."""

    question_id: Annotated[str, "question"]
    skill_id: Annotated[str, "proposed skill"]
    probability: Annotated[float, "calibrated probability, 0 to 1"]
    runner_up: Annotated[str | None, "second skill_id"]
    margin: Annotated[float, "probability minus the runner-up's"]
    run_id: Annotated[str, "run that proposed it; the newest run's are shown"]


@dataclass(frozen=True, slots=True)
class Labelling:
    """A frozen snapshot of labels and accepted suggestions."""

    labelling: Annotated[str, "name"]
    labels: Annotated[int, "questions labelled by a person"]
    suggestions: Annotated[int, "questions taken from suggestions above the threshold"]
    threshold: Annotated[float, "least probability of a suggestion that was taken in"]
    author: Annotated[str, "who froze it"]
    run_id: Annotated[str, "run that froze it"]
    created_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class LabellingItem:
    """The skill of one question under one labelling."""

    labelling: Annotated[str, "labelling"]
    question_id: Annotated[str, "question"]
    skill: Annotated[str, "skill name at that time"]
    source: Annotated[str, "label or suggestion"]
    probability: Annotated[float, "1 for a label"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which skills go to which expert, under one labelling."""

    plan: Annotated[str, "name"]
    labelling: Annotated[str, "labelling it rests on"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One skill of a plan. The expert `base` means: no adapter, the base model answers."""

    plan: Annotated[str, "plan"]
    skill: Annotated[str, "skill name"]
    expert: Annotated[str, "expert name, or base"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of the bank."""

    adapter: Annotated[str, "name, also the name of its folder under adapters/"]
    base: Annotated[str, "base model it was trained on"]
    rank: Annotated[int, "LoRA r"]
    alpha: Annotated[float, "LoRA alpha; the delta is scaled by alpha/r"]
    targets: Annotated[list[str], "adapted modules"]
    parameters: Annotated[int, "trained parameters"]
    sha256: Annotated[str, "of adapter_model.safetensors"]
    source: Annotated[str, "trained or imported"]
    plan: Annotated[str | None, "plan it was trained under"]
    skills: Annotated[list[str], "skills it was trained on"]
    trained_on: Annotated[
        list[str], "tasks it was trained on itself, without those of an adapter it started from; empty if unknown"
    ]
    run_id: Annotated[str, "run that trained or imported it"]
    created_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class System:
    """Anything that can be evaluated."""

    system: Annotated[str, "name: base, an adapter's name, or a mixture's"]
    kind: Annotated[
        str, "base, expert, mixed, baseline (a step of a sequence, or full training guarded against forgetting) or moe"
    ]
    base: Annotated[str, "base model"]
    path: Annotated[str, "folder relative to the workspace; empty for the base model"]
    experts: Annotated[list[str], "experts of a mixture, in gate order"]
    settings: Annotated[str, "JSON of the settings that made it"]
    sha256: Annotated[str, "of its weights; the base model's own for base"]
    run_id: Annotated[str, "run that made it"]
    created_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a stage, with its folder."""

    run_id: Annotated[str, "id, also the folder under runs/; sorts by time"]
    stage: Annotated[
        str,
        "ingest, meta-questions, embed, cluster, suggest, freeze, import, select, select-data, train, sequence, moe, "
        "evaluate or force",
    ]
    name: Annotated[str, "what a person called it"]
    state: Annotated[str, "queued, running, finished, stopped, cancelled or failed"]
    config: Annotated[str, "JSON of its settings"]
    author: Annotated[str, "who started it"]
    created_at: Annotated[datetime, "when (UTC)"]
    started_at: Annotated[datetime | None, "when (UTC)"]
    ended_at: Annotated[datetime | None, "when (UTC)"]
    error: Annotated[str | None, "why it failed"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number logged while a run was going."""

    run_id: Annotated[str, "run"]
    step: Annotated[int, "optimizer step, or items done"]
    name: Annotated[str, "loss, eval_loss, learning_rate, tokens_per_s, memory_mb …"]
    value: Annotated[float, "value in the unit the name says"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one system answered to one question under one regime."""

    system: Annotated[str, "system"]
    question_id: Annotated[str, "question"]
    regime: Annotated[str, "how it was scored: the task's regime or letters; explained or chat stand behind it"]
    n_shot: Annotated[int, "examples shown before the question"]
    output: Annotated[str, "chosen option or generated text"]
    choice: Annotated[int | None, "index of the chosen option"]
    correct: Annotated[bool, "right or wrong"]
    score: Annotated[float, "0 to 1; equals correct unless the regime gives part marks"]
    logliks: Annotated[list[float] | None, "log-likelihood of each option, in nats"]
    prompt_hash: Annotated[str, "hash of the text the model saw"]
    system_hash: Annotated[str, "hash of the weights that answered"]
    base_hash: Annotated[str, "hash of the base model's weights"]
    dtype: Annotated[str, "float32, bfloat16 …"]
    run_id: Annotated[str, "evaluation run"]
    cut_tokens: Annotated[
        int | None, "tokens at the prompt's beginning that the model had no room for; NULL in older recordings"
    ]


@dataclass(frozen=True, slots=True)
class Activation:
    """How much one expert was used at one site while a mixture read one question."""

    run_id: Annotated[str, "evaluation run"]
    system: Annotated[str, "mixture"]
    question_id: Annotated[str, "question"]
    layer: Annotated[int, "transformer layer, from 0"]
    site: Annotated[str, "module the gate sits at"]
    expert: Annotated[str, "expert"]
    weight: Annotated[float, "mean gate weight over the prompt's tokens"]
    share: Annotated[float, "share of tokens with a non-zero gate for it, over all experts chosen (sums to 1)"]
    tokens: Annotated[int, "prompt tokens counted"]
    chosen: Annotated[
        float | None, "top-k share: share of tokens for which it was among the chosen; NULL in older recordings"
    ]


@dataclass(frozen=True, slots=True)
class TokenActivation:
    """Gate weights of one token at one layer, for a sample of questions."""

    run_id: Annotated[str, "evaluation run"]
    system: Annotated[str, "mixture"]
    question_id: Annotated[str, "question"]
    position: Annotated[int, "token position, from 0"]
    token: Annotated[str, "token as text"]
    layer: Annotated[int, "transformer layer, from 0"]
    expert: Annotated[str, "expert"]
    weight: Annotated[float, "gate weight, mean over the layer's sites"]


@dataclass(frozen=True, slots=True)
class Route:
    """The task-level router's probability of one expert for one question."""

    run_id: Annotated[str, "evaluation run"]
    system: Annotated[str, "mixture"]
    question_id: Annotated[str, "question"]
    expert: Annotated[str, "expert, or base"]
    probability: Annotated[float, "0 to 1"]


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What a mixture answers to one question when every token is sent to one expert."""

    run_id: Annotated[str, "run that asked"]
    system: Annotated[str, "mixture"]
    question_id: Annotated[str, "question"]
    expert: Annotated[str, "expert of every token, base (no adapter), or routed: as the mixture itself decides"]
    regime: Annotated[str, "how it was scored"]
    output: Annotated[str, "chosen option or generated text"]
    choice: Annotated[int | None, "index of the chosen option"]
    correct: Annotated[bool, "right or wrong"]
    score: Annotated[float, "0 to 1; equals correct unless the regime gives part marks"]
    logliks: Annotated[list[float] | None, "log-likelihood of each option, in nats"]
    system_hash: Annotated[str, "hash of the mixture that answered"]


@dataclass(frozen=True, slots=True)
class SelectedRow:
    """What a data selection decided about one row of its pool, or one of the K shots it was guided by."""

    run_id: Annotated[str, "selection run"]
    position: Annotated[int, "row number in the pool, from 0; for a shot its order"]
    task: Annotated[str, "target task: rows are trained on under its template"]
    prompt: Annotated[str, "the question as asked"]
    answer: Annotated[str, "the right answer as text"]
    explanation: Annotated[str | None, "gold chain of thought, where the source has one"]
    score: Annotated[float, "largest cosine of its vector and a K shot's; 1 for a shot"]
    nearest: Annotated[str, "question_id of that shot"]
    decision: Annotated[str, "shot, selected, similar (to a better row), leak, or beyond (the budget)"]
    reason: Annotated[str | None, "why it is not trained on, in a sentence; NULL for a row that is"]
    other: Annotated[str | None, "what it is too close to: question_id, or row NUMBER of the pool"]


@dataclass(frozen=True, slots=True)
class CandidateShot:
    """How one adapter of the bank did on one of the K shots that guide the selection of experts."""

    run_id: Annotated[str, "selection run"]
    adapter: Annotated[str, "candidate"]
    draw: Annotated[int, "which draw of K shots, from 0"]
    shot: Annotated[int, "place in the draw, from 0: the first five are the draw of K = 5"]
    question_id: Annotated[str, "question"]
    nll: Annotated[float, "negative log-likelihood of explanation and answer, summed over their tokens, in nats"]
    tokens: Annotated[int, "tokens of explanation and answer"]
    explained: Annotated[bool, "whether the source has an explanation; without one the answer alone is read"]
    output: Annotated[str, "chosen option or generated text"]
    correct: Annotated[bool, "right or wrong under the task's own regime"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter's place in a selection of experts for a task."""

    run_id: Annotated[str, "selection run"]
    task: Annotated[str, "task of interest"]
    base: Annotated[str, "base model of the candidates"]
    adapter: Annotated[str, "candidate"]
    adapter_hash: Annotated[str, "of its weights"]
    shots: Annotated[int, "K, shots per draw"]
    draws: Annotated[int, "draws of K shots"]
    perplexity: Annotated[float, "reasoning perplexity summed over the K shots, mean over the draws"]
    accuracy: Annotated[float, "share of the shots answered rightly, mean over the draws"]
    perplexity_rank: Annotated[float, "rank by perplexity, 1 the lowest; equal ones share their mean rank"]
    accuracy_rank: Annotated[float, "rank by accuracy, 1 the highest; equal ones share their mean rank"]
    rank_sum: Annotated[float, "sum of both ranks: the M lowest are on the shortlist"]
    shortlisted: Annotated[bool, "among the M best"]
    chosen: Annotated[bool, "in the chosen set"]


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """How alike the weight changes of two candidates of a selection are; each pair once."""

    run_id: Annotated[str, "selection run"]
    adapter: Annotated[str, "candidate"]
    other: Annotated[str, "another candidate"]
    similarity: Annotated[float, "cosine of B A and B A per module, mean over modules and layers"]
    raw_similarity: Annotated[
        float | None, "mean of |cos| over the A and the B matrices by themselves; NULL where the ranks differ"
    ]


@dataclass(frozen=True, slots=True)
class Review:
    """An advisor's comment or verdict."""

    event_id: Annotated[str, "event that made it"]
    target_kind: Annotated[str, "run, expert or chart"]
    target: Annotated[str, "run id, expert name, or chart address"]
    verdict: Annotated[str | None, "approve, question, reject, or NULL for a comment"]
    comment: Annotated[str, "text"]
    author: Annotated[str, "who"]
    made_at: Annotated[datetime, "when (UTC)"]


@dataclass(frozen=True, slots=True)
class Event:
    """What a person did."""

    event_id: Annotated[str, "id, sorts by time"]
    made_at: Annotated[datetime, "when (UTC)"]
    author: Annotated[str, "who"]
    kind: Annotated[str, "label, undo, skill_created, review …"]
    payload: Annotated[str, "JSON"]


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet part of a run, named in its manifest."""

    run_id: Annotated[str, "run"]
    part: Annotated[str, "file name under output/"]
    target: Annotated[str, "table it feeds"]
    rows: Annotated[int, "rows"]
    sha256: Annotated[str, "of the file"]


TABLES: dict[str, type] = {
    "task": Task, "question": Question, "rejected_row": RejectedRow, "meta_question": MetaQuestion,
    "meta_question_edit": MetaQuestionEdit, "embedding": Embedding, "map": Map, "map_point": MapPoint,
    "cluster": Cluster, "cluster_move": ClusterMove, "cluster_edit": ClusterEdit,
    "skill": Skill, "label": Label, "rejection": Rejection,
    "skill_constraint": SkillConstraint, "suggestion": Suggestion, "labelling": Labelling,
    "labelling_item": LabellingItem, "plan": Plan, "plan_entry": PlanEntry, "adapter": Adapter, "system": System,
    "run": Run, "metric": Metric, "prediction": Prediction,
    "activation": Activation, "token_activation": TokenActivation, "route": Route,
    "candidate_shot": CandidateShot, "candidate": Candidate, "candidate_pair": CandidatePair,
    "counterfactual": Counterfactual, "selected_row": SelectedRow,
    "review": Review, "event": Event, "part": Part,
}  # fmt: skip

RUN_TABLES = (
    "task", "question", "rejected_row", "meta_question", "embedding", "map", "map_point", "cluster", "suggestion",
    "labelling", "labelling_item", "adapter", "system", "metric", "prediction", "activation", "token_activation",
    "route", "candidate_shot", "candidate", "candidate_pair", "counterfactual", "selected_row",
)  # fmt: skip
"""Tables that run manifests feed."""

_SQL_TYPES = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN", datetime: "TIMESTAMP"}


@dataclass(frozen=True, slots=True)
class Column:
    """Name, SQL type and meaning of one column."""

    name: str
    sql_type: str
    nullable: bool
    description: str


def columns(table: str) -> list[Column]:
    """Columns of a table, in order, read off its dataclass."""
    hints = get_type_hints(TABLES[table], include_extras=True)
    found = []
    for field in fields(TABLES[table]):
        kind, description = get_args(hints[field.name])[:2]
        options = [a for a in get_args(kind) if a is not type(None)]
        nullable = type(None) in get_args(kind) and get_origin(kind) is not list
        inner = options[0] if nullable else kind
        if get_origin(inner) is list:
            item = get_args(inner)[0]
            sql_type = "FLOAT[]" if item is float else _SQL_TYPES[item] + "[]"
        else:
            sql_type = _SQL_TYPES[inner]
        found.append(Column(field.name, sql_type, nullable, description))
    return found
