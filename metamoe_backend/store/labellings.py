"""Frozen labellings: what they hold, and bringing the labels of one back."""

import pandas as pd

from metamoe_backend.errors import ConflictError, NotFoundError
from metamoe_backend.store.connection import Store
from metamoe_backend.store.events import record
from metamoe_backend.store.skills import require_labelling


def fetch_labelling_items(store: Store, labelling: str | None) -> pd.DataFrame:
    """One row a question: question_id, skill (by its present name), source, probability, task, split, prompt.

    None stands for what a labelling frozen now could hold: labels, else suggestions. Raises `NotFoundError` for an
    unknown name.
    """
    if labelling is None:
        items = """
            SELECT question_id, skill, 'label' AS source, 1.0 AS probability FROM question_label UNION ALL
            SELECT question_id, skill, 'suggestion', probability FROM current_suggestion
        """
    else:
        require_labelling(store, labelling)
        items = "SELECT question_id, skill, source, probability FROM labelling_item WHERE labelling = $labelling"
    frame = store.frame(
        f"SELECT item.*, task, split, prompt FROM ({items}) AS item JOIN question USING (question_id) "
        "ORDER BY question_id",
        {} if labelling is None else {"labelling": labelling},
    )
    return frame.assign(skill=_present_names(store, frame["skill"]))


def _present_names(store: Store, names: pd.Series) -> pd.Series:
    now = {name: present for name, (_, present) in find_skills_by_any_name(store).items()}
    return names.map(lambda name: now.get(name, name))


def find_skills_by_any_name(store: Store) -> dict[str, tuple[str, str]]:
    """{any name a skill ever had: (skill_id, present name)}; merged skills answer as the one that took them over.

    A name that is in use is its bearer's; one that several skills had is its newest bearer's.
    """
    rows = store.cursor().execute("""
        WITH given AS (
            SELECT event_id, json_extract_string(payload, '$.skill_id') AS skill_id,
                unnest([json_extract_string(payload, '$.name'), json_extract_string(payload, '$.before')]) AS name
            FROM event WHERE kind IN ('skill_created', 'skill_split', 'skill_renamed'))
        SELECT given.name, kept.skill_id, kept.name FROM given
        JOIN skill ON skill.skill_id = given.skill_id
        JOIN skill AS kept ON kept.skill_id = coalesce(skill.merged_into, skill.skill_id)
        WHERE given.name IS NOT NULL ORDER BY kept.name = given.name AND skill.merged_into IS NULL, given.event_id
    """)
    return {name: (skill_id, present) for name, skill_id, present in rows.fetchall()}


def restore_labelling(store: Store, labelling: str, by: str) -> str:
    """Let people's labels say again what they said in a labelling; returns the event id.

    Questions it has from labels get that label again (by `by`, where they need it now); questions labelled since lose
    their labels. Suggestions it took in stay suggestions: only people make labels. Raises `ConflictError` where nothing
    would change.
    """
    require_labelling(store, labelling)
    frozen = store.frame(
        "SELECT question_id, skill FROM labelling_item WHERE labelling = ? AND source = 'label' ORDER BY ALL",
        [labelling],
    )
    known = find_skills_by_any_name(store)
    unknown = sorted(set(frozen["skill"]) - set(known))
    if unknown:
        raise NotFoundError(
            f"Skill {unknown[0]!r} of labelling {labelling!r} does not exist any more; create it first."
        )
    frozen["skill_id"] = frozen["skill"].map(lambda name: known[name][0])
    present = store.frame("SELECT question_id, skill_id AS now FROM question_label")
    merged = frozen.merge(present, on="question_id", how="outer", indicator=True)
    changed = merged[merged["skill_id"].notna() & (merged["skill_id"] != merged["now"])]
    cleared = merged.loc[merged["_merge"] == "right_only", "question_id"].tolist()
    if changed.empty and not cleared:
        raise ConflictError(f"The labels say what labelling {labelling!r} says; there is nothing to bring back.")
    payload = {
        "labelling": labelling, "question_ids": changed["question_id"].tolist(),
        "skill_ids": changed["skill_id"].tolist(), "cleared": cleared,
    }  # fmt: skip
    return record(store, "labels_restored", by, payload)
