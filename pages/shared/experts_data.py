"""Choose data: the form that starts a data selection, what it decided, and the way to train on it."""

import re
from typing import Any

import pandas as pd
import streamlit as st

from metamoe_backend.config import SelectDataConfig, TrainConfig, parse_config
from metamoe_backend.errors import ConfigError, UserError
from metamoe_backend.figures.data_selections import decision_name, make_score_figure
from metamoe_backend.jobs.command_line import make_command_line
from metamoe_backend.launch import launch
from metamoe_backend.store.connection import Store
from metamoe_backend.store.data_selections import fetch_data_selections, fetch_selected_rows
from metamoe_backend.store.questions import fetch_prompts, fetch_tasks
from pages.shared.charts import show_figure
from pages.shared.config_form import FormOptions, render_fields
from pages.shared.i18n import _, ngettext
from pages.shared.layout import canvas_and_inspector, confirm, plain, question_text
from pages.shared.state import (
    get_person,
    get_store,
    get_workspace,
    open_page,
    per_version,
    per_version_shared,
    select,
    select_in_address,
)
from pages.shared.tables import show_table
from pages.shared.task_import import keep_upload

_SHORT = ("task", "budget", "k", "tau", "encoder")
_POOL = ("pool", "tasks", "mapping", "keep_good", "limit")
_DECISIONS = ("selected", "similar", "leak", "beyond", "shot")
_MOST_SHOWN = 1000
_ROW = re.compile(r"row (\d+)")


@per_version
def _load_data_selections(store: Store) -> pd.DataFrame:
    return fetch_data_selections(store)


@per_version_shared
def _load_rows(store: Store, run_id: str) -> pd.DataFrame:
    return fetch_selected_rows(store, run_id)


@per_version
def _load_train_tasks(store: Store) -> dict[str, int]:
    """Tasks with train questions, and how many."""
    tasks = fetch_tasks(store)
    tasks = tasks[tasks["train"] > 0]
    return dict(zip(tasks["task"], tasks["train"].astype(int), strict=True))


def render_data() -> None:
    """The whole part of the page."""
    selections = _load_data_selections(get_store())
    st.caption(
        _(
            "Which rows of a large pool teach a task: those most similar to a few of its questions (the K shots), no two of them alike, and none that is a held-out question."
        )
    )
    _render_form(opened=selections.empty)
    if selections.empty:
        return
    runs = selections.set_index("run_id")
    names = {run: _name_selection(row) for run, row in runs.iterrows()}
    run_id = select_in_address(_("Data selection"), list(names), "experts_data", lambda run: names[run])
    rows = _load_rows(get_store(), run_id)
    st.markdown(describe_data(runs.loc[run_id]))
    canvas, inspector = canvas_and_inspector()
    with canvas:
        show_figure(
            make_score_figure(rows),
            key="experts_data_scores",
            alt=_("Histogram of the rows' similarity to the shots, by decision"),
        )
    picked = _render_rows(rows)
    with inspector:
        _render_training(run_id, runs.loc[run_id])
        _render_row(rows, picked)


def _name_selection(row: pd.Series) -> str:
    return _("{task}: {selected} rows · {when} UTC").format(
        task=row["task"], selected=f"{int(row['selected']):,}", when=f"{row['created_at']:%Y-%m-%d %H:%M}"
    )


def describe_data(selection: pd.Series) -> str:
    """How many rows were chosen, dropped as similar, and refused as leaks."""
    found = {name: int(selection[name]) for name in _DECISIONS}
    pool = sum(found.values()) - found["shot"]
    return " ".join(
        [
            ngettext(
                "For {task}, {selected} of {pool} row is chosen, guided by {shots} shots.",
                "For {task}, {selected} of {pool} rows are chosen, guided by {shots} shots.",
                pool,
            ).format(
                task=plain(selection["task"]),
                selected=f"{found['selected']:,}",
                pool=f"{pool:,}",
                shots=found["shot"],
            ),
            _("{similar} are dropped as similar, {leak} refused as leaks, {beyond} lie beyond the budget.").format(
                similar=f"{found['similar']:,}", leak=f"{found['leak']:,}", beyond=f"{found['beyond']:,}"
            ),
        ]
    )


