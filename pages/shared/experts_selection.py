"""Choose experts of the bank for a task: the form, the ranking with every number, and how firm the choice is."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import SelectConfig, parse_config
from metamoe_backend.errors import ConfigError, UserError
from metamoe_backend.evaluate.intervals import compute_wilson_interval
from metamoe_backend.experts.selection import (
    choose_by_one_criterion,
    compute_stability,
    count_choices,
    rank_subsets,
)
from metamoe_backend.figures.experts import make_choice_figure
from metamoe_backend.jobs.command_line import make_command_line
from metamoe_backend.launch import launch
from metamoe_backend.store.connection import Store
from metamoe_backend.store.expert_selections import (
    fetch_candidate_pairs,
    fetch_candidate_shots,
    fetch_candidates,
    fetch_selections,
)
from metamoe_backend.store.questions import fetch_tasks
from pages.shared.charts import show_figure
from pages.shared.config_form import FormOptions, render_fields
from pages.shared.i18n import _
from pages.shared.jobs_new import open_new_run
from pages.shared.layout import confirm, plain
from pages.shared.review_views import render_review_action
from pages.shared.state import (
    get_person,
    get_store,
    get_workspace,
    open_page,
    per_version,
    select,
    select_in_address,
)
from pages.shared.tables import percent, show_table

_SHORT = ("task", "k", "draws", "shortlist", "experts", "base")
_MOST_SUBSETS_SHOWN = 20

_subsets = st.cache_data(show_spinner=False, max_entries=32)(rank_subsets)
_alone = st.cache_data(show_spinner=False, max_entries=32)(choose_by_one_criterion)
_stability = st.cache_data(show_spinner=False, max_entries=32)(compute_stability)


@per_version
def _load_selections(store: Store) -> pd.DataFrame:
    return fetch_selections(store)


@per_version
def _load_selection(store: Store, run_id: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Ranking, shots and pairs of one selection."""
    return fetch_candidates(store, run_id), fetch_candidate_shots(store, run_id), fetch_candidate_pairs(store, run_id)


@per_version
def _load_tasks(store: Store) -> list[str]:
    tasks = fetch_tasks(store)
    return tasks.loc[tasks["train"] > 0, "task"].tolist()


def render_selection(adapters: pd.DataFrame) -> None:
    """The whole part of the page."""
    selections = _load_selections(get_store())
    st.caption(
        _(
            "Which experts of the bank suit a task, judged by a few of its questions whose answers are known: accuracy, perplexity of the right answer, and how unlike the experts are."
        )
    )
    _render_form(adapters, opened=selections.empty)
    if selections.empty:
        return
    runs = selections.set_index("run_id")
    names = {run: _name_selection(row) for run, row in runs.iterrows()}
    run_id = select_in_address(_("Selection"), list(names), "experts_selection", lambda run: names[run])
    ranking, shots, pairs = _load_selection(get_store(), run_id)
    _render_choice(ranking, shots, pairs)


def _name_selection(row: pd.Series) -> str:
    return _("{task}: {experts} of {candidates}, K = {k}, {draws} draws · {when} UTC").format(
        task=row["task"], experts=int(row["experts"]), candidates=int(row["candidates"]), k=int(row["shots"]),
        draws=int(row["draws"]), when=f"{row['created_at']:%Y-%m-%d %H:%M}",
    )  # fmt: skip


def _render_form(adapters: pd.DataFrame, opened: bool) -> None:
    with st.expander(_("New selection"), icon=":material/checklist:", expanded=opened, key="experts_select_form"):
        tasks = _load_tasks(get_store())
        if not tasks or len(adapters) < 2:
            st.caption(_("A task with training questions and at least two adapters in the bank are needed."))
            return
        experts = adapters.loc[adapters["kind"] == "expert", "adapter"].tolist()
        bases = list(dict.fromkeys(adapters["base"]))
        options = FormOptions(
            "experts_select",
            {"task": tasks[0], "base": bases[0], "experts": min(4, max(1, len(adapters) - 1))},
            {"task": tasks, "base": bases, "candidates": experts},
        )
        values = render_fields(SelectConfig, _SHORT, options)
        others = [name for name in SelectConfig.model_fields if name not in values]
        with st.popover(_("More settings"), icon=":material/tune:", key="experts_select_more"):
            values |= render_fields(SelectConfig, others, options, columns=2)
        _render_start(values)


