"""The catalogue of translations. Everything a person sees in `_("…")` must stand in it, in every language.

    python -m pages.shared.catalogue update          read the sources, drop what is gone, print what is missing as JSON
    python -m pages.shared.catalogue fill FILE.json  take in translations: {"English": "…"}; plurals {"English": ["…"]}

Both hold a lock, so several people may run them at once.
"""

import ast
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po, write_po

from metamoe_backend import config, i18n, rows
from metamoe_backend.jobs.durable import locked, replace_file
from metamoe_backend.store.schema import VIEWS, describe_table

ROOT = i18n.LOCALE.parent
LANGUAGE = "zh_CN"
MessageId = str | tuple[str, str]


def find_messages() -> dict[MessageId, set[str]]:
    """Every message of the sources, with the files it stands in. Raises `ValueError` for one that is no literal."""
    found: dict[MessageId, set[str]] = {}
    for path in _sources():
        name = path.relative_to(ROOT).as_posix()
        for message in _messages_of(ast.parse(path.read_text(encoding="utf-8")), name):
            found.setdefault(message, set()).add(name)
    for message in _help_texts():
        found.setdefault(message, set()).add("metamoe_backend/config.py")
    for table in rows.TABLES:
        for column in rows.columns(table):
            found.setdefault(column.description, set()).add("metamoe_backend/rows.py")
    for table in (*rows.TABLES, *VIEWS):
        found.setdefault(describe_table(table), set()).add("metamoe_backend/store/schema.py")
    return found


def _sources() -> list[Path]:
    folders = [ROOT / "pages", ROOT / "metamoe_backend" / "figures", ROOT / "metamoe_backend" / "jobs"]
    return [ROOT / "app.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def _messages_of(tree: ast.Module, name: str) -> Iterator[MessageId]:
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.Call)
            or not isinstance(node.func, ast.Name)
            or node.func.id not in ("_", "ngettext")
        ):
            continue
        literals = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        texts = [literal for literal in literals if isinstance(literal, str)]
        if node.func.id == "ngettext" and len(texts) >= 2:
            yield (texts[0], texts[1])
        elif node.func.id == "_" and len(texts) == 1:
            yield texts[0]
        elif any(isinstance(part, ast.JoinedStr) for argument in node.args for part in ast.walk(argument)):
            raise ValueError(
                f"{name}:{node.lineno}: {node.func.id}() takes a plain string; put values in by .format()."
            )


def _help_texts() -> Iterator[str]:
    """Descriptions of the fields of every settings class: forms show them as help."""
    for value in vars(config).values():
        if isinstance(value, type) and issubclass(value, config.BaseModel):
            yield from (field.description for field in value.model_fields.values() if field.description)


def read_catalogue() -> Catalog:
    """The catalogue as it lies there, or an empty one."""
    path = i18n.catalogue_path(LANGUAGE)
    if not path.exists():
        return _empty_catalogue()
    with path.open("rb") as file:
        return read_po(file, locale=LANGUAGE)


def _empty_catalogue() -> Catalog:
    return Catalog(
        locale=LANGUAGE,
        project="MetaMoE",
        version="0",
        header_comment="# What people see in MetaMoE, in Chinese. Kept by `python -m pages.shared.catalogue`.",
        msgid_bugs_address="-",
        last_translator="-",
        language_team="-",
        fuzzy=False,
    )


def find_faults() -> list[str]:
    """What a test must not find: untranslated messages, obsolete ones, and placeholders that differ."""
    catalogue, wanted = read_catalogue(), find_messages()
    faults = []
    for message in wanted:
        entry = catalogue.get(message)
        if entry is None or not _is_translated(entry):
            faults.append(f"not translated: {message!r} ({', '.join(sorted(wanted[message]))})")
        elif fault := _placeholder_fault(entry):
            faults.append(fault)
    faults += [f"no longer used: {entry.id!r}" for entry in catalogue if entry.id and entry.id not in wanted]
    return faults


def _is_translated(entry: Message) -> bool:
    strings = entry.string if isinstance(entry.string, (tuple, list)) else (entry.string,)
    return bool(strings) and all(strings)


def _placeholder_fault(entry: Message) -> str | None:
    ids = entry.id if isinstance(entry.id, (tuple, list)) else (entry.id,)
    strings = entry.string if isinstance(entry.string, (tuple, list)) else (entry.string,)
    wanted = set().union(*(_placeholders(text) for text in ids))
    for text in strings:
        if not _placeholders(text) <= wanted or (len(ids) == 1 and _placeholders(text) != wanted):
            return f"placeholders differ: {entry.id!r} and {text!r}"
    return None


def _placeholders(text: str) -> set[str]:
    try:
        return {field for _literal, field, _spec, _conversion in string.Formatter().parse(text) if field is not None}
    except ValueError:
        return set()  # a lone brace: this message is not formatted


def update(translations: dict[str, Any]) -> dict[str, str | list[str]]:
    """Rewrite the catalogue from the sources, old translations and new ones; returns what is still missing."""
    path = i18n.catalogue_path(LANGUAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        old, new = read_catalogue(), _empty_catalogue()
        new.creation_date = new.revision_date = old.creation_date
        missing: dict[str, str | list[str]] = {}
        for message, files in sorted(find_messages().items(), key=lambda item: (sorted(item[1])[0], str(item[0]))):
            key = message if isinstance(message, str) else message[0]
            entry = old.get(message)
            text = translations.get(key, entry.string if entry is not None else "")
            if not isinstance(message, str) and isinstance(text, str):
                text = (text,)
            new.add(
                message, tuple(text) if isinstance(text, list) else text, locations=[(f, None) for f in sorted(files)]
            )
            if not _is_translated(new[message]):
                missing[key] = "" if isinstance(message, str) else [""]
        replace_file(path, lambda file: write_po(file, new, width=120, sort_output=False, include_previous=False))
    i18n.translations.cache_clear()
    return missing


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["update"]:
        missing = update({})
    elif arguments[:1] == ["fill"] and len(arguments) == 2:
        missing = update(json.loads(Path(arguments[1]).read_text(encoding="utf-8")))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    print(json.dumps(missing, ensure_ascii=False, indent=1))
    print(f"{len(missing)} missing", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
