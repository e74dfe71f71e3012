"""Freeze: what people said, and the suggestions sure enough, as a labelling that plans can rest on."""

from typing import TYPE_CHECKING

import pandas as pd

from metamoe_backend.config import FreezeConfig
from metamoe_backend.errors import ConfigError, ConflictError

if TYPE_CHECKING:
    from metamoe_backend.stage import Context, Inputs
    from metamoe_backend.store.connection import Store


def prepare(store: "Store", config: FreezeConfig) -> "Inputs":
    """Standing labels (question_id, skill, how, event_id) and suggestions (question_id, skill, probability).

    Raises `ConflictError` when the name is taken, `ConfigError` when nobody has labelled anything.
    """
    from metamoe_backend.store.skills import fetch_labellings, fetch_labels, fetch_suggestions

    if config.labelling in set(fetch_labellings(store)["labelling"]):
        raise ConflictError(
            f"A labelling {config.labelling!r} exists already and is never changed; choose another name."
        )
    labels = fetch_labels(store)
    if labels.empty:
        raise ConfigError("Nothing is labelled yet; label some questions on the Skills page or with `label`.")
    suggestions = fetch_suggestions(store)[["question_id", "skill", "probability"]]
    return {"labels": labels[["question_id", "skill", "how", "event_id"]], "suggestions": suggestions}


def compute(inputs: "Inputs", config: FreezeConfig, context: "Context") -> None:
    """Emit the labelling row and one labelling_item row for each question in it."""
    items = select_items(inputs["labels"], inputs["suggestions"], config.threshold)
    counts = items["source"].value_counts()
    head = {
        "labelling": config.labelling, "labels": int(counts.get("label", 0)),
        "suggestions": int(counts.get("suggestion", 0)), "threshold": config.threshold,
        "author": context.by, "created_at": context.created_at,
    }  # fmt: skip
    context.emit("labelling", pd.DataFrame([head]))
    context.emit("labelling_item", items.assign(labelling=config.labelling))
    context.progress(len(items), len(items))


def select_items(labels: pd.DataFrame, suggestions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row a question: question_id, skill, source, probability.

    Where people disagree a decision counts, else the newest label (event ids sort by time). A suggestion is
    taken in for a question nobody labelled if its probability is at least `threshold`.
    """
    ordered = labels.assign(decided=labels["how"] == "decided").sort_values(["decided", "event_id"])
    by_people = ordered.drop_duplicates("question_id", keep="last")[["question_id", "skill"]].assign(
        source="label", probability=1.0
    )
    is_free = ~suggestions["question_id"].isin(by_people["question_id"])
    sure = suggestions[is_free & (suggestions["probability"] >= threshold)]
    taken = sure[["question_id", "skill", "probability"]].assign(source="suggestion")
    items = by_people if taken.empty else pd.concat([by_people, taken], ignore_index=True)
    return items.sort_values("question_id").reset_index(drop=True)
