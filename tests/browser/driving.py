"""Driving the dashboard in a browser, in the words of a person: open a page, wait, look, lasso."""

import itertools
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
KEEP_TOASTS = """
window.said = new Set();
new MutationObserver(() => {
  for (const toast of document.querySelectorAll('[data-testid="stToast"]')) window.said.add(toast.textContent);
}).observe(document, {childList: true, subtree: true, characterData: true});
"""
"""A toast goes after four seconds, which a busy machine may take to look."""
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

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def running_dashboard(
    workspace: Path, command: Sequence[str] = (sys.executable, "-m", "pages"), port: int | None = None
) -> Iterator[Dashboard]:
    """The dashboard on `port` or a free one, serving `workspace`; ended when the block ends. command: what starts it."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    log = workspace.parent / f"dashboard-{port}.log"
    environment = {**os.environ, "METAMOE_WORKSPACE": str(workspace), "METAMOE_PERSON": "ana"}
    with log.open("ab") as output:
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


class Relay(socketserver.ThreadingTCPServer):
    """A port in front of a dashboard's that counts the bytes of its websockets as they cross the wire: compressed."""

    daemon_threads = True

    def __init__(self, dashboard: Dashboard) -> None:
        self.port = dashboard.port
        self.down = self.up = 0
        super().__init__(("127.0.0.1", 0), _Relayed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self) -> tuple[int, int]:
        """Bytes down and up since the last time."""
        taken, self.down, self.up = (self.down, self.up), 0, 0
        return taken


class _Relayed(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as behind:
            asked = self.request.recv(1 << 16)
            behind.sendall(asked)
            counted = b"upgrade: websocket" in asked.lower()
            downwards = threading.Thread(
                target=self._pass_on, args=(behind, self.request, "down", counted), daemon=True
            )
            downwards.start()
            self._pass_on(self.request, behind, "up", counted)
            downwards.join()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str, counted: bool) -> None:
        with suppress(OSError):  # whoever hangs up first
            while data := source.recv(1 << 16):
                target.sendall(data)
                if counted:
                    setattr(self.server, way, getattr(self.server, way) + len(data))
            target.shutdown(socket.SHUT_WR)


@contextmanager
def relayed(dashboard: Dashboard) -> Iterator[tuple[Dashboard, Relay]]:
    """The dashboard behind a relay until the block ends."""
    with Relay(dashboard) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield replace(dashboard, url=relay.url), relay
        relay.shutdown()


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
    context.add_init_script(KEEP_TOASTS)
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


def expect_said(page: Page, text: str) -> None:
    """Wait until a toast of this page has said this, gone by now or not."""
    page.wait_for_function("text => [...window.said].some(each => each.includes(text))", arg=text)


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
