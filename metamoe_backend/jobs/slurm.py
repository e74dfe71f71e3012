"""Runs on a Slurm cluster: the local queue's verbs (submit, poll, cancel), for runs that start by a profile.

    submit -> queued (its job waits in Slurm) -> the worker, on a node -> finished | stopped | cancelled | failed
                |                                    |
                '--- time is up, preempted, node lost: it saves, its job is queued again, and it goes on

The run folder, on the file system that all nodes share, is the truth here, too. Slurm starts the same worker as the
local queue, whose output is the run's log, and is asked about all jobs together, seldom, which of them are still there:
only a run whose job has ended and whose worker gives no sign of life is ended in its worker's place.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metamoe_backend.errors import ConfigError, UnavailableError
from metamoe_backend.jobs.durable import locked, try_lock
from metamoe_backend.jobs.profile import Profile, read_profile
from metamoe_backend.jobs.records import StateFile
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, find_run, queue_lock, utc_now
from metamoe_backend.jobs.team import describe_launch
from metamoe_backend.workspace import Workspace

ASK_EVERY_S = 12.0
ANSWER_S = 5.0
"""Slurm's controller may take so long to answer; after that it counts as away."""
AWAY_S = 60.0
"""One that is away is asked again after so long."""
_PROJECT = Path(__file__).resolve().parents[2]
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
"""Slurm's words for jobs that are over; what else it says of a job means that the job is still there."""


class Answer(NamedTuple):
    """What Slurm says of a job."""

    word: str
    reason: str | None = None
    """Why it waits, while it does."""


# ---- the verbs ----------------------------------------------------------------------------------------------------


def submit(run: RunFolder, state: StateFile, worker_command: Sequence[str]) -> None:
    """Hand a queued run to Slurm as `state.profile` says. Hold the queue's lock.

    Nothing is written when it fails: raises `ConfigError` or `NotFoundError` for a profile that cannot be used, and
    `UnavailableError` where there is no Slurm or Slurm refuses the job.
    """
    spec, name = run.read_spec(), state.profile or ""
    profile = read_profile(run.workspace, name)
    device = choose_device(spec.config, profile, name)
    words = [*worker_command, str(run.path.resolve()), *_list_worker_options(profile, device)]
    job = _submit_command(run, profile, f"exec {shlex.join(words)}", device)
    run.write_state(state.model_copy(update={"job": job}))
    run.append_log(f"Slurm's job {job}: {describe_request(profile, spec.processes)}")


def submit_array(runs: Sequence[RunFolder], name: str, worker_command: Sequence[str]) -> None:
    """Hand all shards of one work to Slurm as one array whose tasks are numbered as the shards are. See `submit`."""
    first = runs[0]
    profile = read_profile(first.workspace, name)
    device = choose_device(first.read_spec().config, profile, name)
    stem = str(first.path.resolve()).removesuffix(f"1of{len(runs)}")
    own_folder = f'{shlex.quote(stem)}"$SLURM_ARRAY_TASK_ID"of{len(runs)}'
    options = shlex.join(_list_worker_options(profile, device))
    command = f"exec {shlex.join(worker_command)} {own_folder} {options}"
    array = {"array": f"1-{len(runs)}", "output": f"{stem}%aof{len(runs)}/log.txt"}
    job = _submit_command(first, profile, command, device, array)
    for index, run in enumerate(runs, 1):
        state = run.read_state_file()
        run.write_state(state.model_copy(update={"profile": name, "job": f"{job}_{index}"}))
        run.append_log(f"Slurm's job {job}_{index}: {describe_request(profile)}")


def poll(workspace: Workspace, statuses: Sequence[RunStatus]) -> set[str]:
    """Ask Slurm about the jobs of runs that have not ended, unless somebody has just asked; returns the runs changed.

    A run whose job is gone is ended, and one whose job waits again is queued. While Slurm does not answer, nothing
    changes: workers go on, and so do their heartbeats.
    """
    jobs = {status.run_id: status.job for status in statuses if status.job and status.state in ("queued", "running")}
    if not jobs or shutil.which("squeue") is None:
        return set()
    lock = try_lock(workspace.runs / ".slurm.lock")
    if lock is None:
        return set()
    with lock:
        asked = workspace.runs / ".slurm-asked"  # shared by all processes: it is as old as the last answer
        if asked.exists() and -AWAY_S < time.time() - asked.stat().st_mtime < ASK_EVERY_S:
            return set()
        asked.touch()
        try:
            answers = _ask_about(sorted(set(jobs.values())))
        except UnavailableError:
            later = time.time() + AWAY_S - ASK_EVERY_S
            os.utime(asked, (later, later))
            return set()
        return {run_id for run_id, job in jobs.items() if _see(find_run(workspace, run_id), job, answers.get(job))}


