"""Overview: where do we stand?"""

import streamlit as st

from metamoe_backend.store.acts import fetch_acts
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_maps
from metamoe_backend.store.reviews import fetch_review_feed
from metamoe_backend.store.runs import fetch_pipeline_counts, fetch_runs
from pages.shared.i18n import _
from pages.shared.layout import answer_line, page_header
from pages.shared.overview_views import describe_cards, render_acts, render_cards, render_review_line, render_runs
from pages.shared.relabelling import load_label_changes
from pages.shared.state import get_store, open_page, per_version


@per_version
def load(store: Store) -> dict:
    return {
        "counts": fetch_pipeline_counts(store),
        "maps": fetch_maps(store),
        "runs": fetch_runs(store),
        "acts": fetch_acts(store, 12),
        "changes": load_label_changes(store),
        "feed": fetch_review_feed(store),
    }


def render() -> None:
    action = page_header(
        _("Overview"), _("Questions grouped by skill, one LoRA expert per skill, routed per question and per token.")
    )
    found = load(get_store())
    cards = describe_cards(found)
    following = next((card for card in cards if card.state == "empty"), None)
    with action:
        page = following.page if following else "review"
        label = following.action if following else _("Review results")
        if st.button(label, type="primary", key="overview_next", icon=":material/arrow_forward:"):
            open_page(page)
    counts = found["counts"]
    answer_line(
        _(
            "{tasks} tasks, {questions} questions, {skills} skills, {experts} experts, {mixtures} mixtures, {systems} systems evaluated."
        ).format(
            tasks=counts["tasks"],
            questions=f"{counts['questions']:,}",
            skills=counts["skills"],
            experts=counts["experts"],
            mixtures=counts["mixtures"],
            systems=counts["systems_evaluated"],
        )
    )
    render_review_line(found["feed"], following)
    render_cards(cards)
    left, right = st.columns(2, gap="medium")
    with left:
        render_runs(found["runs"])
    with right:
        render_acts(found["acts"])


render()
