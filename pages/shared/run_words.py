"""Runs in words: what they are, how they stand, how long they take, and why they ended."""

from collections.abc import Sequence
from datetime import datetime

from metamoe_backend.jobs.run_folder import RunStatus
from metamoe_backend.jobs.waiting import find_obstacle
from pages.shared.i18n import _, ngettext
from pages.shared.tables import duration_text

STATE_ICONS = {
    "queued": (":material/schedule:", "gray"),
    "running": (":material/play_circle:", "blue"),
    "finished": (":material/check_circle:", "green"),
    "stopped": (":material/pause_circle:", "orange"),
    "cancelled": (":material/cancel:", "gray"),
    "failed": (":material/error:", "red"),
}


def state_name(status: RunStatus) -> str:
    names = {
        "queued": _("queued"),
        "running": _("running"),
        "finished": _("finished"),
        "stopped": _("stopped"),
        "cancelled": _("cancelled"),
        "failed": _("failed"),
    }
    if status.state == "running" and status.stopping:
        return _("stopping") if status.stopping == "stop" else _("cancelling")
    if status.state == "running" and not status.responding:
        return _("not responding")
    return _("waiting") if status.state == "queued" and not status.prepared else names[status.state]


def stage_name(stage: str) -> str:
    names = {
        "ingest": _("import of questions"),
        "meta-questions": _("meta-questions"),
        "embed": _("embedding"),
        "cluster": _("map"),
        "suggest": _("suggestions"),
        "freeze": _("labelling"),
        "import": _("import of an adapter"),
        "select": _("selection of experts"),
        "select-data": _("selection of data"),
        "train": _("training"),
        "sequence": _("training in sequence"),
        "moe": _("mixture"),
        "evaluate": _("evaluation"),
        "force": _("forced experts"),
    }
    return names.get(stage, stage)


def run_title(status: RunStatus) -> str:
    """What a run is, as plain text: training · arith; embedding · minilm, shard 2 of 4."""
    title = f"{stage_name(status.stage)} · {status.name}" if status.stage else status.name
    if status.shard is None:
        return title
    return _("{title}, shard {index} of {of}").format(title=title, index=status.shard.index, of=status.shard.of)


def place_text(status: RunStatus) -> str:
    """Where a run starts: here, or on Slurm by which profile and as which job."""
    if status.profile is None:
        return _("this computer")
    return status.profile if status.job is None else f"{status.profile} · {status.job}"


def time_text(status: RunStatus, now: datetime) -> str:
    """Time left where it is known, else how long it has been going or took."""
    if status.state == "running" and status.eta_s is not None and status.done < status.total:
        return _("{time} left").format(time=duration_text(status.eta_s))
    if status.started_at is None:
        return "–"
    seconds = ((status.ended_at or now) - status.started_at).total_seconds()
    return duration_text(max(0.0, seconds))


def progress_text(status: RunStatus) -> str:
    """Step 120 of 300, 4 min left."""
    if not status.total:
        return _("getting ready")
    done, total = f"{status.done:,}", f"{status.total:,}"
    if status.eta_s is None or status.state != "running" or status.done >= status.total:
        return _("{done} of {total}").format(done=done, total=total)
    return _("{done} of {total}, {time} left").format(done=done, total=total, time=duration_text(status.eta_s))


def answer_text(statuses: Sequence[RunStatus]) -> str:
    """What runs and what waits, in a sentence (not escaped)."""
    running = [status for status in statuses if status.state == "running"]
    queued = sum(status.state == "queued" for status in statuses)
    if not running and not queued:
        failed, n = sum(status.state == "failed" for status in statuses), len(statuses)
        text = ngettext("Nothing is running; {n} run has ended.", "Nothing is running; {n} runs have ended.", n)
        sentences = [text.format(n=f"{n:,}"), *([_("{n} of them failed.").format(n=failed)] if failed else [])]
        return " ".join(sentences)
    parts = []
    if running:
        parts.append(
            _("{n} running ({name}: {progress})").format(
                n=len(running), name=running[0].name, progress=progress_text(running[0])
            )
        )
    parts.append(_("{n} queued").format(n=queued))
    return ", ".join(parts)


