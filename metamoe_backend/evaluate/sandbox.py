"""Generated programs run here and nowhere else: inside bubblewrap, one process each, and never without it.

A program and its tests run in two sandboxes of their own (`sandbox_process`), joined by two pipes. Neither sees a file
but the interpreter's and its own 8 MiB of memory-backed /tmp, has a network, a device but /dev/null, /proc, an
environment or a capability. A seccomp filter refuses new processes and threads (a limit on their number, RLIMIT_NPROC,
would not hold for root) and what could take memory past the limits. As soon as there is a
verdict or a limit is reached, the first process of each process namespace is killed, and with it everything in there.
"""

import json
import os
import platform
import select
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from metamoe_backend.errors import UnavailableError
from metamoe_backend.evaluate import sandbox_process

INSTALL = "install bubblewrap (on Debian: apt install bubblewrap)"
START_S = 30.0
"""Two processes start in 0.1 s; a busy machine may take longer, which is no fault of the program."""
_TRIES = 3
_POLL_S = 0.05
_COLLECT_S = 1.0
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. It is one process with one thread, whatever the limits."""

    wall_s: float = 5.0
    cpu_s: int = 4
    memory_bytes: int = 512 * _MIB
    disk_bytes: int = 8 * _MIB
    files: int = 1000
    """In /tmp; counted now and then, so that a few thousand may be there before the end."""
    output_bytes: int = 64 * 1024

    def describe(self) -> str:
        """The limits in one line."""
        return (
            f"one process, {self.wall_s:g} s ({self.cpu_s} s of CPU time), {self.memory_bytes // _MIB} MiB of memory, "
            f"{self.disk_bytes // _MIB} MiB and {self.files} files on disk, {self.output_bytes // 1024} KiB of output"
        )

    def resources(self) -> dict[str, int]:
        """Kernel limits by the names of the module `resource`."""
        return {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_FSIZE": self.disk_bytes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """A program and how it is tested."""

    program: str
    tests: str
    """Python that raises unless the program is right."""
    names: list[str] = field(default_factory=list)
    """What the tests use of the program."""
    preamble: str = ""
    """Python that the tests need beside: imports, and what a question itself defines."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program passed, and if not why, in a few words."""

    passed: bool
    reason: str = ""


def run_problems(
    problems: Sequence[Problem], limits: Limits | None = None, on_judged: Callable[[], None] | None = None
) -> list[Verdict]:
    """Test each program, as many at a time as there are cores for them.

    `on_judged` is called after each; what it raises stops the others. Raises `UnavailableError` without a sandbox.
    """
    check_sandbox()
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        started = [pool.submit(run_problem, problem, limits) for problem in problems]
        try:
            for future in started:
                verdicts.append(future.result())
                if on_judged is not None:
                    on_judged()
        finally:
            pool.shutdown(cancel_futures=True)
    return verdicts


def run_problem(problem: Problem, limits: Limits | None = None) -> Verdict:
    """Test one program. Raises `UnavailableError` where the sandbox does not open.

    Whoever asks a whole job to end (Slurm, a shutdown) sends its signal to what runs in here, too: that says nothing
    about the program, which is then tested again. One that sends it to itself each time has not passed.
    """
    for _ in range(_TRIES):
        run = _Run(problem, limits or Limits())
        try:
            return run.judge()
        except _ToldToEndError:
            continue
    return Verdict(False, "it was told to end, each time")


@cache
def check_sandbox() -> None:
    """Open the sandbox once for a program of one line; raises `UnavailableError` where that does not work."""
    verdict = run_problem(Problem("def double(n):\n    return 2 * n\n", "assert double(2) == 4", ["double"]))
    if not verdict.passed:
        raise UnavailableError(
            f"Generated code runs only inside a sandbox, and the one here does not work ({verdict.reason}); {INSTALL}."
        )


def describe_sandbox(limits: Limits | None = None) -> str:
    """Name, version and limits, to be kept with results; raises `UnavailableError` without a sandbox that works."""
    check_sandbox()
    found = subprocess.run([_find_bwrap(), "--version"], capture_output=True, text=True, check=True, timeout=START_S)
    return f"{found.stdout.strip()}, Python {platform.python_version()}; {(limits or Limits()).describe()}"


# --------------------------------------------------------------------------------------------------------- the sandbox


def _find_bwrap() -> str:
    program = shutil.which("bwrap")
    if program is None:
        raise UnavailableError(f"Generated code runs only inside bubblewrap, which is not here; {INSTALL}.")
    return program


