"""What a study found: who is best on each target, what was forgotten, what each choice is worth."""

from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.figures.studies import make_study_figure
from metamoe_backend.store.connection import Store
from metamoe_backend.study.advance import look_at
from metamoe_backend.study.document import write_document
from metamoe_backend.study.results import Results, collect_results
from metamoe_backend.study.studies import Study, read_study
from metamoe_backend.study.table import ALL
from pages.shared.charts import show_figure
from pages.shared.i18n import _
from pages.shared.layout import answer_line, canvas_and_inspector, plain
from pages.shared.state import per_version, segment_in_address
from pages.shared.tables import difference_text, p_column, p_text, percent, show_table


@per_version
def _load(store: Store, name: str) -> tuple[Results, str]:
    study = read_study(store.workspace, name)
    look = look_at(store, study)
    results = collect_results(store, study, look)
    return results, write_document(study, look, results)


def system_names() -> dict[str, str]:
    """What the rows of the table are called."""
    return {
        "base": _("Base model"), "random": _("Random expert"), "best-on-test": _("Best expert on test ‡"),
        "full": _("Expert on the full train set"), "best": _("Best expert by K shots"),
        "tuned": _("Best expert, tuned"), "mixed": _("Mixed data"), "uniform": _("Uniform mixture"),
        "arrow": _("Arrow"), "token": _("Token top-k (the method)"), "two-level": _("Two-level"),
    }  # fmt: skip


def render_results(store: Store, study: Study) -> None:
    """The answer, the comparison of one target, forgetting and ablations; nothing while nothing was evaluated."""
    results, document = _load(store, study.config.name)
    if results.compared.empty:
        st.info(
            _("The comparison appears here as soon as the first systems are evaluated."),
            icon=":material/hourglass_top:",
        )
        return
    answer_line(describe_outcome(results.compared))
    there = results.compared["target"].drop_duplicates().tolist()
    names = {
        name: _("All targets") if name == ALL else name
        for name in ([ALL] if ALL in there else []) + study.config.targets
    }
    target = segment_in_address(_("Target"), {name: names[name] for name in names if name in there}, "study_target")
    of_target = results.compared[results.compared["target"] == target]
    canvas, inspector = canvas_and_inspector()
    with canvas:
        alt = _("Accuracy of each system with its 95 % interval")
        show_figure(make_study_figure(of_target, system_names()), key="study_figure", alt=alt)
    with inspector:
        _render_reading(study, results, target)
    _render_comparison(of_target, ("tuned", "mixed"), "study_table")
    st.caption(
        _(
            "‡ chosen on the test questions themselves: the paper's way, not a result. † an expert in it was trained on the target's own train questions."
        )
        + " "
        + _(
            "95 % intervals: Wilson; of the random expert lowest to highest of the bank; of differences paired bootstrap."
        )
    )
    _render_forgetting(results, target)
    _render_ablations(results, target)
    st.download_button(
        _("Download as Markdown"), document, file_name=f"{study.config.name}.md", mime="text/markdown",
        icon=":material/download:", key="study_download",
    )  # fmt: skip


def describe_outcome(compared: pd.DataFrame) -> str:
    """How the method stands against the tuned expert and against mixed data, over all targets where there are."""
    rows = compared[compared["system"] == "token"].set_index("target")
    if rows.empty:
        return _("The bank is evaluated; the mixtures are not yet.")
    target = ALL if ALL in rows.index else rows.index[0]
    row, where = rows.loc[target], _("all targets") if target == ALL else plain(target)
    return _("On {where} the token mixture stands {tuned} against the tuned expert and {mixed} against mixed data (n={n}).").format(
        where=where, tuned=_versus(row, "tuned"), mixed=_versus(row, "mixed"), n=int(row["n"])
    )  # fmt: skip


def _versus(row: Any, reference: str) -> str:
    difference = row[f"{reference}_difference"]
    if pd.isna(difference):
        return "–"
    return difference_text(difference, row[f"{reference}_low"], row[f"{reference}_high"])


def _render_reading(study: Study, results: Results, target: str) -> None:
    """Which experts were chosen, and how to read the rows."""
    for task, chosen in results.chosen.items():
        if target in (ALL, task):
            st.markdown(f"**{plain(task)}**: {', '.join(plain(name) for name in chosen)}")
    st.caption(_("Chosen by accuracy, perplexity and diversity on the K shots."))
    st.caption(
        _(
            "Mixed data is one adapter with the parameters of N experts that reads as many questions of the pool as they did, then the same K shots and selected rows."
        )
    )
    if study.config.plan is None:
        st.caption(_("No two-level mixture: no plan covers the bank, so nothing says which question goes where."))
    else:
        st.caption(
            _("The two-level routers learn from plan {plan}; the experts stay as they are.").format(
                plan=plain(study.config.plan)
            )
        )
    st.caption(_("The paper's numbers come from other models: compare the order of the systems, not the levels."))


def _render_comparison(frame: pd.DataFrame, references: tuple[str, ...], key: str, own: bool = True) -> None:
    names = system_names()
    against = {
        "tuned": _("Against the tuned expert"), "mixed": _("Against mixed data"), "base": _("Against base"),
        "token": _("Against the study's choice"),
    }  # fmt: skip
    shown = {
        "system": [
            names.get(row["system"], row["system"])
            + (" †" if own and "own" in str(row.get("note", "")).split() else "")
            for row in frame.to_dict("records")
        ],
        "accuracy": [_accuracy(row) for row in frame.to_dict("records")],
        "n": frame["n"].tolist(),
    }
    for reference in references:
        shown[reference] = [_versus(row, reference) for row in frame.to_dict("records")]
        shown[f"{reference}_p"] = frame[f"{reference}_p"].map(p_text).tolist()
    labels = {"system": _("System"), "accuracy": _("Accuracy (95 % interval)"), "n": "n"}
    labels |= {each: against[each] for each in references}
    formats = {f"{each}_p": p_column() for each in references}
    show_table(pd.DataFrame(shown), key, labels=labels, formats=formats, height="content")  # few rows: none hidden


def _accuracy(row: dict[Any, Any]) -> str:
    low, high = (row["low"], row["high"]) if pd.notna(row["low"]) else (row["least"], row["greatest"])
    return _("{value} ({low} to {high})").format(
        value=percent(row["accuracy"], 1), low=f"{100 * low:.0f}", high=f"{100 * high:.0f}"
    )


def _render_forgetting(results: Results, target: str) -> None:
    if results.forgetting.empty:
        return
    frame = results.forgetting[results.forgetting["target"] == target]
    if len(frame):
        st.subheader(_("What it costs on the other targets"), anchor=False)
        _render_comparison(frame, ("base", "mixed"), "study_forgetting")


def _render_ablations(results: Results, target: str) -> None:
    if results.ablations.empty:
        return
    frame = results.ablations[(results.ablations["target"] == target) & (results.ablations["system"] != "token")]
    if len(frame):
        st.subheader(_("What each choice is worth"), anchor=False)
        _render_comparison(frame, ("token",), "study_ablations")
