"""Sets of questions too long for a web address: kept in the workspace under the hash of their content.

An address with such a hash can be sent to a colleague who uses the same workspace.
"""

import hashlib
import json
import re
from collections.abc import Sequence

from metamoe_backend.errors import NotFoundError
from metamoe_backend.jobs.durable import replace_text
from metamoe_backend.workspace import Workspace

_HASH = re.compile(r"[0-9a-f]{16}")


def save_questions(workspace: Workspace, question_ids: Sequence[str]) -> str:
    """Keep the ids, in their order; returns their 16-digit hash. Saving the same set twice keeps one file."""
    text = json.dumps(list(question_ids))
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = workspace.selections / f"{name}.json"
    if not path.exists():
        workspace.selections.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    return name


def read_questions(workspace: Workspace, name: str) -> list[str]:
    """The ids kept under a hash; raises `NotFoundError` where there are none."""
    path = workspace.selections / f"{name}.json"
    if not _HASH.fullmatch(name) or not path.is_file():
        raise NotFoundError(f"Workspace {workspace.name} keeps no selection {name!r}; select the questions anew.")
    return [str(question_id) for question_id in json.loads(path.read_text(encoding="utf-8"))]
