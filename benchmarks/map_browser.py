"""The map in headless Chromium with a thousand, a hundred thousand and a million questions: seconds and kilobytes.

Of each act the seconds until the page stands still, and the kB of its websockets as they cross the wire, compressed,
down and up: open the page; draw a lasso round everything (24 mouse moves); name a skill; give it to all of them; draw
the map from nearer with the wheel. Synthetic questions, 1280 x 900, software rendering.

`--screenshots DIR` keeps the map after the label as DIR/map_SIZE.png: those of docs/screenshots.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from timing import make_parser, report

from tests.browser.driving import (
    ARGUMENTS,
    CHROMIUM,
    Relay,
    lasso,
    open_page,
    open_tab,
    relayed,
    running_dashboard,
    wait_idle,
)
from tests.synthetic import build_map_workspace

SIZES = {"1k": 1_000, "100k": 100_000, "1m": 1_000_000}
ROUNDS = 3
EVERYTHING = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)]
FIGURE = ".st-key-map_figure"

Figures = dict[str, list[float]]


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--screenshots", metavar="DIR", type=Path, help="keep pictures of the maps there")
    options = parser.parse_args()
    figures: Figures = {}
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        for name, n in list(SIZES.items())[: 2 if options.quick else 3]:
            workspace = build_map_workspace(Path(folder) / name, n)
            picture = options.screenshots / f"map_{name}.png" if options.screenshots else None
            with running_dashboard(workspace.root) as dashboard, relayed(dashboard) as (behind, relay):
                for round_number in range(1 if options.quick else ROUNDS):
                    with open_tab(browser, behind) as page:
                        measure(page, relay, name, f"skill {round_number}", figures, picture)
        browser.close()
    report(
        {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
            for name, values in figures.items()
        },
        options,
    )


def measure(page: Page, relay: Relay, size: str, skill: str, figures: Figures, picture: Path | None) -> None:
    """One person's way over the map, from opening it to a label and a closer look."""

    def note(act: str, call: Callable[[], object]) -> None:
        relay.take()
        start = time.perf_counter()
        call()
        wait_idle(page)
        seconds, (down, up) = time.perf_counter() - start, relay.take()
        for figure, value in (("s", seconds), ("down_kb", down / 1000), ("up_kb", up / 1000)):
            figures.setdefault(f"{size}/{act}_{figure}", []).append(value)

    def open_map() -> None:
        open_page(page, "map")
        page.wait_for_selector(f"{FIGURE} .nsewdrag")

    def name_skill() -> None:
        field = page.get_by_role("combobox", name="Label as")
        field.fill(skill)
        field.press("Enter")

    def label() -> None:
        page.get_by_role("button", name="Label all").click()
        page.get_by_text(re.compile(rf"Labelled [\d,]+ questions '{skill}'")).first.wait_for()

    def zoom() -> None:
        area = page.locator(f"{FIGURE} .nsewdrag").first.bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
        page.mouse.wheel(0, -900)
        page.wait_for_timeout(500)  # the wheel has to rest before the map is drawn anew

    note("open", open_map)
    note("lasso", lambda: lasso(page, page.locator(FIGURE), EVERYTHING))
    note("name", name_skill)
    note("label", label)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1000)  # the picture draws itself after the page is still
        page.screenshot(path=picture)
    page.get_by_test_id("stButtonGroup").get_by_text("Pan", exact=True).click()
    wait_idle(page)
    note("zoom", zoom)


if __name__ == "__main__":
    main()
