"""A training in several processes, which `accelerate launch` starts: here, or on every node of a Slurm allocation.

    worker --starts--> accelerate launch, on each node --starts--> jobs.member, `processes` of them in all
       '------------------------ a socket ------------------------------- the first one reports and asks

The worker computes nothing then: it speaks for the processes as for a stage of its own. They meet on the first node and
share each batch over gloo (`train.team`). When one of them dies all end, and so they do when the worker dies.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import NamedTuple

from metamoe_backend.errors import MetaMoEError, TeamBrokenError, UnavailableError
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.stage import Context

NOTICE_S = 60.0
"""Processes that were told to end, or whose first one has ended, are killed after so long."""
SHUT_DOWN_S = 10
"""When one process has ended before its time, those of its node that go on are killed after so long."""
LOOK_S = 0.2
_LONGEST_FOLDER = 80
"""Bytes: a socket's address has room for 107 (Linux; 103 elsewhere), and its own folder and name come behind."""


class Report(NamedTuple):
    """What the first process has to say to `Context.progress`; the answer is what that raised, or None."""

    done: int
    total: int
    metrics: dict[str, float]


class End(NamedTuple):
    """The first process's work is over: all rows are emitted, or it raised `error`."""

    error: MetaMoEError | None


def work_together(run: RunFolder, processes: int, nodes: int, device: str | None, context: Context) -> None:
    """Compute the stage of `run` in `processes` processes, as many on each of `nodes` nodes, and report to `context`.

    `device` is what each node gives: cpu, or GPUs separated by commas. On several nodes, this is the first one of a
    Slurm allocation. Raises what the first process raises, `TeamBrokenError` when one ends before its time, and
    `UnavailableError` where the nodes cannot be found.
    """
    kind = (device or "cpu").partition(":")[0]
    with (
        TemporaryDirectory(prefix="metamoe-", dir=_find_short_folder()) as folder,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        address = str(Path(folder) / "talk")
        listening.bind(address)
        listening.listen()
        listening.settimeout(LOOK_S)
        launch = describe_launch(processes, nodes, _find_first_host(nodes), str(_find_free_port()))
        environment = _make_environment(processes // nodes)
        count = environment["OMP_NUM_THREADS"]
        threads = f"{count} thread{'' if count == '1' else 's'} each"
        place = "the CPU" if kind == "cpu" else "one GPU each"
        context.log(f"{processes} processes train together (gloo) on {place}, {threads}:\n{launch}")
        module = shlex.join(["--module", "metamoe_backend.jobs.member", str(run.path), kind, address])
        command = _make_command(f"{launch} {module}", nodes)
        launcher = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        try:
            _speak_for(listening, launcher, processes, context)
        finally:
            _end(launcher)


def describe_launch(processes: int, nodes: int, host: str = "HOST", port: str = "PORT") -> str:
    """The line of a shell by which each node starts its processes. HOST and PORT, where they meet, are known there."""
    rank = '"$SLURM_NODEID"' if nodes > 1 else "0"
    # --multi_gpu is accelerate's word for torch's launcher, which starts processes on a CPU, too.
    return (
        f"accelerate launch --multi_gpu --num_machines {nodes} --num_processes {processes} --machine_rank {rank} "
        f"--main_process_ip {host} --main_process_port {port} --same_network --rdzv_backend static "
        "--mixed_precision no --dynamo_backend no"
    )


def _make_command(line: str, nodes: int) -> list[str]:
    """What starts `line` on each node. Only the worker obeys a kind signal, and says when they are to stop."""
    accelerate = f"{shlex.quote(sys.executable)} -m accelerate.commands.launch"
    shell = ["sh", "-c", f'trap "" TERM INT USR2; exec {line.replace("accelerate launch", accelerate, 1)}']
    if nodes == 1:
        return shell
    # What srun does not take over from its allocation by itself:
    asked = {"cpus-per-task": "SLURM_CPUS_PER_TASK", "gpus-per-node": "SLURM_GPUS_PER_NODE"}
    options = [f"--{option}={os.environ[name]}" for option, name in asked.items() if os.environ.get(name)]
    return ["srun", f"--nodes={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", *options, *shell]


def _make_environment(members: int) -> dict[str, str]:
    """Ours, with the threads of each of the `members` of a node, and signals left to the worker."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // members))
    safe = {"PYTHONSAFEPATH": "1"} if sys.flags.safe_path else {}
    # torch's launcher reads PET_…: of all signals it obeys SIGQUIT alone, and kills what does not end soon.
    own = {"OMP_NUM_THREADS": threads, "PET_SIGNALS_TO_HANDLE": "SIGQUIT", "PET_SHUTDOWN_TIMEOUT": f"{SHUT_DOWN_S}"}
    return {**os.environ, **safe, **own}


def _find_first_host(nodes: int) -> str:
    if nodes == 1:
        return "127.0.0.1"
    try:
        nodelist = os.environ["SLURM_JOB_NODELIST"]
        command = ["scontrol", "show", "hostnames", nodelist]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (KeyError, OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UnavailableError(
            f"The nodes of this job cannot be found ({_describe(error)}); start the run with a profile, where Slurm's "
            "scontrol can be called."
        ) from None


def _describe(error: Exception) -> str:
    match error:
        case KeyError():
            return "SLURM_JOB_NODELIST is not set: this is no job of Slurm"
        case subprocess.CalledProcessError():
            return f"scontrol: {error.stderr.strip() or error}"
        case IndexError():
            return "scontrol names none"
        case _:
            return f"scontrol: {error}"


def _find_short_folder() -> str | None:
    """Where the socket goes: None is the usual place for temporary files, where its name is not too long for that."""
    return None if len(os.fsencode(gettempdir())) <= _LONGEST_FOLDER else "/tmp"


def _find_free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("", 0))
        return int(trial.getsockname()[1])


def _speak_for(listening: socket.socket, launcher: "subprocess.Popen[bytes]", processes: int, context: Context) -> None:
    """Pass on what the first process says until its end; raises what it raised."""
    try:
        with _accept(listening, launcher) as life, _accept(listening, launcher) as talk:  # noqa: F841 - held open
            while not isinstance(said := talk.recv(), End):
                talk.send(_report(context, said))
    except (EOFError, ConnectionError):
        raise TeamBrokenError(
            f"One of {processes} processes ended before its time; read the log, which says which, then resume the run: "
            "it goes on from its last checkpoint."
        ) from None
    if said.error is not None:
        raise said.error


def _accept(listening: socket.socket, launcher: "subprocess.Popen[bytes]") -> Connection:
    while True:
        try:
            return Connection(listening.accept()[0].detach())
        except TimeoutError:
            if launcher.poll() is not None:
                raise EOFError from None


def _report(context: Context, said: Report) -> MetaMoEError | None:
    try:
        context.progress(said.done, said.total, **said.metrics)
    except MetaMoEError as error:  # a person's wish to stop, or a full disk
        return error
    return None


def _end(launcher: "subprocess.Popen[bytes]") -> None:
    """Wait for the processes, and end those that do not end by themselves."""
    for kill in (None, signal.SIGQUIT, signal.SIGKILL):
        if kill is not None:
            launcher.send_signal(kill)
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(NOTICE_S)
            return
