"""Verbs of people who label: label, next, find, constrain, suggest, freeze, plan."""

import argparse
import csv
import re
from collections.abc import Sequence

import pandas as pd

from metamoe_backend.config import NAME_PATTERN, NextConfig, parse_config
from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.launch import run_now
from metamoe_backend.rows import How
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs.common import (
    Result,
    count_emitted,
    given,
    open_store,
    print_table,
    rows_of,
    say,
    show_progress,
    show_tables,
    write_csv,
)


def run_clusters(options: argparse.Namespace) -> Result:
    from metamoe_backend.skills import clusters
    from metamoe_backend.store.acts import undo
    from metamoe_backend.store.maps import fetch_clusters, require_map

    with open_store(options) as store:
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
    return {**show_tables(options, {"clusters": shown}), "map_id": map_id, "event_id": event_id}


def run_label(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.maps import fetch_cluster_question_ids, require_map
    from metamoe_backend.store.skills import find_or_create_skill, label_questions

    with open_store(options) as store:
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
    say(f"{labelled} questions labelled.")
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

    config = parse_config(NextConfig, given(options, "encoder", "of", "method", "seed", "count"))
    with open_store(options) as store:
        ids = find_next(store, *read_candidates(store, config), config.count, config.seed)
        asked = _fetch_beginnings(store, ids)
    if options.out:
        write_csv(options.out, pd.DataFrame({"question_id": ids}))
    if not ids:
        say("Every question has a label.")
    elif not options.json and not options.out:
        print_table(asked)
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
    with open_store(options) as store:
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
            print_table(_fetch_beginnings(store, ids))
    say(f"{len(found)} questions found" + (f", the first {len(ids)} shown." if len(ids) < len(found) else "."))
    return {"question_ids": ids, "n": len(found)}


def run_constrain(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.acts import undo
    from metamoe_backend.store.maps import fetch_cluster_question_ids, require_map
    from metamoe_backend.store.skills import constrain_questions, fetch_constraints

    with open_store(options) as store:
        if options.relation == "list":
            found = fetch_constraints(store)
            found = found.assign(first=found["first_ids"].map(len), second=found["second_ids"].map(len))
            frame = found[["event_id", "relation", "first", "second", "author", "made_at"]]
            print_table(frame) if not options.json else None
            return {"constraints": rows_of(frame)}
        if options.relation == "retract":
            if options.event not in set(fetch_constraints(store)["event_id"]):
                raise NotFoundError(
                    f"No constraint {options.event!r} stands; name one with --event (see `constrain list`)."
                )
            undo(store, options.event, options.by)
            say("The constraint is taken back.")
            return {"event_id": options.event, "retracted": True}
        if options.cluster:
            newest = require_map(store, None)
            first, second = (fetch_cluster_question_ids(store, newest, cluster) for cluster in options.cluster)
        elif options.question:
            first, second = ([question] for question in options.question)
        else:
            raise ConfigError(f"constrain {options.relation}: name two sides with --question or with --cluster.")
        event_id = constrain_questions(store, options.relation, first, second, options.by)
    say(f"{len(first)} and {len(second)} questions: {options.relation} skill.")
    return {"event_id": event_id, "relation": options.relation, "first": len(first), "second": len(second)}


def run_suggest(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.skills import fetch_question_labels

    values = given(options, "encoder", "of", "method", "seed")
    with open_store(options) as store:
        run = run_now(store, "suggest", values, options.by, show_progress)
        frame = fetch_question_labels(store)
        result: Result = {
            "suggested": count_emitted(run, "suggestion"),
            "classes": sorted(frame["skill"].unique()),
        }
    if options.out:
        write_csv(options.out, frame[["question_id", "skill", "probability", "source"]])
    say(f"{result['suggested']} questions have a suggestion, over {len(result['classes'])} skills.")
    return result


def run_freeze(options: argparse.Namespace) -> Result:
    with open_store(options) as store:
        result = _freeze(store, options.name, options.threshold, options.by)
    say("Labelling '{labelling}': {labels} labels, {suggestions} suggestions.".format(**result))
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
    with open_store(options) as store:
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
    print_table(frame) if not options.json else None
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
