"""The report of a workspace as Markdown: where it stands, what was measured, what people decided."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from metamoe_backend.evaluate.answers import choose_commonest_way, list_ways
from metamoe_backend.evaluate.forgetting import compare_systems, compute_accuracies
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_systems
from metamoe_backend.store.results import fetch_predictions
from metamoe_backend.store.reviews import fetch_review_feed, fetch_reviews
from metamoe_backend.store.runs import fetch_pipeline_counts, fetch_runs


def make_report(store: Store) -> str:
    """Markdown text; text that people or data sets wrote is escaped."""
    counts = fetch_pipeline_counts(store)
    parts = [
        f"# Report of workspace {_plain(store.workspace.name)}",
        (
            f"{counts['tasks']} tasks, {counts['questions']} questions, {counts['skills']} skills, "
            f"{counts['labels']} labels, {counts['experts']} experts, {counts['mixtures']} mixtures, "
            f"{counts['systems_evaluated']} systems evaluated ({counts['predictions']} answers)."
        ),
        *_accuracy_part(store),
        *_review_part(store),
        *_run_part(store),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy_part(store: Store) -> list[str]:
    every = fetch_predictions(store)
    if every.empty:
        return ["## Accuracy", "Nothing has been evaluated yet."]
    predictions = choose_commonest_way(every)
    accuracies = compute_accuracies(predictions)
    cells = accuracies.assign(
        cell=[
            f"{100 * row.accuracy:.0f} ({100 * row.low:.0f} to {100 * row.high:.0f})" for row in accuracies.itertuples()
        ]
    )
    evaluated = set(predictions["system"])
    systems = [name for name in fetch_systems(store)["system"] if name in evaluated]
    table = cells.pivot(index="task", columns="system", values="cell").reindex(columns=systems).fillna("–")
    n = accuracies.groupby("task")["n"].max()
    text = [
        "## Accuracy on held-out questions",
        "Percent, 95 % Wilson interval."
        + (
            f" Of a task scored in several ways ({', '.join(ways)}) the commonest counts."
            if (ways := list_ways(every))
            else ""
        ),
        _table(
            ["task", "n", *systems],
            [[task, n[task], *row] for task, row in zip(table.index, table.values, strict=True)],
        ),
    ]
    if "base" in systems:
        pairs = [(name, "base") for name in systems if name != "base"]
        versus = compare_systems(predictions.assign(part="all"), pairs, "part")
        rows = [
            [
                row.system,
                f"{100 * row.difference:+.1f} ({100 * row.low:+.1f} to {100 * row.high:+.1f})",
                row.gained,
                row.lost,
                f"{row.p:.3f}",
                row.n,
            ]
            for row in versus.itertuples()
        ]
        text += [
            "## Difference to the base model, all tasks pooled",
            "Points, 95 % paired bootstrap interval; exact McNemar p.",
            _table(["system", "difference", "gained", "lost", "p", "n"], rows),
        ]
    return text


def _review_part(store: Store) -> list[str]:
    feed, reviews = fetch_review_feed(store), fetch_reviews(store)
    awaited = feed[feed["verdict"].isna()]
    lines = [f"- {_plain(title)}" for title in awaited["title"].head(30)]
    said = [
        f"- {row.made_at:%Y-%m-%d} {_plain(row.author)} on {row.target_kind} {_plain(row.target)}: "
        f"{'' if pd.isna(row.verdict) else row.verdict + '. '}{_plain(row.comment)}"
        for row in reviews.head(50).itertuples()
    ]
    return [
        "## Reviews",
        "\n".join(said) or "None yet.",
        f"## Awaiting a verdict ({len(awaited)})",
        "\n".join(lines) or "Nothing.",
    ]


def _run_part(store: Store) -> list[str]:
    runs = fetch_runs(store, ("train", "moe", "evaluate")).head(30)
    rows = [
        [row.created_at.strftime("%Y-%m-%d %H:%M"), row.stage, row.name, row.state, row.author]
        for row in runs.itertuples()
    ]
    return ["## Newest runs", _table(["when (UTC)", "stage", "name", "state", "by"], rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines: list[Sequence[Any]] = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(value: object) -> str:
    text = " ".join(str(value).split())
    if text == "---":
        return text
    for character in "\\`*_{}[]<>#|":
        text = text.replace(character, "\\" + character)
    return text
