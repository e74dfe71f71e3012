"""Every page opens on the recorded demo, which is what a new person sees first."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from metamoe_backend.demo import open_demo
from metamoe_backend.workspace import Workspace
from tests.browser.driving import open_page, open_tab, running_dashboard

pytestmark = pytest.mark.browser

ANSWERS = {
    "": "9 tasks, 2,537 questions, 5 skills",
    "tasks": "9 tasks with 2,537 questions",
    "meta-questions": "2,537 meta-questions built",
    "map": "clusters in 2,537 questions",
    "skills": "30 labelled questions cover 5 of 5 skills",
    "experts": "Plan one-expert-per-skill gives 5 skills to 4 experts",
    "jobs": "Nothing is running",
    "router": "of the gate weight",
    "outcomes": "Mixture two-level solves",
    "forgetting": "Expert word-order-alone gained",
    "study": "No study has been made",
    "explore": "One SELECT at a time",
    "review": "await a verdict",
}
"""Part of what each page answers, by its word in the address."""


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    workspace = open_demo(Workspace(Path(tmp_path_factory.mktemp("recorded") / "demo")))
    with running_dashboard(workspace.root) as dashboard, open_tab(browser, dashboard) as tab:
        yield tab


@pytest.mark.parametrize("word", ANSWERS)
def test_the_page_answers_its_question_on_the_demo(page: Page, word: str) -> None:
    open_page(page, word)  # fails where a bug shows
    expect(page.get_by_text(ANSWERS[word], exact=False).first).to_be_visible()
