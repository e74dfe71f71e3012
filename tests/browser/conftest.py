"""A dashboard on a copy of the synthetic workspace, and Debian's Chromium.

`page` shares one dashboard with all tests and must not write. `fresh_page` has a dashboard and a workspace of its own.
Without Chromium these tests are skipped; METAMOE_REQUIRE_BROWSER=1 makes that a failure.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")

from tests.browser.driving import (  # noqa: E402
    ARGUMENTS,
    CHROMIUM,
    Dashboard,
    expect_no_bug,
    open_tab,
    running_dashboard,
)


@pytest.fixture(scope="session")
def browser() -> Iterator["playwright.Browser"]:
    if not CHROMIUM.exists():
        message = (
            f"There is no Chromium at {CHROMIUM}; install it (Debian: apt install chromium) or set METAMOE_CHROMIUM."
        )
        if os.environ.get("METAMOE_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def dashboard(recorded_synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """Shared by all tests that only look."""
    workspace = Path(shutil.copytree(recorded_synthetic, tmp_path_factory.mktemp("shared") / "synthetic"))
    with running_dashboard(workspace) as running:
        yield running


@pytest.fixture
def fresh_dashboard(recorded_synthetic: Path, tmp_path: Path) -> Iterator[Dashboard]:
    """For tests that write."""
    workspace = Path(shutil.copytree(recorded_synthetic, tmp_path / "synthetic"))
    with running_dashboard(workspace) as running:
        yield running


@pytest.fixture
def page(browser: "playwright.Browser", dashboard: Dashboard) -> Iterator["playwright.Page"]:
    yield from _tab(browser, dashboard)


@pytest.fixture
def fresh_page(browser: "playwright.Browser", fresh_dashboard: Dashboard) -> Iterator["playwright.Page"]:
    yield from _tab(browser, fresh_dashboard)


def _tab(browser: "playwright.Browser", dashboard: Dashboard) -> Iterator["playwright.Page"]:
    with open_tab(browser, dashboard) as tab:
        yield tab
        expect_no_bug(tab)
