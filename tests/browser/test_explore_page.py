"""A person explores: runs a query, sees rows and a chart, exports, is stopped in time, finds a table."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.driving import open_page, screenshot, wait_idle

pytestmark = pytest.mark.browser


def run(page: Page, sql: str) -> None:
    page.get_by_role("textbox", name="SQL").fill(sql)
    page.get_by_role("button", name="Run", exact=False).first.click()
    wait_idle(page)


def test_a_query_shows_rows_a_chart_and_can_be_exported(page: Page) -> None:
    open_page(page, "explore")
    page.get_by_role("button", name="Run", exact=False).first.click()
    expect(page.get_by_role("heading", name="42 rows in")).to_be_visible()
    expect(page.get_by_test_id("stDataFrame").first).to_be_visible()
    page.get_by_text("Chart", exact=True).click()
    expect(page.get_by_test_id("stPlotlyChart")).to_be_visible()
    expect(page.locator(".bars .point").first).to_be_attached()
    wait_idle(page)
    screenshot(page, "explore_light")
    run(page, "SELECT prompt, choices FROM question ORDER BY question_id")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith('"prompt","choices"\n')


def test_the_keyboard_runs_and_a_mistake_is_explained(page: Page) -> None:
    open_page(page, "explore")
    editor = page.get_by_role("textbox", name="SQL")
    editor.fill("SELECT promt FROM question")
    editor.press("Control+Enter")
    alert = page.get_by_role("alert").filter(has_text="promt")
    expect(alert).to_contain_text('"prompt"')
    page.get_by_role("tab", name="History").click()
    expect(page.get_by_text("failed · SELECT promt FROM question")).to_be_visible()


def test_a_runaway_query_is_ended(page: Page) -> None:
    open_page(page, "explore")
    page.get_by_role("button", name="Limits").click()
    slider = page.get_by_role("slider", name="Time, at most")
    slider.press("ArrowLeft")
    wait_idle(page)
    page.keyboard.press("Escape")
    run(page, "SELECT count(*) FROM range(100000000) a, range(100000000) b")
    expect(page.get_by_role("alert").filter(has_text="stopped after 5 s")).to_be_visible()


def test_the_schema_leads_to_a_first_query(page: Page) -> None:
    open_page(page, "explore")
    page.get_by_role("searchbox", name="Find a table or column").fill("meta_question_edit")
    page.get_by_role("button", name="meta_question_edit").or_(page.get_by_text("meta_question_edit")).first.click()
    expect(page.get_by_text("A person's correction of a meta-question; the newest one counts.")).to_be_visible()
    page.get_by_role("button", name="Show rows").click()
    expect(page.get_by_role("textbox", name="SQL")).to_have_value('SELECT *\nFROM "meta_question_edit"\nLIMIT 100')
