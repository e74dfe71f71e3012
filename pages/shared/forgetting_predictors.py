"""What goes with forgetting: a small table of cells, and how each quantity ranks with what was lost."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import streamlit as st

from metamoe_backend.errors import UserError
from metamoe_backend.evaluate.predictors import SMALL, correlate_predictors, find_starts, tabulate_forgetting
from metamoe_backend.experts.similarity import measure_folders
from pages.shared.i18n import _
from pages.shared.layout import plain
from pages.shared.state import get_workspace
from pages.shared.tables import show_table

_ASKED = "forgetting_predictors_asked"
_NO_PAIRS = pd.DataFrame(columns=["adapter", "other", "similarity"])


@st.cache_data(show_spinner=False, max_entries=8)
def _measure(
    folders: tuple[tuple[str, str], ...],
    hashes: tuple[str, ...],  # noqa: ARG001
) -> tuple[pd.DataFrame, dict[str, float]]:
    similarity, norms = measure_folders({name: Path(folder) for name, folder in folders})
    return similarity.list_pairs(), norms


_tabulate = st.cache_data(show_spinner=False, max_entries=8)(tabulate_forgetting)


def render_predictors(
    predictions: pd.DataFrame, systems: pd.DataFrame, adapters: pd.DataFrame, own: Mapping[str, list[str]]
) -> None:
    """Read from the adapters' files, so only when asked for."""
    if not own:
        return
    st.subheader(_("What predicts forgetting"), anchor=False)
    st.caption(
        _(
            "One cell is an expert on a task it did not learn. Forgetting: accuracy before its training (of the adapter it started from, else of the base model) minus after it; above 0 something was lost."
        )
    )
    if st.button(_("Compare the experts' weights"), key="forgetting_predictors"):
        st.session_state[_ASKED] = True
    if not st.session_state.get(_ASKED):
        return
    known = adapters.set_index("adapter").loc[list(own)]
    there = [name for name in own if (get_workspace().adapters / name).is_dir()]
    try:
        with st.spinner(_("Reading {n} adapters …").format(n=len(there))):
            folders = tuple((name, str(get_workspace().adapters / name)) for name in there)
            pairs, norms = _measure(folders, tuple(known.loc[there, "sha256"])) if there else (_NO_PAIRS, {})
    except UserError as error:
        st.error(plain(error))
        return
    skills = {name: list(known.loc[name, "skills"]) for name in own}
    starts = find_starts(systems, sorted(predictions["system"].unique()))
    cells = _tabulate(predictions, dict(own), skills, starts, norms, pairs)
    _render_correlations(cells)
    _render_cells(cells)


def _render_correlations(cells: pd.DataFrame) -> None:
    names = {
        "shared_skill": _("Shared skill"), "norm": _("Norm of the weight change"),
        "similarity": _("Cosine with the task's own expert"), "length": _("Length of the questions"),
    }  # fmt: skip
    st.caption(
        _(
            "Shared skill: share of the task's questions whose skill the expert was trained on. Norm: Frobenius norm of its weight change, summed over modules. Cosine: of its weight change and that of the expert who learned the task (the mean of several). Length: mean characters."
        )
    )
    found = correlate_predictors(cells)
    show_table(
        found.assign(predictor=found["predictor"].map(names)),
        "forgetting_correlations",
        labels={"n": _("Cells"), "values": _("Different values")},
        formats={
            "predictor": st.column_config.TextColumn(_("Goes with forgetting?")),
            "rho": st.column_config.NumberColumn(_("Spearman rho"), format="%+.2f"),
            "low": st.column_config.NumberColumn(_("95 % from"), format="%+.2f"),
            "high": st.column_config.NumberColumn(_("to"), format="%+.2f"),
        },
    )
    n = int(found["n"].max())
    text = _(
        "{n} cells of {experts} experts, which share experts and tasks: the bootstrap intervals over cells are too narrow."
    ).format(n=n, experts=cells["expert"].nunique())
    small = _("n is small: take a correlation as a hint, not as a finding.")
    st.caption(f"{text} {small}" if n < SMALL or cells["expert"].nunique() < SMALL else text)


def _render_cells(cells: pd.DataFrame) -> None:
    show_table(
        cells.assign(forgetting=100 * cells["forgetting"], shared_skill=100 * cells["shared_skill"]),
        "forgetting_cells",
        labels={"expert": _("Expert"), "task": _("Task"), "reference": _("Before"), "n": "n"},
        formats={
            "forgetting": st.column_config.NumberColumn(_("Forgetting, points"), format="%+.1f"),
            "shared_skill": st.column_config.NumberColumn(_("Shared skill, %"), format="%.0f"),
            "norm": st.column_config.NumberColumn(_("Norm"), format="%.2f"),
            "similarity": st.column_config.NumberColumn(_("Cosine"), format="%.3f"),
            "length": st.column_config.NumberColumn(_("Characters"), format="%.0f"),
        },
        height=280,
    )