def cancel(job: str) -> None:
    """Take a job out of Slurm's queue, or end it: SIGTERM, and SIGKILL half a minute later.

    Raises `UnavailableError` when Slurm cannot be told; a job whose run was cancelled ends by itself when it starts.
    """
    try:
        _call("scancel", job)
    except UnavailableError as error:
        if "Invalid job id" not in str(error):  # it is over already
            raise


def requeue() -> None:
    """Let the job this process works in wait and start again; called by a worker that was asked to make room.

    Slurm ends this process on the way. Raises `UnavailableError` when it refuses, and for a job that it is ending
    already: one that somebody cancelled would be queued again, too.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")  # squeue calls a task of one by both numbers
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    word = _ask_about([job]).get(job, Answer("forgotten")).word
    if word != "RUNNING":
        raise UnavailableError(
            f"Slurm is ending job {job} ({word.lower()}); it starts again only if Slurm wants it to."
        )
    _call("scontrol", "requeue", job)


def count_restarts() -> int:
    """How often Slurm has started the present job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def choose_device(config: Mapping[str, Any], profile: Profile, name: str) -> str:
    """What a worker is given on each node: cpu, or one GPU a process there.

    Raises `ConfigError` for more than the profile has, and for nodes that would have nothing to do.
    """
    wanted, processes = str(config.get("device", "cpu")).partition(":")[0], int(config.get("processes", 1))
    members, left = divmod(processes, profile.nodes)
    if left or not members:
        raise ConfigError(
            f"Profile {name} has nodes = {profile.nodes}, but the run has processes = {processes}, which cannot "
            "be spread over them evenly; choose another number of processes, or another profile."
        )
    if wanted == "cpu" or (wanted == "auto" and not profile.gpus):
        return "cpu"
    if members > profile.gpus:
        on_each = " on each node" if profile.nodes > 1 else ""
        raise ConfigError(
            f"Profile {name} has gpus = {profile.gpus}{on_each}, but the run wants {members}; raise gpus in the "
            "profile, or choose another device or fewer processes."
        )
    return ",".join(f"cuda:{number}" for number in range(members))


def describe_request(profile: Profile, processes: int = 1) -> str:
    """What Slurm is asked for and what the nodes then do, as lines of a batch script."""
    options = {**_list_options(profile), "signal": f"B:USR2@{profile.save_s}"}
    words = [f"--{option}={value}" for option, value in options.items() if value is not None]
    on_each = "srun " if profile.nodes > 1 else ""
    together = [f"{on_each}{describe_launch(processes, profile.nodes)}"] if processes > 1 else []
    return "\n".join([f"sbatch --requeue {shlex.join(words)}", *profile.setup, *together])


def _list_worker_options(profile: Profile, device: str) -> list[str]:
    nodes = ["--nodes", str(profile.nodes)] if profile.nodes > 1 else []
    return ["--device", device, "--requeues", str(profile.requeues), *nodes]


def _list_options(profile: Profile) -> dict[str, str | int | None]:
    """sbatch's options by their names; None: not said."""
    return {
        "partition": profile.partition,
        "nodes": profile.nodes,
        "ntasks-per-node": 1 if profile.nodes > 1 else None,
        "time": profile.time_min,
        "gpus-per-node": profile.gpus or None,
        "cpus-per-task": profile.cpus,
        "mem": None if profile.memory_gb is None else f"{profile.memory_gb}GB",
        "constraint": profile.constraint,
        "account": profile.account,
    }


# ---- asking Slurm -------------------------------------------------------------------------------------------------


