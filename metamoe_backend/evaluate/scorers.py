"""Right or wrong: one short pure function a regime. Scores lie between 0 and 1."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metamoe_backend.errors import ConfigError

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
"""The two extractions of lm-evaluation-harness' gsm8k."""


def score_exact(output: str, answer: str) -> float:
    """1 if both texts are equal after `normalise`, else 0."""
    return float(normalise(output) == normalise(answer))


def normalise(text: str) -> str:
    """Unicode NFKC, lower case, single spaces, no quotation marks around and no full stop at the end."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip("\"'` ").removesuffix(".").strip("\"'` ")


def score_number(output: str, answer: str, extraction: Literal["strict", "flexible"] = "flexible") -> float:
    """1 if the number found in the output equals the answer, else 0.

    strict: the number after `#### `; flexible: the last number. `,`, `$` and a final `.` are ignored, as in
    lm-evaluation-harness' gsm8k; numbers are compared by value, so 18.00 equals 18 (there it does not).
    """
    found = extract_number(output, extraction)
    return float(found is not None and _equal_numbers(found, extract_number(answer, "flexible") or answer))


def extract_number(text: str, extraction: Literal["strict", "flexible"] = "flexible") -> str | None:
    """The number that counts as the answer, without `,`, `$` and a final `.`; None where there is none.

    Digits of any script count as 0 to 9.
    """
    text = "".join(str(unicodedata.decimal(letter, letter)) for letter in text)
    found = _STRICT.findall(text)[:1] if extraction == "strict" else _FLEXIBLE.findall(text)
    numbers = [_clean_number(match) for match in found if any(letter.isdigit() for letter in match)]
    return numbers[-1] if numbers else None


def _clean_number(text: str) -> str:
    return text.replace(",", "").replace("$", "").strip().removesuffix(".")


def _equal_numbers(first: str, second: str) -> bool:
    try:
        return Decimal(first) == Decimal(second)
    except InvalidOperation:  # such as 1.2.3: only the same text equals it
        return first == second


def score_choices(logliks: Sequence[float] | NDArray[np.float64], gold: int) -> tuple[int, float]:
    """Chosen option (largest summed log-likelihood, the first of equals) and its score: lm-eval's acc."""
    choice = int(np.argmax(logliks))
    return choice, float(choice == gold)


def score_choices_by_length(logliks: Sequence[float], choices: Sequence[str], gold: int) -> tuple[int, float]:
    """As `score_choices`, each log-likelihood divided by its option's length in characters: lm-eval's acc_norm."""
    return score_choices([value / max(1, len(text)) for value, text in zip(logliks, choices, strict=True)], gold)


def score_output(regime: str, output: str, answer: str, source: str, metadata: str | None) -> float:
    """Score a generated output under a generative regime.

    source and metadata are the question's, for the generator's own scorer or the program's tests. Raises
    `UnavailableError` where code is to be run and there is no sandbox.
    """
    if regime == "exact":
        return score_exact(output, answer)
    if regime == "number":
        return score_number(output, answer)
    if regime == "reasoning_gym":
        from metamoe_backend.ingest.generators import score_answer

        return float(np.clip(score_answer(source.removeprefix("reasoning_gym:"), output, metadata), 0.0, 1.0))
    if regime == "code":
        return score_programs([output], [answer], [metadata])[0]
    raise ConfigError(
        f"Regime {regime!r} is unknown; a task is scored by choices, exact, number, reasoning_gym or code."
    )


def score_programs(
    outputs: Sequence[str],
    answers: Sequence[str],
    metadata: Sequence[str | None],
    on_scored: Callable[[], None] | None = None,
) -> list[float]:
    """1 for each generated program that passes its question's tests in the sandbox, else 0: pass@1.

    answers are the reference programs. `on_scored` is called after each and may raise. Raises `UnavailableError` where
    there is no sandbox.
    """
    from metamoe_backend.evaluate.programs import make_problem
    from metamoe_backend.evaluate.sandbox import run_problems

    problems = [make_problem(*one) for one in zip(outputs, answers, metadata, strict=True)]
    return [float(verdict.passed) for verdict in run_problems(problems, on_judged=on_scored)]
