"""Settings of every stage: one pydantic class a stage, one sentence of help a field.

The form on the page, the command line, the run folder's spec.json and the check all come from these classes.
A value outside its bounds raises `ConfigError` with one sentence (see `parse_config`).
"""

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from metamoe_backend.errors import ConfigError
from metamoe_backend.rows import MetaQuestionMethod, Of, Reading

DEFAULT_BASE = "smollm2-135m"
DEFAULT_ENCODER = "minilm"
BASE_EXPERT = "base"
"""The expert name that means: no adapter, the bare base model answers."""
MOST_SUBSETS = 200_000
"""Sets of experts that are compared one by one."""

NAME_PATTERN = r"^[\w][\w.\-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, strip_whitespace=True)]
"""Letters (of any script), digits, '.', '_' and '-': safe as a folder name."""
TaskName = Annotated[str, StringConstraints(pattern=r"^[\w][\w.\-]{0,63}(/[\w][\w.\-]{0,63})?$", strip_whitespace=True)]
Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


RoutingMode = Literal["token", "task", "two-level", "uniform", "loramoe", "arrow", "xlora", "phatgoose"]
"""How a mixture weighs its experts (docs of each: `models.gates`)."""
TASK_LEVEL_MODES = ("task", "two-level")
"""Modes with a task-level router."""
LEARNT_GATE_MODES = ("token", "two-level", "loramoe", "xlora", "phatgoose")
"""Modes whose token gates learn by gradients."""
TOKEN_LEVEL_MODES = (*LEARNT_GATE_MODES, "arrow")
OWNER_MODES = ("loramoe", "phatgoose")
"""Modes that learn from which expert each question belongs to."""
UNTAUGHT_MODES = ("uniform", "arrow")
"""Modes in which no router learns: without training the experts, no question is needed."""
PER_MODULE_MODES = ("arrow", "phatgoose")
"""Modes that compare a token with each module's own directions: gates sit at every adapted module."""
Granularity = Literal["layer", "block", "module"]


