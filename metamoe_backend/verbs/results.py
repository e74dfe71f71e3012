"""Verbs about what systems answered: evaluate, outcomes, forgetting, report, sql."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.launch import launch
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs.common import (
    Result,
    count_emitted,
    given,
    merge_settings,
    open_store,
    print_table,
    say,
    show_tables,
    split_names,
    take_in,
    wait_for,
)


def run_evaluate(options: argparse.Namespace) -> Result:
    values = given(options, "split", "limit", "n_shot", "device") | {"systems": options.system, "tasks": options.task}
    with open_store(options) as store:
        run = launch(store, "evaluate", merge_settings(values, options.set), options.by)
    wait_for(run)
    take_in(options)
    if not options.json:
        _print_accuracy(options)
    return {"run_id": run.run_id, "rows": count_emitted(run, "prediction")}


def _print_accuracy(options: argparse.Namespace) -> None:
    with open_store(options) as store:
        frame = store.frame(
            "SELECT system, task, avg(correct::INT) AS accuracy, count(*) AS n FROM current_prediction "
            "WHERE list_contains(?, system) AND list_contains(?, task) GROUP BY ALL ORDER BY task, system",
            [options.system, options.task],
        )
    print_table(frame)


# ---- results ----------------------------------------------------------------------------------------------------


def _require_predictions(store: Store, systems: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """Answers of all systems; raises `NotFoundError` unless there are any, and for unknown systems and tasks."""
    from metamoe_backend.store.experts import fetch_systems
    from metamoe_backend.store.questions import require_tasks
    from metamoe_backend.store.results import fetch_predictions

    require_tasks(store, tasks)
    fetch_systems(store, systems)
    predictions = fetch_predictions(store, tasks=tasks)
    if predictions.empty:
        raise NotFoundError("Nothing has been evaluated here yet; run `evaluate --system SYSTEM --task TASK`.")
    missing = [name for name in systems if name not in set(predictions["system"])]
    if missing:
        raise NotFoundError(f"System {missing[0]!r} has not been evaluated here yet; run `evaluate` on it first.")
    return predictions


def run_outcomes(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.answers import ALL_TASKS, find_regimes
    from metamoe_backend.evaluate.outcomes import (
        compare_with_best_expert,
        compute_error_rates,
        compute_outcomes,
        count_outcomes,
    )
    from metamoe_backend.store.experts import fetch_systems

    experts = split_names(options.experts or "")
    with open_store(options) as store:
        predictions = _require_predictions(store, experts, options.task)
        kinds = fetch_systems(store).set_index("system")["kind"]
    evaluated = [name for name in kinds.index if name in set(predictions["system"])]
    experts = experts or [name for name in evaluated if kinds[name] == "expert"]
    mixtures = [name for name in evaluated if kinds[name] == "moe"]
    others = [name for name in evaluated if name not in experts]
    tables = {
        "outcomes": count_outcomes(compute_outcomes(predictions, experts)),
        "errors_on_the_mixed_part": compute_error_rates(predictions, experts, others),
    }
    if mixtures:
        compared = [compare_with_best_expert(predictions, experts, mixture) for mixture in mixtures]
        tables["mixture_against_best_expert"] = pd.concat(compared)
    result, regimes = show_tables(options, tables), find_regimes(predictions)
    if len(regimes) > 1:
        say(f"'{ALL_TASKS}' pools different ways of scoring ({', '.join(regimes)}): compare systems, not levels.")
    return {**result, "regimes": regimes}


def run_forgetting(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.forgetting import compute_accuracies, compute_differences_to_base
    from metamoe_backend.store.experts import fetch_systems

    with open_store(options) as store:
        predictions = _require_predictions(store, options.system, options.task)
        systems = fetch_systems(store)
    sequences = _summarise_sequences(predictions, systems)
    if options.system:
        predictions = predictions[predictions["system"].isin([*options.system, "base"])]
    tables = {"accuracy": compute_accuracies(predictions)}
    if (predictions["system"] == "base").any():
        tables["difference_to_base"] = compute_differences_to_base(predictions)
    return show_tables(options, tables | sequences)


def _summarise_sequences(predictions: pd.DataFrame, systems: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """R[i,j] and the measures of every sequence whose steps were all evaluated; nothing where there is none."""
    from metamoe_backend.evaluate.forgetting import (
        compute_sequence_accuracies,
        find_baselines,
        find_sequences,
        summarise_training_sequence,
    )

    evaluated = set(predictions["system"])
    mixed = next((name for name in find_baselines(systems) if name in evaluated), None)
    others = [name for name in ("base", mixed) if name is not None and name in evaluated]
    matrices, measures = [], []
    for sequence in find_sequences(systems):
        if not set(sequence.steps) <= evaluated:
            continue
        try:
            found = compute_sequence_accuracies(predictions, sequence, others)
        except NotFoundError as error:
            say(f"Sequence {sequence.name}: {error}")
            continue
        matrices.append(found.assign(sequence=sequence.name))
        measures.append(summarise_training_sequence(found, sequence, mixed=mixed).assign(sequence=sequence.name))
    if not matrices:
        return {}
    return {"sequence_accuracy": pd.concat(matrices), "sequence_measures": pd.concat(measures)}


def run_report(options: argparse.Namespace) -> Result:
    from metamoe_backend.report import make_report

    with open_store(options) as store:
        text = make_report(store)
    try:
        Path(options.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{options.out} cannot be written ({error.strerror}); choose another file.") from None
    say(f"Report written to {options.out}.")
    return {"file": options.out}


def run_sql(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.console import run_query
    from metamoe_backend.store.publishing import publish

    if options.limit < 1 or not options.timeout > 0:
        raise ConfigError("sql: --limit and --timeout must be above 0; leave them out for 1000 rows and 20 s.")
    with open_store(options) as store:
        published = publish(store)
    result = run_query(published, options.statement, limit=options.limit, timeout_s=options.timeout)
    if not options.json:
        print_table(pd.DataFrame(result.rows, columns=result.columns))
        say(f"{len(result.rows)} rows{' (cut at the limit)' if result.truncated else ''}, {result.elapsed_s:.2f} s")
    return {"columns": result.columns, "rows": result.rows}
