"""Runs that wait for others: a mixture for experts still in training, an evaluation for the mixture.

Such a run stands in the local queue without inputs/: what it reads does not exist yet. When all runs that its spec
names under `after` have finished, whoever holds the database reads its rows (see `metamoe_backend.late_rows`), and from
then on it is a run like any other. Pure functions of how the runs stand.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from metamoe_backend.jobs.run_folder import RunStatus

Wait = Literal["rows", "runs", "person", "never"]
"""What it waits for. rows: the others have finished, its rows are to be read. runs: others that are on their way.
person: one of them has stopped or failed and can be resumed. never: one of them was cancelled or is gone."""
_WORST_LAST: tuple[Wait, ...] = ("rows", "runs", "person", "never")


def find_waits(statuses: Sequence[RunStatus]) -> dict[str, Wait]:
    """What each run waits for that is queued and has no rows yet, by run id. `statuses`: all runs."""
    waiting = [status for status in statuses if status.state == "queued" and not status.prepared]
    by_id, found = {status.run_id: status for status in statuses} if waiting else {}, dict[str, Wait]()
    for status in sorted(waiting, key=lambda each: each.run_id):  # a run names older ones only
        waits = [_wait_for(by_id.get(other), found) for other in status.after]
        found[status.run_id] = max(waits, key=_WORST_LAST.index, default="rows")
    return found


def find_obstacle(status: RunStatus, by_id: Mapping[str, RunStatus]) -> tuple[str, RunStatus | None] | None:
    """The run that a waiting one waits for, the worst of several first: its id, and how it stands (None: it is gone).

    None where all of them have finished.
    """
    found = find_waits(list(by_id.values()))
    waits = {other: _wait_for(by_id.get(other), found) for other in status.after}
    left = [other for other in status.after if waits[other] != "rows"]
    if not left:
        return None
    worst = max(left, key=lambda other: _WORST_LAST.index(waits[other]))
    return worst, by_id.get(worst)


def _wait_for(other: RunStatus | None, found: Mapping[str, Wait]) -> Wait:
    if other is None or other.state == "cancelled":
        return "never"
    if other.state == "finished":
        return "rows"
    stuck = found.get(other.run_id) in ("person", "never")
    return "person" if stuck or other.state in ("stopped", "failed") else "runs"
