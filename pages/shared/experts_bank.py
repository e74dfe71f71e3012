"""The bank: every adapter and where it came from, and bringing in one from elsewhere."""

from pathlib import Path

import pandas as pd
import streamlit as st

from metamoe_backend.config import DEFAULT_BASE, ImportAdapterConfig
from metamoe_backend.errors import UserError
from metamoe_backend.launch import run_now
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_system_settings
from metamoe_backend.store.questions import fetch_tasks
from metamoe_backend.store.reviews import fetch_reviews
from pages.shared.config_form import FormOptions, render_fields
from pages.shared.i18n import _
from pages.shared.layout import canvas_and_inspector, confirm_and_rerun, plain, question_text
from pages.shared.relabelling import change_sentence, describe_changes, since_help
from pages.shared.review_views import render_verdict_form, verdict_name
from pages.shared.state import get_person, get_selection, get_store, open_page, per_version, select
from pages.shared.tables import show_table


def source_name(source: str) -> str:
    return {"trained": _("trained here"), "imported": _("imported")}.get(source, source)


def kind_name(kind: str) -> str:
    return {"expert": _("expert"), "mixed": _("mixed baseline"), "baseline": _("baseline")}.get(kind, kind)


def describe_bank(adapters: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """The table's columns as people read them; `trained_on` is "unknown" where nobody said. See `load_label_changes`."""
    since = describe_changes(changes, "name")
    return pd.DataFrame(
        {
            "adapter": adapters["adapter"],
            "kind": [kind_name(kind) for kind in adapters["kind"]],
            "skills": [list(skills) for skills in adapters["skills"]],
            "trained_on": [list(tasks) or [_("unknown")] for tasks in adapters["trained_on"]],
            "since": [since.get(name, "–") for name in adapters["adapter"]],
            "plan": adapters["plan"].fillna("–"),
            "source": [source_name(source) for source in adapters["source"]],
            "rank": adapters["rank"],
            "alpha": adapters["alpha"],
            "targets": [list(targets) for targets in adapters["targets"]],
            "parameters": adapters["parameters"] / 1e6,
            "sha256": adapters["sha256"].str[:12],
            "base": [Path(base).name if Path(base).is_absolute() else base for base in adapters["base"]],
            "created_at": adapters["created_at"],
        }
    )


def _kind_help() -> str:
    return _(
        "Only experts are offered to selections and mixtures. A baseline is a step of a sequence, or a full training "
        "guarded against forgetting."
    )


def render_bank(adapters: pd.DataFrame, changes: pd.DataFrame) -> None:
    """The table; the picked adapter beside it."""
    canvas, inspector = canvas_and_inspector()
    with canvas:
        picked = show_table(
            describe_bank(adapters, changes),
            "experts_bank",
            labels={
                "adapter": _("Adapter"), "source": _("Source"), "plan": _("Plan"), "skills": _("Skills"),
                "trained_on": _("Trained on"), "rank": _("Rank r"), "alpha": _("Alpha"), "targets": _("Adapted modules"),
                "base": _("Base model"), "sha256": "SHA-256",
            },
            formats={
                "kind": st.column_config.TextColumn(_("Kind"), help=_kind_help()),
                "since": st.column_config.TextColumn(_("Labels since"), help=since_help()),
                "parameters": st.column_config.NumberColumn(_("Parameters, millions"), format="%.2f"),
                "created_at": st.column_config.DatetimeColumn(_("When (UTC)"), format="YYYY-MM-DD HH:mm"),
            },
            select="single-row",
        )  # fmt: skip
    names = adapters["adapter"].tolist()
    wanted = get_selection().expert
    if picked.empty:
        st.session_state.pop("experts_picked", None)
    elif st.session_state.get("experts_picked") != picked["adapter"].iloc[0]:
        st.session_state["experts_picked"] = picked["adapter"].iloc[0]
        select(expert=picked["adapter"].iloc[0])
        st.rerun()
    with inspector:
        if wanted not in names:
            st.info(_("Pick an adapter to see where it came from and to review it."), icon=":material/touch_app:")
            return
        _render_adapter(adapters.iloc[names.index(wanted)], change_sentence(changes, str(wanted)))


def _render_adapter(adapter: pd.Series, change: str | None) -> None:
    st.markdown(f"**{plain(adapter['adapter'])}**")
    if change:
        st.warning(plain(change), icon=":material/update:")
    facts = {
        _("Kind"): kind_name(adapter["kind"]),
        _("Source"): source_name(adapter["source"]),
        _("Skills"): ", ".join(adapter["skills"]) or "–",
        _("Trained on"): ", ".join(adapter["trained_on"]) or _("unknown"),
        _("Size"): _("rank {rank}, {millions} million parameters").format(
            rank=adapter["rank"], millions=f"{adapter['parameters'] / 1e6:.2f}"
        ),
        _("Base model"): Path(adapter["base"]).name if Path(adapter["base"]).is_absolute() else adapter["base"],
        "SHA-256": str(adapter["sha256"]),
    }
    origin = fetch_system_settings(get_store(), str(adapter["adapter"])).get("source")
    if adapter["source"] == "imported" and origin:
        facts[_("Imported from")] = str(origin)
    st.text("\n".join(f"{name}: {value}" for name, value in facts.items()), width="stretch")
    if st.button(_("The run that made it"), key="experts_run", icon=":material/play_circle:", type="tertiary"):
        select(run=str(adapter["run_id"]))
        open_page("jobs")
    name = str(adapter["adapter"])
    render_verdict_form(get_store(), "expert", name)
    for review in fetch_reviews(get_store(), "expert", name).head(3).itertuples():
        verdict = "" if pd.isna(review.verdict) else f" · **{verdict_name(review.verdict)}**"
        st.caption(f"{plain(review.author)} · {review.made_at:%Y-%m-%d %H:%M} UTC{verdict}")
        question_text(review.comment, key=f"experts_{review.event_id}")


@per_version
def _load_task_names(store: Store) -> list[str]:
    return fetch_tasks(store)["task"].tolist()


def render_import(adapters: pd.DataFrame) -> None:
    """Bring in a PEFT folder or a hub id."""
    with st.expander(_("Import an adapter trained elsewhere"), icon=":material/download:", key="experts_import"):
        bases = list(dict.fromkeys([DEFAULT_BASE, *adapters["base"]]))
        round_key = f"experts_import_{st.session_state.get('experts_imported', 0)}"
        options = FormOptions(
            round_key,
            choices={"base": bases, "trained_on": _load_task_names(get_store())},
            free=frozenset({"base", "trained_on"}),
        )
        values = render_fields(ImportAdapterConfig, ["source", "name", "base", "trained_on"], options, columns=2)
        ready = bool(values["source"] and values["name"])
        if st.button(_("Import"), key="experts_import_go", type="primary", disabled=not ready):
            try:
                with st.spinner(_("Checking the adapter against its base model …")):
                    run_now(get_store(), "import", values, get_person())
            except UserError as error:
                st.error(plain(error), icon=":material/error:")
                return
            st.session_state["experts_imported"] = st.session_state.get("experts_imported", 0) + 1
            select(expert=values["name"])
            confirm_and_rerun(_("{name} is in the bank.").format(name=plain(values["name"])))
