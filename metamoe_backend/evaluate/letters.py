"""Lettered options: how they stand in a prompt, and which one an output chooses.

The generative regime of OpenCompass (METHODS section 5): the options are shown as A, B, C …, the model writes, and the
first option letter counts. MMLU, CMMLU and CommonsenseQA show them like this under lm-evaluation-harness, too.
"""

import re
import unicodedata
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOOKALIKES = str.maketrans("АВСЕНКМОРТХΑΒΕΖΗΙΚΜΝΟΡΤΧавсеорх", "ABCEHKMOPTXABEZHIKMNOPTXabceopx")
"""Cyrillic and Greek letters that look like Latin ones."""
_CUE = r"(?:answer|option|choice|答案|选项|选择|应选|故选|选)(?:\s+is)?\s*(?:[:是为])?\s*[(\[*'\"]*"


def add_letters(prompt: str, choices: Sequence[str]) -> str:
    """The question with its options below it, one a line: A. first, B. second …"""
    return "\n".join([prompt, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def has_letters(choices: Sequence[str]) -> bool:
    """Whether the choices are the letters themselves: then the options stand in the prompt already."""
    return list(choices) == list(LETTERS[: len(choices)])


def extract_letter(output: str, count: int) -> int | None:
    """Index of the option, of `count`, that an output chooses; None where it names none.

    What follows a word like 'answer' counts before the first letter that stands alone. Full-width, Cyrillic and Greek
    letters count as the Latin ones they look like, small ones where nothing but a bracket or a stop is beside them; the
    articles and pronouns 'A cat', 'I think' do not.
    """
    text = unicodedata.normalize("NFKC", output).translate(_LOOKALIKES).strip()
    large = LETTERS[:count]
    alone = rf"(?![AI]\s+[a-z])([{large}])(?![A-Za-z'])"
    small = rf"[(\[*'\"]*([{large.lower()}])(?:[)\].:,*'\"]|$)"
    for found in (
        re.search(rf"(?i:{_CUE}){alone}", text),
        re.search(rf"(?i:{_CUE}){small}", text),
        re.search(rf"(?<![A-Za-z]){alone}", text),
        re.match(small, text),
    ):
        if found:
            return LETTERS.index(found[1].upper())
    return None
