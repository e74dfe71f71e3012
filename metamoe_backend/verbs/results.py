"""Verbs about what systems answered: evaluate, outcomes, forgetting, report, sql."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.jobs.run_folder import list_shards
from metamoe_backend.stage import NOTE
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs.common import (
    Result,
    count_emitted,
    given,
    merge_settings,
    open_store,
    print_table,
    queue,
    say,
    show_tables,
    split_names,
    take_in,
    wait_for,
)


def run_evaluate(options: argparse.Namespace) -> Result:
    values = given(options, "split", "limit", "n_shot", "device", "shards") | {
        "systems": options.system,
        "tasks": options.task,
    }
    with open_store(options) as store:
        run = queue(store, "evaluate", merge_settings(values, options.set), options)
    wait_for(run)
    take_in(options)
    notes = [line for shard in list_shards(run) for line in shard.read_log().splitlines() if NOTE in line]
    for note in dict.fromkeys(line.partition(NOTE)[2] for line in notes):
        say(f"{NOTE}{note}")
    if not options.json:
        _print_accuracy(options)
    return {"run_id": run.run_id, "rows": count_emitted(run, "prediction")}


def _print_accuracy(options: argparse.Namespace) -> None:
    with open_store(options) as store:
        frame = store.frame(
            "SELECT system, task, split, regime, n_shot, dtype, avg(correct::INT) AS accuracy, count(*) AS n "
            "FROM current_prediction WHERE list_contains(?, system) AND list_contains(?, task) "
            "GROUP BY ALL ORDER BY task, split, regime, n_shot, system",
            [options.system, options.task],
        )
    print_table(frame)


PRINTED = 40
"""Rows of a table that a person is shown; --json has them all."""

# ---- results ----------------------------------------------------------------------------------------------------


def _require_predictions(store: Store, systems: Sequence[str], options: argparse.Namespace) -> pd.DataFrame:
    """Answers of all systems as `options` (task, way, metric) want them, with a word on those that were cut.

    Raises `NotFoundError` unless there are any, and for unknown systems and tasks.
    """
    from metamoe_backend.evaluate.answers import choose_way, find_cut
    from metamoe_backend.evaluate.metrics import choose_metric
    from metamoe_backend.store.experts import fetch_systems
    from metamoe_backend.store.questions import require_tasks
    from metamoe_backend.store.results import fetch_predictions

    require_tasks(store, options.task)
    fetch_systems(store, systems)
    predictions = fetch_predictions(store, tasks=options.task, options=options.metric is not None)
    if options.way is not None:
        predictions = choose_way(predictions, options.way)
    if options.metric is not None and not predictions.empty:
        every = predictions["task"].unique()
        predictions = choose_metric(predictions, options.metric)
        other = sorted(set(every) - set(predictions["task"]))
        if other:
            say(f"{options.metric} does not measure {', '.join(other)}: left out.")
    if predictions.empty:
        raise NotFoundError("Nothing has been evaluated here yet; run `evaluate --system SYSTEM --task TASK`.")
    there = set(predictions["system"])
    missing = [name for name in systems if name not in there]
    if missing:
        raise NotFoundError(f"System {missing[0]!r} has not been evaluated here yet; run `evaluate` on it first.")
    for row in find_cut(predictions).itertuples():
        say(
            f"{row.cut} of {row.n} questions of {row.task} are longer than the model reads: answered without their "
            f"beginning (by {row.most_tokens} tokens at most) by {', '.join(row.systems)}."
        )
    return predictions


def run_outcomes(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.answers import ALL_TASKS, compute_answer_table, find_regimes
    from metamoe_backend.evaluate.outcomes import (
        compare_with_best_expert,
        compute_error_rates,
        compute_outcomes,
        count_intersections,
        count_outcomes,
        count_solvers,
    )
    from metamoe_backend.store.experts import fetch_systems
    from metamoe_backend.store.results import fetch_routing

    experts = split_names(options.experts or "")
    with open_store(options) as store:
        predictions = _require_predictions(store, experts, options)
        kinds = fetch_systems(store).set_index("system")["kind"]
        routing = fetch_routing(store)
    evaluated = kinds.index[kinds.index.isin(predictions["system"])].tolist()
    experts = experts or [name for name in evaluated if kinds[name] == "expert"]
    mixtures = [name for name in evaluated if kinds[name] == "moe"]
    others = [name for name in evaluated if name not in experts]
    outcomes = compute_outcomes(predictions, experts)
    tables = {
        "outcomes": count_outcomes(outcomes),
        "outcomes_by_skill": count_outcomes(outcomes, "skill"),
        "experts_that_solve_a_question": count_solvers(outcomes),
        "solved_by_exactly": count_intersections(compute_answer_table(predictions, experts)),
        "errors_on_the_mixed_part": compute_error_rates(predictions, experts, others),
        "errors_on_the_mixed_part_by_skill": compute_error_rates(predictions, experts, others, group="skill"),
    }
    if mixtures:
        compared = [compare_with_best_expert(predictions, experts, mixture) for mixture in mixtures]
        tables["mixture_against_best_expert"] = pd.concat(compared)
        tables |= _tabulate_regret(predictions, experts, mixtures, routing)
    if not options.json:
        tables = {name: frame.head(PRINTED) for name, frame in tables.items()}
    result, regimes = show_tables(options, tables), find_regimes(predictions)
    if len(regimes) > 1:
        say(f"'{ALL_TASKS}' pools different ways of scoring ({', '.join(regimes)}): compare systems, not levels.")
    return {**result, "regimes": regimes}


def _tabulate_regret(
    predictions: pd.DataFrame, experts: Sequence[str], mixtures: Sequence[str], routing: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """What an expert solves and each mixture does not: by question, and by expert."""
    from metamoe_backend.evaluate.outcomes import find_regret, summarise_regret

    by_question, by_expert = [], []
    for mixture in mixtures:
        given = routing[routing["system"] == mixture]
        regret = find_regret(predictions, experts, mixture, given)
        by_question.append(regret.assign(system=mixture))
        by_expert.append(summarise_regret(regret, given, experts).assign(system=mixture))
    return {"regret_by_expert": pd.concat(by_expert), "regret": pd.concat(by_question)}


def run_forgetting(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.forgetting import compute_accuracies, compute_differences_to_base
    from metamoe_backend.store.experts import fetch_adapters, fetch_systems

    with open_store(options) as store:
        predictions = _require_predictions(store, options.system, options)
        systems, adapters = fetch_systems(store), fetch_adapters(store)
        folders = store.workspace.adapters
    sequences = _summarise_sequences(predictions, systems)
    predicted = _tabulate_predictors(predictions, systems, adapters, folders)
    if options.system:
        predictions = predictions[predictions["system"].isin([*options.system, "base"])]
    tables = {"accuracy": compute_accuracies(predictions)}
    if (predictions["system"] == "base").any():
        tables["difference_to_base"] = compute_differences_to_base(predictions)
    return show_tables(options, tables | sequences | predicted)


def _tabulate_predictors(
    predictions: pd.DataFrame, systems: pd.DataFrame, adapters: pd.DataFrame, folders: Path
) -> dict[str, pd.DataFrame]:
    """What goes with forgetting, of the experts whose own tasks are known; nothing without them or without base."""
    from metamoe_backend.evaluate.forgetting import find_own_tasks
    from metamoe_backend.evaluate.predictors import correlate_predictors, find_starts, tabulate_forgetting
    from metamoe_backend.experts.similarity import measure_folders

    evaluated = set(predictions["system"])
    own = find_own_tasks(systems, adapters, evaluated)
    if not own or "base" not in evaluated:
        return {}
    similarity, norms = measure_folders({name: folders / name for name in own if (folders / name).is_dir()})
    skills = {str(row.adapter): list(row.skills) for row in adapters.itertuples()}
    starts = find_starts(systems, sorted(evaluated))
    cells = tabulate_forgetting(predictions, own, skills, starts, norms, similarity.list_pairs())
    return {"what_predicts_forgetting": correlate_predictors(cells), "forgetting_by_expert_and_task": cells}


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
