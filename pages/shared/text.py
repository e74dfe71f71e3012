"""Data as plain text where Streamlit reads Markdown."""

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~^=&@])")


def plain(text: object, limit: int | None = None) -> str:
    """`text` so that Markdown, HTML, links and icons in it are shown and not obeyed; cut at `limit` characters."""
    found = " ".join(str(text).split())
    if limit is not None and len(found) > limit:
        found = found[: limit - 1] + "…"
    return _SPECIAL.sub(r"\\\1", found)
