"""What each verb of the command line does: options in, one JSON-ready dict out."""

import argparse
import csv
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from metamoe_backend.config import NAME_PATTERN, IngestConfig, NextConfig, parse_config
from metamoe_backend.errors import BusyError, ConfigError, InputError, MetaMoEError, NotFoundError
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.jobs.supervisor import poll
from metamoe_backend.launch import launch, run_now
from metamoe_backend.rows import How
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace, find_workspace

Result = dict[str, Any]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _open(options: argparse.Namespace) -> Store:
    return Store.open(find_workspace(options.workspace), f"the command `{options.verb}`")


def _given(options: argparse.Namespace, *names: str) -> Result:
    """The options a person did give; the rest keep their defaults in config.py."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value not in (None, [])}


def parse_pairs(pairs: Sequence[str], what: str) -> Result:
    """KEY=VALUE texts as a dict; values are JSON where they parse as JSON (numbers, lists, true), else text."""
    found: Result = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{what} {pair!r}: write KEY=VALUE.")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def merge_settings(values: Result, settings: Sequence[str]) -> Result:
    """`values` with the dotted KEY=VALUE settings put in (optim.learning_rate=1e-3)."""
    merged = json.loads(json.dumps(values))
    for key, value in parse_pairs(settings, "--set").items():
        place = merged
        *path, last = key.split(".")
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return merged


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _write_csv(path: str, frame: pd.DataFrame) -> None:
    try:
        frame.to_csv(path, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another file.") from None


def _print_table(frame: pd.DataFrame) -> None:
    print(frame.to_string(index=False) if len(frame) else "(no rows)")


def rows_of(frame: pd.DataFrame) -> list[Result]:
    """Rows as JSON-ready dicts: NaN and NaT become null."""
    return json.loads(frame.to_json(orient="records", date_format="iso", default_handler=str))


# ---- data -------------------------------------------------------------------------------------------------------


def run_ingest(options: argparse.Namespace) -> Result:
    from metamoe_backend.ingest.stage import RejectedRowsError, make_task_name

    values = {
        **_given(options, "source", "task", "split", "limit", "seed", "choices", "keep_good"),
        "mapping": parse_pairs(options.map, "--map"),
        "options": parse_pairs(options.option, "--option"),
    }
    with _open(options) as store:
        try:
            run = run_now(store, "ingest", values, options.by, _progress)
        except RejectedRowsError as error:
            if options.rejected:
                _write_csv(options.rejected, pd.DataFrame(error.rejected)[["line", "reason", "text"]])
            raise
        rejected = store.frame("SELECT line, reason, text FROM rejected_row WHERE run_id = ?", [run.run_id])
        if options.rejected:
            _write_csv(options.rejected, rejected)
    result = {
        "task": make_task_name(run.parse_config(IngestConfig)),
        "added": _emitted(run, "question"),
        "duplicates": int(run.read_state().metrics.get("duplicates", 0)),
        "rejected": len(rejected),
    }
    _say("{task}: {added} questions added, {duplicates} duplicates, {rejected} rejected.".format(**result))
    return result


def _emitted(run: RunFolder, table: str) -> int:
    """Rows of a table that a run handed over."""
    manifest = run.read_manifest()
    return sum(int(part["rows"]) for part in manifest["parts"] if part["target"] == table) if manifest else 0


def run_meta_questions(options: argparse.Namespace) -> Result:
    values = _given(options, "method", "model", "base_url") | {"tasks": options.task}
    with _open(options) as store:
        run = run_now(store, "meta-questions", merge_settings(values, options.set), options.by, _progress)
        result = {
            "built": _emitted(run, "meta_question"),
            "reused": int(run.read_state().metrics.get("reused", 0)),
        }
    _say("{built} meta-questions built, {reused} reused.".format(**result))
    return result


def run_embed(options: argparse.Namespace) -> Result:
    values = _given(options, "encoder", "of", "method") | {"tasks": options.task}
    with _open(options) as store:
        run = run_now(store, "embed", values, options.by, _progress)
        dim = store.value(
            "SELECT max(len(vector)) FROM embedding WHERE encoder = ? AND of = ?", [options.encoder, options.of]
        )
        result = {
            "embedded": _emitted(run, "embedding"),
            "reused": int(run.read_state().metrics.get("reused", 0)),
            "dim": dim,
        }
    _say("{embedded} embedded, {reused} reused, {dim} dimensions.".format(**result))
    return result


def run_cluster(options: argparse.Namespace) -> Result:
    values = _given(options, "encoder", "of", "method", "min_cluster_size", "neighbours", "seed")
    values["tasks"] = options.task
    with _open(options) as store:
        run = run_now(store, "cluster", merge_settings(values, options.set), options.by, _progress)
        row = store.frame("SELECT map_id, clusters, noise_share, nmi, ari FROM map WHERE run_id = ?", [run.run_id])
    result = rows_of(row)[0]
    _say("{clusters} clusters, noise {noise_share:.1%}, NMI to task names {nmi}, ARI {ari}.".format(**result))
    return result


# ---- skills -----------------------------------------------------------------------------------------------------


def run_clusters(options: argparse.Namespace) -> Result:
    from metamoe_backend.skills import clusters
    from metamoe_backend.store.acts import undo
    from metamoe_backend.store.maps import fetch_clusters, require_map

    with _open(options) as store:
        map_id, chosen, event_id = require_map(store, None), options.cluster, None
        if options.act in ("rename", "split") and len(chosen) != 1:
            raise ConfigError(f"clusters {options.act}: name one cluster with --cluster N.")
        if options.act == "rename":
            event_id = clusters.rename_cluster(store, map_id, chosen[0], options.name or "", options.by)
        elif options.act == "merge":
            if options.into is None:
                raise ConfigError("clusters merge: say with --into N which cluster takes over the others.")
            event_id = clusters.merge_clusters(store, map_id, chosen, options.into, options.by)
        elif options.act == "split":
            event_id = clusters.split_cluster(store, map_id, chosen[0], options.parts, options.by)
        elif options.act == "move":
            event_id = clusters.move_questions(store, map_id, options.question, options.into, options.by)
        elif options.act == "absorb":
            event_id = clusters.absorb_map_noise(store, map_id, options.by)
        elif options.act == "undo":
            event_id = undo(store, options.event or "", options.by)
        shown = fetch_clusters(store, map_id).drop(columns=["x", "y", "samples"])
    return {**_table(options, {"clusters": shown}), "map_id": map_id, "event_id": event_id}


def run_label(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.maps import fetch_cluster_question_ids, require_map
    from metamoe_backend.store.skills import find_or_create_skill, label_questions

    with _open(options) as store:
        if options.file:
            labelled = _label_from_file(store, options.file, options.by)
        else:
            if not options.skill:
                raise ConfigError("label: say which skill with --skill NAME.")
            how: How = "question"
            ids = options.question
            if options.cluster is not None:
                ids, how = fetch_cluster_question_ids(store, require_map(store, None), options.cluster), "cluster"
            _require_questions(store, ids)
            label_questions(store, find_or_create_skill(store, options.skill, options.by), ids, options.by, how)
            labelled = len(set(ids))
    _say(f"{labelled} questions labelled.")
    return {"labelled": labelled}


def _label_from_file(store: Store, path: str, by: str) -> int:
    """Label from a CSV with the columns question_id, skill. All or nothing: every row is checked first."""
    from metamoe_backend.store.skills import LONGEST_SKILL_NAME, find_or_create_skill, label_questions

    by_skill: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"question_id", "skill"} <= set(reader.fieldnames or []):
                raise InputError(f"{path}: the columns question_id and skill are needed (found {reader.fieldnames}).")
            for row in reader:
                question_id, skill = ((row[column] or "").strip() for column in ("question_id", "skill"))
                if not question_id or not skill:
                    raise InputError(f"{path}, line {reader.line_num}: question_id or skill is empty; fill both.")
                if len(skill) > LONGEST_SKILL_NAME:
                    raise InputError(
                        f"{path}, line {reader.line_num}: the skill's name is longer than {LONGEST_SKILL_NAME} "
                        "characters; shorten it."
                    )
                by_skill.setdefault(skill, []).append(question_id)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; save it as UTF-8 and try again.") from None
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file ({error}); give one with the columns question_id and skill.") from None
    if not by_skill:
        raise InputError(f"{path} has no rows; add lines of question_id,skill.")
    _require_questions(store, [i for ids in by_skill.values() for i in ids])
    for skill, ids in by_skill.items():
        label_questions(store, find_or_create_skill(store, skill, by), ids, by, "file")
    return sum(len(set(ids)) for ids in by_skill.values())


def _require_questions(store: Store, ids: Sequence[str]) -> None:
    unknown = store.frame(
        "SELECT id FROM (SELECT unnest($ids::VARCHAR[]) AS id) WHERE id NOT IN (SELECT question_id FROM question)",
        {"ids": list(ids)},
    )["id"].tolist()
    if unknown:
        raise NotFoundError(
            f"{len(unknown)} of {len(ids)} questions do not exist in workspace {store.workspace.name} "
            f"(first: {unknown[0]!r}); nothing was labelled."
        )


def run_next(options: argparse.Namespace) -> Result:
    from metamoe_backend.skills.queue import find_next, read_candidates

    config = parse_config(NextConfig, _given(options, "encoder", "of", "method", "seed", "count"))
    with _open(options) as store:
        ids = find_next(store, *read_candidates(store, config), config.count, config.seed)
        asked = _fetch_beginnings(store, ids)
    if options.out:
        _write_csv(options.out, pd.DataFrame({"question_id": ids}))
    if not ids:
        _say("Every question has a label.")
    elif not options.json and not options.out:
        _print_table(asked)
    return {"question_ids": ids}


def _fetch_beginnings(store: Store, ids: Sequence[str]) -> pd.DataFrame:
    """question_id, prompt (its first 80 characters), in the order of `ids`."""
    asked = store.frame(
        "SELECT question_id, left(prompt, 80) AS prompt FROM question "
        "WHERE question_id IN (SELECT unnest($ids::VARCHAR[]))",
        {"ids": list(ids)},
    )
    return asked.set_index("question_id").loc[list(ids)].reset_index()


def run_find(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.finding import find_questions, parse_filters

    if options.limit is not None and options.limit < 1:
        raise ConfigError("find: --limit must be above 0; leave it out for all.")
    with _open(options) as store:
        filters = parse_filters(
            store,
            options.task,
            options.skill,
            options.cluster,
            options.author,
            text=options.text or "",
            confidence_from=options.confidence_from,
            confidence_below=options.confidence_below,
            outcomes=tuple(options.outcome),
            like=options.like,
        )
        found = find_questions(store, filters)
        ids = found[: options.limit]
        if not options.json:
            _print_table(_fetch_beginnings(store, ids))
    _say(f"{len(found)} questions found" + (f", the first {len(ids)} shown." if len(ids) < len(found) else "."))
    return {"question_ids": ids, "n": len(found)}


def run_constrain(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.acts import undo
    from metamoe_backend.store.maps import fetch_cluster_question_ids, require_map
    from metamoe_backend.store.skills import constrain_questions, fetch_constraints

    with _open(options) as store:
        if options.relation == "list":
            found = fetch_constraints(store)
            found = found.assign(first=found["first_ids"].map(len), second=found["second_ids"].map(len))
            frame = found[["event_id", "relation", "first", "second", "author", "made_at"]]
            _print_table(frame) if not options.json else None
            return {"constraints": rows_of(frame)}
        if options.relation == "retract":
            if options.event not in set(fetch_constraints(store)["event_id"]):
                raise NotFoundError(
                    f"No constraint {options.event!r} stands; name one with --event (see `constrain list`)."
                )
            undo(store, options.event, options.by)
            _say("The constraint is taken back.")
            return {"event_id": options.event, "retracted": True}
        if options.cluster:
            newest = require_map(store, None)
            first, second = (fetch_cluster_question_ids(store, newest, cluster) for cluster in options.cluster)
        elif options.question:
            first, second = ([question] for question in options.question)
        else:
            raise ConfigError(f"constrain {options.relation}: name two sides with --question or with --cluster.")
        event_id = constrain_questions(store, options.relation, first, second, options.by)
    _say(f"{len(first)} and {len(second)} questions: {options.relation} skill.")
    return {"event_id": event_id, "relation": options.relation, "first": len(first), "second": len(second)}


def run_suggest(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.skills import fetch_question_labels

    values = _given(options, "encoder", "of", "method", "seed")
    with _open(options) as store:
        run = run_now(store, "suggest", values, options.by, _progress)
        frame = fetch_question_labels(store)
        result: Result = {
            "suggested": _emitted(run, "suggestion"),
            "classes": sorted(frame["skill"].unique()),
        }
    if options.out:
        _write_csv(options.out, frame[["question_id", "skill", "probability", "source"]])
    _say(f"{result['suggested']} questions have a suggestion, over {len(result['classes'])} skills.")
    return result


def run_freeze(options: argparse.Namespace) -> Result:
    with _open(options) as store:
        result = _freeze(store, options.name, options.threshold, options.by)
    _say("Labelling '{labelling}': {labels} labels, {suggestions} suggestions.".format(**result))
    return result


def _freeze(store: Store, name: str, threshold: float, by: str) -> Result:
    run_now(store, "freeze", {"labelling": name, "threshold": threshold}, by)
    row = store.frame("SELECT labelling, labels, suggestions FROM labelling WHERE labelling = ?", [name])
    return rows_of(row)[0]


def run_plan(options: argparse.Namespace) -> Result:
    from metamoe_backend.experts.plan import check_assignments, parse_assignments
    from metamoe_backend.store.experts import fetch_plan_entries, save_plan
    from metamoe_backend.store.skills import fetch_labelling_skills

    _require_name(options.name, "The plan's name")
    assignments = parse_assignments(options.assign)
    with _open(options) as store:
        labelling = options.labelling or _free_labelling_name(store, options.name)
        if options.labelling:
            skills = set(fetch_labelling_skills(store, labelling)["skill"])
        else:
            skills = _skills_to_freeze(store, options.threshold)
        check_assignments(assignments, skills, labelling)  # before anything is frozen
        if not options.labelling:
            _freeze(store, labelling, options.threshold, options.by)
        save_plan(store, options.name, labelling, list(assignments.items()), options.by)
        frame = fetch_plan_entries(store, options.name)
    _print_table(frame) if not options.json else None
    return {"plan": options.name, "labelling": labelling, "entries": rows_of(frame)}


def _require_name(name: str, what: str) -> None:
    if not re.match(NAME_PATTERN, name):
        raise ConfigError(
            f"{what} {name[:80]!r} cannot be used; use letters, digits, '.', '_' and '-' (at most 64, beginning with a "
            "letter or digit)."
        )


def _skills_to_freeze(store: Store, threshold: float) -> set[str]:
    """Skills that a labelling frozen now would hold."""
    from metamoe_backend.store.skills import fetch_question_labels

    frame = fetch_question_labels(store)
    return set(frame.loc[(frame["source"] == "label") | (frame["probability"] >= threshold), "skill"])


def _free_labelling_name(store: Store, name: str) -> str:
    from metamoe_backend.store.skills import fetch_labellings

    taken = set(fetch_labellings(store)["labelling"])
    return next(
        candidate
        for candidate in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
        if candidate not in taken
    )


# ---- experts and mixtures ---------------------------------------------------------------------------------------


def run_import(options: argparse.Namespace) -> Result:
    values = _given(options, "source", "name", "base", "trained_on")
    with _open(options) as store:
        run_now(store, "import", values, options.by)
        row = store.frame("SELECT * FROM adapter WHERE adapter = ?", [options.name])
    return rows_of(row)[0]


def _newest_plan(store: Store) -> str:
    plan = store.value("SELECT plan FROM plan ORDER BY made_at DESC LIMIT 1")
    if plan is None:
        raise NotFoundError("There is no plan yet; save one with `plan NAME --assign SKILL=EXPERT …`.")
    return plan


def run_train(options: argparse.Namespace) -> Result:
    if options.kind == "moe":
        return run_moe(options)
    values = _given(options, "name", "plan", "base", "device", "limit") | {"kind": options.kind, "optim": {}}
    values["optim"] = _given(options, "steps", "seed")
    return _train(options, "train", values)


def run_moe(options: argparse.Namespace) -> Result:
    values = _given(options, "name", "plan", "base", "device", "limit", "mode", "top_k")
    experts = _split_names(options.experts)
    optim = _given(options, "steps", "seed")
    return _train(options, "moe", values | {"experts": experts} | ({"optim": optim} if optim else {}))


def _train(options: argparse.Namespace, stage: str, values: Result) -> Result:
    with _open(options) as store:
        values.setdefault("plan", _newest_plan(store))
        run = launch(store, stage, merge_settings(values, options.set), options.by)
    if options.wait:
        wait_for(run)
        take_in(options)
    status = run.read_state()
    _say(f"Run {run.run_id}: {status.state}.")
    return {"run_id": run.run_id, "state": status.state}


def wait_for(run: RunFolder) -> None:
    """Wait until a run has ended, showing its progress; raises `MetaMoEError` with its reason when it failed.

    The workspace is not held meanwhile: the worker does not need the database, and a person may want it.
    """
    shown = -1
    while (status := run.read_state()).state in ("queued", "running"):
        if status.state == "queued":
            poll(run.workspace)  # starts a supervisor where the last one was killed
        if status.done != shown and status.total:
            shown = status.done
            eta = "" if status.eta_s is None else f", {status.eta_s:.0f} s left"
            _say(f"{run.read_spec().stage} {run.read_spec().name}: {status.done}/{status.total}{eta}")
        time.sleep(1.0)
    if status.state == "failed":
        raise MetaMoEError(f"Run {run.run_id} failed: {status.error}")


def take_in(options: argparse.Namespace) -> None:
    """Opening the workspace takes in what ended meanwhile; whoever holds it by now does the same."""
    try:
        _open(options).close()
    except BusyError as error:
        _say(f"The results are taken in by the holder of the workspace. {error}")


def run_evaluate(options: argparse.Namespace) -> Result:
    values = _given(options, "split", "limit", "n_shot", "device") | {"systems": options.system, "tasks": options.task}
    with _open(options) as store:
        run = launch(store, "evaluate", merge_settings(values, options.set), options.by)
    wait_for(run)
    take_in(options)
    if not options.json:
        _print_accuracy(options)
    return {"run_id": run.run_id, "rows": _emitted(run, "prediction")}


def _print_accuracy(options: argparse.Namespace) -> None:
    with _open(options) as store:
        frame = store.frame(
            "SELECT system, task, avg(correct::INT) AS accuracy, count(*) AS n FROM current_prediction "
            "WHERE list_contains(?, system) AND list_contains(?, task) GROUP BY ALL ORDER BY task, system",
            [options.system, options.task],
        )
    _print_table(frame)


# ---- results ----------------------------------------------------------------------------------------------------


def _table(options: argparse.Namespace, tables: dict[str, pd.DataFrame]) -> Result:
    if not options.json:
        for name, frame in tables.items():
            print(f"\n{name}")
            _print_table(frame)
    return {name: rows_of(frame) for name, frame in tables.items()}


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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

    experts = _split_names(options.experts or "")
    with _open(options) as store:
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
    result, regimes = _table(options, tables), find_regimes(predictions)
    if len(regimes) > 1:
        _say(f"'{ALL_TASKS}' pools different ways of scoring ({', '.join(regimes)}): compare systems, not levels.")
    return {**result, "regimes": regimes}


def run_forgetting(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.forgetting import compute_accuracies, compute_differences_to_base

    with _open(options) as store:
        predictions = _require_predictions(store, options.system, options.task)
    if options.system:
        predictions = predictions[predictions["system"].isin([*options.system, "base"])]
    tables = {"accuracy": compute_accuracies(predictions)}
    if (predictions["system"] == "base").any():
        tables["difference_to_base"] = compute_differences_to_base(predictions)
    return _table(options, tables)


def run_activations(options: argparse.Namespace) -> Result:
    from metamoe_backend.evaluate.routing import compute_layer_use, compute_load, compute_skill_use, find_collapse
    from metamoe_backend.store.experts import fetch_plan_entries, fetch_system_settings
    from metamoe_backend.store.results import fetch_activations, fetch_mixtures_with_activations

    with _open(options) as store:
        mixtures = fetch_mixtures_with_activations(store)
        if mixtures.empty:
            raise NotFoundError("No mixture has been evaluated yet; run `evaluate --system MIXTURE --task TASK`.")
        system = options.system or mixtures.sort_values("run_id")["system"].iloc[-1]
        activations = fetch_activations(store, system, options.task)
        if activations.empty:
            raise NotFoundError(f"Mixture {system!r} has no activations (there are: {', '.join(mixtures['system'])}).")
        plan = fetch_plan_entries(store, fetch_system_settings(store, system)["plan"])
    load = compute_load(activations)
    tables = {
        "layer_by_expert": compute_layer_use(activations),
        "skill_by_expert": compute_skill_use(activations, plan),
        "load": load,
        "warnings": find_collapse(load),
    }
    return {"system": system, **_table(options, tables)}


def run_report(options: argparse.Namespace) -> Result:
    from metamoe_backend.report import make_report

    with _open(options) as store:
        text = make_report(store)
    try:
        Path(options.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{options.out} cannot be written ({error.strerror}); choose another file.") from None
    _say(f"Report written to {options.out}.")
    return {"file": options.out}


def run_sql(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.console import run_query
    from metamoe_backend.store.publishing import publish

    if options.limit < 1 or not options.timeout > 0:
        raise ConfigError("sql: --limit and --timeout must be above 0; leave them out for 1000 rows and 20 s.")
    with _open(options) as store:
        published = publish(store)
    result = run_query(published, options.statement, limit=options.limit, timeout_s=options.timeout)
    if not options.json:
        _print_table(pd.DataFrame(result.rows, columns=result.columns))
        _say(f"{len(result.rows)} rows{' (cut at the limit)' if result.truncated else ''}, {result.elapsed_s:.2f} s")
    return {"columns": result.columns, "rows": result.rows}


# ---- workspace --------------------------------------------------------------------------------------------------


def _require_workspace(options: argparse.Namespace) -> Workspace:
    """Raise `NotFoundError` where no workspace is: there is nothing to mend."""
    workspace = find_workspace(options.workspace)
    if not (workspace.database.exists() or workspace.events.is_dir()):
        raise NotFoundError(f"There is no workspace in {workspace.root}; name its folder with --workspace.")
    return workspace


def run_rebuild(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.rebuild import rebuild

    counts = rebuild(_require_workspace(options))
    _say(f"Rebuilt: {sum(counts.values())} rows in {len(counts)} tables.")
    return {"rows": counts}


def run_repair(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.repair import repair

    result: Result = repair(_require_workspace(options))
    _say("Repaired {repaired}; {bytes_cut} bytes cut; copy kept at {kept_copy!r}.".format(**result))
    return result


def run_doctor(options: argparse.Namespace) -> Result:
    from metamoe_backend.doctor import examine, summarise

    findings = examine(find_workspace(options.workspace))
    if not options.json:
        for finding in findings:
            mark = "ok " if finding.ok else "BAD"
            print(f"{mark} {finding.what}: {finding.found}" + (f" -> {finding.remedy}" if finding.remedy else ""))
    return summarise(findings)


def run_demo(options: argparse.Namespace) -> Result:
    from metamoe_backend.demo import DEMO_FOLDER, open_demo
    from metamoe_backend.demo_recording import record_demo

    if options.record:
        return record_demo(Path(options.out) if options.out else DEMO_FOLDER, _say)
    workspace = find_workspace(options.workspace) if options.workspace else None
    opened = open_demo(workspace)
    _say(f"The demo lies in {opened.root}; open it with `python -m metamoe_backend --workspace {opened.root} ui`.")
    return {"workspace": str(opened.root)}


def run_ui(options: argparse.Namespace) -> Result:
    """Open the dashboard; without any workspace yet, on a copy of the recorded demo."""
    import subprocess

    from metamoe_backend.demo import open_demo
    from metamoe_backend.workspace import DEFAULT_WORKSPACE

    if options.address not in ("127.0.0.1", "localhost", "::1") and not Path(".streamlit/secrets.toml").is_file():
        raise ConfigError(
            f"{options.address} can be reached by others and no sign-in is set up; leave --address out, or configure "
            "[auth] in .streamlit/secrets.toml (README, 'For a group')."
        )
    workspace = find_workspace(options.workspace)
    if workspace.root == DEFAULT_WORKSPACE and not workspace.database.exists():
        workspace = open_demo(None)
    with Store.open(workspace, "the dashboard") as store:
        _say(f"Opening workspace {store.workspace.name} at http://{options.address}:{options.port}")
    project = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "pages", "--server.port", str(options.port), "--server.address", options.address]
    if options.address not in ("127.0.0.1", "localhost"):
        command += ["--server.allowedHosts", "*"]  # the sign-in guards it; names of this host are not known here
    environment = {**os.environ, "METAMOE_WORKSPACE": str(workspace.root.resolve())}
    finished = subprocess.run(command, env=environment, cwd=project, check=False)
    if finished.returncode not in (0, -2, 130):
        raise MetaMoEError(f"The dashboard ended with status {finished.returncode}; its messages stand above.")
    return {"workspace": str(workspace.root)}
