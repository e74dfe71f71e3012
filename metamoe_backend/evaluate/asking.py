"""How an evaluation asks: the regime of each question, its examples, and the text that the model is shown.

A way is a regime with what changes its numbers: "choices", "letters", "number, explained", "letters, chat". Answers of
two ways never meet in one table (`answers.require_one_regime`).
"""

from typing import Any

import pandas as pd

from metamoe_backend.config import EvaluateConfig
from metamoe_backend.errors import ConfigError
from metamoe_backend.evaluate.letters import LETTERS, add_letters, has_letters
from metamoe_backend.evaluate.prompts import has_blank, hash_prompt, make_shots, make_shown_text

EXPLAINED_TOKENS = 256
"""Longest answer that explains itself, at least: lm-evaluation-harness' default."""


def choose_ways(questions: pd.DataFrame, config: EvaluateConfig) -> pd.DataFrame:
    """`questions` with the regime they are asked under, and with the column way."""
    regime = questions["regime"]
    if config.scoring == "letters":
        regime = regime.where(regime != "choices", "letters")
    way = regime.astype(object)
    if config.explained:
        way = way.where(way != "number", "number, explained")
    return questions.assign(regime=regime, way=way + ", chat" if config.chat else way)


def list_left_out(questions: pd.DataFrame, config: EvaluateConfig, shots: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Why tasks cannot be asked like this: a sentence by task. shots: what each task has to show."""
    reasons = {}
    for task in config.tasks:
        asked = questions[questions["task"] == task]
        needed = config.n_shot + (config.split == "train")
        if asked.empty:
            reasons[task] = f"Task {task!r} has no questions of the split {config.split!r}; ingest some with --split."
        elif config.n_shot and len(shots[task]) < needed:
            reasons[task] = (
                f"n_shot is {config.n_shot}, but task {task!r} has only {len(shots[task])} train questions to show; "
                "lower n_shot or ingest more with --split train."
            )
        elif config.chat and (asked["regime"] == "choices").any() and asked["metadata"].map(has_blank).any():
            reasons[task] = (
                f"Task {task!r} scores what follows a blank, for which a chat has no place; evaluate it without chat, "
                "or by letters."
            )
    return reasons


def add_shown_text(questions: pd.DataFrame, shots: dict[str, pd.DataFrame], n_shot: int) -> pd.DataFrame:
    """`questions` (of `choose_ways`) with shown_text and prompt_hash. shots: example questions by task, likewise."""
    examples = {task: _write_out(drawn) for task, drawn in shots.items()}

    def show(row: Any) -> str:
        return make_shown_text(
            row.template,
            row.prompt,
            make_shots(examples[row.task], n_shot, row.question_id) if n_shot else (),
            row.metadata,
        )

    texts = [show(row) for row in _write_out(questions).itertuples()]
    hashes = [hash_prompt(text) for text in texts]
    return questions.drop(columns=["template", "explanation"]).assign(shown_text=texts, prompt_hash=hashes)


def _write_out(questions: pd.DataFrame) -> pd.DataFrame:
    """template, prompt and answer as the regime shows them."""
    rows = [_write_out_one(row) for row in questions.itertuples()]
    shown = pd.DataFrame(rows, columns=["template", "prompt", "answer"], index=questions.index)
    return questions.assign(**{str(name): shown[name] for name in shown})


def _write_out_one(row: Any) -> tuple[str, str, str]:
    if row.regime == "letters":
        choices = list(row.choices) if pd.api.types.is_list_like(row.choices) else []
        prompt = row.prompt if has_letters(choices) else add_letters(row.prompt, choices)
        template = row.template if row.template.partition("{prompt}")[2].strip() else row.template + "\nAnswer:"
        letter = row.answer if pd.isna(row.gold) else LETTERS[int(row.gold)]
        return template, prompt, letter
    if row.way.startswith("number, explained") and isinstance(row.explanation, str):
        return row.template, row.prompt, f"{row.explanation.strip()}\n#### {row.answer}"
    return row.template, row.prompt, row.answer


def apply_chat_template(questions: pd.DataFrame, tokenizer: Any, base: str) -> pd.DataFrame:
    """What is shown as one turn of a person, and the beginning of the model's: lm-evaluation-harness's default.

    Raises `ConfigError` where the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"The tokenizer of {base!r} has no chat template; evaluate without chat.")
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in questions["shown_text"]
    ]
    return questions.assign(shown_text=texts, prompt_hash=[hash_prompt(text) for text in texts])
