"""The tables of a study as the database has them by now."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import pandas as pd

from metamoe_backend.study.progress import Look
from metamoe_backend.study.recipe import Variant, choose_for
from metamoe_backend.study.studies import Study, fetch_facts
from metamoe_backend.study.table import compare, compute_forgetting, list_ablation_entries, list_entries

if TYPE_CHECKING:
    from metamoe_backend.store.connection import Store


@dataclass(frozen=True, slots=True)
class Results:
    """What a study has found so far; each table is empty while there is nothing for it."""

    compared: pd.DataFrame
    """See `table.compare`."""
    forgetting: pd.DataFrame
    """See `table.compute_forgetting`."""
    ablations: pd.DataFrame
    """`table.compare` against token top-k as the study has it, which is the row token of each target."""
    chosen: dict[str, list[str]]
    """The N experts by target."""
    ended_at: datetime | None
    """When the newest of its runs ended (UTC)."""
    seconds: float
    """What its finished runs took together."""


def collect_results(store: "Store", study: Study, look: Look) -> Results:
    """Compare whatever is evaluated by now."""
    from metamoe_backend.store.experts import fetch_systems
    from metamoe_backend.store.runs import fetch_runs

    config = study.config
    answers = fetch_study_answers(store, study)
    members = {row.system: list(row.experts) for row in fetch_systems(store).itertuples() if len(row.experts)}
    entries = list_entries(config, fetch_facts(store, config), look.made, answers, members)
    token = [entry for entry in entries if entry.system == "token" and entry.target in config.ablations]
    ablations = [*token, *list_ablation_entries(config, look.made, answers)]
    selections = {task: look.made.get(f"select:{task}") for task in config.targets}
    main = Variant(config.k, config.experts, config.top_k)
    ids = {status.run_id for status in look.own if status.state == "finished"}
    ended = fetch_runs(store).set_index("run_id")["ended_at"]
    return Results(
        compared=compare(entries, answers),
        forgetting=compute_forgetting(entries, answers, config.targets),
        ablations=compare(ablations, answers, ["token"]),
        chosen={
            task: choose_for(made.selection, config, main)
            for task, made in selections.items()
            if made is not None and made.selection is not None
        },
        ended_at=max((ended[run_id].to_pydatetime() for run_id in ids if run_id in ended.index), default=None),
        seconds=sum(status.seconds or 0.0 for status in look.own),
    )


def fetch_study_answers(store: "Store", study: Study) -> pd.DataFrame:
    """Whether each system was right: index (task, question_id) of the study's test questions, a column a system.

    NaN where a system was not asked.
    """
    from metamoe_backend.store.questions import fetch_evaluation_questions
    from metamoe_backend.store.results import fetch_predictions

    config = study.config
    asked = fetch_evaluation_questions(store, config.targets, "test", config.eval_limit, config.seed)
    predictions = fetch_predictions(store, tasks=config.targets)
    own = predictions["question_id"].map(asked.set_index("question_id")["regime"])  # NaN for other questions
    predictions = predictions[(predictions["n_shot"] == 0) & (predictions["regime"] == own)]
    # One question may stand under two skills, but no system answers it twice.
    answers = predictions.drop_duplicates(["system", "question_id"]).pivot(
        index=["task", "question_id"], columns="system", values="correct"
    )
    index = pd.MultiIndex.from_frame(asked[["task", "question_id"]])
    return answers.reindex(index).astype(float)
