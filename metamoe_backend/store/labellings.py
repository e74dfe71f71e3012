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


def fetch_label_changes(store: Store) -> pd.DataFrame:
    """What relabelling has changed for each expert and mixture since the labelling it was trained under.

    name, kind (as in `system`), run_id, labelling, gained and lost: training questions that its skills have now and had
    not then, and the other way round; of a mixture, those of its experts. Now means: people's labels as they stand,
    for other questions the suggestions of the newest labelling. Imported adapters, of which nobody knows what they
    were trained on, are left out.
    """
    experts = store.frame("""
        SELECT adapter.adapter AS name, adapter.run_id, plan.labelling, adapter.skills, system.kind
        FROM adapter JOIN plan USING (plan) LEFT JOIN system ON system.system = adapter.adapter
        ORDER BY adapter.created_at, adapter.adapter
    """)
    now = _fetch_present_skills(store)
    then = {labelling: _fetch_training_items(store, labelling) for labelling in experts["labelling"].unique()}
    names = {name: present for name, (_, present) in find_skills_by_any_name(store).items()}
    changes = [_count_changes(then[row.labelling], now, set(row.skills), names) for row in experts.itertuples()]
    experts = experts.assign(gained=[gained for gained, _ in changes], lost=[lost for _, lost in changes])
    columns = ["name", "kind", "run_id", "labelling", "gained", "lost"]
    return pd.concat([experts[columns], _add_up_mixtures(store, experts)[columns]], ignore_index=True)


def _fetch_present_skills(store: Store) -> pd.Series:
    """Present skill of each training question that has one (index question_id)."""
    frame = store.frame("""
        WITH newest AS (SELECT labelling FROM labelling ORDER BY created_at DESC, labelling DESC LIMIT 1)
        SELECT question_id, coalesce(label.skill, item.skill) AS skill FROM question
        LEFT JOIN question_label AS label USING (question_id)
        LEFT JOIN (SELECT * FROM labelling_item JOIN newest USING (labelling) WHERE source = 'suggestion') AS item
            USING (question_id)
        WHERE question.split = 'train' AND coalesce(label.skill, item.skill) IS NOT NULL
    """)
    return frame.set_index("question_id")["skill"]


def _fetch_training_items(store: Store, labelling: str) -> pd.Series:
    frame = store.frame(
        "SELECT question_id, skill FROM labelling_item JOIN question USING (question_id) "
        "WHERE labelling = ? AND split = 'train'",
        [labelling],
    )
    return frame.set_index("question_id")["skill"]


def _count_changes(then: pd.Series, now: pd.Series, skills: set[str], names: dict[str, str]) -> tuple[int, int]:
    """Questions gained and lost by these skills; `names` translates any name into the present one."""
    present = {names.get(skill, skill) for skill in skills}
    before = then.index[then.isin(skills)]
    after = now.index[now.map(lambda name: names.get(name, name)).isin(present)]
    return len(after.difference(before)), len(before.difference(after))


def _add_up_mixtures(store: Store, experts: pd.DataFrame) -> pd.DataFrame:
    mixtures = store.frame(
        "SELECT system AS name, kind, run_id, experts FROM system WHERE kind = 'moe' ORDER BY created_at"
    )
    parts = mixtures.explode("experts").merge(
        experts[["name", "labelling", "gained", "lost"]], left_on="experts", right_on="name", suffixes=("", "_expert")
    )
    added = parts.groupby(["name", "kind", "run_id"], as_index=False, sort=False).agg(
        labelling=("labelling", "max"), gained=("gained", "sum"), lost=("lost", "sum")
    )
    return added.astype({"gained": "int64", "lost": "int64"})
