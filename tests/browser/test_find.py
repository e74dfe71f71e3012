"""Finding: filters and a search are chips, a link shows another person the same, and what is like a question is found."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.driving import Dashboard, expect_no_bug, open_page, open_tab, screenshot, wait_idle

pytestmark = pytest.mark.browser
CHIPS = ".st-key-find_chips .stButton"


def search(page: Page, words: str) -> None:
    field = page.get_by_role("textbox", name="Search the text")
    field.fill(words)
    field.press("Enter")
    wait_idle(page)


def choose(page: Page, label: str, option: str) -> None:
    """Open the filters, choose, and close them."""
    page.get_by_role("button", name="Filter", exact=False).first.click()
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()
    wait_idle(page)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    wait_idle(page)


def read_chips(page: Page) -> list[str]:
    """What the chips say."""
    return [re.sub(r"\s*close\s*", "", text) for text in page.locator(CHIPS).all_inner_texts()]


def read_found(page: Page) -> int:
    found = page.get_by_text(re.compile(r"^\d+ questions? found$"))
    found.wait_for()
    return int(found.inner_text().split()[0])


def test_a_link_shows_the_same_search_and_filters_and_chips_go_one_by_one(
    browser: Browser, dashboard: Dashboard, page: Page
) -> None:
    open_page(page, "map")
    search(page, "WHAT follows")
    choose(page, "Task", "syllogism")
    choose(page, "Outcome", "mixed")
    expect(page.locator(CHIPS)).to_have_count(3)
    assert read_chips(page) == ["“WHAT follows”", "Task: syllogism", "Outcome: mixed"]
    n = read_found(page)
    assert 0 < n < 60
    assert {"q=", "task=", "outcome="} <= set(re.findall(r"\w+=", page.url)), page.url
    screenshot(page, "find_map", full=True)
    with open_tab(browser, dashboard, locale="zh-CN") as other:
        other.goto(page.url.removeprefix(dashboard.url))
        expect(other.get_by_text(f"找到 {n} 个问题")).to_be_visible()
        wait_idle(other)
        expect(other.locator(CHIPS)).to_have_count(3)
        assert read_chips(other) == ["“WHAT follows”", "任务: syllogism", "答题结果: 有对有错"]
        screenshot(other, "find_map_chinese", full=True)
        expect_no_bug(other)
    page.locator(CHIPS).nth(1).click()
    expect(page.locator(CHIPS)).to_have_count(2)
    wait_idle(page)
    assert read_chips(page) == ["“WHAT follows”", "Outcome: mixed"]
    assert read_found(page) > n
    assert "task=" not in page.url and "outcome=mixed" in page.url
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator(".st-key-find_chips")).to_have_count(0)
    wait_idle(page)
    assert not {"q=", "task=", "outcome="} & set(re.findall(r"\w+=", page.url))
    expect(page.get_by_role("textbox", name="Search the text")).to_have_value("")


def test_what_is_looked_for_on_the_map_waits_on_the_skills_page(page: Page) -> None:
    open_page(page, "map", "q=syllogism&confidence=..0.99")
    n = read_found(page)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Skills").click()
    page.get_by_role("heading", name="Skills", exact=True).wait_for()
    wait_idle(page)
    assert read_found(page) == n
    expect(page.get_by_text("syllogism · ").first).to_be_visible()
    expect(page.get_by_text(f"{n} questions wait for a label")).to_be_visible()
    assert "q=syllogism" in page.url and "confidence=..0.99" in page.url
    page.get_by_role("button", name="Select them").click()
    expect(page.get_by_text(f"The {n} selected at once")).to_be_visible()
    page.get_by_role("tab", name="Suggestions").click()
    expect(page.get_by_text(f"Of {n} suggestions.")).to_be_visible()


def test_what_is_like_a_question_is_one_click_away(page: Page) -> None:
    open_page(page, "tasks")
    page.locator("[class*='st-key-like_tasks_'] .stButton").first.click()
    expect(page.get_by_text("The 100 most similar questions")).to_be_visible()
    wait_idle(page)
    assert "/map?" in page.url and "like=" in page.url
    expect(page.locator(CHIPS)).to_have_count(1)
    assert [chip[:7] for chip in read_chips(page)] == ["Like: “"]
    choose(page, "Outcome", "all incorrect")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Skills").click()
    page.get_by_role("heading", name="Skills", exact=True).wait_for()
    wait_idle(page)
    before = page.url
    page.locator(".st-key-skills_card [class*='st-key-like_skills_'] .stButton").click()
    wait_idle(page)
    assert "/skills?" in page.url and page.url != before
    expect(page.locator(CHIPS)).to_have_count(2)
    assert [chip.split(":")[0] for chip in read_chips(page)] == ["Outcome", "Like"]


def test_a_link_that_names_what_is_not_there_says_so(page: Page) -> None:
    open_page(page, "map", "q=syllogism&task=sight&outcome=solved&outcome=mixed&confidence=2..3&like=nothing")
    warning = page.get_by_text("The address asks for what is not in this workspace; left out:")
    for value in ("sight", "solved", "2..3", "nothing"):
        expect(warning).to_contain_text(value)
    expect(page.locator(CHIPS)).to_have_count(2)
    assert read_chips(page) == ["“syllogism”", "Outcome: mixed"]
    assert read_found(page) > 0


def test_back_and_forward_lead_through_what_was_looked_for(page: Page) -> None:
    open_page(page, "map")
    search(page, "WHAT follows")
    choose(page, "Task", "syllogism")
    expect(page.locator(CHIPS)).to_have_count(2)
    n = read_found(page)
    page.go_back()
    expect(page.locator(CHIPS)).to_have_count(1)
    assert read_chips(page) == ["“WHAT follows”"]
    assert read_found(page) > n
    page.go_back()
    expect(page.locator(CHIPS)).to_have_count(0)
    expect(page.get_by_role("textbox", name="Search the text")).to_have_value("")
    page.go_forward()
    expect(page.locator(CHIPS)).to_have_count(1)
    page.go_forward()
    expect(page.locator(CHIPS)).to_have_count(2)
    assert read_found(page) == n
    wait_idle(page)
    assert {"q=", "task="} <= set(re.findall(r"\w+=", page.url)), page.url
