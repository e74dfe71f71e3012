"""What stands wrong with runs and should be told: the loss is NaN, nothing moves, the queue is blocked.

The Jobs page shows it; where WORKSPACE/alerts.toml names an address, the supervisor sends it there, too
(see `jobs.webhook`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from metamoe_backend.config import StageConfig, read_config_file
from metamoe_backend.errors import DivergedError
from metamoe_backend.i18n import _, ngettext
from metamoe_backend.jobs.run_folder import RunStatus
from metamoe_backend.jobs.waiting import find_obstacle, find_waits
from metamoe_backend.workspace import Workspace

AlertKind = Literal["loss-nan", "no-progress", "queue-blocked"]
ALERT_KINDS: tuple[AlertKind, ...] = get_args(AlertKind)
FRESH = timedelta(days=1)
"""A run that failed longer ago alarms nobody."""
SLOW_ITEMS = 20
"""No progress means: none for this many times what an item usually takes, and for the time set."""
_HELD_BACK = (
    "Assoc", "AccountNotAllowed", "BadConstraints", "DependencyNeverSatisfied", "FedJobLock", "InvalidAccount",
    "InvalidQOS", "JobArrayTaskLimit", "JobHeld", "MaxGRESPerAccount", "MaxMemPerLimit", "NodeDown", "PartitionDown",
    "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit", "QOS", "ReqNodeNotAvail", "SystemFailure",
    "launch failed",
)  # fmt: skip
"""How Slurm's words begin for jobs that wait for a person, not for their turn (squeue(1), JOB REASON CODES)."""


def _check_address(text: str) -> str:
    try:
        address = urlsplit(text)
        fine = address.scheme in ("http", "https") and bool(address.hostname) and not (set(text) & set(" \t\r\n"))
        fine = fine and text.isascii() and (address.port is None or address.port > 0)
    except ValueError:
        fine = False
    if not fine:
        raise ValueError("write an address that begins with http:// or https://, without spaces")
    return text


class AlertSettings(StageConfig):
    """What is told, and to whom."""

    url: Annotated[str, AfterValidator(_check_address)] | None = Field(
        None, description="Where alerts are sent, by POST as JSON; without it the Jobs page alone shows them"
    )
    alerts: list[AlertKind] = Field(default_factory=lambda: list(ALERT_KINDS), description="Which ones")
    quiet_min: float = Field(10.0, ge=0.1, le=10_000, description="So many minutes without progress are worth an alert")

    @property
    def host(self) -> str | None:
        """Whom the address belongs to: the rest of it may be a secret."""
        return None if self.url is None else urlsplit(self.url).hostname


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that stands wrong with one run."""

    run_id: str
    stage: str
    name: str
    alert: AlertKind
    sentence: str
    """What is wrong and what one can do, in the language of whoever looks."""


def read_alert_settings(workspace: Workspace) -> AlertSettings:
    """WORKSPACE/alerts.toml, or the defaults where there is none; raises `ConfigError` naming what is wrong in it."""
    path = workspace.alerts
    return read_config_file(AlertSettings, path) if path.exists() else AlertSettings()


def find_alerts(statuses: Sequence[RunStatus], settings: AlertSettings, now: datetime) -> list[Alert]:
    """What stands wrong `now` (UTC), in the order of `statuses`; a blocked queue is told of the run that is next."""
    quiet = [status for status in statuses if _is_quiet(status, settings)]
    told: list[tuple[RunStatus, AlertKind, str]] = []
    for status in statuses:
        if _has_nan(status, now):
            told.append(
                (status, "loss-nan", status.error or _("The loss is NaN; stop it and lower the learning rate."))
            )
        elif status in quiet:
            told.append((status, "no-progress", _quiet_sentence(status)))
        elif status.state == "queued" and status.job and (status.waits_for or "").startswith(_HELD_BACK):
            sentence = _("Slurm holds its job back ({reason}): mend the profile, or ask who runs the cluster.")
            told.append((status, "queue-blocked", sentence.format(reason=status.waits_for)))
        elif status.state == "queued" and status.profile and not status.job and status.waits_for:
            told.append((status, "queue-blocked", status.waits_for))
    told += [(status, "queue-blocked", sentence) for status, sentence in _find_stuck(statuses)]
    blocked = _find_blocked(statuses, quiet, settings)
    if blocked is not None:
        told.append((blocked[0], "queue-blocked", blocked[1]))
    return [
        Alert(status.run_id, status.stage, status.name, kind, sentence)
        for status, kind, sentence in told
        if kind in settings.alerts
    ]


def _has_nan(status: RunStatus, now: datetime) -> bool:
    if status.state == "failed":
        fresh = status.ended_at is None or now - status.ended_at < FRESH
        return fresh and status.failure == DivergedError.__name__
    losses = (value for name, value in status.metrics.items() if "loss" in name)
    return status.state == "running" and any(math.isnan(value) for value in losses)


def _is_quiet(status: RunStatus, settings: AlertSettings) -> bool:
    if status.state != "running" or status.idle_s is None:
        return False
    return status.idle_s > max(60 * settings.quiet_min, SLOW_ITEMS * (status.s_per_item or 0.0))


def _quiet_sentence(status: RunStatus) -> str:
    minutes = round((status.idle_s or 0.0) / 60)
    since = ngettext("No progress for {n} minute", "No progress for {n} minutes", minutes).format(n=f"{minutes:,}")
    where = _("{done} of {total} done").format(done=f"{status.done:,}", total=f"{status.total:,}")
    advice = _("look at its log; if it hangs, stop it and resume it.")
    return f"{since} ({where}); {advice}" if status.total else f"{since}; {advice}"


def _find_stuck(statuses: Sequence[RunStatus]) -> list[tuple[RunStatus, str]]:
    """Runs that wait for one that has stopped or failed, and why they will not start by themselves."""
    by_id, stuck = {status.run_id: status for status in statuses}, []
    for run_id, wait in find_waits(statuses).items():
        other = find_obstacle(by_id[run_id], by_id)
        if wait == "person" and other is not None and other[1] is not None and other[1].state in ("stopped", "failed"):
            sentence = {
                "stopped": _("It waits for {name}, which was stopped: resume that run, or cancel this one."),
                "failed": _("It waits for {name}, which has failed: resume that run, or cancel this one."),
            }[other[1].state]
            stuck.append((by_id[run_id], sentence.format(name=other[1].name)))
    return stuck


def _find_blocked(
    statuses: Sequence[RunStatus], quiet: Sequence[RunStatus], settings: AlertSettings
) -> tuple[RunStatus, str] | None:
    """The next run of the local queue where nothing will let it start, and why."""
    queued = [
        status for status in statuses if status.state == "queued" and status.place is not None and status.prepared
    ]
    if not queued:
        return None
    first = min(queued, key=lambda status: (status.place, status.run_id))
    running = [status for status in statuses if status.state == "running" and status.place is not None]
    n = len(queued)
    if running and all(status in quiet for status in running):
        sentence = ngettext(
            "{n} run waits for a device that {name} holds, which makes no progress: stop that one.",
            "{n} runs wait for a device that {name} holds, which makes no progress: stop that one.",
            n,
        )
        return first, sentence.format(n=n, name=running[0].name)
    if not running and (first.idle_s or 0.0) > 60 * settings.quiet_min:
        sentence = ngettext(
            "{n} run waits though nothing is running: read .supervisor.log in the folder of the runs.",
            "{n} runs wait though nothing is running: read .supervisor.log in the folder of the runs.",
            n,
        )
        return first, sentence.format(n=n)
    return None