def _render_form(opened: bool) -> None:
    with st.expander(_("New data selection"), icon=":material/filter_alt:", expanded=opened, key="experts_data_form"):
        tasks = _load_train_tasks(get_store())
        if not tasks:
            st.caption(_("A task with training questions is needed: a few of them guide the choice."))
            return
        task = st.session_state.get("experts_data_task") or next(iter(tasks))
        options = FormOptions(
            f"experts_data_{task}",
            {"task": task, "k": min(50, tasks.get(task, 50))},
            {"task": list(tasks), "encoder": ("minilm", "e5")},
            frozenset({"encoder"}),
            {"guard": {"all": _("all tasks"), "task": _("the target task")}},
        )
        st.selectbox(_("Target task"), list(tasks), key="experts_data_task")
        values = {"task": task, **render_fields(SelectDataConfig, _SHORT[1:], options, columns=4)}
        values |= _render_pool([name for name in tasks if name != task])
        others = [name for name in SelectDataConfig.model_fields if name not in (*values, *_POOL)]
        with st.popover(_("More settings"), icon=":material/tune:", key="experts_data_more"):
            values |= render_fields(SelectDataConfig, [*others, "limit", "keep_good"], options, columns=2)
        _render_start(values)


def _render_pool(tasks: list[str]) -> dict[str, Any]:
    """Where the rows come from: a file or tasks of the workspace."""
    kinds = {"upload": _("Upload"), "path": _("Path"), "tasks": _("Tasks here")}
    kind = st.segmented_control(
        _("Pool to choose from"), list(kinds), default="upload", required=True, format_func=kinds.get, key="experts_data_pool"
    )  # fmt: skip
    if kind == "tasks":
        return {
            "tasks": st.multiselect(
                _("Tasks whose train questions form the pool"),
                tasks,
                key="experts_data_tasks",
                placeholder=_("choose tasks"),
            )
        }
    if kind == "path":
        path = st.text_input(_("Path of a .jsonl .json .csv .tsv .parquet file"), key="experts_data_path").strip()
        return {"pool": path or None}
    upload = st.file_uploader(
        _("A .jsonl .json .csv .tsv or .parquet file"), type=["jsonl", "json", "csv", "tsv", "parquet"], key="experts_data_file"
    )  # fmt: skip
    return {"pool": str(keep_upload(upload.name, upload.getvalue())) if upload else None}


def _render_start(values: dict[str, Any]) -> None:
    """The command that would do the same, and the button; a setting that cannot be is named in their place."""
    if not values.get("pool") and not values.get("tasks"):
        st.caption(_("Name the pool to choose from."))
        return
    try:
        config = parse_config(SelectDataConfig, values)
    except ConfigError as error:
        st.warning(plain(error), icon=":material/edit:")
        return
    _render_command("select-data", config)
    if st.button(_("Choose rows"), key="experts_data_go", type="primary", icon=":material/play_arrow:"):
        _launch("select-data", values)


def _render_command(stage: str, config: SelectDataConfig | TrainConfig) -> None:
    st.caption(_("The same on the command line, while this dashboard is closed:"))
    st.code(make_command_line(get_workspace(), stage, config), language="bash", wrap_lines=True)


def _launch(stage: str, values: dict[str, Any]) -> None:
    try:
        run = launch(get_store(), stage, values, get_person())
    except UserError as error:
        st.error(plain(error), icon=":material/error:")
        return
    select(run=run.run_id)
    confirm(_("{name} is queued.").format(name=plain(run.read_spec().name)))
    open_page("jobs")


