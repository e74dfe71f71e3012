"""From a saved plan to its experts: which are trained, and the form that hands the next one to the Jobs page."""

import pandas as pd
import streamlit as st

from metamoe_backend.config import BASE_EXPERT, LoraSettings
from pages.shared.config_form import FormOptions, render_fields
from pages.shared.experts_board import load_entries
from pages.shared.i18n import _
from pages.shared.jobs_new import LORA_TARGETS, open_new_run
from pages.shared.layout import plain
from pages.shared.state import get_store, open_page
from pages.shared.tables import show_table


def describe_experts(entries: pd.DataFrame, adapters: pd.DataFrame, plan: str) -> pd.DataFrame:
    """Experts of a plan: expert, skills, train (questions), adapters (of the bank, trained for it), trained."""
    made = adapters[(adapters["plan"] == plan) & (adapters["kind"] != "baseline")]
    rows = []
    for expert, part in entries[entries["expert"] != BASE_EXPERT].groupby("expert"):
        skills = sorted(part["skill"])
        found = [row.adapter for row in made.itertuples() if sorted(row.skills) == skills]
        rows.append((expert, skills, int(part["train"].sum()), found, bool(found)))
    return pd.DataFrame(rows, columns=["expert", "skills", "train", "adapters", "trained"])


def render_training(plan: str, adapters: pd.DataFrame) -> None:
    st.subheader(_("Train"), anchor=False)
    experts = describe_experts(load_entries(get_store(), plan), adapters, plan)
    table, form = st.columns([1, 1], gap="medium")
    with table:
        show_table(
            experts.drop(columns=["trained"]),
            "experts_of_plan",
            labels={"expert": _("Expert"), "skills": _("Skills"), "adapters": _("In the bank as")},
            formats={"train": st.column_config.NumberColumn(_("Training questions"), format="localized")},
        )
    with form:
        _render_form(plan, experts)


def _render_form(plan: str, experts: pd.DataFrame) -> None:
    names = experts["expert"].tolist()
    if not names:
        st.info(_("This plan leaves every skill to the base model."), icon=":material/info:")
        return
    missing = experts.loc[~experts["trained"], "expert"].tolist()
    expert = st.selectbox(
        _("Expert to train"), names, index=names.index(missing[0]) if missing else 0, key=f"experts_train_{plan}"
    )
    options = FormOptions("experts_lora", choices={"targets": LORA_TARGETS}, free=frozenset({"targets"}))
    short = [name for name in LoraSettings.model_fields if name not in ("targets", "four_bit")]
    lora = render_fields(LoraSettings, short, options, columns=len(short))
    lora |= render_fields(LoraSettings, ["targets"], options, columns=1)
    with st.container(horizontal=True):
        if st.button(
            _("Train {expert}").format(expert=plain(expert)), key="experts_go", type="primary",
            icon=":material/school:", disabled=not lora["targets"],
        ):  # fmt: skip
            open_new_run("expert", {"plan": plan, "name": expert, "lora": lora})
            open_page("jobs")
        if st.button(_("Train the mixed baseline"), key="experts_mixed", disabled=not lora["targets"]):
            open_new_run("mixed", {"plan": plan, "lora": lora})
            open_page("jobs")
        if st.button(_("Join experts"), key="experts_join", icon=":material/hub:", disabled=len(missing) == len(names)):
            open_new_run("moe", {"plan": plan})
            open_page("jobs")
