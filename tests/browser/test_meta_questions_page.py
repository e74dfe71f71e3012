"""The Meta-questions page in a browser: look, search, edit one, take it back, build."""

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Page, expect

from tests.browser.driving import Dashboard, open_page, screenshot, wait_idle

pytestmark = pytest.mark.browser


def test_one_finds_a_question_edits_it_sees_it_stored_and_takes_it_back(fresh_page: Page, fresh_dashboard: Dashboard):
    open_page(fresh_page, "meta-questions")
    expect(fresh_page.get_by_text("420 meta-questions built, 7 distinct, 0 edited by hand.")).to_be_visible()
    search = fresh_page.get_by_role("textbox", name="Search")
    search.fill("syllogism")
    search.press("Enter")
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("60 questions", exact=True)).to_be_visible()
    field = fresh_page.get_by_label("Edit the meta-question")
    field.fill("What follows from *two* premises?")
    fresh_page.get_by_role("button", name="Save").click()
    expect(fresh_page.get_by_text("420 meta-questions built, 8 distinct, 1 edited by hand.")).to_be_visible()
    stored = "".join(path.read_text() for path in (fresh_dashboard.workspace / "events").glob("*.jsonl"))
    assert "What follows from *two* premises?" in stored
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("What follows from *two* premises?").first).to_be_visible()
    fresh_page.get_by_text("History (2)").click()
    fresh_page.locator("[class*=st-key-meta_undo_] button").click()
    expect(fresh_page.get_by_text("420 meta-questions built, 7 distinct, 0 edited by hand.")).to_be_visible()


def test_one_builds_by_template_and_the_old_ones_are_replaced(fresh_page: Page):
    open_page(fresh_page, "meta-questions")
    fresh_page.get_by_role("button", name="Build", exact=False).first.click()
    wait_idle(fresh_page)
    fresh_page.get_by_role("dialog").get_by_role("button", name="Build meta-questions").click()
    expect(fresh_page.get_by_text("420 meta-questions built, 0 reused.").first).to_be_visible()


def test_a_server_without_an_address_is_refused_in_a_sentence(page: Page):
    open_page(page, "meta-questions")
    page.get_by_role("button", name="Build", exact=False).first.click()
    wait_idle(page)
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Language model", exact=True).click()
    wait_idle(page)
    dialog.get_by_text("OpenAI-compatible server", exact=True).click()
    wait_idle(page)
    dialog.get_by_role("button", name="Build meta-questions").click()
    expect(dialog.get_by_text("is no web address")).to_be_visible()
    screenshot(page, "meta_questions_build")