def _render_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one decision, the most similar first; returns the picked one."""
    there = [decision for decision in _DECISIONS if (rows["decision"] == decision).any()]
    shown = st.segmented_control(
        _("Rows"), there, default=there[0], required=True, format_func=decision_name, key="experts_data_shown",
        label_visibility="collapsed",
    )  # fmt: skip
    part = rows[rows["decision"] == shown]
    if len(part) > _MOST_SHOWN:
        st.caption(
            _("The {n} most similar of {all}; the Explore page has them all (selected_row).").format(
                n=f"{_MOST_SHOWN:,}", all=f"{len(part):,}"
            )
        )
        part = part.head(_MOST_SHOWN)
    described = describe_rows(part, _find_texts(part, rows))
    return show_table(
        described,
        f"experts_data_rows_{shown}",
        formats={
            "position": st.column_config.NumberColumn(_("Row"), format="%d", width="small"),
            "score": st.column_config.NumberColumn(_("Cosine"), format="%.3f", width="small"),
            "decision": st.column_config.TextColumn(_("Decision"), width="small"),
            "prompt": st.column_config.TextColumn(_("Question"), width="medium"),
            "answer": st.column_config.TextColumn(_("Answer"), width="small"),
            "nearest": st.column_config.TextColumn(_("Nearest shot"), width="medium"),
            "reason": st.column_config.TextColumn(_("Reason"), width="medium"),
            "other": st.column_config.TextColumn(_("Too close to"), width="medium"),
        },
        hide=[name for name in ("reason", "other") if (described[name] == "–").all()],
        select="single-row",
        height=min(420, 45 + 36 * max(2, len(part))),
    )  # fmt: skip


def _find_texts(part: pd.DataFrame, rows: pd.DataFrame) -> dict[str, str]:
    """Texts of the questions and rows that are named beside the rows, by their name."""
    named = {name for column in ("nearest", "other") for name in part[column].dropna()}
    texts = fetch_prompts(get_store(), sorted(named))
    numbers = {int(found[1]) for name in named if (found := _ROW.fullmatch(name))}
    pool = rows[(rows["decision"] != "shot") & rows["position"].isin(numbers)]
    return texts | {f"row {row.position}": row.prompt for row in pool.itertuples()}


def describe_rows(part: pd.DataFrame, texts: dict[str, str]) -> pd.DataFrame:
    """The table's columns as people read them; `texts` has the text of each shot, question and row that is named."""
    return pd.DataFrame(
        {
            "position": part["position"],
            "decision": [decision_name(decision) for decision in part["decision"]],
            "score": part["score"],
            "prompt": part["prompt"],
            "answer": part["answer"],
            "nearest": [texts.get(name, name) for name in part["nearest"]],
            "reason": part["reason"].fillna("–"),
            "other": ["–" if pd.isna(name) else texts.get(name, name) for name in part["other"]],
        }
    )


def _render_row(rows: pd.DataFrame, picked: pd.DataFrame) -> None:
    """One row whole, beside the shot it is like and what it is too close to."""
    if picked.empty:
        st.info(_("Pick a row to read it beside its nearest shot."), icon=":material/touch_app:")
        return
    row = picked.iloc[0]
    source = rows.loc[picked.index[0]]
    parts = {
        _("Row {n}, {decision}").format(n=int(row["position"]), decision=row["decision"]): f"{row['prompt']}\n{row['answer']}",
        _("Nearest shot, cosine {score}").format(score=f"{row['score']:.2f}"): row["nearest"],
    }  # fmt: skip
    if pd.notna(source["other"]):
        parts[plain(row["reason"])] = row["other"]
    for number, (title, text) in enumerate(parts.items()):
        st.markdown(f"**{title}**")
        question_text(str(text), key=f"experts_data_text_{row['position']}_{row['decision']}_{number}")


def _render_training(run_id: str, selection: pd.Series) -> None:
    """The way to an expert trained on the shots and the chosen rows."""
    with st.popover(_("Train on these rows"), icon=":material/school:", key="experts_data_train"):
        name = st.text_input(_("Name of the new expert"), value=f"{selection['task']}-data".replace("/", "-"), key="experts_data_name")  # fmt: skip
        values = {"name": name.strip(), "data": run_id}
        try:
            config = parse_config(TrainConfig, values)
        except ConfigError as error:
            st.warning(plain(error), icon=":material/edit:")
            return
        _render_command("train", config)
        if st.button(_("Start"), key="experts_data_train_go", type="primary", icon=":material/play_arrow:"):
            _launch("train", values)
