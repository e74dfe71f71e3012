"""A meta-question beside its question: what stands in one and not in the other, marked in safe Markdown."""

import re
from difflib import SequenceMatcher

from metamoe_backend.masking import MARK
from pages.shared.text import plain

_PLACEHOLDER = re.compile(MARK)
_TOKEN = re.compile(rf"{MARK}|[A-Za-z0-9_]+|\s+|.")
MOST_TOKENS = 600
"""Of longer texts only the placeholders are marked: comparing costs the square of their length."""


def mark_differences(question: str, text: str, limit: int | None = None) -> str:
    """`text` as Markdown: placeholders as badges, words that the question does not have on a tinted ground.

    Everything else is escaped; nothing in either text is obeyed. `limit` cuts `text`, in characters.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "  \n".join(_mark_line(question, line) for line in text.splitlines() if line.strip())


def _mark_line(question: str, line: str) -> str:
    runs: list[tuple[str, str]] = []
    for token, is_new in _compare(question, line):
        kind = "badge" if _PLACEHOLDER.fullmatch(token) else "background" if is_new and not token.isspace() else ""
        if runs and runs[-1][0] == kind and kind != "badge":
            runs[-1] = (kind, runs[-1][1] + token)
        elif token.isspace() and runs and runs[-1][0] == "background":
            runs[-1] = ("background", runs[-1][1] + token)  # one ground under a phrase, not one a word
        else:
            runs.append((kind, token))
    return "".join(_draw(kind, token) for kind, token in runs)


def _compare(question: str, line: str) -> list[tuple[str, bool]]:
    """Tokens of the line, and whether the question lacks them there."""
    words = _TOKEN.findall(line)
    asked = _TOKEN.findall(question)
    if len(words) + len(asked) > MOST_TOKENS:
        return [(word, False) for word in words]
    new = [True] * len(words)
    matcher = SequenceMatcher(None, [w.casefold() for w in asked], [w.casefold() for w in words], autojunk=False)
    for _, start, size in matcher.get_matching_blocks():
        new[start : start + size] = [False] * size
    return list(zip(words, new, strict=True))


def _draw(kind: str, text: str) -> str:
    before = " " if text[:1].isspace() else ""
    after = " " if text[-1:].isspace() and text.strip() else ""
    body = plain(text)
    if kind == "badge":
        return f":blue-badge[{plain(text.strip('[]'))}]"
    return f"{before}:violet-background[{body}]{after}" if kind == "background" else f"{before}{body}{after}"
