"""What the recorded demo is made of: tasks, sizes and settings. How they were chosen stands in docs/LOG.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
TEST_QUESTIONS = 50
PROBE = "general_knowledge"
PROBE_FOLDER = Path(__file__).resolve().parent.parent / "data" / "probe"


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """One reasoning-gym task; `choices` where the answers are few: then it is scored by log-likelihood."""

    name: str
    generator: str
    train: int
    options: dict[str, Any]
    choices: list[str] | None = None


TASKS = [
    TaskRecipe("family", "family_relationships", 360, {"min_family_size": 3, "max_family_size": 5}),
    TaskRecipe("who_likes_what", "needle_haystack", 240, {"min_num_statements": 3, "max_num_statements": 4}),
    TaskRecipe("sums", "chain_sum", 500, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    TaskRecipe("equations", "simple_equations", 300, {"max_terms": 2, "max_value": 10}),
    TaskRecipe(
        "letter_counting", "letter_counting", 360, {"min_words": 3, "max_words": 5}, [str(n) for n in range(10)]
    ),
    TaskRecipe("bit_counting", "count_bits", 300, {"max_n": 1000}, [str(n) for n in range(1, 11)]),
    TaskRecipe("word_reversal", "word_sequence_reversal", 300, {"min_words": 3, "max_words": 4}),
    TaskRecipe(
        "sentence_reordering",
        "sentence_reordering",
        300,
        {"min_words_in_sentence": 3, "max_words_in_sentence": 5},
    ),
]

SKILLS = {
    "relations": ["family", "who_likes_what"],
    "arithmetic": ["sums", "equations"],
    "counting": ["letter_counting", "bit_counting"],
    "word order": ["word_reversal", "sentence_reordering"],
    "general knowledge": [PROBE],
}
LABELS_PER_SKILL = 6
THRESHOLD = 0.3
PLAN = "one-expert-per-skill"
ASSIGNMENTS = [
    ("relations", "relations"),
    ("arithmetic", "arithmetic"),
    ("counting", "counting"),
    ("word order", "word-order"),
    ("general knowledge", "base"),
]
EXPERTS = ["relations", "arithmetic", "counting", "word-order"]

CLUSTER = {"of": "question", "seed": SEED, "min_cluster_size": 20}
SUGGEST = {"of": "question", "seed": SEED}
OPTIM = {"epochs": 1.0, "batch_size": 8, "learning_rate": 2e-3, "warmup_share": 0.1, "weight_decay": 0.0, "seed": SEED}
LORA = {"rank": 8, "alpha": 16.0}
SAVE_AS = "bfloat16"


def train(expert: str) -> dict[str, Any]:
    """Settings of one expert: one pass over all train questions of its skill."""
    return {"kind": "expert", "name": expert, "plan": PLAN, "lora": LORA, "optim": OPTIM, "device": "cpu"}


def train_mixed() -> dict[str, Any]:
    """The baseline: the same questions once, so as many tokens as all experts together, in one adapter."""
    return {**train("mixed"), "kind": "mixed"}


_MOE = {"experts": EXPERTS, "plan": PLAN, "device": "cpu", "train": "router", "of": "question"}
_ROUTER_OPTIM = {**OPTIM, "steps": 30, "learning_rate": 5e-3}
MIXTURES: dict[str, dict[str, Any]] = {
    "two-level": {"name": "two-level", "mode": "two-level", "top_k": 2, "optim": _ROUTER_OPTIM, **_MOE},
    "token-only": {"name": "token-only", "mode": "token", "top_k": 2, "optim": _ROUTER_OPTIM, **_MOE},
}


def evaluate() -> dict[str, Any]:
    """Every system on every task's held-out questions."""
    return {
        "systems": ["base", *EXPERTS, "mixed", *MIXTURES],
        "tasks": [*(task.name for task in TASKS), PROBE],
        "device": "cpu",
        "token_sample": 4,
        "max_new_tokens": 24,
    }
