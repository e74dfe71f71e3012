"""Skills: a person labels with keys, accepts suggestions above a threshold, takes them back, and freezes a labelling."""

import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from metamoe_backend.store.acts import fetch_act
from metamoe_backend.store.connection import Store
from metamoe_backend.store.skills import fetch_conflicts, fetch_labellings, fetch_labels, fetch_rejections
from metamoe_backend.workspace import Workspace
from tests.browser.driving import (
    Dashboard,
    expect_no_bug,
    expect_said,
    open_page,
    open_tab,
    running_dashboard,
    screenshot,
    wait_idle,
)

pytestmark = pytest.mark.browser


def card_text(page: Page) -> str:
    return page.locator(".st-key-skills_card [data-testid=stText]").first.inner_text()


def end(dashboard: Dashboard) -> None:
    """Let go of the workspace."""
    dashboard.process.terminate()
    dashboard.process.wait()


def find_questions(dashboard: Dashboard, n: int) -> list[str]:
    """Ids of `n` questions nobody has labelled, read from the files of the run that brought them in."""
    parts = sorted(dashboard.workspace.glob("runs/*-ingest-*/output/question-*.parquet"))
    labelled = "".join(path.read_text() for path in dashboard.workspace.glob("events/*.jsonl"))
    ids = [name for name in pd.read_parquet(parts[0])["question_id"] if name not in labelled]
    return ids[:n]


def press_for(page: Page, key: str, text: str) -> None:
    """Press a key and wait for what the page says then."""
    page.keyboard.press(key)
    expect(page.get_by_role("button", name=text).first).to_be_visible()
    wait_idle(page)


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
    end(fresh_dashboard)
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        newest = fetch_labels(store).iloc[-1]
    assert (newest["skill"], newest["how"]) == ("logic", "question")


def test_sixty_questions_are_labelled_with_keys_alone(fresh_page: Page, fresh_dashboard: Dashboard) -> None:
    """Digits, Enter, Backspace, Space and U in turn: 60 labels stand at the end, and 12 refusals."""
    page = fresh_page
    open_page(page, "skills")
    for _ in range(12):
        for key in ("1", "2", "Enter", "Backspace", "3", "Space", "4", "1"):
            press(page, key)
        press_for(page, "U", "Do again: 1 label 'arithmetic'")
    expect(page.get_by_text("92 labelled questions cover 4 of 4 skills")).to_be_visible()
    screenshot(page, "skills_after_sixty", full=True)
    end(fresh_dashboard)
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        labels = fetch_labels(store)
        assert len(labels) == 32 + 60 and labels["question_id"].is_unique
        assert (labels["how"] == "accepted").sum() == 12
        assert len(fetch_rejections(store)) == 12


def test_a_cluster_is_labelled_by_one_key_and_that_is_taken_back_by_another(
    fresh_page: Page, fresh_dashboard: Dashboard
) -> None:
    page = fresh_page
    open_page(page, "skills")
    page.get_by_role("radio", name="A cluster at once").click()
    heading = page.get_by_text(re.compile(r"Cluster \d+: .* \d+ questions without a label"))
    expect(heading).to_be_visible()
    wait_idle(page)
    n = int(re.findall(r"(\d+) questions", heading.inner_text())[0])
    screenshot(page, "skills_cluster", full=True)
    press_for(page, "3", f"Take back {n} labels 'letters'")
    expect(page.get_by_text(f"{32 + n} labelled questions cover")).to_be_visible()
    press_for(page, "U", f"Do again: {n} labels 'letters'")
    expect(page.get_by_text("32 labelled questions cover")).to_be_visible()
    press_for(page, "Shift+U", f"Take back {n} labels 'letters'")
    end(fresh_dashboard)
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        assert (fetch_labels(store)["how"] == "cluster").sum() == n > 20


