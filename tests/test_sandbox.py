"""A generated program can reach nothing but its own process, and cannot pass by anything but right values."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from metamoe_backend.errors import UnavailableError
from metamoe_backend.evaluate import sandbox
from metamoe_backend.evaluate.sandbox import Limits, Problem, run_problem, run_problems
from tests.fake_jobs import wait_for

RIGHT = "def double(n):\n    return 2 * n\n"
TESTS = "assert double(2) == 4\nassert double(5) == 10"
LIMITS = Limits(wall_s=3.0, cpu_s=2)
"""An attack may take six seconds until nothing of it is left; three are for what ends a sandbox."""


@pytest.fixture
def opened(monkeypatch) -> list[int]:
    """Process namespaces of the sandboxes that a test opens, as inode numbers; and nothing of them may be left."""
    found: list[int] = []
    find = sandbox._find_inner

    def watch(information: bytes) -> int | None:
        with suppress(OSError):  # ended already
            found.append(Path(f"/proc/{find(information)}/ns/pid").stat().st_ino)
        return find(information)

    monkeypatch.setattr(sandbox, "_find_inner", watch)
    return found


def list_left(namespaces: list[int]) -> list[int]:
    """Processes that live in one of these process namespaces (not those that are dead and only not yet collected)."""
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                dead = "\nState:\tZ" in (entry / "status").read_text()
                if not dead and (entry / "ns" / "pid").stat().st_ino in namespaces:
                    left.append(int(entry.name))
            except OSError:
                continue
    return left


def attack(code: str, tests: str = TESTS) -> sandbox.Verdict:
    """What becomes of a program that does something and then would be right."""
    return run_problem(Problem(code, tests, ["double"]), LIMITS)


def attempt(action: str) -> str:
    """A program that tries something first and says, as the value of `double`, what came of it."""
    lines = "\n".join(f"    {line}" for line in action.strip().splitlines())
    return (
        f"import ctypes, os, signal, socket, sys, threading, time\nfound = 'done'\ntry:\n{lines}\n"
        "except BaseException as error:\n    found = f'{type(error).__name__}: {error}'\n"
        "def double(n):\n    return found\n"
    )


def test_a_right_program_passes_and_a_wrong_one_does_not():
    assert attack(RIGHT).passed
    assert attack(RIGHT.replace("2", "3")) == sandbox.Verdict(False, "a test failed")
    assert "SyntaxError" in attack("def double(n:").reason
    assert "NameError" in attack("").reason
    assert "ZeroDivisionError" in attack("def double(n):\n    return n / 0").reason


ENDLESS = {
    "sleeping": "import time\ntime.sleep(1000)",
    "a busy loop": "while True:\n    pass",
    "a loop that catches everything": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    "signals ignored": "import signal, time\n[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15, 24)]\ntime.sleep(1000)",
    "endless output": "while True:\n    print('x' * 1000)",
    "endless errors": "import os\nwhile True:\n    os.write(2, b'y' * 4096)",
    "many files": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'w').close()",
    "a flood of replies": "import os\nwhile True:\n    [os.write(n, b'z' * 4096) for n in range(3, 9)]",
    "a loop in a test": f"{RIGHT}\ndef double(n):\n    while True:\n        pass",
    "endless values": "def double(n):\n    while True:\n        yield n",
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "double fork and setsid": (
        "import os, time\ntry:\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            time.sleep(1000)\nexcept OSError:\n    os.setsid()\n    time.sleep(1000)"
    ),
    "many threads": (
        "import threading, time\nwhile True:\n    try:\n        threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    except RuntimeError:\n        pass"
    ),
}


@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS)
def test_what_would_not_end_is_ended_and_nothing_is_left(code: str, opened: list[int]):
    tests = "assert list(double(2)) == [4]" if "yield" in code else TESTS
    started = time.monotonic()
    verdict = attack(code, tests)
    elapsed = time.monotonic() - started
    assert not verdict.passed
    assert opened, "the sandbox was seen from outside"
    assert list_left(opened) == []
    # Its own deadline, to which the start of two processes comes; a busy machine only lengthens the latter.
    assert LIMITS.wall_s < 6 - 2
    assert elapsed < sandbox.START_S + LIMITS.wall_s


CONTAINED = {
    "a process": ("os.fork()", "BlockingIOError"),
    "a process by another call": ("found = str(ctypes.CDLL(None).vfork())", "-1"),
    "a thread": ("threading.Thread(target=print).start()", "RuntimeError: can't start new thread"),
    "a shell": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'id'])", "Error"),
    "a shell in its place": ("os.execv('/bin/sh', ['sh'])", "FileNotFoundError"),
    "memory": ("x = bytearray(2 * 2**30)", "MemoryError"),
    "memory in pieces": ("x = []\nwhile True:\n    x.append(bytearray(2**24))", "MemoryError"),
    "memory without a name": ("os.memfd_create('x')", "PermissionError"),
    "a huge file": ("with open('/tmp/x', 'wb') as file:\n    while True:\n        file.write(bytes(2**20))", "OSError"),
    "disk": (
        "for n in range(20):\n    with open(f'/tmp/{n}', 'wb') as file:\n        file.write(bytes(2**20))",
        "No space left",
    ),
    "accounts": ("found = open('/etc/passwd').read()", "FileNotFoundError"),
    "passwords": ("found = open('/etc/shadow').read()", "FileNotFoundError"),
    "the processes": ("found = str(os.listdir('/proc'))", "FileNotFoundError"),
    "kernel memory": ("found = open('/dev/mem').read(1)", "FileNotFoundError"),
    "writing to the system": ("open('/usr/lib/evil', 'w')", "Read-only file system"),
    "writing to the top": ("open('/evil', 'w')", "Read-only file system"),
    "its own tests": ("found = open('/tests.json').read()", "FileNotFoundError"),
    "patching the runner": ("open('/sandbox_process.py', 'a')", "Read-only file system"),
    "a link to the outside": ("os.symlink('/etc/shadow', '/tmp/link')\nfound = open('/tmp/link').read()", "FileNotFoundError"),
    "a path to the outside": ("found = open('/tmp/../../../etc/shadow').read()", "FileNotFoundError"),
    "network": ("socket.create_connection(('1.1.1.1', 53), timeout=1)", "PermissionError"),
    "names": ("socket.getaddrinfo('localhost.localdomain', 80)", "gaierror"),
    "the host of a virtual machine": ("socket.socket(40, socket.SOCK_STREAM)", "PermissionError"),
    "tracing": (
        "libc = ctypes.CDLL(None, use_errno=True)\nfound = str((libc.ptrace(16, 1, 0, 0), ctypes.get_errno()))",
        "(-1, 1)",
    ),
    "a namespace of its own": (
        "libc = ctypes.CDLL(None, use_errno=True)\nfound = str((libc.unshare(0x10000000), ctypes.get_errno()))",
        "(-1, 1)",
    ),
    "a mount": (
        "libc = ctypes.CDLL(None, use_errno=True)\nfound = str((libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0), ctypes.get_errno()))",
        "(-1, 1)",
    ),
    "higher limits": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError"),
    "another user": ("os.setuid(0)", "Invalid argument"),
    "the environment": ("found = repr(sorted(set(os.environ) - {'LANG', 'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}))", "[]"),
    "the clock": ("time.clock_settime(time.CLOCK_REALTIME, 0)", "PermissionError"),
}  # fmt: skip


@pytest.mark.parametrize(("action", "seen"), CONTAINED.values(), ids=CONTAINED)
def test_what_a_program_may_not_do_fails(action: str, seen: str):
    verdict = attack(attempt(action), "found = double(1)\nraise KeyError(found)")
    assert verdict.reason.startswith("a test raised KeyError")
    assert seen in verdict.reason


def test_neither_the_home_nor_the_workspace_nor_the_project_can_be_read(tmp_path: Path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("gold")
    monkeypatch.setenv("TOKEN_FOR_A_HUB", "gold")
    for place in (secret, Path.home() / ".bashrc", Path(__file__), Path(sandbox.__file__)):
        verdict = attack(attempt(f"found = open({str(place)!r}).read()"), "raise KeyError(double(1))")
        assert "FileNotFoundError" in verdict.reason
    assert "'gold'" not in attack(attempt("found = repr(os.environ)"), "raise KeyError(double(1))").reason


def test_no_signal_reaches_what_started_it():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        for target in (victim.pid, os.getpid(), os.getppid(), -1):
            attack(attempt(f"os.kill({target}, signal.SIGKILL)"))
        attack(attempt("os.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)"))
        assert victim.poll() is None
        victim.kill()


def test_what_listens_on_this_machine_is_not_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        verdict = attack(attempt(f"socket.create_connection(('127.0.0.1', {port}))"), "raise KeyError(double(1))")
    assert "PermissionError" in verdict.reason


def test_deep_recursion_and_a_crash_end_the_program_alone():
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef double(n):\n    return double(n) + 1"
    assert not attack(deep).passed
    crash = "import ctypes\ndef double(n):\n    ctypes.string_at(0)"
    assert attack(crash).reason == "the program ended before its tests did"
    nested = "def double(n):\n    found = []\n    for _ in range(100000):\n        found = [found]\n    return found"
    assert not attack(nested).passed


WRONG = "def double(n):\n    return 0\n"
FORGED = {
    "leaving": "import sys\nsys.exit(0)",
    "leaving at once": "import os\nos._exit(0)",
    "leaving in a test": "import os\ndef double(n):\n    os._exit(0)",
    "an exception that says so": "class passed(SystemExit):\n    code = 0\ndef double(n):\n    raise passed(0)",
    "printing the verdict": WRONG + 'print(\'{"started": true}\\n{"passed": true, "reason": ""}\', flush=True)',
    "writing the verdict everywhere": (
        WRONG + "import os\nfor n in range(64):\n    try:\n"
        '        os.write(n, b\'{"started": true}\\n{"passed": true, "reason": ""}\\n\')\n    except OSError:\n        pass'
    ),
    "an object equal to everything": (
        "class Yes:\n    def __eq__(self, other):\n        return True\n    __req__ = __eq__\n"
        "def double(n):\n    return Yes()"
    ),
    "a number equal to everything": (
        "class Yes(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def double(n):\n    return Yes(0)"
    ),
    "other built-ins": WRONG + "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.len = lambda x: 4",
    "a patched runner": (
        WRONG + "import sys\nmain = sys.modules['__main__']\nmain._find_fault = lambda *args: None\n"
        "main.operator.eq = lambda a, b: True\nmain._OPERATIONS['eq'] = lambda a, b: True"
    ),
    "a patched encoder": (
        WRONG + "import sys\nmain = sys.modules['__main__']\n"
        "main.Coder.encode = lambda self, value: ['own', 0]"
    ),
    "broken messages": (
        "import struct, os\ndef double(n):\n    for fd in range(3, 9):\n        try:\n"
        "            os.write(fd, struct.pack('>I', 5) + b'{{{{{')\n        except OSError:\n            pass\n    return 0"
    ),
    "the tests in memory": (
        "import gc\ndef double(n):\n    for one in gc.get_objects():\n"
        "        if isinstance(one, dict) and 'tests' in one:\n            return 4\n    return 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED)
def test_a_wrong_program_does_not_pass_by_other_means(code: str):
    verdict = attack(code)
    assert not verdict.passed
    assert verdict.reason


def test_a_test_that_catches_everything_cannot_be_left_by_a_dead_program():
    tests = "try:\n    double(2)\nexcept:\n    pass"
    assert attack("def double(n):\n    raise ValueError", tests).passed
    assert not attack("import os\ndef double(n):\n    os._exit(0)", tests).passed


VALUES = [
    "None", "True", "-7", "2**200", "1.5", "float('inf')", "'ünï\\n'", "b'\\x00\\xff'", "3+4j", "range(1, 9, 2)",
    "[1, [2, (3,)]]", "{1: {'a': {2}}, (1, 2): None}", "frozenset({1})", "int", "Counter('aab')", "deque([1, 2])",
    "OrderedDict(a=1)", "Decimal('1.10')", "Fraction(1, 3)", "date(2020, 1, 2)", "datetime(2020, 1, 2, 3)",
]  # fmt: skip
IMPORTS = "from collections import *\nfrom datetime import *\nfrom decimal import *\nfrom fractions import *\n"


def test_values_come_through_as_they_are():
    program = f"{IMPORTS}def get(n):\n    return [{', '.join(VALUES)}][n]\ndef same(value):\n    return value"
    lines = [f"assert get({n}) == {value} and same({value}) == {value}" for n, value in enumerate(VALUES)]
    lines += [
        "assert get(1) is True",
        "nan = same(float('nan'))",
        "assert nan != nan",
        "assert same('\\udc80') == '\\udc80'",
    ]
    assert run_problem(Problem(program, "\n".join(lines), ["get", "same"], IMPORTS)) == sandbox.Verdict(True)


def test_objects_iterators_and_changed_arguments_work_as_in_one_process():
    program = """
