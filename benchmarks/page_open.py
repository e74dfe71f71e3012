"""Seconds until each page stands still on the recorded demo, in a warm server, headless Chromium, 1280 x 900.

`--screenshots DIR` also keeps each page as DIR/PAGE_light.png and DIR/PAGE_dark.png: those of docs/screenshots.
"""

import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from timing import make_parser, report

from metamoe_backend.demo import open_demo
from metamoe_backend.workspace import Workspace
from tests.browser.driving import ARGUMENTS, CHROMIUM, open_page, open_tab, running_dashboard

WORDS = (
    "overview", "tasks", "meta-questions", "map", "skills", "experts", "jobs", "router", "outcomes", "forgetting",
    "study", "explore", "review",
)  # fmt: skip


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--screenshots", metavar="DIR", type=Path, help="keep pictures of the pages there")
    parser.add_argument("--width", type=int, default=1280, help="width of the window in the pictures")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {word: [] for word in WORDS}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        workspace = open_demo(Workspace(Path(folder) / "demo"))
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        with running_dashboard(workspace.root) as dashboard:
            for measured in [False, *[True] * (1 if options.quick else 5)]:
                with open_tab(browser, dashboard) as tab:
                    for word in WORDS:
                        start = time.perf_counter()
                        open_page(tab, "" if word == "overview" else word)
                        if measured:
                            seconds[word].append(time.perf_counter() - start)
            if options.screenshots:
                options.screenshots.mkdir(parents=True, exist_ok=True)
                for scheme in ("light", "dark"):
                    with open_tab(browser, dashboard, scheme=scheme) as tab:
                        tab.set_viewport_size({"width": options.width, "height": 900})
                        for word in WORDS:
                            open_page(tab, "" if word == "overview" else word)
                            tab.wait_for_timeout(1500)  # charts draw themselves after the page is still
                            tab.screenshot(path=options.screenshots / f"{word}_{scheme}.png")
        browser.close()
    figures = {
        f"{word}_s": {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
        for word, values in seconds.items()
    }
    report(figures, options)


if __name__ == "__main__":
    main()
