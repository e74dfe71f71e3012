"""Data as plain text where Streamlit reads Markdown."""

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~^=&@])")


def cut(text: object, limit: int = 160) -> str:
    """`text` on one line, cut at `limit` characters: for tables, which show no more."""
    found = " ".join(str(text).split())
    return found if len(found) <= limit else found[: limit - 1] + "…"


def plain(text: object, limit: int | None = None) -> str:
    """`text` so that Markdown, HTML, links and icons in it are shown and not obeyed; cut at `limit` characters."""
    found = " ".join(str(text).split()) if limit is None else cut(text, limit)
    return _SPECIAL.sub(r"\\\1", found)
