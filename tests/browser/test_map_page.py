"""Map: a person draws round a group and gives it a skill; colours change and the place stays."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import fetch_constraints, fetch_labels
from metamoe_backend.workspace import Workspace
from tests.browser.driving import (
    PATIENCE_MS,
    Dashboard,
    expect_no_bug,
    expect_said,
    lasso,
    open_page,
    open_tab,
    relayed,
    running_dashboard,
    screenshot,
    wait_idle,
)
from tests.synthetic import build_map_workspace

pytestmark = pytest.mark.browser
EVERYTHING = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)]
LEFT_HALF = [(0.01, 0.01), (0.5, 0.01), (0.5, 0.99), (0.01, 0.99)]


def open_map(page: Page) -> None:
    open_page(page, "map")
    page.wait_for_selector(".st-key-map_figure .nsewdrag", timeout=PATIENCE_MS)
    wait_idle(page)


def read_camera(page: Page) -> list[float]:
    script = """() => {
        const layout = document.querySelector('.st-key-map_figure .js-plotly-plot')._fullLayout
        return [...layout.xaxis.range, ...layout.yaxis.range]
    }"""
    left, right, low, high = page.evaluate(script)
    # The legend takes more or less of the height with each colouring: how high the view reaches is not the person's.
    return [left, right, (low + high) / 2]


def count_selected(page: Page) -> int:
    text = page.get_by_role("button", name="Label all").inner_text()
    return int(text.split("Label all")[1].strip().replace(",", ""))


def test_a_lasso_labels_its_questions_and_undo_takes_it_back(fresh_page: Page, fresh_dashboard: Dashboard) -> None:
    page = fresh_page
    open_map(page)
    screenshot(page, "map", full=True)
    lasso(page, page.locator(".st-key-map_figure"), LEFT_HALF)
    expect(page.get_by_role("button", name="Label all")).to_be_visible()
    n = count_selected(page)
    assert 0 < n < 420
    assert "questions=" in page.url
    field = page.get_by_role("combobox", name="Label as")
    field.fill("knights and knaves")
    field.press("Enter")
    wait_idle(page)
    screenshot(page, "map_lasso", full=True)
    page.get_by_role("button", name="Label all").click()
    message = page.get_by_text(f"Labelled {n} questions 'knights and knaves'").first
    expect(message).to_be_visible()
    page.get_by_role("button", name="Undo", exact=True).click()
    expect_said(page, "Taken back.")
    wait_idle(page)
    page.get_by_role("button", name="Label all").click()
    expect(message).to_be_visible()
    wait_idle(page)
    fresh_dashboard.process.terminate()
    fresh_dashboard.process.wait()
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        labels = fetch_labels(store)
    mine = labels[labels["skill"] == "knights and knaves"]
    assert len(mine) == n
    assert set(mine["how"]) == {"lasso"}


def test_colours_change_and_the_person_stays_where_they_were(page: Page) -> None:
    open_map(page)
    before = read_camera(page)
    page.get_by_test_id("stButtonGroup").get_by_text("Pan", exact=True).click()
    wait_idle(page)
    box = page.locator(".st-key-map_figure .nsewdrag").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 120, y - 50, steps=6)
    page.mouse.up()
    page.wait_for_timeout(1500)  # the camera waits for the hand to rest
    wait_idle(page)
    moved = read_camera(page)
    assert moved != pytest.approx(before)
    page.get_by_role("combobox", name="Colour by").click()
    page.get_by_role("option", name="Outcome").click()
    expect(page.get_by_text("Outcome over all evaluated experts")).to_be_visible()
    page.wait_for_selector(".st-key-map_figure .nsewdrag", timeout=PATIENCE_MS)
    assert read_camera(page) == pytest.approx(moved)


def test_search_and_a_cluster_become_the_selection(page: Page) -> None:
    open_map(page)
    field = page.get_by_role("textbox", name="Search the text")
    field.fill("SYLLOGISM")
    field.press("Enter")
    expect(page.get_by_text("60 questions found")).to_be_visible()
    page.get_by_role("button", name="Select them").click()
    expect(page.get_by_role("button", name="Label all 60")).to_be_visible()
    wait_idle(page)
    lasso(page, page.locator(".st-key-map_figure"), EVERYTHING)
    expect(page.get_by_role("button", name="Label all 60")).to_be_visible()
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.get_by_text("Draw round a group with the lasso")).to_be_visible()


def test_a_click_picks_one_question_and_clear_forgets_the_lasso(page: Page) -> None:
    open_map(page)
    lasso(page, page.locator(".st-key-map_figure"), LEFT_HALF)
    expect(page.get_by_role("button", name="Label all")).to_be_visible()
    assert page.evaluate("document.querySelectorAll('.st-key-map_figure .selectionlayer path').length") > 0
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.get_by_text("Draw round a group with the lasso")).to_be_visible()
    expect(page.locator(".st-key-map_figure .selectionlayer path")).to_have_count(0)
    script = """() => {
        const figure = document.querySelector('.st-key-map_figure .js-plotly-plot')
        const frame = figure.querySelector('.nsewdrag').getBoundingClientRect()
        const { xaxis, yaxis } = figure._fullLayout
        const { x, y } = figure._fullData.find((trace) => trace.type === 'scattergl')
        return [frame.left + xaxis.d2p(x[0]), frame.top + yaxis.d2p(y[0])]
    }"""
    page.mouse.click(*page.evaluate(script))
    expect(page.get_by_role("button", name="Label all 1")).to_be_visible()


def pick_cluster(page: Page, number: int) -> None:
    """Pick a row of the table of clusters: they stand in order of their numbers."""
    table = page.locator("[class*='st-key-map_clusters_']").first
    table.scroll_into_view_if_needed()
    canvas = table.locator("canvas").first.bounding_box()
    assert canvas is not None
    page.mouse.click(canvas["x"] + 18, canvas["y"] + 35 * (number + 1) + 17)
    wait_idle(page)


def read_names(page: Page) -> set[str]:
    return set(page.locator(".st-key-map_figure .annotation-text").all_text_contents())


def test_a_cluster_is_renamed_merged_and_split_and_each_is_taken_back(fresh_page: Page) -> None:
    page = fresh_page
    open_map(page)
    before = read_names(page)
    pick_cluster(page, 2)
    page.get_by_role("button", name="Rename").first.click()
    field = page.get_by_role("textbox", name="Name", exact=True)
    field.fill("adding up")
    field.press("Enter")
    wait_idle(page)
    page.locator("[class*='st-key-map_name_2_go'] button").click()
    expect(page.get_by_text("adding up").first).to_be_visible()
    wait_idle(page)
    assert "adding up" in read_names(page)
    screenshot(page, "map_clusters", full=True)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo", exact=True).click()
    expect_said(page, "Taken back.")
    wait_idle(page)
    assert read_names(page) == before
    page.get_by_role("button", name="Merge").first.click()
    page.locator("[class*='st-key-map_merge_2_go'] button").click()
    expect(page.get_by_text("6 clusters in 420 questions")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.get_by_text("7 clusters in 420 questions")).to_be_visible()
    wait_idle(page)


def test_two_clusters_are_said_to_need_different_skills_and_that_is_taken_back(
    fresh_page: Page, fresh_dashboard: Dashboard
) -> None:
    page = fresh_page
    open_map(page)
    pick_cluster(page, 2)
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_role("button", name="Different skills").click()
    expect(page.get_by_text("Kept for the next suggestions: different skills.").first).to_be_visible()
    wait_idle(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo", exact=True).click()
    expect_said(page, "Taken back.")
    wait_idle(page)
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_role("button", name="Same skill").click()
    expect(page.get_by_text("Kept for the next suggestions: the same skill.").first).to_be_visible()
    wait_idle(page)
    fresh_dashboard.process.terminate()
    fresh_dashboard.process.wait()
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        found = fetch_constraints(store)
    assert found["relation"].tolist() == ["same"]
    assert len(found["first_ids"].iloc[0]) > 10 and len(found["second_ids"].iloc[0]) > 10


def test_the_address_holds_codes_that_every_language_reads(page: Page) -> None:
    open_map(page)
    page.get_by_role("combobox", name="Colour by").click()
    page.get_by_role("option", name="Outcome").click()
    wait_idle(page)
    assert "map_colour=outcome" in page.url
    open_page(page, "map", "map_colour=confidence")
    expect(page.get_by_text("1 for a label, the suggestion's probability else")).to_be_visible()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_map_workspace(tmp_path_factory.mktemp("many") / "many", 100_000).root


def test_eighty_thousand_questions_are_labelled_with_few_bytes(browser: Browser, many: Path) -> None:
    """Coloured by cluster the picture stays, coloured by skill it is drawn anew: few bytes in either case."""
    with running_dashboard(many) as started, relayed(started) as (dashboard, relay):
        with open_tab(browser, dashboard) as page:
            open_map(page)
            assert 0 < relay.take()[0] < 100_000  # a picture, not points
            picture = read_picture(page)
            n = label_everything(page, "deduction")
            down, up = relay.take()  # of all of it: lasso, name and label
            assert 0 < down < 50_000 and 0 < up < 50_000
            assert read_picture(page) == picture
            page.get_by_role("combobox", name="Colour by").click()
            page.get_by_role("option", name="Skill").click()
            page.wait_for_function(f"picture => {PICTURE} !== picture", arg=picture)
            wait_idle(page)
            picture = read_picture(page)
            relay.take()
            assert label_everything(page, "induction") == n
            page.wait_for_function(f"picture => {PICTURE} !== picture", arg=picture)
            down, up = relay.take()
            assert 0 < down < 50_000 and 0 < up < 50_000
            look_closer(page)
            expect_no_bug(page)
        started.process.terminate()
        started.process.wait()
    with Store.open(Workspace(many)) as store:
        labels = fetch_labels(store)
    assert len(labels) == n > 80_000 and set(labels["skill"]) == {"induction"}


PICTURE = "document.querySelector('.st-key-map_figure .js-plotly-plot').layout.images[0].source"


def read_picture(page: Page) -> str:
    return page.evaluate(PICTURE)


def label_everything(page: Page, skill: str) -> int:
    """Draw round all of the map, and give it a skill: how many questions. The camera stays."""
    lasso(page, page.locator(".st-key-map_figure"), EVERYTHING)
    expect(page.get_by_role("button", name="Label all")).to_be_visible()
    wait_idle(page)
    n, before = count_selected(page), read_camera(page)
    field = page.get_by_role("combobox", name="Label as")
    field.fill(skill)
    field.press("Enter")
    wait_idle(page)
    page.get_by_role("button", name="Label all").click()
    expect(page.get_by_text(f"Labelled {n:,} questions '{skill}'").first).to_be_visible()
    wait_idle(page)
    assert read_camera(page) == pytest.approx(before)
    return n


def look_closer(page: Page) -> None:
    """Turn the wheel: the picture is drawn anew, from nearer."""
    page.get_by_test_id("stButtonGroup").get_by_text("Pan", exact=True).click()
    wait_idle(page)
    whole, before = read_picture(page), read_camera(page)
    area = page.locator(".st-key-map_figure .nsewdrag").first.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    for _ in range(5):
        page.mouse.wheel(0, -300)
    page.wait_for_function(f"whole => {PICTURE} !== whole", arg=whole)
    wait_idle(page)
    left, right, _ = read_camera(page)
    assert right - left < before[1] - before[0]
