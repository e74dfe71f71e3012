"""Jobs: a person starts a real (tiny) run, watches it finish, changes it and compares the two."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from metamoe_backend.jobs.run_folder import list_runs
from metamoe_backend.workspace import Workspace
from tests.browser.driving import Dashboard, open_page, screenshot, wait_idle
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.browser
RUN_MS = 300_000
"""A worker imports torch and transformers first, which takes long on a busy machine."""


def choose_base(page: Page, base: Path) -> None:
    field = page.get_by_role("combobox", name="Base model")
    field.click()
    field.fill(str(base))
    field.press("Enter")
    wait_idle(page)


def set_number(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")
    wait_idle(page)


def test_a_run_is_started_watched_and_found_in_the_results(fresh_page: Page, fresh_dashboard: Dashboard) -> None:
    page = fresh_page
    base = make_tiny_base(fresh_dashboard.workspace / "tiny-base")
    open_page(page, "jobs")
    ended = len(list_runs(Workspace(fresh_dashboard.workspace)))
    expect(page.get_by_text(f"Nothing is running; {ended} runs have ended.")).to_be_visible()
    page.get_by_role("button", name="New run").click()
    wait_idle(page)
    choose_base(page, base)
    page.get_by_role("button", name="How long and how fast").click()
    set_number(page, "Steps", "6")
    set_number(page, "Batch size, questions", "4")
    page.keyboard.press("Escape")
    expect(page.locator(".st-key-jobs_new_run").get_by_text("--steps 6")).to_be_visible()
    screenshot(page, "jobs_new_run", full=True)
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_text("1 running", exact=False)).to_be_visible()
    expect(page.get_by_text(f"Nothing is running; {ended + 1} runs have ended.")).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_text("Eval loss, nats/token", exact=True)).to_be_visible()
    wait_idle(page)
    expect(page.locator(".stPlotlyChart").first).to_be_visible()
    screenshot(page, "jobs_finished", full=True)
    run = list_runs(Workspace(fresh_dashboard.workspace))[0]
    assert run.read_state().state == "finished", run.read_state().error
    assert (fresh_dashboard.workspace / "adapters" / "arith-2" / "adapter_model.safetensors").is_file()
    assert run.run_id in page.url
    page.get_by_role("button", name="Change and run").click()
    wait_idle(page)
    expect(page.locator(".st-key-jobs_new_run").get_by_text("--steps 6")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    wait_idle(page)
    page.get_by_text("Compare with another run").click()
    wait_idle(page)
    expect(page.get_by_text("A: training · arith", exact=False)).to_be_visible()
    screenshot(page, "jobs_compared", full=True)


def test_a_run_is_picked_in_the_table_and_stands_in_the_address(page: Page) -> None:
    open_page(page, "jobs")
    page.locator(".dvn-scroller").first.click(position={"x": 16, "y": 160})
    wait_idle(page)
    expect(page.get_by_role("button", name="run 20", exact=False)).to_be_visible()
    assert "run=" in page.url
    picked, address = page.locator("strong").get_by_text(" · ").inner_text(), page.url.split("?", 1)[1]
    open_page(page, "jobs", address)
    expect(page.locator("strong").get_by_text(" · ")).to_have_text(picked)