def _submit_command(
    run: RunFolder, profile: Profile, command: str, device: str, others: Mapping[str, str] | None = None
) -> str:
    """A job that runs the command of a shell; returns its id. `others`: what else sbatch is asked for.

    submitit writes the batch script and keeps it in RUN/slurm/.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    if shutil.which("sbatch") is None or not SlurmExecutor.affinity() > 0:
        raise UnavailableError(
            "There is no Slurm on this computer (sbatch is not found); start the run here, or go to a login node."
        )
    cwd = Path(run.read_spec().cwd)
    folder, log = run.path.resolve() / "slurm", str(run.path.resolve() / "log.txt")
    folder.mkdir(exist_ok=True)
    executor = SlurmExecutor(folder)
    executor.update_parameters(
        job_name=f"metamoe-{run.run_id}",
        **{option.replace("-", "_"): value for option, value in _list_options(profile).items() if value is not None},
        wckey=None,
        stderr_to_stdout=True,
        use_srun=False,
        setup=[
            *profile.setup,
            f"export PYTHONPATH={shlex.quote(str(_PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}",
            *(["export CUDA_VISIBLE_DEVICES="] if device == "cpu" else []),
        ],
        # B: the signal goes to the worker alone, not to the programs it has started.
        additional_parameters={
            "output": log, "chdir": str(cwd if cwd.is_dir() else run.path.resolve()), "requeue": True,
            "signal": f"B:USR2@{profile.save_s}", **(others or {}),
        },
    )  # fmt: skip
    try:
        # Not `submit`: that pickles a function, and its results never pass through the run folder.
        # exec: the batch script becomes the worker.
        return str(executor._submit_command(command).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UnavailableError(_refusal("sbatch", str(error))) from None


def _ask_about(jobs: Sequence[str]) -> dict[str, Answer]:
    """Slurm's answer for each job it knows; of jobs it has forgotten, what its accounting says, where there is one."""
    try:
        about = ("--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}")
        lines = _call("squeue", "--noheader", *about)  # --array: a line a task, also of those that wait
    except UnavailableError as error:
        if "Invalid job id" not in str(error):  # the only one asked for is forgotten
            raise
        lines = ""
    told = [line.strip().split("|", 2) for line in lines.splitlines() if line.count("|") >= 2]
    answers = {job: Answer(word, None if reason == "None" else reason or None) for job, word, reason in told}
    forgotten = [job for job in jobs if job not in answers]
    if forgotten and shutil.which("sacct") is not None:
        try:
            kept = _call("sacct", "-nPX", "--format=JobID,State", f"--jobs={','.join(forgotten)}")
        except UnavailableError:
            kept = ""  # no accounting on this cluster: that it is forgotten is all there is to know
        pairs = (line.partition("|") for line in kept.splitlines())
        answers |= {job: Answer(word.split()[0]) for job, _, word in pairs if word}
    return answers


def _call(*command: str) -> str:
    """Standard output of one of Slurm's programs; raises `UnavailableError` with its last word of complaint."""
    # A person's own SQUEUE_FORMAT and the like must not change what is said.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, env=environment)
    except FileNotFoundError:
        raise UnavailableError(f"There is no Slurm on this computer ({command[0]} is not found).") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"Slurm does not answer ({command[0]}); try again when its controller is up.") from None
    if done.returncode != 0:
        raise UnavailableError(_refusal(command[0], done.stderr))
    return done.stdout


def _refusal(program: str, complaint: str) -> str:
    lines = [line.strip() for line in complaint.splitlines() if "error:" in line] or ["it does not say why"]
    why = lines[-1].rpartition("error: ")[2].rstrip(".")
    return f"Slurm refuses ({program}: {why}); mend the profile, or ask who runs the cluster."


# ---- what the answer means for a run ------------------------------------------------------------------------------


def _see(run: RunFolder, job: str, answer: Answer | None) -> bool:
    """Write down what Slurm's answer (None: it knows no such job) means for a run; returns whether that is news."""
    word, reason = answer or (None, None)
    with locked(queue_lock(run.workspace)):
        state = run.read_state_file()
        if state.job != job or state.state not in ("queued", "running"):
            return False
        waits_again = word == "PENDING" and state.state == "running"
        over = word is None or word in _ENDED
        if word == "PENDING" and state.state == "queued" and reason != state.waits_for:
            run.write_state(state.model_copy(update={"waits_for": reason}))
            return True
        if not (waits_again or over) or (state.state == "running" and _gives_signs_of_life(run, state)):
            return False
        if waits_again:
            run.write_state(state.model_copy(update={"state": "queued", "waits_for": reason}))
            return True
        end = (word or "forgotten").lower().replace("_", " ")
        why = f"Slurm's job {job} is over ({end}), the run is not; read the log, then resume the run."
        ended, request = run.settle(gone=why), run.read_request()
        if ended.state == "queued":
            given_up = request is not None and not request.save
            update = {"state": "cancelled"} if given_up else {"state": "failed", "error": why}
            ended = ended.model_copy(update=update)
        run.write_state(ended.model_copy(update={"ended_at": ended.ended_at or utc_now()}))
        return True


def _gives_signs_of_life(run: RunFolder, state: StateFile) -> bool:
    """Its process where it can be seen from here, else its heartbeat."""
    seen = state.process.is_alive() if state.process else False
    return run.read_state().responding if seen is None else seen
