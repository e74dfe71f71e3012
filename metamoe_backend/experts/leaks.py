"""Leaks: rows of a pool that are held-out questions, or nearly so. A model trained on them has seen the test.

Three ways to find them, each reported with the question and a sentence: the same words; most of a question's 8-word
sequences (PaLM, arXiv 2204.02311, section 8); vectors that are nearly the same.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from metamoe_backend.experts.data_selection import BLOCK, find_nearest

NGRAM_WORDS = 8
"""Words in a sequence; a shorter question is one sequence of its own length."""
LEAST_WORDS = 4
"""A question of fewer words says too little to be recognised inside another text."""
TEMPLATE_QUESTIONS = 10
"""A sequence in more held-out questions than this is their template and tells nothing. (lm-evaluation-harness likewise
leaves out sequences found more than ten times.)"""

_WORD = re.compile(
    r"\d+(?:[.,]\d+)*"  # a number
    r"|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # a character of a script that puts no spaces between words
    r"|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"  # a word
    r"|[^\w\s.,;:!?\"'`‘’“”…、。，；：！？]"  # a sign that changes what is asked: + - * / = ( %
)


@dataclass(frozen=True, slots=True)
class Leak:
    """Why a row is refused."""

    question: int
    """Number of the held-out question."""
    reason: str
    """What they have in common, as the end of a sentence that begins with "It"."""


def split_words(text: str) -> list[str]:
    """Words, numbers and signs of a text, without case, spacing and the punctuation of prose."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def find_leaks(
    rows: Sequence[str],
    questions: Sequence[str],
    row_vectors: np.ndarray,
    question_vectors: np.ndarray,
    ngram_share: float,
    similarity: float,
    on_rows: Callable[[int], None] = lambda _: None,
) -> dict[int, Leak]:
    """Rows that leak, by row number: by words, else by word sequences, else by vectors.

    rows, questions: texts without answers. The vectors [n, dim] may hold the answers, too. A row leaks by sequences if
    it has at least `ngram_share` of a question's, by vectors if their cosine is at least `similarity`; a limit above 1
    switches that way off. `on_rows` is told every BLOCK rows how many are done.
    """
    if not len(questions):
        return {}
    words = [split_words(question) for question in questions]
    same = {tuple(each): number for number, each in reversed(list(enumerate(words)))}
    index = _NgramIndex(words, ngram_share)
    found: dict[int, Leak] = {}
    for start in range(0, len(rows), BLOCK):
        for row, text in enumerate(rows[start : start + BLOCK], start):
            leak = _find_by_words(text, questions, same, index)
            if leak:
                found[row] = leak
        on_rows(min(start + BLOCK, len(rows)))
    cosine, which = find_nearest(row_vectors, question_vectors)
    for near in np.flatnonzero(cosine >= np.float32(similarity)).tolist():
        if near not in found:
            found[near] = Leak(int(which[near]), f"is nearly (cosine {cosine[near]:.2f})")
    return found


def _find_by_words(
    text: str, questions: Sequence[str], same: dict[tuple[str, ...], int], index: "_NgramIndex"
) -> Leak | None:
    words = split_words(text)
    number = same.get(tuple(words))
    if number is not None and (words or text.strip() == questions[number].strip()):
        return Leak(number, "asks the same, word for word, as")
    return index.find(words)


class _NgramIndex:
    """Which held-out questions have which word sequences."""

    def __init__(self, questions: Sequence[Sequence[str]], share: float) -> None:
        self._share = share
        grams = [_question_ngrams(words) for words in questions]
        common = Counter(gram for each in grams for gram in each)
        self._has: dict[tuple[str, ...], list[int]] = {}
        self._total = np.zeros(len(grams), dtype=np.int64)
        for number, each in enumerate(grams):
            for gram in each:
                if common[gram] <= TEMPLATE_QUESTIONS:
                    self._has.setdefault(gram, []).append(number)
                    self._total[number] += 1
        self._lengths = sorted({len(gram) for gram in self._has})

    def find(self, words: Sequence[str]) -> Leak | None:
        """The question of whose sequences the row has the largest share, if that is large enough."""
        counts = Counter(number for gram in self._known(words) for number in self._has[gram])
        if not counts:
            return None
        number, held = max(counts.items(), key=lambda item: (item[1] / self._total[item[0]], -item[0]))
        share = held / self._total[number]
        if share < self._share:
            return None
        return Leak(number, f"has {100 * share:.0f} % of the {NGRAM_WORDS}-word sequences of")

    def _known(self, words: Sequence[str]) -> Iterator[tuple[str, ...]]:
        for length in self._lengths:
            yield from self._has.keys() & set(_ngrams(words, length))


def _question_ngrams(words: Sequence[str]) -> set[tuple[str, ...]]:
    return set(_ngrams(words, min(NGRAM_WORDS, len(words)))) if len(words) >= LEAST_WORDS else set()


def _ngrams(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)
