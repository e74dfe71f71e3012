"""Driving the dashboard in a browser, in the words of a person: open a page, wait, look, lasso."""

import itertools
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

ROOT = Path(__file__).resolve().parent.parent.parent
ARTIFACTS = ROOT / "tests" / "artifacts"
CHROMIUM = Path(os.environ.get("METAMOE_CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
SIZE: ViewportSize = {"width": 1280, "height": 900}
PATIENCE_MS = 120_000
"""How long an expectation is given on a busy machine before the test counts as failed."""
expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard."""

    url: str
    workspace: Path
    log: Path
    process: subprocess.Popen[bytes]

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def running_dashboard(workspace: Path, command: Sequence[str] = (sys.executable, "-m", "pages")) -> Iterator[Dashboard]:
    """The dashboard on a free port, serving `workspace`; ended when the block ends. command: what starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = workspace.parent / f"dashboard-{port}.log"
    environment = {**os.environ, "METAMOE_WORKSPACE": str(workspace), "METAMOE_PERSON": "ana"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--server.port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    dashboard = Dashboard(f"http://127.0.0.1:{port}", workspace, log, process)
    try:
        _wait_until_up(dashboard)
        yield dashboard
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(dashboard: Dashboard) -> None:
    until = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < until:
        if dashboard.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{dashboard.url}/_stcore/health") as answer:
                if answer.read() == b"ok":
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"The dashboard did not come up:\n{dashboard.read_log()}")


@contextmanager
def open_tab(
    browser: Browser, dashboard: Dashboard, locale: str = "en-GB", scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """A tab of a person of their own, 1280 wide, who is as patient as the expectations."""
    context = browser.new_context(base_url=dashboard.url, viewport=SIZE, locale=locale, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def wait_idle(page: Page) -> None:
    """Until the page's script has run to its end. A click needs a moment to reach the server, hence the pause."""
    page.wait_for_timeout(150)
    page.wait_for_selector(IDLE, timeout=PATIENCE_MS)
    page.wait_for_timeout(100)
    page.wait_for_selector(IDLE, timeout=PATIENCE_MS)


def open_page(page: Page, word: str = "", query: str = "") -> None:
    """Open a page by its word in the address and wait; fails if a bug shows on it."""
    page.goto(f"/{word}" + (f"?{query}" if query else ""))
    page.wait_for_selector('[data-testid="stSidebarNav"]', timeout=PATIENCE_MS)
    wait_idle(page)
    expect_no_bug(page)


def shows_bug(page: Page) -> bool:
    """Whether the error handler's sentence about a bug, in any language, or Streamlit's own box stands on the page."""
    return page.get_by_text(re.compile(r"\breference [0-9a-f]{6}\b|编号 [0-9a-f]{6} ")).count() > 0 or (
        page.get_by_test_id("stException").count() > 0
    )


def expect_no_bug(page: Page) -> None:
    assert not shows_bug(page), page.inner_text("body")


def screenshot(page: Page, name: str, full: bool = False) -> Path:
    """Keep what the page looks like under tests/artifacts/NAME.png."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTIFACTS / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    return path


def lasso(page: Page, figure: Locator, points: list[tuple[float, float]]) -> None:
    """Drag along `points` (shares 0..1 of the plot's width and height) and back to the first."""
    area = figure.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    corners = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in [*points, points[0]]]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        for step in range(1, 7):
            page.mouse.move(x0 + (x1 - x0) * step / 6, y0 + (y1 - y0) * step / 6)
    page.mouse.up()
    wait_idle(page)
