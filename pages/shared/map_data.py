"""What the Map page shows, ready to be coloured."""

import pandas as pd

from metamoe_backend.figures.maps import assign_colours
from metamoe_backend.figures.style import OUTCOME_COLOURS, plain, wrapped
from metamoe_backend.skills.clusters import make_name
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_plan_entries, fetch_plans
from metamoe_backend.store.maps import fetch_clusters, fetch_map_points, fetch_map_texts, fetch_maps
from metamoe_backend.store.questions import fetch_questions
from metamoe_backend.store.results import fetch_expert_outcomes
from metamoe_backend.store.skills import fetch_skills
from pages.shared.i18n import _
from pages.shared.outcome_views import outcome_name
from pages.shared.state import per_version, per_version_shared

HOVERED = 5_000
"""Larger maps show no text under the mouse; a click shows the question instead."""
NAMED = 40
"""Names on the map: those of the largest clusters."""
FAINT = "rgba(128,128,128,0.2)"


@per_version
def load_maps(store: Store) -> pd.DataFrame:
    return fetch_maps(store)


@per_version_shared
def load_points(store: Store, map_id: str) -> pd.DataFrame:
    """What `fetch_map_points` returns; small maps with hover: escaped text of a few lines."""
    points = fetch_map_points(store, map_id)
    if len(points) > HOVERED:
        return points
    hover = [
        f"{wrapped(text)}<br><i>{plain(task, 40)}</i>"  # not its skill: each label would send all texts again
        for text, task in zip(fetch_map_texts(store, map_id), points["task"], strict=True)
    ]
    return points.assign(hover=hover)


@per_version
def load_clusters(store: Store, map_id: str) -> pd.DataFrame:
    """Clusters with name: a person's, else their first words."""
    clusters = fetch_clusters(store, map_id)
    names = [make_name(*pair) for pair in zip(clusters["name"], clusters["keywords"], strict=True)]
    return clusters.assign(name=names, named=clusters["name"].notna())


@per_version
def load_texts(store: Store, ids: tuple[str, ...]) -> dict[str, str]:
    """Prompts by question_id."""
    questions = fetch_questions(store, question_ids=ids)
    return dict(zip(questions["question_id"], questions["prompt"], strict=True))


@per_version
def load_skills(store: Store) -> pd.DataFrame:
    return fetch_skills(store)


@per_version
def load_experts(store: Store) -> tuple[str | None, dict[str, str]]:
    """The newest plan's name and its expert for each skill."""
    plans = fetch_plans(store)
    if plans.empty:
        return None, {}
    entries = fetch_plan_entries(store, plans["plan"].iloc[0])
    return plans["plan"].iloc[0], dict(zip(entries["skill"], entries["expert"], strict=True))


@per_version
def load_outcomes(store: Store) -> pd.Series:
    return fetch_expert_outcomes(store)


def colour_name(by: str) -> str:
    names = {
        "cluster": _("Cluster"), "task": _("Task"), "skill": _("Skill"), "expert": _("Expert"),
        "outcome": _("Outcome"), "confidence": _("Confidence"),
    }  # fmt: skip
    return names[by]


def cluster_names(clusters: pd.DataFrame) -> dict[int, str]:
    return {
        row.cluster: f"{row.cluster}: {row.name_}" for row in clusters.rename(columns={"name": "name_"}).itertuples()
    }


def group_points(
    store: Store, points: pd.DataFrame, clusters: pd.DataFrame, by: str
) -> tuple[pd.Series, dict[str, str]]:
    """The category of each point and the colour of each category; a category without a colour is drawn grey."""
    if by == "task":
        return points["task"], assign_colours(sorted(points["task"].cat.categories))
    if by == "skill":
        skills = load_skills(store)
        return fill_missing(points["skill"], _("unlabelled")), dict(zip(skills["name"], skills["colour"], strict=True))
    if by == "expert":
        experts = load_experts(store)[1]
        colours = assign_colours(sorted(set(experts.values()) - {"base"}))
        return fill_missing(points["skill"].map(experts), _("in no plan")), colours
    if by == "outcome":
        outcomes = points["question_id"].map(load_outcomes(store))
        colours = {outcome_name(outcome): colour for outcome, colour in OUTCOME_COLOURS.items()}
        colours[_("not evaluated")] = FAINT  # all incorrect is grey already
        return fill_missing(outcomes.map(outcome_name, na_action="ignore"), _("not evaluated")), colours
    names = cluster_names(clusters)
    return fill_missing(name_clusters(points, clusters), _("noise")), assign_colours(list(names.values()))


def name_clusters(points: pd.DataFrame, clusters: pd.DataFrame) -> pd.Series:
    """The name of each point's cluster (category), missing for noise."""
    names = cluster_names(clusters)
    codes = pd.Index(list(names)).get_indexer(points["cluster"])
    return pd.Series(pd.Categorical.from_codes(codes, list(names.values())), index=points.index)


def fill_missing(group: pd.Series, name: str) -> pd.Series:
    """Categories [n] with `name` where there is none."""
    groups = group.astype("category")
    if name not in groups.cat.categories:
        groups = groups.cat.add_categories([name])
    return groups.fillna(name)
