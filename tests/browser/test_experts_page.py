"""Experts: a person moves a skill, saves the plan, and goes to train with it."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.driving import expect_no_bug, open_page, screenshot, wait_idle

pytestmark = pytest.mark.browser


def test_a_skill_is_moved_and_the_plan_saved(fresh_page: Page) -> None:
    page = fresh_page
    open_page(page, "experts")
    expect(page.get_by_text("Plan first gives 4 skills to 3 experts under labelling v1", exact=False)).to_be_visible()
    row = page.get_by_role("radiogroup", name="Expert of letters")
    row.get_by_text("logic", exact=True).click()
    wait_idle(page)
    expect(page.get_by_text("The board differs from the plan first as saved.")).to_be_visible()
    name = page.get_by_label("Name of the plan")
    name.fill("second")
    # At once, without leaving the field first: what is typed and moved counts.
    page.get_by_role("button", name="Save plan").click()
    expect(page.get_by_text("Plan second gives 4 skills to 2 experts", exact=False)).to_be_visible()
    wait_idle(page)
    expect_no_bug(page)
    screenshot(page, "experts_saved", full=True)
    page.get_by_role("button", name="Train arith").click()
    wait_idle(page)
    expect(page.get_by_text("train expert arith --plan second", exact=False)).to_be_visible()