def _find_readable() -> list[str]:
    """What Python needs: the system's libraries and the interpreter's own folders."""
    base = Path(sys.base_prefix)
    folders = [Path("/usr/lib"), Path("/usr/lib32"), Path("/usr/lib64"), Path("/usr/share/zoneinfo")]
    folders += [base / "lib", base / "lib64", Path(sysconfig.get_path("stdlib")), Path("/etc/ld.so.cache")]
    arguments = []
    for folder in dict.fromkeys([*folders, _find_interpreter()]):
        if folder.exists() and not any(other in folder.parents for other in folders if other.exists()):
            arguments += ["--ro-bind", str(folder), str(folder)]
    for top in (Path("/lib"), Path("/lib32"), Path("/lib64")):
        if top.is_symlink():
            arguments += ["--symlink", str(top.readlink()), str(top)]
        elif top.exists():
            arguments += ["--ro-bind", str(top), str(top)]
    return arguments


def _find_interpreter() -> Path:
    """The program itself, not a virtual environment's link to it."""
    return Path(sys.executable).resolve()


def _make_command(role: str, limits: Limits, filter_fd: int, file_fd: int, info_fd: int) -> list[str]:
    """The command line of one sandbox; role: program or tests."""
    inside = sandbox_process.PROGRAM if role == "program" else sandbox_process.TESTS
    runner = "/sandbox_process.py"
    return [
        _find_bwrap(), "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox",
        "--cap-drop", "ALL", "--new-session", "--die-with-parent", "--clearenv",
        "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8",
        *_find_readable(),
        "--ro-bind", str(Path(sandbox_process.__file__).resolve()), runner,
        "--ro-bind-data", str(file_fd), inside,
        "--dev-bind", "/dev/null", "/dev/null",
        "--size", str(limits.disk_bytes), "--tmpfs", "/tmp",
        "--remount-ro", "/", "--chdir", "/tmp",
        "--seccomp", str(filter_fd), "--info-fd", str(info_fd),
        "--", str(_find_interpreter()), "-s", "-S", "-P", "-B", "-X", "utf8",
        runner, role, json.dumps(limits.resources()),
    ]  # fmt: skip


