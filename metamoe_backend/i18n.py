"""One function for every string a person sees: `_("English text")` gives it in the person's language.

Language is a property of who looks, not of the process: the dashboard says where to ask (`ask_language`), everything
else speaks English. Catalogues are locale/LANGUAGE/LC_MESSAGES/metamoe.po, kept by `python -m pages.shared.catalogue`.
"""

import gettext
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).resolve().parent.parent / "locale"
SOURCE_LANGUAGE = "en"
LANGUAGES = {"en": "English", "zh_CN": "简体中文"}
"""Code and own name of each language, English first."""

_ask: Callable[[], str] = lambda: SOURCE_LANGUAGE  # noqa: E731 - a variable, replaced by `ask_language`


def ask_language(source: Callable[[], str]) -> None:
    """From now on `source()` tells the language of whoever is looking. Set once, by the dashboard."""
    global _ask
    _ask = source


def _(message: str) -> str:
    """`message` in the person's language; English where the catalogue has nothing."""
    return translations(_ask()).gettext(message)


def ngettext(one: str, many: str, n: int) -> str:
    """`one` or `many`, whichever fits `n`, in the person's language."""
    return translations(_ask()).ngettext(one, many, n)


@cache
def translations(language: str) -> gettext.NullTranslations:
    """Catalogue of a language, read once. An unknown language speaks English."""
    path = catalogue_path(language)
    if language not in LANGUAGES or language == SOURCE_LANGUAGE or not path.is_file():
        return gettext.NullTranslations()
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    with path.open("rb") as file:
        catalogue = read_po(file, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def catalogue_path(language: str) -> Path:
    """Where the catalogue of a language lies."""
    return LOCALE / language / "LC_MESSAGES" / "metamoe.po"
