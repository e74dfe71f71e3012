"""The Router page's second half: which experts are chosen together, and whether the routers and the labels agree."""

from itertools import combinations
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import BASE_EXPERT
from metamoe_backend.evaluate.routing import (
    RATERS,
    compute_agreement,
    compute_coactivation,
    compute_confusion,
    compute_token_entropy,
    compute_votes,
)
from metamoe_backend.figures.routing import make_coactivation_figure, make_confusion_figure
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_gate_patterns, fetch_question_choices
from pages.shared.charts import show_figure
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.router_clicks import remember_click
from pages.shared.state import per_version
from pages.shared.tables import percent, show_table


@per_version
def load_patterns(store: Store, system: str, tasks: tuple[str, ...]) -> pd.DataFrame:
    return fetch_gate_patterns(store, system, tasks)


@per_version
def load_votes(store: Store, system: str, tasks: tuple[str, ...], plan: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    """`compute_votes` with the column labelled: whether a person gave the question its skill."""
    choices = fetch_question_choices(store, system, tasks)
    votes = compute_votes(choices, pd.DataFrame(list(plan), columns=["skill", "expert"]))
    return votes.assign(labelled=votes["question_id"].map(choices.set_index("question_id")["labelled"]))


@per_version
def load_agreement(
    store: Store, system: str, tasks: tuple[str, ...], plan: tuple[tuple[str, str], ...]
) -> pd.DataFrame:
    """`compute_agreement` of `load_votes`: two thousand bootstrap draws a pair, once."""
    return compute_agreement(load_votes(store, system, tasks, plan))


def rater_name(rater: str) -> str:
    names = {"label": _("plan for the skill"), "by_question": _("task router"), "by_token": _("token router")}
    return names[rater]


def render_together(patterns: pd.DataFrame, experts: list[str]) -> None:
    """How often two experts are chosen for the same token, and how decided the gate of one token is."""
    st.markdown(_("**Chosen together**"))
    if patterns.empty:
        st.info(_("No token of these questions was recorded with an expert."), icon=":material/inbox:")
        return
    pairs = compute_coactivation(patterns, experts)
    figure = make_coactivation_figure(pairs, experts, height=130 + 40 * len(experts))
    alt = _("Heatmap: how often two experts are chosen for the same token.")
    show_figure(figure, key="router_pairs", alt=alt, select="points", on_select=remember_click("router_pairs"))
    entropy, different = compute_token_entropy(patterns, len(experts)), pairs[pairs["expert"] < pairs["other"]]
    said = [
        _("Share of gates (a token at a layer) that chose both; diagonal: that chose it at all; n={n} gates of the sampled questions.").format(
            n=f"{entropy['gates']:,}"
        ),
        _("Entropy of one gate: {nats} nats on average, {share} of even.").format(
            nats=f"{entropy['nats']:.2f}", share=percent(entropy["entropy"])
        ),
    ]  # fmt: skip
    if different["lift"].notna().any():
        most = different.sort_values("lift", ascending=False).iloc[0]
        said.append(
            _("Most drawn together: {one} and {other}, lift {lift} over independence ({even} if all sets were equally often).").format(
                one=plain(most["expert"], 24), other=plain(most["other"], 24), lift=f"{most['lift']:.2f}",
                even=f"{most['even']:.2f}",
            )
        )  # fmt: skip
    st.caption(" ".join(said))


def render_agreement(votes: pd.DataFrame, agreement: pd.DataFrame, experts: list[str]) -> tuple[str, str] | None:
    """Cohen's kappa of each two raters, and the confusion table of the pair that is looked at, which is returned."""
    st.markdown(_("**Do the routers agree, with each other and with the skills?**"))
    raters = [rater for rater in RATERS if rater in set(votes["rater"])]
    pairs = list(combinations(raters, 2))
    if agreement.empty or not pairs:
        st.info(_("This mixture has no task router and its questions no planned skill: nothing to compare."))
        return None
    shown = agreement.assign(
        pair=[f"{rater_name(row.first)} / {rater_name(row.second)}" for row in agreement.itertuples()],
        kappa=[_kappa_text(row) for row in agreement.itertuples()],
        same=[percent(value) for value in agreement["same"]],
    )
    labels = {"pair": _("Between"), "kappa": _("Cohen's kappa (95 %)"), "same": _("Same expert")}
    show_table(shown[["pair", "kappa", "same"]], "router_agreement", labels=labels)
    chosen = st.selectbox(
        _("Confusion table of"), pairs, format_func=lambda pair: f"{rater_name(pair[0])} / {rater_name(pair[1])}",
        key="router_raters",
    )  # fmt: skip
    confusion = compute_confusion(votes, *chosen)
    named = set(confusion[chosen[0]]) | set(confusion[chosen[1]])
    rows = [*experts, *sorted(named - {*experts, BASE_EXPERT}), *([BASE_EXPERT] if BASE_EXPERT in named else [])]
    titles = (rater_name(chosen[0]), rater_name(chosen[1]))
    figure = make_confusion_figure(confusion, rows, titles, height=140 + 36 * len(rows))
    alt = _("Heatmap: questions by the experts that two raters name.")
    key = f"router_confusion_{'_'.join(chosen)}"
    show_figure(figure, key=key, alt=alt, select="points", on_select=remember_click(key, "router_confusion"))
    people = int(votes.drop_duplicates("question_id")["labelled"].sum())
    st.caption(
        _("The task router's choice is its most probable route, the token router's the expert of the largest mean gate weight; '{base}' where none was used. A skill is a person's label ({people} of these questions) or else a suggestion.").format(
            base=BASE_EXPERT, people=f"{people:,}"
        )
    )  # fmt: skip
    return chosen


def _kappa_text(row: Any) -> str:
    if pd.isna(row.kappa):
        return _("not defined, n={n}").format(n=f"{row.n:,}")
    return f"{row.kappa:.2f} ({row.low:.2f} – {row.high:.2f}), n={row.n:,}"
