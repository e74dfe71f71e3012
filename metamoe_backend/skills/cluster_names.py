"""A name for a cluster, proposed by the language model that this workspace has used before."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metamoe_backend.config import MetaQuestionConfig
from metamoe_backend.errors import UnavailableError
from metamoe_backend.meta_questions import ask_server
from metamoe_backend.skills.clusters import LONGEST_NAME

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store

_PROMPT = """These questions form one group. Name in two to four words the kind of thinking they share.
Answer with the name only.

{question}

Name:"""
_LONGEST_TEXT = 300
"""Characters of each question that the model reads."""


def find_server(store: "Store") -> MetaQuestionConfig | None:
    """The settings of the newest run that built meta-questions with a language model's server; None without any."""
    from metamoe_backend.store.runs import fetch_runs

    for text in fetch_runs(store, ("meta-questions",))["config"]:
        config = MetaQuestionConfig.model_validate(json.loads(text))
        if config.method == "llm" and config.base_url:
            return config
    return None


def suggest_name(server: MetaQuestionConfig, keywords: Sequence[str], texts: Sequence[str]) -> str:
    """A few words for the questions `texts` of a cluster; raises `UnavailableError` when the server gives none."""
    lines = [f"- {' '.join(text.split())[:_LONGEST_TEXT]}" for text in texts]
    shown = "\n".join([*lines, f"Telling words: {', '.join(keywords)}"])
    asked = server.model_copy(update={"prompt": _PROMPT, "max_tokens": 16})
    name = ask_server(asked, [shown])[0].rstrip(".")[:LONGEST_NAME]
    if not name:
        raise UnavailableError(f"{server.model} proposed no name; write one yourself.")
    return name
