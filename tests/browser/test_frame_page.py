"""The frame around the pages: links, selection, language, and nothing fetched from elsewhere."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.driving import open_page, open_tab, running_dashboard, screenshot, shows_bug, wait_idle

pytestmark = pytest.mark.browser


def test_the_very_first_visitor_may_follow_a_link(browser: Browser, workspace) -> None:
    """Streamlit's older navigation would say that the page does not exist (see pages/__main__.py)."""
    with running_dashboard(workspace.root) as dashboard, open_tab(browser, dashboard) as tab:
        open_page(tab, "explore")
        expect(tab.get_by_role("heading", name="Explore")).to_be_visible()
        expect(tab.get_by_role("dialog")).to_have_count(0)


def test_a_second_dashboard_says_who_holds_the_workspace(browser: Browser, workspace) -> None:
    with running_dashboard(workspace.root) as first, open_tab(browser, first) as tab:
        open_page(tab, "explore")
        with running_dashboard(workspace.root) as second, open_tab(browser, second) as other:
            open_page(other, "explore")
            alert = other.get_by_role("alert").filter(has_text="is held by the dashboard")
            expect(alert).to_contain_text(f"process {first.process.pid}")


def test_the_selection_follows_and_can_be_taken_away(page: Page) -> None:
    open_page(page, "explore", "questions=a,b&expert=arith")
    chip = page.get_by_role("button", name="2 questions")
    expect(chip).to_be_visible()
    page.get_by_test_id("stSidebarNav").get_by_role("link").first.click()
    wait_idle(page)
    assert "questions=a" in page.url and "expert=arith" in page.url
    chip.click()
    expect(chip).to_have_count(0)
    wait_idle(page)
    assert "questions" not in page.url and "expert=arith" in page.url


def test_language_and_name_are_kept_in_the_address(page: Page) -> None:
    open_page(page, "explore")
    name = page.get_by_role("textbox", name="I am")
    name.fill("bob")
    name.press("Enter")
    wait_idle(page)
    page.get_by_test_id("stSidebar").get_by_role("combobox").click()
    page.get_by_role("option", name="简体中文").click()
    expect(page.get_by_role("heading", name="探索")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="探索")).to_be_visible()
    expect(page.get_by_role("textbox", name="我是")).to_have_value("bob")


def test_a_chinese_browser_gets_chinese_and_dark_is_dark(browser: Browser, dashboard) -> None:
    with open_tab(browser, dashboard, locale="zh-CN", scheme="dark") as tab:
        open_page(tab, "explore")
        expect(tab.get_by_role("heading", name="探索")).to_be_visible()
        screenshot(tab, "explore_dark_zh")
        background = tab.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert background == "rgb(20, 24, 29)"


def test_nothing_is_fetched_from_elsewhere(page: Page, dashboard) -> None:
    elsewhere: list[str] = []
    page.on(
        "request", lambda request: elsewhere.append(request.url) if not _is_here(request.url, dashboard.url) else None
    )
    open_page(page, "explore")
    page.get_by_role("button", name="Run", exact=False).first.click()
    wait_idle(page)
    assert elsewhere == []


def _is_here(address: str, url: str) -> bool:
    return address.startswith((url, url.replace("http", "ws"), "data:", "blob:"))


def test_every_page_opens_in_both_languages_without_loading_torch(browser: Browser, fresh_dashboard) -> None:
    broken = []
    for locale in ("en-GB", "zh-CN"):
        with open_tab(browser, fresh_dashboard, locale=locale) as tab:
            open_page(tab, "explore")
            links = tab.get_by_test_id("stSidebarNav").get_by_role("link")
            assert links.count() == 13
            for link in links.all():
                link.click()
                wait_idle(tab)
                if shows_bug(tab):
                    broken.append(tab.url)
    assert broken == [], fresh_dashboard.read_log()
    loaded = Path(f"/proc/{fresh_dashboard.process.pid}/maps").read_text()
    assert "libtorch" not in loaded, "a page loads torch as it opens: import it where it is used"
    assert "Traceback" not in fresh_dashboard.read_log()
