"""The Meta-questions page in a browser: look, search, edit one, take it back, build by template and by a model."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Page, expect

from tests.browser.driving import Dashboard, expect_said, open_page, screenshot, wait_idle

pytestmark = pytest.mark.browser


def test_one_finds_a_question_edits_it_sees_it_stored_and_takes_it_back(fresh_page: Page, fresh_dashboard: Dashboard):
    open_page(fresh_page, "meta-questions")
    expect(fresh_page.get_by_text("420 meta-questions built, 7 distinct, 0 edited by hand.")).to_be_visible()
    search = fresh_page.get_by_role("textbox", name="Search")
    search.fill("syllogism")
    search.press("Enter")
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("60 questions", exact=True)).to_be_visible()
    field = fresh_page.get_by_label("Edit the meta-question")
    field.fill("What follows from *two* premises?")
    fresh_page.get_by_role("button", name="Save").click()
    expect(fresh_page.get_by_text("420 meta-questions built, 8 distinct, 1 edited by hand.")).to_be_visible()
    stored = "".join(path.read_text() for path in (fresh_dashboard.workspace / "events").glob("*.jsonl"))
    assert "What follows from *two* premises?" in stored
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("What follows from *two* premises?").first).to_be_visible()
    fresh_page.get_by_text("History (2)").click()
    fresh_page.locator("[class*=st-key-meta_undo_] button").click()
    expect(fresh_page.get_by_text("420 meta-questions built, 7 distinct, 0 edited by hand.")).to_be_visible()


def test_one_builds_by_template_and_the_old_ones_are_replaced(fresh_page: Page):
    open_page(fresh_page, "meta-questions")
    fresh_page.get_by_role("button", name="Build", exact=False).first.click()
    wait_idle(fresh_page)
    fresh_page.get_by_role("dialog").get_by_role("button", name="Build meta-questions").click()
    expect_said(fresh_page, "420 meta-questions built, 0 reused.")
    expect(fresh_page.get_by_text("420 meta-questions built, 7 distinct, 0 edited by hand.")).to_be_visible()


def test_a_server_without_an_address_is_refused_in_a_sentence(page: Page):
    open_page(page, "meta-questions")
    page.get_by_role("button", name="Build", exact=False).first.click()
    wait_idle(page)
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Language model", exact=True).click()
    wait_idle(page)
    dialog.get_by_text("OpenAI-compatible server", exact=True).click()
    wait_idle(page)
    dialog.get_by_role("button", name="Build meta-questions").click()
    expect(dialog.get_by_text("is no web address")).to_be_visible()
    screenshot(page, "meta_questions_build")


# ---- a language model behind a server ---------------------------------------------------------------------------


class Server:
    """Answers /v1/chat/completions: about sums and about the rest, the second half only once `released`."""

    def __init__(self) -> None:
        self.reply: tuple[int, str] | None = None
        self.released = threading.Event()
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
                outer.asked += 1
                if outer.reply is None and outer.asked > 32:
                    outer.released.wait(60)
                text = "Which number comes out?" if "syllogism" not in question else "What follows from premises?"
                status, body = outer.reply or (200, json.dumps({"choices": [{"message": {"content": text}}]}))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


def ask_server(page: Page, address: str, task: str) -> None:
    """Build the meta-questions of one task by the model behind `address`, through the dialog."""
    page.get_by_role("button", name="Build", exact=False).first.click()
    wait_idle(page)
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Language model", exact=True).click()
    wait_idle(page)
    dialog.get_by_text("OpenAI-compatible server", exact=True).click()
    wait_idle(page)
    tasks = dialog.get_by_role("combobox", name="Tasks")
    tasks.fill(task)
    tasks.press("Enter")
    tasks.press("Tab")  # the list of tasks closes
    wait_idle(page)
    for label, text in (("Address of the server", address), ("Model", "some-model")):
        field = dialog.get_by_role("textbox", name=label, exact=True)
        field.fill(text)
        field.press("Tab")
        wait_idle(page)
    dialog.get_by_role("button", name="Build meta-questions").click()
    expect(dialog).not_to_be_visible()


def test_a_model_builds_and_one_sees_progress_compares_corrects_and_sees_the_history(
    fresh_page: Page, server: Server
) -> None:
    open_page(fresh_page, "meta-questions")
    ask_server(fresh_page, server.address, "syllogism")
    expect(fresh_page.get_by_text("Building meta-questions: 32 of 60", exact=False)).to_be_visible()
    screenshot(fresh_page, "meta_questions_progress")
    server.released.set()
    expect(fresh_page.get_by_text("Language model", exact=False).first).to_be_visible()
    fresh_page.get_by_text("Language model", exact=False).first.click()
    wait_idle(fresh_page)
    expect(fresh_page.get_by_text("60 meta-questions built, 1 distinct, 0 edited by hand.")).to_be_visible()
    assert server.asked == 60
    expect(fresh_page.get_by_text("What follows from premises?").first).to_be_visible()
    fresh_page.get_by_label("Edit the meta-question").fill("What follows from two premises?")
    fresh_page.get_by_role("button", name="Save").click()
    expect(fresh_page.get_by_text("60 meta-questions built, 2 distinct, 1 edited by hand.")).to_be_visible()
    expect(fresh_page.get_by_text("History (2)")).to_be_visible()
    screenshot(fresh_page, "meta_questions_llm")


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (None, "cannot be reached"),
        ((401, "no"), "refused the key (status 401); set METAMOE_LLM_API_KEY"),
        ((200, "<html>"), "did not answer in the OpenAI form"),
    ],
    ids=["not there", "401", "malformed"],
)
def test_a_server_that_fails_is_told_in_a_sentence_on_the_page(
    fresh_page: Page, server: Server, reply: tuple[int, str] | None, sentence: str
) -> None:
    server.reply = reply
    open_page(fresh_page, "meta-questions")
    ask_server(fresh_page, server.address if reply else "http://127.0.0.1:9/v1", "syllogism")
    alert = fresh_page.get_by_role("alert").filter(has_text=sentence)
    expect(alert).to_have_count(1)
    screenshot(fresh_page, f"meta_questions_failed_{reply[0] if reply else 0}")
