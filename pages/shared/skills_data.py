"""What the Skills page shows."""

import pandas as pd
import streamlit as st

from metamoe_backend.config import DEFAULT_ENCODER, NextConfig
from metamoe_backend.errors import NotFoundError
from metamoe_backend.rows import Of
from metamoe_backend.skills.features import Features
from metamoe_backend.skills.queue import find_labelled_neighbours, find_next, order_queue, read_candidates
from metamoe_backend.store.acts import Act, fetch_acts, fetch_question_acts
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_maps, fetch_newest_embedding, fetch_vectors
from metamoe_backend.store.questions import fetch_meta_questions, fetch_prompts
from metamoe_backend.store.skills import (
    fetch_labellings,
    fetch_labels,
    fetch_questions_to_label,
    fetch_skills,
    fetch_suggestions,
)
from pages.shared.i18n import _
from pages.shared.state import per_version

CHOSEN_AHEAD, CHOSEN_ANEW = 20, 5
"""So many questions are chosen by what they teach, and after so many labels they are chosen anew."""
_CHOSEN = "skills_chosen"


@per_version
def load_skills(store: Store) -> pd.DataFrame:
    return fetch_skills(store)


@per_version
def load_suggestions(store: Store) -> pd.DataFrame:
    return fetch_suggestions(store)


@per_version
def load_acts(store: Store) -> list[Act]:
    return fetch_acts(store, 200)


@per_version
def load_question_acts(store: Store, question_id: str) -> list[Act]:
    return fetch_question_acts(store, question_id)


@per_version
def load_labellings(store: Store) -> pd.DataFrame:
    return fetch_labellings(store)


@per_version
def load_newest_map(store: Store) -> dict | None:
    maps = fetch_maps(store)
    return maps.iloc[0].to_dict() if len(maps) else None


@per_version
def load_questions(store: Store) -> pd.DataFrame:
    """Every question with its place on the newest map and what is known of its skill; without its text."""
    newest = load_newest_map(store)
    return fetch_questions_to_label(store, newest["map_id"] if newest else None)


@per_version
def load_prompts(store: Store, question_ids: tuple[str, ...]) -> dict[str, str]:
    return fetch_prompts(store, question_ids)


@per_version
def _load_waiting(store: Store) -> list[str]:
    return order_queue(load_questions(store))


def load_queue(store: Store) -> list[str]:
    """Ids of all unlabelled questions, what teaches most first; by clusters alone where not all are embedded.

    Choosing costs more than all else that a label sets off, so the person works through CHOSEN_ANEW of what was chosen
    before it is chosen again; a label that is taken back brings its question back to the front.
    """
    waiting = _load_waiting(store)
    newest = load_newest_map(store) or {"encoder": DEFAULT_ENCODER, "of": "question"}
    config = NextConfig(encoder=newest["encoder"], of=newest["of"])
    embedded_by = fetch_newest_embedding(store, config.encoder, config.of)
    if embedded_by is None:
        return waiting
    scope, free = (str(store.workspace.root), embedded_by, config.encoder, config.of), set(waiting)
    before, chosen = st.session_state.get(_CHOSEN, (None, []))
    left = [question_id for question_id in chosen if question_id in free]
    if before != scope or len(left) <= CHOSEN_AHEAD - CHOSEN_ANEW:
        try:
            with st.spinner(_("Choosing the questions that teach most …")):  # some seconds, the first time
                left = _choose_ahead(store, embedded_by, config.encoder, config.of)
        except NotFoundError:  # some questions came in after the others were embedded
            return waiting
        st.session_state[_CHOSEN] = (scope, left)
    ahead = set(left)
    return left + [question_id for question_id in waiting if question_id not in ahead]


@per_version
def _choose_ahead(store: Store, embedded_by: str, encoder: str, of: Of) -> list[str]:
    config = NextConfig(encoder=encoder, of=of)
    candidates = _read_candidates(store, config, (str(store.workspace.root), embedded_by))
    return find_next(store, *candidates, CHOSEN_AHEAD, config.seed)


@st.cache_resource(show_spinner=False, max_entries=2, hash_funcs={NextConfig: NextConfig.model_dump_json})
def _read_candidates(_store: Store, config: NextConfig, key: tuple[str, str]) -> tuple[list[str], Features]:  # noqa: ARG001
    return read_candidates(_store, config)


@per_version
def load_meta_question(store: Store, question_id: str, task: str) -> str | None:
    metas = fetch_meta_questions(store, tasks=(task,))
    metas = metas[metas["question_id"] == question_id]
    return str(metas["text"].iloc[0]) if len(metas) else None


@per_version
def load_neighbours(store: Store, question_id: str) -> pd.DataFrame:
    """question_id, skill, similarity, prompt of the nearest labelled questions, by the newest map's vectors."""
    labels = fetch_labels(store)
    newest = load_newest_map(store) or {"encoder": DEFAULT_ENCODER, "of": "question"}
    ids = [question_id, *labels["question_id"].unique()]
    vectors = fetch_vectors(store, newest["encoder"], newest["of"], ids)
    near = find_labelled_neighbours(vectors, question_id, labels)
    return near.assign(prompt=near["question_id"].map(fetch_prompts(store, near["question_id"].tolist())))
