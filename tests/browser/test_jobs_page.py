"""Jobs: a person starts a real (tiny) run, watches it finish, changes it and compares the two."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from metamoe_backend.jobs.run_folder import list_runs
from metamoe_backend.workspace import Workspace
from tests.browser.driving import Dashboard, open_page, open_tab, running_dashboard, screenshot, wait_idle
from tests.fake_jobs import wait_for
from tests.tiny_models import make_tiny_base

pytestmark = pytest.mark.browser
STEPS = 2_000
"""Of the tiny model: long enough to be stopped in the middle, however busy the machine is."""
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


def start_expert(page: Page, base: Path, steps: int, batch_size: int) -> None:
    """Fill in the form that the page opens with; the last thing left to do is to press Start."""
    page.get_by_role("button", name="New run").click()
    wait_idle(page)
    choose_base(page, base)
    page.get_by_role("button", name="How long and how fast").click()
    set_number(page, "Steps", str(steps))
    set_number(page, "Batch size, questions", str(batch_size))
    page.keyboard.press("Escape")
    expect(page.locator(".st-key-jobs_new_run").get_by_text(f"--steps {steps}")).to_be_visible()


def test_a_run_is_started_watched_and_found_in_the_results(fresh_page: Page, fresh_dashboard: Dashboard) -> None:
    page = fresh_page
    base = make_tiny_base(fresh_dashboard.workspace / "tiny-base")
    open_page(page, "jobs")
    ended = len(list_runs(Workspace(fresh_dashboard.workspace)))
    expect(page.get_by_text(f"Nothing is running; {ended} runs have ended.")).to_be_visible()
    start_expert(page, base, steps=6, batch_size=4)
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
    page.get_by_text("Compare with other runs").click()
    wait_idle(page)
    expect(page.get_by_text("A training · arith", exact=False)).to_be_visible()
    screenshot(page, "jobs_compared", full=True)


def test_a_run_outlives_the_dashboard_and_is_stopped_resumed_and_finished(
    browser: Browser, recorded_synthetic: Path, tmp_path: Path
) -> None:
    workspace = Workspace(Path(shutil.copytree(recorded_synthetic, tmp_path / "synthetic")))
    base = make_tiny_base(workspace.root / "tiny-base")
    ended = len(list_runs(workspace))
    with running_dashboard(workspace.root) as first, open_tab(browser, first) as page:
        open_page(page, "jobs")
        start_expert(page, base, STEPS, batch_size=1)
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_text(f"of {STEPS:,}", exact=False).first).to_be_visible(timeout=RUN_MS)
        run = list_runs(workspace)[0]
        worker, done = run.read_state().pid, run.read_state().done
        first.process.kill()
        first.process.wait()
        wait_for(lambda: run.read_state().done > done)
        with running_dashboard(workspace.root, port=first.port):
            open_page(page, "jobs", page.url.split("?", 1)[1])
            expect(page.get_by_text("1 running", exact=False)).to_be_visible()
            assert (run.read_state().state, run.read_state().pid) == ("running", worker), "the same process goes on"
            page.get_by_role("button", name="Stop and save").click()
            expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=RUN_MS)
            stopped_at = run.read_state().done
            assert run.read_state().state == "stopped" and done < stopped_at < STEPS
            screenshot(page, "jobs_stopped", full=True)
            page.get_by_role("button", name="Resume").click()
            wait_for(
                lambda: run.read_state().state in ("finished", "failed")
            )  # the page said the same while it was stopped
            finished = page.get_by_text(f"Nothing is running; {ended + 1} runs have ended.")
            expect(finished).to_be_visible(timeout=RUN_MS)
    assert run.read_state().state == "finished", run.read_state().error
    assert f"Going on from checkpoint-{stopped_at}." in run.read_log()
    losses = run.read_progress().query("name == 'loss'")
    assert losses["step"].is_monotonic_increasing and losses["step"].is_unique and losses["step"].max() == STEPS


def test_a_run_is_picked_in_the_table_and_stands_in_the_address(page: Page) -> None:
    open_page(page, "jobs")
    title = page.locator("strong").get_by_text(" · ")
    before = title.inner_text()
    page.locator(".dvn-scroller").first.click(position={"x": 16, "y": 160})
    expect(title).not_to_have_text(before)
    wait_idle(page)
    expect(page.get_by_role("button", name="run 20", exact=False)).to_be_visible()
    assert "run=" in page.url
    picked, address = title.inner_text(), page.url.split("?", 1)[1]
    open_page(page, "jobs", address)
    expect(title).to_have_text(picked)
