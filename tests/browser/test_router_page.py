"""The Router page on a real (tiny) mixture: cells lead to questions, and a question is forced through each expert."""

from collections.abc import Iterator

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from metamoe_backend.config import EvaluateConfig
from metamoe_backend.launch import run_now
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace
from tests.browser.driving import Dashboard, open_page, open_tab, running_dashboard, screenshot, wait_idle
from tests.browser.test_results_pages import _click_plot
from tests.conftest import insert_rows
from tests.test_evaluate_stage import EXPERTS, insert_tasks, make_experts, make_token_mixture
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.browser
RUN_MS = 300_000
"""A worker imports torch and transformers first, which takes long on a busy machine."""


@pytest.fixture(scope="module")
def mixture_dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("router")
    base = str(make_tiny_base(folder / "base"))
    workspace = Workspace(folder / "tiny").create()
    with Store.open(workspace, "a test") as store:
        insert_tasks(store)
        systems = pd.DataFrame([*make_experts(workspace, base), make_token_mixture(workspace, base)])
        insert_rows(store, "train", system=systems)
        config = EvaluateConfig(systems=["moe"], tasks=["colour", "sum"], device="cpu", max_new_tokens=4)
        run_now(store, "evaluate", config.model_dump(), "ana")
    with running_dashboard(workspace.root) as dashboard:
        yield dashboard


@pytest.fixture
def page(browser: Browser, mixture_dashboard: Dashboard) -> Iterator[Page]:
    with open_tab(browser, mixture_dashboard) as tab:
        yield tab


def test_a_question_is_forced_through_each_expert_and_answers_stand_side_by_side(
    page: Page, mixture_dashboard: Dashboard
) -> None:
    open_page(page, "router", "questions=colour-train-2")
    expect(page.get_by_text("This question is not in the sample", exact=False)).to_be_visible()
    page.get_by_text("The same on the command line", exact=False).click()
    expect(page.get_by_text("force --system moe --question colour-train-2", exact=False)).to_be_visible()
    page.get_by_role("button", name="Force each expert").click()
    expect(page.get_by_text("As routed it is", exact=False)).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_text("of 2 experts alone are right", exact=False)).to_be_visible()
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()
    wait_idle(page)
    screenshot(page, "router_forced", full=True)
    specs = (mixture_dashboard.workspace / "runs").glob("*/spec.json")
    forced = [spec.parent for spec in specs if '"force"' in spec.read_text()]
    assert len(forced) == 1
    rows = pd.concat(pd.read_parquet(path) for path in (forced[0] / "output").glob("*.parquet"))
    assert set(rows["expert"]) == {"routed", *EXPERTS, "base"} and set(rows["question_id"]) == {"colour-train-2"}


def test_cells_of_the_lower_heatmaps_lead_to_questions_and_choices_stand_in_the_address(page: Page) -> None:
    open_page(page, "router", "router_value=chosen&router_group=task")
    expect(page.get_by_role("radio", name="Top-k share of tokens")).to_be_checked()
    together = page.locator(".st-key-router_pairs .js-plotly-plot")
    _click_plot(page, together, 0.25, 0.25)
    expect(page.get_by_text("Sampled questions by the share of their gates that chose this")).to_be_visible()
    page.get_by_role("radio", name="Share of chosen gates").click()
    wait_idle(page)
    assert "router_value=share" in page.url and "router_group=task" in page.url
    page.get_by_role("button", name="Review").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Router: layer × expert (moe, Share of chosen gates)")).to_be_visible()
