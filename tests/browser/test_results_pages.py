"""What an advisor does on the results pages: follow a cell, open a mixed question, see what was lost, decide."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.driving import expect_said, open_page, screenshot, wait_idle

pytestmark = pytest.mark.browser


def _click_plot(page: Page, figure: Locator, x: float, y: float) -> None:
    """Click at a share (0..1) of the plot's width and height."""
    figure.scroll_into_view_if_needed()
    area = figure.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + x * area["width"] - 3, area["y"] + y * area["height"])
    page.mouse.click(area["x"] + x * area["width"], area["y"] + y * area["height"])
    wait_idle(page)


def test_a_cell_of_the_layer_heatmap_opens_its_questions(page: Page) -> None:
    open_page(page, "router")
    expect(page.get_by_text("Click a cell of a heatmap to see its questions.")).to_be_visible()
    _click_plot(page, page.locator(".js-plotly-plot").first, 0.42, 0.5)
    expect(page.get_by_text("Layer 2, expert logic")).to_be_visible()
    expect(page.get_by_text("Questions that use this expert most")).to_be_visible()
    screenshot(page, "router_cell")


def test_a_mixed_question_is_opened_with_all_answers_side_by_side(page: Page) -> None:
    open_page(page, "outcomes")
    expect(page.get_by_text("of the", exact=False).first).to_be_visible()
    table = page.get_by_test_id("stDataFrame").first
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 16, box["y"] + 52)
    wait_idle(page)
    expect(page.get_by_text("Right answer:", exact=False)).to_be_visible()
    expect(page.get_by_text("What the task-level router gave each expert", exact=False)).to_be_visible()
    screenshot(page, "outcomes_question")


def _pick_row(page: Page, table: int) -> None:
    """Pick the first row of a table."""
    found = page.get_by_test_id("stDataFrame").nth(table)
    found.scroll_into_view_if_needed()
    box = found.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 16, box["y"] + 52)
    wait_idle(page)


def test_a_bar_opens_its_questions_and_one_of_them_side_by_side(page: Page) -> None:
    open_page(page, "outcomes")
    _click_plot(page, page.locator(".js-plotly-plot").first, 0.1, 1.5 / 8)  # the second of seven tasks and all of them
    expect(page.get_by_role("heading", name=re.compile(r"\d+ questions: .*, (?!all tasks)"))).to_be_visible()
    _pick_row(page, 0)
    expect(page.get_by_text("Right answer:", exact=False)).to_be_visible()


def test_a_set_of_solvers_and_regret_open_their_questions(page: Page) -> None:
    open_page(page, "outcomes", "outcomes_show=sets&outcomes_by=skill")
    expect(page.get_by_role("heading", name="questions solved by exactly:")).to_be_visible()
    screenshot(page, "outcomes_sets")
    open_page(page, "outcomes", "outcomes_show=regret")
    expect(page.get_by_text("that an expert solves and mixture", exact=False)).to_be_visible()
    _pick_row(page, 1)
    expect(page.get_by_text("Right answer:", exact=False)).to_be_visible()
    expect(page.get_by_text("What the token-level router gave each expert", exact=False)).to_be_visible()
    screenshot(page, "outcomes_regret")


def test_a_cell_of_the_forgetting_matrix_opens_what_was_lost_and_gained(page: Page) -> None:
    open_page(page, "forgetting")
    expect(page.get_by_text("after Holm's correction over the", exact=False)).to_be_visible()
    _click_plot(page, page.locator(".js-plotly-plot").first, 0.21, 0.1)
    expect(page.get_by_text("arith · general_knowledge")).to_be_visible()
    expect(page.get_by_role("heading", name="Lost:")).to_be_visible()
    expect(page.get_by_role("heading", name="Gained:")).to_be_visible()
    _pick_row(page, 0)
    expect(page.get_by_text("Right answer:", exact=False)).to_be_visible()
    screenshot(page, "forgetting_cell")


def test_an_advisor_approves_a_run(fresh_page: Page) -> None:
    open_page(fresh_page, "review")
    expect(fresh_page.get_by_text("await a verdict.")).to_contain_text("9")
    fresh_page.get_by_role("radio", name="approve").click()
    fresh_page.get_by_label("Comment").fill("Holds up on held-out questions.")
    fresh_page.get_by_role("button", name="Leave review").click()
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("await a verdict.")).to_contain_text("8")
    open_page(fresh_page, "review")
    expect(fresh_page.get_by_text("await a verdict.")).to_contain_text("8")


def test_a_chart_is_questioned_where_it_stands_and_opened_again_as_it_was(fresh_page: Page) -> None:
    open_page(fresh_page, "outcomes")
    expect(
        fresh_page.get_by_text("Where tasks are pooled, different ways of scoring are:", exact=False)
    ).to_be_visible()
    fresh_page.get_by_role("toolbar", name="Over the experts").get_by_text("arith", exact=True).click()
    wait_idle(fresh_page)
    fresh_page.get_by_role("button", name="Review", exact=True).first.click()
    dialog = fresh_page.get_by_role("dialog")
    expect(dialog.get_by_text("Outcomes: solved by all, some, none (")).to_be_visible()
    screenshot(fresh_page, "review_chart")
    dialog.get_by_role("radio", name="question").click()
    dialog.get_by_label("Comment").fill("Why without arith?")
    dialog.get_by_role("button", name="Leave review").click()
    wait_idle(fresh_page)
    screenshot(fresh_page, "review_chart_left")
    expect(fresh_page.get_by_role("button", name="Review (1)")).to_be_visible()
    open_page(fresh_page, "review")
    fresh_page.get_by_role("toolbar", name="Show").get_by_text("Charts", exact=True).click()
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("Why without arith?")).to_be_visible()
    screenshot(fresh_page, "review_page_chart")
    fresh_page.get_by_role("button", name="Open the chart").click()
    expect(fresh_page.get_by_role("button", name="Review (1)")).to_be_visible()
    assert fresh_page.url.count("outcomes_experts=") == 2


def test_the_overview_names_what_is_there_and_leads_on(page: Page) -> None:
    open_page(page)
    expect(page.get_by_text("7 tasks, 420 questions, 4 skills, 3 experts, 1 mixtures", exact=False)).to_be_visible()
    page.get_by_role("button", name="Review results").click()
    expect(page.get_by_role("heading", name="Review", exact=True)).to_be_visible()


def test_a_file_is_imported_and_a_bad_one_is_not(fresh_page: Page, tmp_path) -> None:
    good, bad = tmp_path / "capitals.jsonl", tmp_path / "broken.jsonl"
    good.write_text('{"query": "Capital of France?", "choices": ["Paris", "Rome"], "gold": 0}\n' * 1)
    bad.write_text('{"query": "Capital of France?", "choices": ["Paris", "Rome"], "gold": 7}\n')
    open_page(fresh_page, "tasks")
    for path in (bad, good):
        fresh_page.get_by_role("button", name="Import questions").first.click()
        wait_idle(fresh_page)
        fresh_page.locator('input[type="file"]').set_input_files(path)
        wait_idle(fresh_page)
        dialog = fresh_page.get_by_role("dialog")
        if path is bad:
            expect(
                dialog.get_by_text("line 1", exact=False).or_(dialog.get_by_text("Download the rejected rows")).first
            ).to_be_visible()
            fresh_page.keyboard.press("Escape")
            wait_idle(fresh_page)
        else:
            dialog.get_by_role("button", name="3. Import as capitals").click()
            expect_said(fresh_page, "1 questions imported into capitals.")
    expect(fresh_page.get_by_text("8 tasks with 421 questions", exact=False)).to_be_visible()