from collections import namedtuple
from dataclasses import dataclass

@dataclass
class Node:
    value: int
    next: object = None
    def __len__(self): return 1

Point = namedtuple("Point", "x y")
LIMIT = 3
def total(node): return node.value + (total(node.next) if node.next is not None else 0)
def count(): yield from range(3)
def point(): return Point(1, 2)
def sort(values): values.sort()
def fail(kind): raise {"value": ValueError("no"), "own": type("Own", (Exception,), {})("no")}[kind]
def first(**named): return sorted(named)[0]
"""
    tests = """
node = Node(1)
node.next = Node(2)
assert total(node) == 3 and node.next.value == 2 and len(node) == 1
assert Node(1) == Node(1) and Node(1) != Node(2) and Node(1) != 1
assert list(count()) == [0, 1, 2] and sum(count()) == 3 and LIMIT == 3
assert point() == (1, 2) and first(b=1, a=2) == "a"
values = [3, 1, 2]
sort(values)
assert values == [1, 2, 3]
for kind, error in (("value", ValueError), ("own", RuntimeError)):
    try:
        fail(kind)
    except error as raised:
        assert "no" in str(raised)
    else:
        assert False
"""
    names = ["Node", "total", "count", "point", "sort", "fail", "first", "LIMIT"]
    assert run_problem(Problem(program, tests, names)) == sandbox.Verdict(True)


def test_several_programs_run_at_a_time_and_answers_keep_their_order():
    problems = [Problem(RIGHT if n % 3 else WRONG, TESTS, ["double"]) for n in range(7)]
    seen: list[int] = []
    verdicts = run_problems(problems, on_judged=lambda: seen.append(1))
    assert [verdict.passed for verdict in verdicts] == [bool(n % 3) for n in range(7)]
    assert len(seen) == 7

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run_problems(problems, on_judged=stop)


@pytest.mark.parametrize("named", ["", "bwrap", "python"])
def test_a_signal_to_the_whole_job_is_no_fault_of_the_program(named: str):
    """As Slurm sends it when it wants the node back: what it ended is tested again."""
    slow = Problem(f"import time\ntime.sleep(1)\n{RIGHT}", TESTS, ["double"])
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(run_problem, slow, Limits(wall_s=30))
        running = wait_for(lambda: (found := psutil.Process().children(recursive=True))[5:] and found)
        time.sleep(0.3)
        for process in running:
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith(named):
                    process.terminate()
        assert verdict.result() == sandbox.Verdict(True)


def test_a_program_that_ends_itself_so_does_not_pass():
    code = f"import os, signal\n{RIGHT}os.kill(os.getpid(), signal.SIGTERM)\n"
    assert attack(code) == sandbox.Verdict(False, "it was told to end, each time")


def test_without_a_sandbox_that_works_nothing_runs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sandbox, "check_sandbox", sandbox.check_sandbox.__wrapped__)
    trace = tmp_path / "ran"
    problem = Problem(f"open({str(trace)!r}, 'w')", "", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"inside bubblewrap, which is not here; .*apt install bubblewrap"):
        run_problems([problem])
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UnavailableError, match=r"setting up uid map: Permission denied.*apt install bubblewrap"):
        run_problems([problem])
    assert not trace.exists()
    with pytest.raises(UnavailableError, match="x86_64 and aarch64, not for mips"):
        sandbox.make_filter("mips")


def test_the_sandbox_is_described_with_its_version_and_limits():
    described = sandbox.describe_sandbox()
    assert described.startswith("bubblewrap ")
    assert f"Python {platform.python_version()}; one process, 5 s" in described


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="is run as root, with a system Python"
)
def test_an_ordinary_user_is_contained_as_root_is(tmp_path: Path):
    """The system's Python runs the same module for the user nobody, who sees neither the home nor this checkout."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for parent in (folder, *folder.parents):
        if parent.owner() == "root" and parent != Path("/") and str(parent) != "/tmp":
            parent.chmod(0o755)
    package = Path(sandbox.__file__).parents[1]
    for name in (
        "__init__.py",
        "errors.py",
        "evaluate/__init__.py",
        "evaluate/sandbox.py",
        "evaluate/sandbox_process.py",
    ):
        (folder / "metamoe_backend" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / name, folder / "metamoe_backend" / name)
    fork = attempt("os.fork()")
    script = (
        "from metamoe_backend.evaluate.sandbox import Problem, run_problem\n"
        f"print(run_problem(Problem({RIGHT!r}, {TESTS!r}, ['double'])).passed)\n"
        f"print(run_problem(Problem({fork!r}, 'raise KeyError(double(1))', ['double'])).reason)\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script], cwd=folder, user=65534, group=65534, extra_groups=[], env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[:1] == ["True"], done.stderr
    assert "BlockingIOError" in done.stdout
