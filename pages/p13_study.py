"""Study: is the mixture worth it?"""

import streamlit as st

from metamoe_backend.study.studies import Study, list_studies
from pages.shared.i18n import _
from pages.shared.layout import empty_state, page_header
from pages.shared.state import get_store, get_workspace, select_in_address
from pages.shared.study_form import render_study_form
from pages.shared.study_progress import render_progress, render_switch
from pages.shared.study_results import render_results


def render() -> None:
    action = page_header(
        _("Study"),
        _(
            "A mixture of chosen experts beside everything simpler: base model, single experts, mixed data, plain mixtures."
        ),
    )
    studies = list_studies(get_workspace())
    if not studies:
        empty_state(_("No study has been made yet: say below what the mixtures are for."), icon=":material/science:")
    render_study_form(opened=not studies)
    if studies:
        _render_study(studies, action)


def _render_study(studies: list[Study], action: st.delta_generator.DeltaGenerator) -> None:
    by_name = {study.config.name: study for study in studies}
    name = next(iter(by_name))
    if len(by_name) > 1:
        name = select_in_address(_("Study"), list(by_name), "study", lambda each: each)
    with action:
        render_switch(by_name[name])
    render_progress(by_name[name])
    render_results(get_store(), by_name[name])


render()