class StageConfig(BaseModel):
    """Common to all stages: unknown settings are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SHARDS: Any = Field(1, ge=1, le=256, description="Cut into so many runs, a device each, which give the rows of one")


class IngestConfig(StageConfig):
    """Read questions from a file, a hub data set or a reasoning-gym generator."""

    source: str = Field(description="A file, hub:REPO[:CONFIG], humaneval: or reasoning_gym:NAME")
    task: TaskName | None = Field(None, description="Name of the task; by default taken from the source")
    split: Literal["train", "validation", "test"] = Field("test", description="Which split the questions belong to")
    limit: int | None = Field(None, ge=1, le=10_000_000, description="At most so many questions")
    seed: int = Field(0, ge=0, description="Seed of a generator")
    mapping: dict[str, str] = Field(
        default_factory=dict,
        description="Column of the source for each field: prompt, choices, answer, explanation, split",
    )
    keep_good: bool = Field(False, description="Keep the good rows even if some are rejected")
    options: dict[str, Any] = Field(default_factory=dict, description="Settings of the reasoning-gym generator")
    choices: list[str] | None = Field(
        None, description="Fixed answer options: score by log-likelihood instead of generation"
    )
    template: str | None = Field(
        None, description="What the model is shown, with {prompt} where the question goes; by default the format's own"
    )

    @model_validator(mode="after")
    def _template_has_a_place(self) -> Self:
        if self.template is not None and "{prompt}" not in self.template:
            raise ValueError("template: write {prompt} where the question goes")
        return self


class MetaQuestionConfig(StageConfig):
    """Build meta-questions."""

    method: MetaQuestionMethod = Field("template", description="template masks particulars; llm asks a model")
    tasks: list[str] = Field(default_factory=list, description="Only these tasks; empty means all")
    model: str = Field(DEFAULT_BASE, description="Model of the llm method: a local base model, or the server's name")
    base_url: str | None = Field(None, description="OpenAI-compatible server, e.g. http://127.0.0.1:11434/v1")
    prompt: str | None = Field(None, description="Own instruction for the llm method; {question} stands for it")
    max_tokens: int = Field(60, ge=8, le=400, description="Longest meta-question, in tokens")
    device: Device = Field("cpu", description="Of a local model, as a job of its own: auto, cpu or cuda:N")
    shards: int = SHARDS


class EmbedConfig(StageConfig):
    """Embed questions or meta-questions."""

    encoder: str = Field(DEFAULT_ENCODER, description="minilm (English), e5 (Chinese and English) or a hub id")
    of: Of = Field("question", description="What is embedded")
    method: MetaQuestionMethod = Field("template", description="Which meta-questions, where these are embedded")
    tasks: list[str] = Field(default_factory=list, description="Only these tasks; empty means all")
    device: Device = Field("auto", description="As a job of its own: auto, cpu or cuda:N")
    shards: int = SHARDS


class ClusterConfig(StageConfig):
    """Draw the map and find clusters."""

    encoder: str = Field(DEFAULT_ENCODER, description="Whose vectors: minilm, e5 or a hub id")
    of: Reading = Field("question", description="Questions, meta-questions, or both joined")
    method: MetaQuestionMethod = Field("template", description="Which meta-questions, where these are mapped")
    neighbours: int = Field(15, ge=2, le=200, description="UMAP neighbours: small shows detail, large the whole")
    min_dist: float = Field(0.1, ge=0.0, le=0.99, description="UMAP minimal distance: small packs groups tightly")
    min_cluster_size: int = Field(15, ge=2, le=10_000, description="HDBSCAN: least questions in a cluster")
    seed: int = Field(0, ge=0, description="Seed: the same seed draws the same map")
    tasks: list[str] = Field(default_factory=list, description="Only these tasks; empty means all")


class SuggestConfig(StageConfig):
    """Suggest skills for unlabelled questions."""

    encoder: str = Field(DEFAULT_ENCODER, description="Whose vectors: minilm, e5 or a hub id")
    of: Reading = Field("question", description="Questions, meta-questions, or both joined")
    method: MetaQuestionMethod = Field("template", description="Which meta-questions, where these are read")
    seed: int = Field(0, ge=0, description="Random seed")


class NextConfig(SuggestConfig):
    """Choose the questions to label next."""

    count: int = Field(10, ge=1, le=1000, description="How many questions")


class FreezeConfig(StageConfig):
    """Freeze labels and accepted suggestions as a labelling."""

    labelling: Name = Field(description="Name of the labelling")
    threshold: float = Field(
        1.01, ge=0.0, le=1.01, description="Take in suggestions at least this probable; 1.01: none"
    )


class LoraSettings(StageConfig):
    """Shape of a LoRA adapter."""

    rank: int = Field(8, ge=1, le=256, description="LoRA rank r: trained channels per module")
    alpha: float = Field(16.0, gt=0, le=1024, description="The delta is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0.0, le=0.9, description="Dropout before the adapter")
    targets: list[str] = Field(
        default_factory=lambda: ["gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Linear modules to adapt, by the last part of their name",
    )
    save_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the saved adapter; bfloat16 halves its size"
    )
    four_bit: bool = Field(
        False, description="QLoRA: hold the frozen base model in 4 bits while training (needs bitsandbytes)"
    )


class OptimSettings(StageConfig):
    """How long and how fast to train."""

    steps: int | None = Field(None, ge=1, le=1_000_000, description="Optimizer steps; empty: epochs decide")
    epochs: float = Field(2.0, gt=0, le=1000, description="Passes over the data, when steps is empty")
    batch_size: int = Field(16, ge=1, le=4096, description="Questions per optimizer step")
    learning_rate: float = Field(1e-3, gt=0, le=1.0, description="Peak learning rate of AdamW")
    warmup_share: float = Field(0.06, ge=0, lt=1, description="Share of the steps spent warming up")
    final_share: float = Field(
        0.0, ge=0, le=1, description="Learning rate at the end, as a share of the peak: above 0 if others start from it"
    )
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW weight decay")
    max_tokens: int = Field(384, ge=16, le=131_072, description="Longer questions are cut on the left, in tokens")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the frozen base model")
    seed: int = Field(0, ge=0, description="Seed of data order and initial weights")
    save_every: int = Field(50, ge=1, description="Checkpoint every so many steps")
    eval_share: float = Field(0.05, ge=0, le=0.5, description="Share of the training questions held back for eval loss")
    gradient_checkpointing: bool = Field(
        False, description="Keep no activations of the blocks but compute them again: less memory, about a third slower"
    )
    report_to: list[Literal["tensorboard", "mlflow", "trackio", "wandb"]] = Field(
        default_factory=list, description="Report to these as well, where they are installed"
    )


class SourceSettings(StageConfig):
    """Where the questions of a training come from: exactly one of a plan, whole tasks and a data selection.

    None of them is fine where nothing learns (`needs_questions`).
    """

    plan: str | None = Field(None, description="Plan that says which skills go to which expert")
    tasks: list[str] = Field(default_factory=list, description="Without a plan: all questions of these tasks")
    data: str | None = Field(None, description="Without a plan: the rows of a data selection, by its run id")
    split: Literal["train", "validation", "test"] = Field("train", description="Split the questions come from")

    @property
    def needs_questions(self) -> bool:
        """Whether anything learns from questions."""
        return True

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("plan", "tasks", "data") if getattr(self, name)]
        if len(given) > 1 or (self.needs_questions and not given):
            said = f"found {' and '.join(given)}" if given else "found none of them"
            raise ValueError(f"say where the questions come from: one of plan, tasks and data ({said})")
        return self


class TrainConfig(SourceSettings):
    """Train one LoRA adapter: an expert, or the mixed-data baseline over all of a plan's skills or some tasks."""

    kind: Literal["expert", "mixed"] = Field("expert", description="One expert's skills, or all skills together")
    name: Name = Field(description="Expert of the plan; for mixed or without a plan, the name of the new system")
    base: str = Field(DEFAULT_BASE, description="Base model: smollm2-135m, a local folder or a hub id")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    processes: int = Field(
        1, ge=1, le=64, description="So many GPUs train together, each on a share of every batch (a CPU: processes)"
    )
    limit: int | None = Field(None, ge=1, description="At most so many questions (per expert; for mixed: in all)")
    part_from: float = Field(0.0, ge=0, lt=1, description="Beginning of the part of each task's questions to train on")
    part_to: float = Field(
        1.0, gt=0, le=1, description="End of that part: 0 to 0.5 and 0.5 to 1 are two halves, drawn by the seed"
    )
    start_from: Name | None = Field(
        None, description="Adapter of the bank to train further, such as one trained on all skills; empty: a fresh one"
    )
    method: Literal["lora", "osf", "expansion"] = Field(
        "lora",
        description="lora: an adapter; against forgetting, osf: the weakest lora.rank singular directions of each "
        "weight; expansion: new blocks that begin as the identity",
    )
    blocks: int = Field(4, ge=1, le=256, description="expansion: how many new blocks")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)

    @model_validator(mode="after")
    def _method_stands_alone(self) -> Self:
        if self.method != "lora" and self.start_from is not None:
            raise ValueError(f"start_from needs an adapter to train further, method {self.method} has none; use lora")
        if self.method != "lora" and (self.optim.dtype != "float32" or self.lora.four_bit):
            raise ValueError(
                f"method {self.method} trains the model's own weights: set optim.dtype to float32, four_bit to false"
            )
        return self

    @model_validator(mode="after")
    def _part_holds_something(self) -> Self:
        if self.part_from >= self.part_to:
            raise ValueError(f"part_to is {self.part_to}, part_from {self.part_from}; let part_to be the larger one")
        return self


