"""Sending alerts to the address that WORKSPACE/alerts.toml names, with the Jobs page closed, too.

The supervisor looks now and then; what it finds is sent from a thread of its own, once per alert and run, and tried
again where that fails. Nothing here can hold up or end a run: what goes wrong is a line of the supervisor's log.
"""

import http.client
import json
import queue
import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from metamoe_backend.errors import ConfigError
from metamoe_backend.jobs.alerts import Alert, AlertSettings, find_alerts, read_alert_settings
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, utc_now
from metamoe_backend.workspace import Workspace

LOOK_S = 10.0
"""Seconds between two looks. What is quiet or blocked must be so at two of them: a computer may just have woken up."""
TIMEOUT_S = 10.0
RETRY_AFTER_S = (5.0, 30.0)
"""Pauses before the second and the third attempt, which is the last."""


class Webhook:
    """One workspace's alerts on their way. `look` is called by one thread; sending is another's."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._looked_at = float("-inf")
        self._seen: set[tuple[str, str]] = set()
        self._taken: set[tuple[str, str]] = set()
        """Alerts handed to the sender, sent or given up."""
        self._outbox: queue.SimpleQueue[tuple[Alert, str]] = queue.SimpleQueue()
        self._unsent = 0
        self._lock = threading.Lock()
        self._sender: threading.Thread | None = None
        self._complained = ""

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be sent."""
        with self._lock:
            return self._unsent > 0

    def is_due(self) -> bool:
        """Whether it is time for a look."""
        return time.monotonic() - self._looked_at >= LOOK_S

    def look(self, statuses: Sequence[RunStatus]) -> None:
        """Send what stands wrong and has not been told yet."""
        settings = self.read_settings()
        if settings.url is None:
            return
        alerts = find_alerts(statuses, settings, utc_now())
        for alert in alerts:
            key = (alert.run_id, alert.alert)
            certain = alert.alert == "loss-nan" or key in self._seen
            if certain and key not in self._taken and not self._was_told(alert):
                self._hand_over(alert, settings.url)
        self._seen = {(alert.run_id, alert.alert) for alert in alerts}

    def read_settings(self) -> AlertSettings:
        """The settings; without an address, and a line in the log, where they cannot be used. Begins a look."""
        self._looked_at = time.monotonic()
        try:
            return read_alert_settings(self.workspace)
        except ConfigError as error:
            if str(error) != self._complained:
                _log(str(error))
            self._complained = str(error)
            return AlertSettings()

    def _was_told(self, alert: Alert) -> bool:
        return any(told.alert == alert.alert for told in RunFolder(self.workspace.runs / alert.run_id).read_told())

    def _hand_over(self, alert: Alert, url: str) -> None:
        self._taken.add((alert.run_id, alert.alert))
        with self._lock:
            self._unsent += 1
        self._outbox.put((alert, url))
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_all, name="webhook", daemon=True)
            self._sender.start()

    def _send_all(self) -> None:
        while True:
            alert, url = self._outbox.get()
            try:
                problem = send(url, make_message(alert, self.workspace))
                RunFolder(self.workspace.runs / alert.run_id).append_told(alert.alert, problem)
                _log(f"{alert.run_id}: alert {alert.alert} {'sent' if problem is None else f'not sent ({problem})'}")
            except Exception as error:  # noqa: BLE001 - the thread must go on to the next alert
                _log(f"{alert.run_id}: alert {alert.alert}: {type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._unsent -= 1


def make_message(alert: Alert, workspace: Workspace) -> dict[str, str]:
    """The JSON body; `text` is what chat servers show."""
    return {
        "workspace": workspace.name,
        "run_id": alert.run_id,
        "stage": alert.stage,
        "name": alert.name,
        "alert": alert.alert,
        "sentence": alert.sentence,
        "text": f"{workspace.name}: {alert.stage} {alert.name}: {alert.sentence}",
    }


def send(url: str, message: dict[str, str]) -> str | None:
    """POST a message, a few times where that fails; returns why it could not be sent, None if it was."""
    problem = None
    for pause in (0.0, *RETRY_AFTER_S):
        time.sleep(pause)
        try:
            _post(url, json.dumps(message, ensure_ascii=False).encode())
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            return None
    return problem


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Who answers "elsewhere" is told as a failure: a redirect may lead to other protocols and machines."""

    def redirect_request(self, *_arguments: Any, **_rest: Any) -> None:
        return None


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "MetaMoE"}
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S) as answer:
        answer.read(1)


def _log(line: str) -> None:
    print(f"{utc_now():%Y-%m-%d %H:%M:%S} {line}", flush=True)
