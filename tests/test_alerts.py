"""Alerts: what stands wrong is found in how runs stand, and sent once, by the supervisor, without disturbing a run."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from metamoe_backend.errors import ConfigError, DivergedError
from metamoe_backend.jobs import slurm, supervisor, webhook
from metamoe_backend.jobs.alerts import ALERT_KINDS, Alert, AlertSettings, find_alerts, read_alert_settings
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.run_folder import RunStatus, create_run, utc_now
from metamoe_backend.jobs.webhook import Webhook, send
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import SUPERVISOR_COMMAND, find_processes, wait_for
from tests.test_supervisor import submit_run, wait_until, wait_until_it_leaves

NOW = datetime(2026, 11, 21, 12)
RUN = RunStatus(run_id="r1", stage="train", name="arith", by="ana", created_at=NOW, state="running", place=1, idle_s=5)
QUIET = replace(RUN, idle_s=700.0, done=3, total=10)
WAITING = replace(RUN, run_id="r2", state="queued", place=2)


def kinds(*statuses: RunStatus, **settings: object) -> list[tuple[str, str]]:
    return [(alert.run_id, alert.alert) for alert in find_alerts(statuses, AlertSettings(**settings), NOW)]


# ---- what is wrong ------------------------------------------------------------------------------------------------


def test_nothing_wrong_is_no_alert() -> None:
    assert kinds(RUN, WAITING, replace(RUN, state="finished"), replace(RUN, state="failed", failure="KeyError")) == []


def test_a_loss_that_became_nan_is_told_for_a_day() -> None:
    failed = replace(RUN, state="failed", failure=DivergedError.__name__, error="The loss became NaN at step 3.")
    recent, old = (replace(failed, ended_at=NOW - timedelta(hours=hours)) for hours in (1, 25))
    assert kinds(recent) == [("r1", "loss-nan")] and kinds(old) == []
    assert find_alerts([recent], AlertSettings(), NOW)[0].sentence == failed.error
    assert kinds(replace(RUN, metrics={"eval_loss": float("nan")})) == [("r1", "loss-nan")]
    assert kinds(replace(RUN, metrics={"learning_rate": float("nan"), "loss": 1.0})) == []


def test_no_progress_is_measured_by_the_clock_and_by_the_pace() -> None:
    assert kinds(QUIET) == [("r1", "no-progress")]
    assert "12 minutes (3 of 10 done)" in find_alerts([QUIET], AlertSettings(), NOW)[0].sentence
    assert kinds(replace(QUIET, s_per_item=60.0)) == [], "an item of it takes a minute: twenty are not over"
    assert kinds(QUIET, quiet_min=12) == [] and kinds(QUIET, alerts=["loss-nan"]) == []


def test_a_queue_is_blocked_by_what_holds_the_device_or_by_nothing_at_all() -> None:
    third = replace(WAITING, run_id="r3", place=3)
    found = find_alerts([third, WAITING, QUIET], AlertSettings(), NOW)
    assert [(alert.run_id, alert.alert) for alert in found] == [("r1", "no-progress"), ("r2", "queue-blocked")]
    assert found[1].sentence.startswith("2 runs wait for a device that arith holds")
    lively = replace(RUN, run_id="r4")
    assert ("r2", "queue-blocked") not in kinds(WAITING, QUIET, lively), "another device is being worked on"
    assert kinds(replace(WAITING, idle_s=700.0)) == [("r2", "queue-blocked")]
    assert kinds(replace(WAITING, idle_s=700.0), RUN) == [], "it waits for its turn"


@pytest.mark.parametrize(
    ("reason", "blocked"),
    [
        ("Priority", False),
        ("Resources", False),
        (None, False),
        ("BadConstraints", True),
        ("QOSMaxJobsPerUserLimit", True),
    ],
)
def test_slurm_holds_a_job_back_or_lets_it_wait(reason: str | None, blocked: bool) -> None:
    on_slurm = replace(WAITING, place=None, profile="a100", job="7", waits_for=reason)
    assert kinds(on_slurm) == ([("r2", "queue-blocked")] if blocked else [])


def test_what_a_run_folder_says_becomes_an_alert(workspace: Workspace) -> None:
    run = create_run(workspace, "train", "arith", {}, "ana", {})
    context = RunContext(run)
    context.start("cpu")
    context.progress(3, 10, loss=1.0)
    assert 0 <= (run.read_state().idle_s or -1) < 600
    context.fail(DivergedError("The loss became NaN at step 4."))
    assert [alert.alert for alert in find_alerts([run.read_state()], AlertSettings(), utc_now())] == ["loss-nan"]
    run.write_state(run.read_state_file().model_copy(update={"state": "queued"}))
    RunContext(run).start("cpu")
    assert run.read_state().failure is None, "a new attempt has not failed"


# ---- the setting --------------------------------------------------------------------------------------------------


def test_without_a_file_every_alert_is_shown_and_none_sent(workspace: Workspace) -> None:
    assert read_alert_settings(workspace) == AlertSettings(url=None, alerts=list(ALERT_KINDS))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("url = 'ftp://host/x'", r"alerts.toml: url: write an address that begins with http:// or https://"),
        ("url = 'file:///etc/passwd'", r"alerts.toml: url: write an address"),
        ("url = 'https://'", r"alerts.toml: url: write an address"),
        ("url = 'https://host:port/x'", r"alerts.toml: url: write an address"),
        ("url = 'https://host/a b'", r"alerts.toml: url: write an address"),
        ("url = 3", r"alerts.toml: url: .*string"),
        ("alerts = ['all']", r"alerts.toml: alerts.0: .*'loss-nan', 'no-progress' or 'queue-blocked'.*'all'"),
        ("quiet_min = 0", r"alerts.toml: quiet_min: .*greater than"),
        ("mail = 'me'", r"alerts.toml: mail: Extra inputs"),
        ("url = x", r"alerts.toml is no TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(workspace: Workspace, text: str, sentence: str) -> None:
    workspace.alerts.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_alert_settings(workspace)
    assert "\n" not in str(caught.value)


# ---- sending ------------------------------------------------------------------------------------------------------


class Listener:
    """A server that keeps what is sent to it and answers as told."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        """Statuses to answer with, one after the other; then 200."""
        self.got: list[dict] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.got.append(json.loads(body) | {"": self.headers["Content-Type"]})
                self.send_response(listener.answers.pop(0) if listener.answers else 200)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                listener.got.append({"followed": self.path})

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(webhook, "RETRY_AFTER_S", (0.0, 0.0))
    found = Listener()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_message_is_tried_again_and_given_up_after_the_third_time(listener: Listener) -> None:
    listener.answers = [500, 503]
    assert send(listener.url, {"a": "b"}) is None and len(listener.got) == 3
    listener.answers, listener.got = [500] * 9, []
    assert "500" in (send(listener.url, {"a": "b"}) or "") and len(listener.got) == 3


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_not_followed(listener: Listener, status: int) -> None:
    listener.answers = [status] * 3
    assert str(status) in (send(listener.url, {"a": "b"}) or "")
    assert len(listener.got) == 3 and not any("followed" in got for got in listener.got)


def test_an_address_where_nobody_listens_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(webhook, "RETRY_AFTER_S", ())
    assert "URLError" in (send("http://127.0.0.1:9/hook", {}) or "")


def test_an_alert_is_sent_once_whoever_looks(workspace: Workspace, listener: Listener) -> None:
    workspace.alerts.write_text(f"url = '{listener.url}'")
    run = create_run(workspace, "train", "算术", {}, "ana", {})
    failed = replace(
        RUN, run_id=run.run_id, name="算术", state="failed", failure="DivergedError", error="The loss became NaN.",
        ended_at=utc_now(),
    )  # fmt: skip
    first = Webhook(workspace)
    for _ in range(3):
        first.look([failed])
    wait_for(lambda: not first.is_busy)
    Webhook(workspace).look([failed])  # a supervisor that came later
    assert listener.got == [
        {
            "workspace": workspace.name, "run_id": run.run_id, "stage": "train", "name": "算术", "alert": "loss-nan",
            "sentence": "The loss became NaN.", "text": f"{workspace.name}: train 算术: The loss became NaN.",
            "": "application/json; charset=utf-8",
        }
    ]  # fmt: skip
    assert [(told.alert, told.problem) for told in run.read_told()] == [("loss-nan", None)]


def test_what_is_quiet_must_be_so_at_two_looks(workspace: Workspace, listener: Listener) -> None:
    workspace.alerts.write_text(f"url = '{listener.url}'")
    run = create_run(workspace, "train", "arith", {}, "ana", {})
    quiet, lively = replace(QUIET, run_id=run.run_id), replace(RUN, run_id=run.run_id)
    hook = Webhook(workspace)
    for status in (quiet, lively, quiet):
        hook.look([status])
    assert not hook.is_busy and listener.got == [], "the computer may just have woken up"
    hook.look([quiet])
    wait_for(lambda: not hook.is_busy)
    assert [got["alert"] for got in listener.got] == ["no-progress"]


def test_what_cannot_be_sent_is_kept_and_a_bad_file_only_logged(
    workspace: Workspace, listener: Listener, capfd: pytest.CaptureFixture[str]
) -> None:
    run = create_run(workspace, "train", "arith", {}, "ana", {})
    failed = replace(RUN, run_id=run.run_id, state="failed", failure="DivergedError", ended_at=utc_now())
    hook = Webhook(workspace)
    workspace.alerts.write_text("url = 'gopher://x'")
    hook.look([failed])
    hook.look([failed])
    assert capfd.readouterr().out.count("write an address") == 1
    workspace.alerts.write_text(f"url = '{listener.url}'")
    listener.answers = [500] * 9
    hook.look([failed])
    wait_for(lambda: not hook.is_busy)
    assert "HTTPError" in (run.read_told()[0].problem or "")
    assert "alert loss-nan not sent (HTTPError" in capfd.readouterr().out


# ---- from the supervisor, with no page open -----------------------------------------------------------------------


@pytest.fixture
def queue(workspace: Workspace, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setattr(supervisor, "SUPERVISOR_COMMAND", SUPERVISOR_COMMAND)
    workspace.alerts.write_text(f"url = '{listener.url}'")
    yield workspace
    for process in find_processes(workspace):
        process.kill()
        process.wait()


def test_the_supervisor_sends_what_went_wrong_and_leaves(queue: Workspace, listener: Listener) -> None:
    listener.answers = [500]
    bad, good = submit_run(queue, then="diverge"), submit_run(queue)
    wait_until(good, "finished")
    wait_until_it_leaves(queue)
    assert [(got["run_id"], got["alert"], got["sentence"]) for got in listener.got] == [
        (bad.run_id, "loss-nan", "The loss became NaN at step 3.")
    ] * 2, "the first answer was an error"
    assert [told.problem for told in bad.read_told()] == [None] and good.read_told() == []


def test_an_address_that_never_answers_holds_up_no_run(queue: Workspace) -> None:
    queue.alerts.write_text("url = 'http://127.0.0.1:9/hook'")
    bad = submit_run(queue, then="diverge")
    wait_until(bad, "failed")
    good = submit_run(queue)
    wait_until(good, "finished")
    wait_until_it_leaves(queue)
    assert "URLError" in (bad.read_told()[0].problem or "")
    assert "not sent" in (queue.runs / ".supervisor.log").read_text()


def test_an_error_among_the_alerts_does_not_end_the_queue(
    queue: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhook, "find_alerts", lambda *_: 1 / 0)
    run = create_run(queue, "count", "a test", {}, "ana", {})
    worker = supervisor.Supervisor(queue, [])
    assert worker.watch() is False and "ZeroDivisionError" in capfd.readouterr().out
    assert run.read_state().state == "queued"


def test_runs_on_slurm_are_watched_where_alerts_are_sent(
    queue: Workspace, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "poll", lambda workspace, statuses: set())
    run = create_run(queue, "count", "a test", {}, "ana", {})
    run.write_state(
        run.read_state_file().model_copy(update={"profile": "a100", "job": "7", "waits_for": "PartitionDown"})
    )
    watcher = supervisor.Supervisor(queue, [])
    assert watcher.watch() and watcher.watch()
    wait_for(lambda: not watcher.webhook.is_busy)
    assert [(got["alert"], "PartitionDown" in got["sentence"]) for got in listener.got] == [("queue-blocked", True)]
    started = []
    monkeypatch.setattr(supervisor, "_ensure_supervisor", started.append)
    supervisor.poll(queue)
    queue.alerts.unlink()
    supervisor.poll(queue)
    assert started == [queue], "only where alerts are sent"


def test_a_message_names_the_run_and_no_secret(tmp_path: Path) -> None:
    settings = AlertSettings(url="https://hooks.example.org/services/T0/secret")
    assert settings.host == "hooks.example.org"
    message = webhook.make_message(Alert("r1", "train", "arith", "loss-nan", "NaN."), Workspace(tmp_path / "mine"))
    assert "secret" not in json.dumps(message) and message["workspace"] == "mine"