def test_two_people_disagree_and_one_decides(browser: Browser, fresh_page: Page, fresh_dashboard: Dashboard) -> None:
    """Both label the same questions in browsers of their own; nothing is lost; a decision ends a disagreement."""
    ids = find_questions(fresh_dashboard, 3)
    page = fresh_page
    with open_tab(browser, fresh_dashboard) as other:
        for tab, person in ((page, "ana"), (other, "ben")):
            open_page(tab, "skills", f"me={person}&questions={','.join(ids)}")
            tab.get_by_role("radio", name="The 3 selected at once").click()
            wait_idle(tab)
        page.keyboard.press("1")
        other.keyboard.press("2")
        expect(page.get_by_text("Take back 3 labels 'arithmetic'")).to_be_visible()
        expect(other.get_by_text("Take back 3 labels 'logic'")).to_be_visible()
        wait_idle(other)
        open_page(page, "skills", "me=ana")
        page.get_by_role("tab", name="People").click()
        expect(page.get_by_text("People disagree on 3 questions")).to_be_visible()
        expect(page.get_by_text(re.compile(r"Krippendorff's alpha: .*n=3"))).to_be_visible()
        screenshot(page, "skills_people", full=True)
        page.get_by_role("button", name="Decide one after the other").click()
        expect(page.get_by_text("3 disagreements to decide")).to_be_visible()
        wait_idle(page)
        page.get_by_role("textbox", name="Why").fill("It asks for a proof.")
        page.get_by_role("textbox", name="Why").press("Tab")
        wait_idle(page)
        page.locator(".st-key-skills_card").get_by_role("button", name=re.compile("^logic")).click()
        expect(page.get_by_text("2 disagreements to decide")).to_be_visible()
        wait_idle(page)
    end(fresh_dashboard)
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        labels = fetch_labels(store)
        assert len(labels[labels["question_id"].isin(ids)]) == 6
        assert fetch_conflicts(store)["question_id"].nunique() == 2
        decided = labels[labels["how"] == "decided"].iloc[0]
        assert (decided["author"], decided["skill"]) == ("ana", "logic")
        assert fetch_act(store, decided["event_id"]).values["why"] == "It asks for a proof."


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
    expect_said(page, "Frozen as 'v2'")
    end(fresh_dashboard)
    with Store.open(Workspace(fresh_dashboard.workspace)) as store:
        labellings = fetch_labellings(store).set_index("labelling")
        labels = fetch_labels(store)
    assert labellings.loc["v2", "labels"] == 32
    assert "accepted" not in set(labels["how"])


def test_a_question_is_tied_to_its_neighbour_and_the_tie_is_listed_and_taken_back(fresh_page: Page) -> None:
    page = fresh_page
    open_page(page, "skills")
    table = page.locator("[class*='st-key-skills_neighbours_'] canvas").first
    table.scroll_into_view_if_needed()
    area = table.bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + 18, area["y"] + 35 + 17)
    wait_idle(page)
    page.get_by_role("button", name="Same skill").click()
    expect(page.get_by_text("Kept for the next suggestions: the same skill.").first).to_be_visible()
    wait_idle(page)
    screenshot(page, "skills_constraint", full=True)
    page.get_by_role("tab", name="Suggestions").click()
    expect(page.get_by_text("1 constraint holds for suggestions")).to_be_visible()
    page.get_by_role("tab", name="History").click()
    back = page.locator(".st-key-skills_undo_history button")
    expect(back).to_contain_text("same skill for both sides, 2 questions")
    back.click()
    wait_idle(page)
    page.get_by_role("tab", name="Suggestions").click()
    wait_idle(page)
    expect(page.get_by_text("1 constraint holds for suggestions")).to_have_count(0)


def test_two_browsers_and_twenty_threads_lose_no_label(
    browser: Browser, recorded_synthetic: Path, tmp_path: Path
) -> None:
    """Two people press keys in their browsers while twenty threads of the same process give 2,000 labels."""
    workspace = Path(shutil.copytree(recorded_synthetic, tmp_path / "synthetic"))
    ready, go = tmp_path / "ready", tmp_path / "go"
    started = [sys.executable, "-m", "tests.browser.labelling_dashboard", str(ready), str(go)]
    with running_dashboard(workspace, started) as dashboard, ExitStack() as tabs:
        pages = {name: tabs.enter_context(open_tab(browser, dashboard)) for name in ("ben", "cleo")}
        for name, page in pages.items():
            open_page(page, "skills", f"me={name}")
        go.touch()
        given = 0
        while given < 8 or not ready.exists():
            for page in pages.values():
                page.keyboard.press("1")
                wait_idle(page)
                expect_no_bug(page)
            given += 1
        dashboard.process.terminate()
        dashboard.process.wait()
    assert ready.read_text() == "20"
    with Store.open(Workspace(workspace)) as store:
        labels = store.frame("SELECT author, question_id, event_id FROM label")
    counts = labels["author"].value_counts()
    threads = [f"thread-{number}" for number in range(20)]
    assert counts[threads].tolist() == [100] * 20
    assert not labels[labels["author"].isin(threads)].duplicated(["author", "question_id"]).any()
    assert counts["ben"] == given and counts["cleo"] == given
    assert not labels.duplicated(["event_id", "question_id"]).any()