def reason_text(status: RunStatus, statuses: Sequence[RunStatus] = ()) -> str | None:
    """Why a run stands as it does, and what one can do; None where there is nothing to say (not escaped)."""
    if status.state == "failed":
        return status.error or _("It failed without saying why; read the log, then start it again.")
    if status.state == "stopped":
        return _("It was stopped and has saved what it had; resume it to go on from there.")
    if status.state == "cancelled":
        return _("It was cancelled; nothing of it was kept.")
    if status.state == "queued" and not status.prepared:
        return _describe_wait(status, statuses)
    if status.state == "queued" and status.job is not None:
        return _slurm_reason(status.waits_for)
    if status.state == "queued" and status.profile is not None:
        why = status.waits_for
        return _("It is on its way to Slurm.") if why is None else _("Slurm is asked again every minute: {why}").format(why=why)  # fmt: skip
    if status.state == "queued":
        before = sum(
            other.state == "queued" and other.prepared and other.place is not None and other.place < (status.place or 0)
            for other in statuses
            if other.run_id != status.run_id
        )
        waits = ngettext("It waits for a free device; {n} run is before it.", "It waits for a free device; {n} runs are before it.", before)  # fmt: skip
        return waits.format(n=before) if before else _("It waits for a free device and comes next.")
    if status.stopping == "stop":
        return _("It was asked to stop; it saves and ends after the present step.")
    if status.stopping == "cancel":
        return _("It was cancelled; it ends within seconds.")
    if status.state == "running" and not status.responding:
        return _(
            "It has given no sign of life for over half a minute: the computer is overloaded or asleep, or the run "
            "hangs. If that lasts, stop it and resume it."
        )
    return None


def _describe_wait(status: RunStatus, statuses: Sequence[RunStatus]) -> str:
    """Which run a waiting one waits for, how that stands, and how many others it waits for."""
    by_id = {each.run_id: each for each in statuses}
    obstacle = find_obstacle(status, by_id)
    if obstacle is None:
        return _("The runs it waited for have finished; its questions are being read.")
    run_id, other = obstacle
    left = sum(each not in by_id or by_id[each].state != "finished" for each in status.after)
    if other is None:
        sentence = _("It waits for {name}, which is gone: it will end by itself.").format(name=run_id)
    else:
        sentence = {
            "queued": _("It waits for {name}, which is queued."),
            "running": _("It waits for {name}, which is running."),
            "stopped": _("It waits for {name}, which was stopped: resume that run, or cancel this one."),
            "failed": _("It waits for {name}, which has failed: resume that run, or cancel this one."),
            "cancelled": _("It waits for {name}, which was cancelled: it will end by itself."),
        }[other.state].format(name=run_title(other))
    others = ngettext("{n} more run must finish, too.", "{n} more runs must finish, too.", left - 1)
    return f"{sentence} {others.format(n=left - 1)}" if left > 1 else sentence


def _slurm_reason(word: str | None) -> str:
    """Why Slurm has not started a job, by its own word (squeue(1), JOB REASON CODES)."""
    words = {
        None: _("It waits in Slurm's queue."),
        "Priority": _("It waits in Slurm's queue: jobs of higher priority are before it (Priority)."),
        "Resources": _("It waits in Slurm's queue for a free node (Resources)."),
        "BeginTime": _("It waits in Slurm's queue until it may start again (BeginTime)."),
    }
    return words.get(word) or _("It waits in Slurm's queue; Slurm says why: {reason}.").format(reason=word)


def metric_name(name: str) -> str:
    """A metric with its unit."""
    names = {
        "loss": _("Loss, nats/token"),
        "eval_loss": _("Eval loss, nats/token"),
        "auxiliary_loss": _("Load-balance loss"),
        "learning_rate": _("Learning rate"),
        "tokens_per_s": _("Tokens per second"),
        "questions_per_s": _("Questions per second"),
        "memory_mb": _("Memory, MB"),
        "gpu_percent": _("GPU in use, %"),
        "reused": _("Reused"),
    }
    return names.get(name, name.replace("_", " "))


def metric_text(name: str, value: float) -> str:
    """A metric's value with as many digits as tell something."""
    if name == "learning_rate":
        return f"{value:.2g}"
    if "loss" in name:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"