_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine to its AUDIT_ARCH value and its column in the tables below (linux/audit.h, asm/unistd.h)."""
_NEW_PROCESSES = {"clone": (56, 220), "fork": (57, None), "vfork": (58, None)}
_MISSING = {"clone3": (435, 435)}
"""The C library then tries clone."""
_REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "socket": (41, 198),  # not every kind stays inside the network namespace (vsock)
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),  # memory that no limit counts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "mount_setattr": (442, 442),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
_EPERM, _EAGAIN, _ENOSYS = 1, 11, 38


def make_filter(machine: str) -> bytes:
    """The seccomp filter as classic BPF (linux/seccomp.h); raises `UnavailableError` for an unknown machine."""
    if machine not in _ARCHITECTURES:
        raise UnavailableError(
            f"Generated code runs only inside a sandbox, which is made for x86_64 and aarch64, not for {machine}; "
            "evaluate these tasks on another machine."
        )
    architecture, column = _ARCHITECTURES[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, kill, errno = 0x7FFF0000, 0x80000000, 0x00050000

    def instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    lines = [
        instruction(load, 0, 0, 4),  # seccomp_data.arch
        instruction(equal, 1, 0, architecture),
        instruction(give, 0, 0, kill),
        instruction(load, 0, 0, 0),  # seccomp_data.nr
        instruction(at_least, 0, 1, 0x40000000),  # the x32 calls of x86_64
        instruction(give, 0, 0, errno | _ENOSYS),
    ]
    for calls, number in ((_NEW_PROCESSES, _EAGAIN), (_MISSING, _ENOSYS), (_REFUSED, _EPERM)):
        for call in (pair[column] for pair in calls.values()):
            if call is not None:
                lines += [instruction(equal, 0, 1, call), instruction(give, 0, 0, errno | number)]
    return b"".join([*lines, instruction(give, 0, 0, allow)])


# ----------------------------------------------------------------------------------------------------------- one run


class _ToldToEndError(Exception):
    """Somebody told the program or its tests to end."""


class _Run:
    """One program and its tests, from start to verdict."""

    def __init__(self, problem: Problem, limits: Limits) -> None:
        self.problem, self.limits = problem, limits
        self.processes: list[subprocess.Popen[bytes]] = []
        self.informed: list[int] = []
        """Where bwrap tells of itself, for the program and for the tests."""
        self.read: dict[int, bytes] = defaultdict(bytes)
        """Descriptor to what was read from it."""

    def judge(self) -> Verdict:
        with ExitStack() as stack:
            printed, judged, info = self._start(stack)
            reached = self._watch(printed, judged, info)
            if reached is not None:
                return reached
            lines = [json.loads(line) for line in self.read[judged].splitlines() if line.startswith(b"{")]
            if not (len(lines) > 1 and lines[1]["passed"] is True) and self._was_told_to_end():
                raise _ToldToEndError
        if not lines:
            complaint = (self.read[printed] + self.read[judged]).decode(errors="replace").strip().partition("\n")[0]
            raise UnavailableError(
                f"Generated code runs only inside bubblewrap, which opens no sandbox here ({complaint or 'silently'}); "
                f"{INSTALL} and allow unprivileged user namespaces."
            )
        if len(lines) == 1:  # the tests' own process was killed, by what it was given
            return Verdict(False, "the tests ended early")
        return Verdict(lines[1]["passed"] is True, lines[1]["reason"])

    def _was_told_to_end(self) -> bool:
        """Whether a signal ended a process that was not killed here; asked when the tests' process has ended."""
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_COLLECT_S)
        # bwrap passes on how what it ran has ended, as a shell does.
        told = {code for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) for code in (-number, 128 + number)}
        return any(process.returncode in told for process in self.processes)

    def _start(self, stack: ExitStack) -> tuple[int, int, int]:
        """Start both sandboxes; returns where the program's output, the verdict and bwrap's information are read."""

        requests, replies, printed, judged, info, other = (os.pipe() for _ in range(6))
        reading = [printed[0], judged[0], info[0], other[0]]
        stack.callback(self._kill, reading)
        given = {"tests": self.problem.tests, "names": self.problem.names, "preamble": self.problem.preamble}
        inner = [requests[0], requests[1], replies[0], replies[1], printed[1], judged[1], info[1], other[1]]
        try:
            self._open("program", self.problem.program, requests[0], replies[1], printed[1], info[1])
            self._open("tests", json.dumps(given), replies[0], requests[1], judged[1], other[1])
        finally:
            for end in inner:
                os.close(end)
        self.informed = [info[0], other[0]]
        return printed[0], judged[0], info[0]

    def _open(self, role: str, text: str, stdin: int, stdout: int, stderr: int, info: int) -> None:
        content = {"filter": make_filter(platform.machine()), "file": text.encode(errors="replace")}
        files = {name: _make_file(data) for name, data in content.items()}
        try:
            command = _make_command(role, self.limits, files["filter"], files["file"], info)
            passed = [*files.values(), info]
            self.processes.append(
                subprocess.Popen(
                    command, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=passed, start_new_session=True, env={}
                )
            )
        finally:
            for number in files.values():
                os.close(number)

    def _watch(self, printed: int, judged: int, info: int) -> Verdict | None:
        """Read until the tests' process has ended; a verdict where a limit was reached first."""
        deadline = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            for end in (printed, judged, info):
                selector.register(end, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                for key, _ in selector.select(_POLL_S):
                    data = os.read(key.fd, 65536)
                    if not data and key.fd == judged:
                        return None
                    if not data:
                        selector.unregister(key.fd)
                    if not self.read[judged] and key.fd == judged:
                        deadline = time.monotonic() + self.limits.wall_s
                    self.read[key.fd] += data
                if len(self.read[printed]) > self.limits.output_bytes:
                    return Verdict(False, f"it printed more than {self.limits.output_bytes // 1024} KiB")
                if self.read[judged] and _count_files(self.read[info]) > self.limits.files:
                    return Verdict(False, f"it made more than {self.limits.files} files")
        return Verdict(False, f"it ran longer than {self.limits.wall_s:g} s") if self.read[judged] else None

    def _kill(self, reading: Sequence[int]) -> None:
        """Kill both sandboxes and wait until nothing of them is left.

        First the first process of each process namespace, with which the kernel ends all others in it: bwrap, its
        parent, then collects it and ends. What does not go that way is killed with bwrap's group.
        """
        for end in self.informed:
            if not self.read[end] and select.select([end], [], [], 0)[0]:
                self.read[end] += os.read(end, 65536)
        first: list[int] = []
        for process, end in zip(self.processes, self.informed, strict=False):
            inner = _find_inner(self.read[end])
            with suppress(ProcessLookupError):
                if inner is not None:
                    first.append(os.pidfd_open(inner))
                    if process.poll() is None:  # or it ends by itself, and its number may soon be another's
                        signal.pidfd_send_signal(first[-1], signal.SIGKILL)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_COLLECT_S)
            with suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for ended in first:  # bwrap may be gone before it
            select.select([ended], [], [], _COLLECT_S)
            os.close(ended)
        for end in reading:
            while select.select([end], [], [], START_S)[0] and (data := os.read(end, 65536)):
                self.read[end] += data
            os.close(end)


def _count_files(information: bytes) -> int:
    """Files in a sandbox that is open, by what bwrap tells of itself; 0 after its end."""
    try:
        found = os.statvfs(f"/proc/{_find_inner(information)}/root/tmp")
    except OSError:
        return 0
    return found.f_files - found.f_ffree


def _find_inner(information: bytes) -> int | None:
    """Process id, seen from outside, of the first process in a sandbox, by what bwrap tells of itself."""
    try:
        return int(json.loads(information)["child-pid"])
    except ValueError:
        return None


def _make_file(data: bytes) -> int:
    """A descriptor from which the data can be read."""
    number = os.memfd_create("sandbox")
    os.write(number, data)
    os.lseek(number, 0, os.SEEK_SET)
    return number
