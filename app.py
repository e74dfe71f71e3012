"""The dashboard's frame: page config, navigation, the sidebar, and the one error handler. Started by `metamoe ui`."""

from pathlib import Path

import streamlit as st

from pages.shared.errors import error_boundary
from pages.shared.i18n import _, render_language_choice, use_language_of_session
from pages.shared.jobs_line import render_jobs_line
from pages.shared.layout import render_undo
from pages.shared.state import get_store, get_workspace, render_person, render_selection_chips, restore_selection
from pages.shared.text import plain

FOLDER = Path(__file__).resolve().parent / "pages"


def describe_pages() -> dict[str, list[tuple[str, str, str, str]]]:
    """Group -> (file, title, icon, question it answers), in pipeline order."""
    return {
        _("Data"): [
            ("p01_overview", _("Overview"), "dashboard", _("Where do we stand?")),
            ("p02_tasks", _("Tasks"), "quiz", _("What do we study?")),
            ("p03_meta_questions", _("Meta-questions"), "abc", _("What is asked in general?")),
        ],
        _("Skills"): [
            ("p04_map", _("Map"), "scatter_plot", _("What groups exist?")),
            ("p05_skills", _("Skills"), "label", _("What skill does each question need?")),
        ],
        _("Experts"): [
            ("p06_experts", _("Experts"), "school", _("Who learns what?")),
            ("p07_jobs", _("Jobs"), "play_circle", _("What runs, and how is it going?")),
        ],
        _("Results"): [
            ("p08_router", _("Router"), "alt_route", _("Which expert is used where?")),
            ("p09_outcomes", _("Outcomes"), "fact_check", _("Does the mixture know more than its best expert?")),
            ("p10_forgetting", _("Forgetting"), "trending_down", _("What was lost for what was gained?")),
            ("p13_study", _("Study"), "science", _("Is the mixture worth it?")),
            ("p11_explore", _("Explore"), "database", _("Anything else?")),
            ("p12_review", _("Review"), "rate_review", _("What should the advisor decide?")),
        ],
    }


def make_pages() -> dict[str, list[st.Page]]:
    """The navigation; pages are also kept by their word in the address, for `open_page`."""
    by_word: dict[str, st.Page] = {}
    groups: dict[str, list[st.Page]] = {}
    for group, entries in describe_pages().items():
        for file, title, icon, question in entries:
            path, word = FOLDER / f"{file}.py", file[4:].replace("_", "-")
            by_word[word] = st.Page(
                path,
                title=title,
                icon=f":material/{icon}:",
                url_path=word,
                default=word == "overview",
                help=question,
            )
            groups.setdefault(group, []).append(by_word[word])
    st.session_state["pages"] = by_word
    return groups


def render_sidebar() -> None:
    """Below the navigation: where I am, what runs, what is selected, who I am, my language. Nothing else."""
    with st.sidebar:
        st.caption(_("Workspace {name}").format(name=plain(get_workspace().name)))
        render_jobs_line()
        render_selection_chips()
        render_person()
        render_language_choice()


st.set_page_config(page_title="MetaMoE", page_icon=FOLDER / "shared" / "icon.png", layout="wide")
use_language_of_session()
current = st.navigation(make_pages(), expanded=True)
st.session_state["page"] = current.url_path
with error_boundary():
    get_store()
    restore_selection()
    render_sidebar()
    render_undo()
    current.run()
