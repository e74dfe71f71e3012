"""Skills: a person labels with keys, accepts suggestions above a threshold, takes them back, and freezes a labelling."""

import re

import pytest
from playwright.sync_api import Page, expect

from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import fetch_labellings, fetch_labels
from metamoe_backend.workspace import Workspace
from tests.browser.driving import Dashboard, open_page, screenshot, wait_idle

pytestmark = pytest.mark.browser


def card_text(page: Page) -> str:
    return page.locator(".st-key-skills_card [data-testid=stText]").first.inner_text()


def press(page: Page, key: str) -> None:
    """Press a key and wait for the next card."""
    before = card_text(page)
    page.keyboard.press(key)
    expect(page.locator(".st-key-skills_card [data-testid=stText]").first).not_to_have_text(before)
    wait_idle(page)


def test_keys_label_accept_and_skip(fresh_page: Page, fresh_dashboard: Dashboard) -> None:
    page = fresh_page
    open_page(page, "skills")
    expect(page.get_by_text("32 labelled questions cover 4 of 4 skills")).to_be_visible()
    screenshot(page, "skills", full=True)
    press(page, "2")
    expect(page.get_by_text("33 labelled questions cover")).to_be_visible()
    press(page, "Space")
    expect(page.get_by_text("33 labelled questions cover")).to_be_visible()
    press(page, "Enter")
    expect(page.get_by_text("34 labelled questions cover")).to_be_visible()
    page.get_by_role("button", name=re.compile("Take back 1 label")).first.click()
    expect(page.get_by_text("33 labelled questions cover")).to_be_visible()
    wait_idle(page)
    fresh_dashboard.process.terminate()
    fresh_dashboard.process.wait()
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        newest = fetch_labels(store).iloc[-1]
    assert (newest["skill"], newest["how"]) == ("logic", "question")


def test_suggestions_above_a_threshold_become_labels_and_are_frozen(
    fresh_page: Page, fresh_dashboard: Dashboard
) -> None:
    page = fresh_page
    open_page(page, "skills")
    page.get_by_role("tab", name="Suggestions").click()
    button = page.get_by_role("button", name=re.compile(r"Accept all \d+ suggestions"))
    expect(button).to_be_visible()
    n = int(re.findall(r"\d+", button.inner_text())[0])
    page.get_by_role("slider").first.focus()
    page.keyboard.press("ArrowLeft")
    expect(button).not_to_have_text(re.compile(rf"Accept all {n} suggestions"))
    more = int(re.findall(r"\d+", button.inner_text())[0])
    assert more > n
    screenshot(page, "skills_suggestions", full=True)
    button.click()
    expect(page.get_by_text(f"Accepted {more} suggestions").first).to_be_visible()
    expect(page.get_by_text(f"{32 + more} labelled questions cover")).to_be_visible()
    wait_idle(page)
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.get_by_text("32 labelled questions cover")).to_be_visible()
    wait_idle(page)
    page.get_by_role("tab", name="Labellings").click()
    page.get_by_role("textbox", name="Name of the labelling").fill("v2")
    page.get_by_role("button", name="Freeze").click()
    expect(page.get_by_text("Frozen as 'v2'").first).to_be_visible()
    wait_idle(page)
    fresh_dashboard.process.terminate()
    fresh_dashboard.process.wait()
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        labellings = fetch_labellings(store).set_index("labelling")
        labels = fetch_labels(store)
    assert labellings.loc["v2", "labels"] == 32
    assert "accepted" not in set(labels["how"])