def _render_start(values: dict[str, Any]) -> None:
    """The command that would do the same, and the button; a setting that cannot be is named in their place."""
    try:
        config = parse_config(SelectConfig, values)
    except ConfigError as error:
        st.warning(plain(error), icon=":material/edit:")
        return
    st.caption(_("The same on the command line, while this dashboard is closed:"))
    st.code(make_command_line(get_workspace(), "select", config), language="bash", wrap_lines=True)
    if st.button(_("Choose experts"), key="experts_select_go", type="primary", icon=":material/play_arrow:"):
        try:
            run = launch(get_store(), "select", values, get_person())
        except UserError as error:
            st.error(plain(error), icon=":material/error:")
            return
        select(run=run.run_id)
        confirm(_("{name} is queued.").format(name=plain(run.read_spec().name)))
        open_page("jobs")


def _render_choice(ranking: pd.DataFrame, shots: pd.DataFrame, pairs: pd.DataFrame) -> None:
    shortlist, experts = int(ranking["shortlisted"].sum()), int(ranking["chosen"].sum())
    chosen = ranking.loc[ranking["chosen"], "adapter"].tolist()
    subsets = _subsets(ranking, pairs, shortlist, experts)
    st.markdown(explain_choice(ranking, subsets))
    _warn_of_changes(ranking)
    show_table(
        describe_ranking(ranking, shots),
        "experts_ranking",
        labels={
            "chosen": _("Chosen"), "adapter": _("Adapter"), "interval": _("95 % interval, n distinct shots"),
            "trained_on": _("Trained on"),
        },
        formats={
            "accuracy": st.column_config.NumberColumn(
                _("Accuracy, %"), format="%.1f", help=_("Share of the K shots answered rightly, mean over the draws")
            ),
            "accuracy_rank": _number(_("R_A"), _("Rank by accuracy, 1 the highest; equal ones share their mean rank")),
            "perplexity": st.column_config.NumberColumn(
                _("Perplexity"), format="%.4g",
                help=_("Perplexity of explanation and answer, summed over the K shots, mean over the draws"),
            ),
            "perplexity_rank": _number(_("R_P"), _("Rank by perplexity, 1 the lowest; equal ones share their mean rank")),
            "rank_sum": _number(_("R_P + R_A"), _("The lowest are on the shortlist; equal ones: the lower perplexity")),
            "shortlisted": st.column_config.CheckboxColumn(_("Shortlist")),
        },
        height=min(420, 45 + 36 * max(2, len(ranking))),
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(_shots_sentence(shots), width="content")
        if st.button(_("Join the chosen experts"), key="experts_select_join", icon=":material/hub:"):
            open_new_run("moe", {"experts": chosen, "top_k": min(2, len(chosen)), "base": str(ranking["base"].iloc[0])})
            open_page("jobs")
        render_review_action(get_store(), "experts/selection", ["experts_selection"])
    sets, firm, alone, every = st.tabs(
        [_("Other sets"), _("Over draws and K"), _("By one criterion alone"), _("Every shot")]
    )
    with sets:
        _render_subsets(ranking, pairs, subsets, shortlist, experts)
    with firm:
        _render_stability(ranking, shots, pairs, shortlist, experts, chosen)
    with alone:
        _render_alone(ranking, pairs, experts, chosen)
    with every:
        _render_shots(ranking, shots)


def explain_choice(ranking: pd.DataFrame, subsets: pd.DataFrame) -> str:
    """The winner, its numbers, and what the next set lacks, in words (Markdown)."""
    best = subsets.iloc[0]
    first = ranking.iloc[0]
    text = _(
        "For {task}: **{experts}**. Of {candidates} candidates, {shortlist} are on the shortlist, and this set of {n} has the lowest sum: {rank_sum} by accuracy and perplexity + {diversity} by diversity (rank among {sets} sets, mean cosine {cosine}) = {total}."
    ).format(
        task=plain(first["task"]), experts=_join(best["experts"]), candidates=len(ranking),
        shortlist=int(ranking["shortlisted"].sum()), n=len(best["experts"]), rank_sum=f"{best['rank_sum']:g}",
        diversity=f"{best['diversity_rank']:g}", sets=len(subsets), cosine=f"{best['similarity']:.3f}",
        total=f"{best['total']:g}",
    )  # fmt: skip
    if len(subsets) < 2:
        return text
    second = subsets.iloc[1]
    return (
        text
        + " "
        + _("Next comes {experts}: {rank_sum} + {diversity} = {total}.").format(
            experts=_join(second["experts"]), rank_sum=f"{second['rank_sum']:g}",
            diversity=f"{second['diversity_rank']:g}", total=f"{second['total']:g}",
        )
        + (" " + _("Both sums are equal: the lower perplexity decided.") if second["total"] == best["total"] else "")
    )  # fmt: skip


def describe_ranking(ranking: pd.DataFrame, shots: pd.DataFrame) -> pd.DataFrame:
    """The table's columns as people read them; `trained_on` is "unknown" where nobody said, and marks the task itself."""
    distinct = shots.drop_duplicates(["adapter", "question_id"]).groupby("adapter")["correct"].agg(["sum", "size"])
    counts = distinct.loc[ranking["adapter"]]
    low, high = compute_wilson_interval(counts["sum"].to_numpy(), counts["size"].to_numpy())
    intervals = [
        _("{low} to {high}, n={n}").format(low=f"{100 * one:.0f}", high=f"{100 * two:.0f}", n=n)
        for one, two, n in zip(low, high, counts["size"], strict=True)
    ]
    task = ranking["task"].iloc[0]
    return pd.DataFrame(
        {
            "chosen": ["★" if chosen else "" for chosen in ranking["chosen"]],
            "adapter": ranking["adapter"],
            "accuracy": 100 * ranking["accuracy"],
            "interval": intervals,
            "accuracy_rank": ranking["accuracy_rank"],
            "perplexity": ranking["perplexity"],
            "perplexity_rank": ranking["perplexity_rank"],
            "rank_sum": ranking["rank_sum"],
            "shortlisted": ranking["shortlisted"],
            "trained_on": [_describe_trained_on(tasks, task) for tasks in ranking["trained_on"]],
        }
    )


def _describe_trained_on(tasks: Any, task: str) -> str:
    names = list(tasks) if pd.api.types.is_list_like(tasks) else []
    if not names:
        return _("unknown")
    return ", ".join([_("this very task") if name == task else name for name in sorted(names, key=lambda n: n != task)])


def _join(names: Sequence[str]) -> str:
    return ", ".join(plain(name) for name in names)


def _number(label: str, explanation: str) -> Any:
    return st.column_config.NumberColumn(label, format="%g", help=explanation)


def _shots_sentence(shots: pd.DataFrame) -> str:
    each = shots.drop_duplicates("question_id")
    n, explained = len(each), int(each["explained"].sum())
    if not explained:
        return _("{n} distinct shots. The task has no explanations: perplexity is that of the answer alone.").format(
            n=n
        )
    return _(
        "{n} distinct shots; {explained} with an explanation, which perplexity reads before the answer, the others by the answer alone."
    ).format(n=n, explained=explained)


def _warn_of_changes(ranking: pd.DataFrame) -> None:
    gone = ranking.loc[ranking["sha256"].isna(), "adapter"].tolist()
    changed = ranking.loc[
        ranking["sha256"].notna() & (ranking["sha256"] != ranking["adapter_hash"]), "adapter"
    ].tolist()
    if gone:
        st.warning(_("No longer in the bank: {names}.").format(names=_join(gone)), icon=":material/update:")
    if changed:
        text = _("Changed since: {names}. Choose anew.").format(names=_join(changed))
        st.warning(text, icon=":material/update:")


def _render_subsets(
    ranking: pd.DataFrame, pairs: pd.DataFrame, subsets: pd.DataFrame, shortlist: int, experts: int
) -> None:
    raw = _subsets(ranking, pairs, shortlist, experts, "raw_similarity")
    kinds = {"": _("cosine of B A"), "raw": _("published code: |cos| of A and B")}
    kind = select_in_address(_("Diversity by"), list(kinds), "experts_diversity", lambda code: kinds[code])
    if kind == "raw" and raw.empty:
        st.caption(_("The shortlist has adapters of different rank, whose A and B cannot be compared by themselves."))
        return
    shown = raw if kind == "raw" else subsets
    if len(raw):
        same = raw["experts"].iloc[0] == subsets["experts"].iloc[0]
        text = (
            _("Both ways of measuring diversity choose the same set.")
            if same
            else _("With the published code's measure the choice would be {experts}.").format(
                experts=_join(raw["experts"].iloc[0])
            )
        )
        st.caption(text)
    show_table(
        shown.head(_MOST_SUBSETS_SHOWN).assign(place=range(1, min(len(shown), _MOST_SUBSETS_SHOWN) + 1))[
            ["place", "experts", "rank_sum", "similarity", "omega", "diversity_rank", "total"]
        ],
        "experts_subsets",
        labels={"place": _("Place"), "experts": _("Experts")},
        formats={
            "rank_sum": _number(_("R_P + R_A"), _("Sum over the set")),
            "similarity": st.column_config.NumberColumn(
                _("Mean cosine"), format="%.4f", help=_("Over the set's pairs")
            ),
            "omega": st.column_config.NumberColumn(
                "Ω", format="%.3f", help=_("1 / mean cosine, where that is above 0")
            ),
            "diversity_rank": _number(_("R_D"), _("Rank by diversity among all sets, 1 the most diverse")),
            "total": _number(_("Sum"), _("The lowest is chosen; equal ones: the lower perplexity")),
        },
    )
    if len(shown) > _MOST_SUBSETS_SHOWN:
        st.caption(_("The best {shown} of {n} sets.").format(shown=_MOST_SUBSETS_SHOWN, n=f"{len(shown):,}"))


def _render_stability(
    ranking: pd.DataFrame, shots: pd.DataFrame, pairs: pd.DataFrame, shortlist: int, experts: int, chosen: list[str]
) -> None:
    stability = _stability(shots, pairs, shortlist, experts, chosen)
    draws = int(ranking["draws"].iloc[0])
    whole = stability[(stability["k"] == stability["k"].max()) & stability["draw"].notna()]
    st.markdown(
        _(
            "From one draw of K alone, {shared} of the {of} chosen experts are chosen again on average ({draws} draws)."
        ).format(shared=f"{whole['shared'].mean():.1f}", of=experts, draws=draws)
    )
    canvas, table = st.columns(2, gap="medium")
    with canvas:
        show_figure(
            make_choice_figure(
                count_choices(stability, ranking["adapter"].tolist()), chosen, draws, height=110 + 30 * len(ranking)
            ),
            key="experts_stability",
            alt=_("In which share of the draws each adapter is chosen from the first K shots"),
        )
    with table:
        show_table(
            stability.assign(
                draw=[_("all") if pd.isna(draw) else str(int(draw) + 1) for draw in stability["draw"]],
                shared=[f"{shared}/{of}" for shared, of in zip(stability["shared"], stability["of"], strict=True)],
            ).iloc[::-1],
            "experts_stability_table",
            labels={"k": "K", "draw": _("Draw"), "experts": _("Experts"), "shared": _("As chosen")},
            hide=("of",),
            height=min(420, 110 + 30 * len(ranking)),
        )


def _render_alone(ranking: pd.DataFrame, pairs: pd.DataFrame, experts: int, chosen: list[str]) -> None:
    names = {
        "accuracy": _("accuracy"),
        "perplexity": _("perplexity"),
        "accuracy and perplexity": _("accuracy and perplexity, no diversity"),
        "diversity": _("diversity, among all candidates"),
    }
    alone = _alone(ranking, pairs, experts)
    rows = [{"criterion": _("all three: the choice"), "experts": chosen, "shared": f"{experts}/{experts}"}]
    for row in alone.itertuples():
        found = list(row.experts) if pd.api.types.is_list_like(row.experts) else []
        shared = f"{len(set(found) & set(chosen))}/{experts}" if found else "–"
        rows.append({"criterion": names[row.criterion], "experts": found, "shared": shared})
    show_table(
        pd.DataFrame(rows), "experts_alone",
        labels={"criterion": _("Criterion"), "experts": _("Experts"), "shared": _("As chosen")},
    )  # fmt: skip
    if not rows[-1]["experts"]:
        st.caption(_("There are too many sets of all candidates to find the most diverse one."))


def _render_shots(ranking: pd.DataFrame, shots: pd.DataFrame) -> None:
    adapter = st.selectbox(_("Adapter"), ranking["adapter"].tolist(), key="experts_shots_of")
    part = shots[shots["adapter"] == adapter]
    shown = part.assign(per_token=part["nll"] / part["tokens"], draw=part["draw"] + 1, shot=part["shot"] + 1)
    show_table(
        shown[["draw", "shot", "prompt", "answer", "output", "correct", "nll", "tokens", "per_token", "explained"]],
        "experts_shots",
        labels={
            "draw": _("Draw"), "shot": _("Shot"), "prompt": _("Question"), "answer": _("Right answer"),
            "output": _("Answer"), "correct": _("Right"), "tokens": _("Tokens"), "explained": _("With explanation"),
        },
        formats={
            "nll": st.column_config.NumberColumn(_("NLL, nats"), format="%.2f"),
            "per_token": st.column_config.NumberColumn(_("NLL per token"), format="%.3f"),
        },
        height=360,
    )  # fmt: skip
    right = int(part["correct"].sum())
    st.caption(_("{right} of {n} right ({share})").format(right=right, n=len(part), share=percent(right / len(part))))