class SequenceConfig(StageConfig):
    """Train one LoRA adapter task after task, and keep it after each: forgetting in its classical sense."""

    name: Name = Field(description="Name of the sequence; its steps are called NAME-1, NAME-2 and so on")
    plan: str | None = Field(None, description="Plan whose experts are learnt one after the other; empty: whole tasks")
    order: list[str] = Field(
        min_length=2, max_length=64, description="What is learnt, in order: experts of the plan, or tasks without one"
    )
    replay: float = Field(
        0.0, ge=0, le=1, description="Share of each earlier step's questions that every later step reads again"
    )
    base: str = Field(DEFAULT_BASE, description="Base model: smollm2-135m, a local folder or a hub id")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    split: Literal["train", "validation", "test"] = Field("train", description="Split the questions come from")
    limit: int | None = Field(None, ge=1, description="At most so many questions per step, replay not counted")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.order)) != len(self.order):
            raise ValueError("order: a name stands twice; name each expert or task once")
        return self


class MoeConfig(SourceSettings):
    """Join experts in a mixture with a task-level and a token-level router."""

    name: Name = Field(description="Name of the mixture")
    experts: list[Name] = Field(min_length=1, max_length=512, description="Experts, in gate order")
    base: str = Field(DEFAULT_BASE, description="Base model: smollm2-135m, a local folder or a hub id")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    processes: int = Field(
        1, ge=1, le=64, description="So many GPUs train together, each on a share of every batch (a CPU: processes)"
    )
    mode: RoutingMode = Field(
        "two-level",
        description="token: per token; task: per question; two-level: both; uniform: equal weights; loramoe: per "
        "token, all experts; arrow: per token, nothing to train; xlora: per token, by a first pass without experts; "
        "phatgoose: per token, by gates that each expert learns alone",
    )
    top_k: int = Field(2, ge=1, le=512, description="Experts chosen per token (uniform and loramoe use all)")
    temperature: float = Field(
        1.0, gt=0, le=100, description="Token scores are divided by this (token, arrow, xlora, phatgoose)"
    )
    prior_strength: float = Field(
        1.0, ge=0, le=100, description="Two-level: weight lambda of log p(expert | question) in the token gate"
    )
    task_top_m: int | None = Field(None, ge=1, description="Two-level: mask experts below the m most probable ones")
    granularity: Granularity = Field(
        "block",
        description="A token gate per layer, per block (self_attn, mlp) or per adapted module (slower, finer; arrow "
        "and phatgoose always)",
    )
    no_expert: bool = Field(
        True, description="Let the task-level router send a question to the bare base model (skills planned to 'base')"
    )
    encoder: str = Field(DEFAULT_ENCODER, description="Encoder that the task-level router reads")
    of: Of = Field("question", description="What the task-level router reads")
    train: Literal["none", "router", "router+experts"] = Field("router", description="What learns")
    from_scratch: bool = Field(
        False, description="Fresh experts of these names instead of the bank's; needs train router+experts"
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
    balance: float = Field(
        0.0, ge=0, le=1, description="Weight of the balance loss (Mixtral: 0.01; loramoe: the localised one)"
    )
    limit: int | None = Field(
        None, ge=1, description="Train on at most so many questions; the task-level router always reads all"
    )
    optim: OptimSettings = Field(default_factory=lambda: OptimSettings(steps=60))

    @property
    def learns_by_gradients(self) -> bool:
        """Whether token gates or experts are trained."""
        return self.train == "router+experts" or (self.train == "router" and self.mode in LEARNT_GATE_MODES)

    @property
    def needs_questions(self) -> bool:
        return self.learns_by_gradients or self.mode in TASK_LEVEL_MODES

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> Self:
        if len(set(self.experts)) != len(self.experts):
            raise ValueError("experts: a name stands twice; name each expert once")
        if self.top_k > len(self.experts):
            raise ValueError(f"top_k is {self.top_k} but there are {len(self.experts)} experts; lower top_k")
        return self

    @model_validator(mode="after")
    def _what_learns_fits_the_mode(self) -> Self:
        if self.from_scratch and self.train != "router+experts":
            raise ValueError("from_scratch: fresh experts know nothing yet; let train be router+experts")
        if self.mode == "arrow" and self.train == "router+experts":
            raise ValueError("mode arrow routes by what the experts are, so they cannot change; let train be none")
        if self.processes > 1 and not self.learns_by_gradients:
            raise ValueError("processes: no gates or experts are trained here; let processes be 1")
        if self.balance > 0 and self.processes > 1:
            raise ValueError("balance is of whole batches, but each process sees a share of one; let processes be 1")
        if self.mode == "phatgoose" and self.train != "router":
            raise ValueError("mode phatgoose teaches each finished expert a gate; let train be router")
        return self

    @model_validator(mode="after")
    def _task_level_needs_a_plan(self) -> Self:
        if self.mode in TASK_LEVEL_MODES and self.plan is None:
            raise ValueError(
                f"mode {self.mode} needs a plan, from which the task-level router learns the expert of each question; "
                "name a plan or choose another mode"
            )
        return self


class EvaluateConfig(StageConfig):
    """Let systems answer questions, and score them."""

    systems: list[str] = Field(min_length=1, description="Systems to evaluate")
    tasks: list[str] = Field(min_length=1, description="Tasks to evaluate on")
    split: Literal["train", "validation", "test"] = Field("test", description="Split the questions come from")
    limit: int | None = Field(None, ge=1, description="At most so many questions per task")
    n_shot: int = Field(0, ge=0, le=20, description="Examples from the train split shown before each question")
    scoring: Literal["task", "letters"] = Field(
        "task",
        description="task: as each task is scored; letters: options are shown as A, B, C … and the first letter of the "
        "generated answer counts (OpenCompass), another regime with other numbers",
    )
    explained: bool = Field(
        False,
        description="Tasks answered by a number: examples show their explanation, then #### and the number, and the "
        "model may write several lines (GSM8K of lm-evaluation-harness)",
    )
    chat: bool = Field(False, description="Put the prompt into the base model's chat template")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the base model")
    batch_tokens: int | None = Field(
        None, ge=64, description="Padded tokens per forward pass; empty: found by itself. What does not fit is halved"
    )
    max_new_tokens: int = Field(24, ge=1, le=4096, description="Longest generated answer, in tokens")
    max_program_tokens: int = Field(
        512, ge=16, le=4096, description="Longest generated program, in tokens, where a task is scored by running code"
    )
    activations: bool = Field(True, description="Record what the routers of mixtures did")
    token_sample: int = Field(8, ge=0, le=10_000, description="Questions per task whose gates are kept token by token")
    seed: int = Field(0, ge=0, description="Seed of the few-shot examples and of the token sample")
    shards: int = SHARDS


class ForceConfig(StageConfig):
    """Let a mixture answer questions as routed, with every token sent to each expert in turn, and without any."""

    system: str = Field(description="Mixture")
    questions: list[str] = Field(min_length=1, max_length=1000, description="Questions, by id")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the base model")
    batch_tokens: int = Field(4096, ge=64, description="Padded tokens per forward pass")
    max_new_tokens: int = Field(24, ge=1, le=4096, description="Longest generated answer, in tokens")
    max_program_tokens: int = Field(
        512, ge=16, le=4096, description="Longest generated program, in tokens, where a task is scored by running code"
    )


class ImportAdapterConfig(StageConfig):
    """Bring a LoRA adapter trained elsewhere into the bank."""

    source: str = Field(description="A PEFT folder or a hub id")
    name: Name = Field(description="Name in the bank")
    base: str = Field(DEFAULT_BASE, description="Base model it belongs to")
    trained_on: list[str] = Field(default_factory=list, description="Tasks it was trained on, where known")


class SelectConfig(StageConfig):
    """Choose experts of the bank for a task by how they do on a few of its questions (the K shots)."""

    task: str = Field(description="Task the experts are wanted for")
    k: int = Field(50, ge=1, le=1000, description="K: shots, questions of the task whose answers are known")
    draws: int = Field(3, ge=1, le=20, description="Draws of K shots, averaged; each also shows how the choice moves")
    shortlist: int = Field(8, ge=1, le=32, description="M: the best by accuracy and perplexity go on the shortlist")
    experts: int = Field(4, ge=1, le=16, description="N: experts to choose from the shortlist")
    candidates: list[str] = Field(
        default_factory=list, description="Only these adapters; empty means all experts of the bank on this base model"
    )
    base: str = Field(DEFAULT_BASE, description="Base model: smollm2-135m, a local folder or a hub id")
    split: Literal["train", "validation", "test"] = Field("train", description="Split the shots come from")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the base model")
    batch_tokens: int = Field(4096, ge=64, description="Padded tokens per forward pass")
    max_new_tokens: int = Field(24, ge=1, le=4096, description="Longest generated answer, in tokens")
    max_program_tokens: int = Field(
        512, ge=16, le=4096, description="Longest generated program, in tokens, where a task is scored by running code"
    )
    seed: int = Field(0, ge=0, description="Seed of the first draw; draw number d uses seed + d")

    @model_validator(mode="after")
    def _experts_within_shortlist(self) -> Self:
        if self.experts > self.shortlist:
            raise ValueError(
                f"experts is {self.experts} but shortlist is {self.shortlist}; choose at most as many as are on it"
            )
        if len(set(self.candidates)) != len(self.candidates):
            raise ValueError("candidates: a name stands twice; name each adapter once")
        if math.comb(self.shortlist, self.experts) > MOST_SUBSETS:
            raise ValueError(
                f"shortlist is {self.shortlist} and experts {self.experts}: that makes more than {MOST_SUBSETS:,} sets "
                "to compare; lower one of them"
            )
        return self


class SelectDataConfig(StageConfig):
    """Choose rows of a pool that are like the K shots of a task and unlike each other (Sim-Div)."""

    task: str = Field(description="Target task: what the chosen rows are to teach")
    pool: str | None = Field(
        None, min_length=1, description="A file to choose from, or hub:REPO[:CONFIG], or reasoning_gym:NAME"
    )
    tasks: list[str] = Field(
        default_factory=list, description="Tasks whose train questions form the pool, instead of a file"
    )
    budget: int = Field(1000, ge=0, le=1_000_000, description="Rows to choose, beside the K shots")
    k: int = Field(50, ge=1, le=10_000, description="Train questions of the target task that guide the choice")
    tau: float = Field(
        0.9, ge=0.0, le=1.0, description="Of two rows more similar than this, one is dropped; 1: none is"
    )
    pick: Literal["similar", "random"] = Field(
        "similar", description="similar: the rows nearest to the K shots; random: any, to compare with"
    )
    consider: int = Field(
        1000, ge=1, le=1_000_000, description="Best rows compared with each other; more where the budget needs them"
    )
    guard: Literal["all", "task"] = Field(
        "all", description="Refuse held-out questions of all tasks, or of the target task only"
    )
    leak_ngrams: float = Field(
        0.7,
        gt=0.0,
        le=1.01,
        description="Refuse rows with this share of a held-out question's 8-word sequences; 1.01: off",
    )
    leak_similarity: float = Field(
        0.95, gt=0.0, le=1.01, description="Refuse rows with at least this cosine to a held-out question; 1.01: off"
    )
    encoder: str = Field(DEFAULT_ENCODER, description="minilm (English), e5 (Chinese and English) or a hub id")
    limit: int | None = Field(None, ge=1, le=10_000_000, description="At most so many rows of the pool")
    seed: int = Field(0, ge=0, description="Seed of the K shots, and of a generator")
    mapping: dict[str, str] = Field(
        default_factory=dict,
        description="Column of the pool for each field: prompt, choices, answer, explanation, split",
    )
    keep_good: bool = Field(False, description="Keep the good rows even if some cannot be read")

    @model_validator(mode="after")
    def _one_pool(self) -> Self:
        if bool(self.pool) == bool(self.tasks):
            raise ValueError("pool: name either a file (pool) or tasks of the workspace (tasks) to choose from")
        return self


class StudyConfig(StageConfig):
    """Compare a mixture of chosen experts with everything simpler, target by target (arXiv 2408.15915)."""

    name: Name = Field(description="Name of the study; the adapters and mixtures it makes begin with it")
    targets: list[TaskName] = Field(
        min_length=1, max_length=32, description="Tasks with train and test questions: what the mixtures are for"
    )
    bank: list[Name] = Field(
        default_factory=list, description="Adapters to choose from; empty: all experts there are on the base model"
    )
    base: str = Field(DEFAULT_BASE, description="Base model: smollm2-135m, a local folder or a hub id")
    device: Device = Field("auto", description="auto, cpu or cuda:N")
    k: int = Field(50, ge=1, le=1000, description="K: shots, questions of the task whose answers are known")
    draws: int = Field(3, ge=1, le=20, description="Draws of K shots, averaged; each also shows how the choice moves")
    shortlist: int = Field(8, ge=1, le=32, description="M: the best by accuracy and perplexity go on the shortlist")
    experts: int = Field(4, ge=1, le=16, description="N: experts to choose from the shortlist")
    top_k: int = Field(2, ge=1, le=16, description="Experts chosen per token")
    own_experts: bool = Field(
        True,
        description="Experts trained on a target's own train questions may be chosen for it, and its train questions "
        "may be selected as data, as in the paper; the table marks them",
    )
    pool_tasks: list[TaskName] = Field(
        default_factory=list,
        description="Tasks whose train questions data is selected from; empty: those the bank was trained on",
    )
    budget: int = Field(200, ge=1, le=1_000_000, description="Rows to choose, beside the K shots")
    tau: float = Field(
        0.9, ge=0.0, le=1.0, description="Of two rows more similar than this, one is dropped; 1: none is"
    )
    encoder: str = Field(DEFAULT_ENCODER, description="minilm (English), e5 (Chinese and English) or a hub id")
    plan: str | None = Field(
        None, description="Plan over the bank, for the two-level router; empty: the newest one that covers the bank"
    )
    full_limit: int | None = Field(
        None, ge=1, description="The expert on a target's full train questions reads at most so many"
    )
    mixed_limit: int | None = Field(
        None,
        ge=1,
        description="The mixed adapter reads so many questions of the pool; empty: as many as N experts of the bank "
        "did",
    )
    eval_limit: int | None = Field(300, ge=1, description="Test questions per target, at most")
    ablations: list[TaskName] = Field(default_factory=list, description="Targets on which each choice is varied alone")
    max_new_tokens: int = Field(24, ge=1, le=4096, description="Longest generated answer, in tokens")
    activations: bool = Field(True, description="Record what the routers of mixtures did")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)
    seed: int = Field(0, ge=0, description="Seed of the shots, of the random rows and of the test questions")

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        for name in ("targets", "bank", "pool_tasks", "ablations"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: a name stands twice; name each once")
        if unknown := [task for task in self.ablations if task not in self.targets]:
            raise ValueError(f"ablations: {unknown[0]} is no target of the study; name targets only")
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k} but {self.experts} experts are chosen; lower top_k")
        if self.experts > self.shortlist or math.comb(self.shortlist, self.experts) > MOST_SUBSETS:
            raise ValueError(
                f"experts is {self.experts} and shortlist {self.shortlist}; choose fewer experts than are on the "
                f"shortlist, and make at most {MOST_SUBSETS:,} sets of them"
            )
        return self


C = TypeVar("C", bound=StageConfig)


def parse_config(cls: type[C], values: dict[str, Any]) -> C:
    """Check `values` against `cls`; raises `ConfigError` naming the first bad setting and its remedy."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or cls.__name__
        found = "" if first["type"] in ("missing", "value_error") else f" (found {str(first['input'])[:80]!r})"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch":
            message = "use letters, digits, '.', '_' and '-' (at most 64, beginning with a letter or digit)"
            if "auto|cpu" in str(first.get("ctx")):
                message = "say auto, cpu, cuda or cuda:N"
        raise ConfigError(f"{where}: {message}{found}.") from None


def read_config_file(cls: type[C], path: Path) -> C:
    """Settings kept as TOML; raises `ConfigError` naming the file and what is wrong in it."""
    try:
        return parse_config(cls, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML ({error}); mend it, or write it anew.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); mend that, or write it anew.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}".replace(f": {cls.__name__}: ", ": ")) from None
