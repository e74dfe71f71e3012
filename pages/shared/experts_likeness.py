"""How alike the adapters are, in their weights and in their mistakes, and one pair of them looked at closely."""

from pathlib import Path

import pandas as pd
import streamlit as st

from metamoe_backend.errors import UserError
from metamoe_backend.evaluate.answers import choose_commonest_way
from metamoe_backend.experts.similarity import (
    Similarity,
    compare_folders,
    compute_error_agreement,
    compute_pair_agreement,
    grow_tree,
    make_square,
)
from metamoe_backend.figures.experts import make_layer_similarity_figure, make_likeness_figure
from metamoe_backend.store.connection import Store
from metamoe_backend.store.results import fetch_predictions
from pages.shared.charts import clicked_points, show_figure
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, plain
from pages.shared.review_views import render_review_action
from pages.shared.state import get_store, get_workspace, per_version, select_in_address
from pages.shared.tables import percent

_COMPARED, _MOST_COMPARED = "experts_compared", 40


@per_version
def _load_predictions(store: Store) -> pd.DataFrame:
    """Of tasks that were scored in several ways the commonest: the likeness of mistakes needs one answer a question."""
    return choose_commonest_way(fetch_predictions(store))


@st.cache_data(show_spinner=False, max_entries=16)
def _compare(folders: tuple[tuple[str, str], ...], hashes: tuple[str, ...]) -> Similarity:  # noqa: ARG001
    return compare_folders({name: Path(folder) for name, folder in folders})


_agreement = st.cache_data(show_spinner=False, max_entries=16)(compute_error_agreement)
_pair_agreement = st.cache_data(show_spinner=False, max_entries=64)(compute_pair_agreement)


def render_likeness(adapters: pd.DataFrame) -> None:
    """Heatmap and dendrogram of the bank; the clicked pair beside them."""
    words = {"weights": _("in their weight changes"), "mistakes": _("in their mistakes")}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        of = select_in_address(_("Compared"), list(words), "experts_likeness", lambda code: words[code])
        every = adapters["adapter"].tolist()
        chosen = st.multiselect(
            _("Adapters"), every, default=every[:_MOST_COMPARED], max_selections=_MOST_COMPARED, key="experts_similar"
        )
        if of == "weights" and st.button(_("Compare adapters"), key="experts_compare", disabled=len(chosen) < 2):
            st.session_state[_COMPARED] = True
    predictions = _load_predictions(get_store())
    evaluated = set(predictions["system"])
    answered = [name for name in chosen if name in evaluated]
    if of == "weights":
        _render_weights(adapters, chosen, predictions)
    else:
        _render_mistakes(answered, predictions)


def _render_weights(adapters: pd.DataFrame, chosen: list[str], predictions: pd.DataFrame) -> None:
    """Read from the adapters' files, so only when asked for."""
    st.caption(_("Cosine of the weight changes, averaged over modules and layers: 1 the same direction, 0 unrelated."))
    there = [name for name in chosen if (get_workspace().adapters / name).is_dir()]
    if len(there) < 2:
        st.caption(_("At least two adapters with their files in this workspace are needed."))
        return
    if not st.session_state.get(_COMPARED):
        return
    hashes = adapters.set_index("adapter").loc[there, "sha256"]
    try:
        with st.spinner(_("Reading {n} adapters …").format(n=len(there))):
            found = _compare(tuple((name, str(get_workspace().adapters / name)) for name in there), tuple(hashes))
    except UserError as error:
        st.error(plain(error))
        return
    square = make_square(found.list_pairs(), there, "similarity")
    canvas, inspector = canvas_and_inspector()
    with canvas:
        first, second = _render_heatmap(square, None, _("Heatmap of the adapters' similarity, with their dendrogram"))
    with inspector:
        _name_pair(first, second)
        st.text(_("Cosine of the weight changes: {value}").format(value=f"{square.loc[first, second]:.3f}"))
        show_figure(
            make_layer_similarity_figure(found.list_layers(first, second), float(square.loc[first, second])),
            key="experts_layers",
            alt=_("Cosine of the two adapters' weight changes per layer; dotted line: their mean"),
        )
        _render_agreement(predictions, first, second)


def _render_mistakes(answered: list[str], predictions: pd.DataFrame) -> None:
    st.caption(
        _(
            "Cohen's kappa of being right or wrong on the test questions both answered: 1 the same mistakes, 0 as chance would have it. Experts that err on different questions have something to give each other."
        )
    )
    if len(answered) < 2:
        st.caption(_("At least two adapters that answered questions are needed: evaluate them on the Jobs page."))
        return
    try:
        pairs = _agreement(predictions, answered)
    except UserError as error:
        st.error(plain(error))
        return
    square = make_square(pairs, answered, "kappa")
    counts = make_square(pairs, answered, "n", diagonal=0.0)
    canvas, inspector = canvas_and_inspector()
    with canvas:
        alt = _("Heatmap of the adapters' agreement in their mistakes, with their dendrogram")
        first, second = _render_heatmap(square, counts, alt)
    with inspector:
        _name_pair(first, second)
        _render_agreement(predictions, first, second)


def _render_heatmap(square: pd.DataFrame, counts: pd.DataFrame | None, alt: str) -> tuple[str, str]:
    """The heatmap with its dendrogram; returns the pair that was clicked, else the most alike one."""
    names = square.index.tolist()
    off = [(square.loc[one, two], one, two) for i, one in enumerate(names) for two in names[i + 1 :]]
    value, *closest = max(off, key=lambda pair: (pd.notna(pair[0]), pair[0]))
    st.markdown(
        _("Most alike: {first} and {second} ({value}).").format(
            first=plain(closest[0]), second=plain(closest[1]), value=f"{value:.2f}"
        )
    )
    figure = make_likeness_figure(
        square, grow_tree(square), counts, height=200 + max(12, min(34, 600 // len(names))) * len(names)
    )
    key = "experts_similarity" if counts is None else "experts_agreement"
    points = clicked_points(show_figure(figure, key=key, alt=alt, select="points"))
    picked = (points[0].get("customdata") or [])[:2] if points else []
    render_review_action(get_store(), "experts/likeness", ["experts_likeness"])
    if len(picked) == 2 and picked[0] != picked[1] and set(picked) <= set(names):
        return str(picked[0]), str(picked[1])
    return closest[0], closest[1]


def _name_pair(first: str, second: str) -> None:
    st.markdown(f"**{plain(first)}**, **{plain(second)}**")


def _render_agreement(predictions: pd.DataFrame, first: str, second: str) -> None:
    """How far a pair errs on the same questions, with n."""
    if not {first, second} <= set(predictions["system"]):
        st.caption(_("Not both have answered questions yet, so their mistakes cannot be compared."))
        return
    row = _agreement(predictions, [first, second]).iloc[0]
    st.text(_("Both right or both wrong: {share}, n={n}").format(share=percent(row["same"]), n=f"{int(row['n']):,}"))
    kappa = _pair_agreement(predictions, first, second)
    if pd.isna(kappa.value):
        st.text(_("Cohen's kappa of their mistakes: not defined, n={n}").format(n=f"{kappa.n:,}"))
        return
    st.text(
        _("Cohen's kappa of their mistakes: {value} ({low} to {high}), n={n}").format(
            value=f"{kappa.value:.2f}", low=f"{kappa.low:.2f}", high=f"{kappa.high:.2f}", n=f"{kappa.n:,}"
        )
    )
