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


RELATIONS = [
    "husband", "wife", "father", "mother", "son", "daughter", "brother", "sister", "grandfather", "grandmother",
    "grandson", "granddaughter", "father-in-law", "mother-in-law", "son-in-law", "daughter-in-law",
]  # fmt: skip

TASKS = [
    TaskRecipe("kinship_small", "family_relationships", 220, {"min_family_size": 3, "max_family_size": 5}, RELATIONS),
    TaskRecipe("kinship_large", "family_relationships", 220, {"min_family_size": 6, "max_family_size": 7}, RELATIONS),
    TaskRecipe("who_of_four", "needle_haystack", 200, {"min_num_statements": 3, "max_num_statements": 4}),
    TaskRecipe("who_of_seven", "needle_haystack", 200, {"min_num_statements": 6, "max_num_statements": 7}),
    TaskRecipe("sums", "chain_sum", 450, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    TaskRecipe(
        "plus_minus",
        "basic_arithmetic",
        450,
        {
            "min_terms": 2,
            "max_terms": 2,
            "min_digits": 1,
            "max_digits": 2,
            "allow_parentheses": False,
            "operators": ["+", "-"],
        },
    ),
    TaskRecipe("reverse_short", "word_sequence_reversal", 220, {"min_words": 3, "max_words": 4}),
    TaskRecipe("reverse_long", "word_sequence_reversal", 220, {"min_words": 5, "max_words": 6}),
]

SKILLS = {
    "kinship": ["kinship_small", "kinship_large"],
    "lookup": ["who_of_four", "who_of_seven"],
    "arithmetic": ["sums", "plus_minus"],
    "word order": ["reverse_short", "reverse_long"],
    "general knowledge": [PROBE],
}
LABELS_PER_SKILL = 6
THRESHOLD = 0.3
ASSIGNMENTS = [
    ("kinship", "kinship"),
    ("lookup", "lookup"),
    ("arithmetic", "arithmetic"),
    ("word order", "word-order"),
    ("general knowledge", "base"),
]
EXPERTS = ["word-order", "kinship", "lookup", "arithmetic"]
PLAN = "one-expert-per-skill"
ALONE = "word-order-alone"
PLANS = {ALONE: [("word order", ALONE)], PLAN: ASSIGNMENTS}
SHARED = "shared"

CLUSTER = {"of": "question", "seed": SEED, "min_cluster_size": 20}
SUGGEST = {"of": "question", "seed": SEED}
LORA = {"rank": 4, "alpha": 8.0, "save_dtype": "bfloat16"}
OPTIM = {"epochs": 1.0, "batch_size": 8, "learning_rate": 4e-3, "warmup_share": 0.1, "weight_decay": 0.0, "seed": SEED}
FURTHER = {**OPTIM, "batch_size": 4, "learning_rate": 1.5e-3}
_TRAIN = {"lora": LORA, "optim": OPTIM, "device": "cpu"}


def trainings() -> dict[str, dict[str, Any]]:
    """Settings of every adapter, by name, in the order of training.

    One adapter learns from half of all skills' questions and ends at half its learning rate; each expert starts from it
    and learns from the other half of its own. So the experts together read as many tokens as the baseline, which reads
    every question once. One expert more starts from nothing and reads all of its own, to show what is forgotten then.
    """
    mixed = {"kind": "mixed", "plan": PLAN, **_TRAIN}
    begun = {"name": SHARED, "part_to": 0.5, "optim": {**OPTIM, "final_share": 0.5}}
    further = {"kind": "expert", "plan": PLAN, **_TRAIN, "start_from": SHARED, "part_from": 0.5, "optim": FURTHER}
    return {
        SHARED: {**mixed, **begun},
        **{expert: {**further, "name": expert} for expert in EXPERTS},
        ALONE: {"kind": "expert", "name": ALONE, "plan": ALONE, **_TRAIN},
        "mixed": {**mixed, "name": "mixed"},
    }


# Experts that start from one adapter all know what it knows: no question needs the bare base model.
_MOE = {"experts": EXPERTS, "plan": PLAN, "device": "cpu", "train": "router", "of": "question", "no_expert": False}
_ROUTER_OPTIM = {**OPTIM, "steps": 30, "learning_rate": 5e-3}
MIXTURES: dict[str, dict[str, Any]] = {
    "two-level": {"name": "two-level", "mode": "two-level", "top_k": 2, "optim": _ROUTER_OPTIM, **_MOE},
    "token-only": {"name": "token-only", "mode": "token", "top_k": 2, "optim": _ROUTER_OPTIM, **_MOE},
}


SYSTEMS = ["base", *trainings(), *MIXTURES]


def evaluate() -> dict[str, Any]:
    """Every system on every task's held-out questions."""
    return {
        "systems": SYSTEMS,
        "tasks": [*(task.name for task in TASKS), PROBE],
        "device": "cpu",
        "token_sample": 4,
        "max_new_tokens": 28,
    }
