"""The two processes inside the sandbox: one runs a program, the other its tests. Started by `sandbox`, never imported.

It is a file of its own without imports from the rest of the project: nothing else can be seen in there. The tests'
process asks (call this function, give me this attribute), the program's answers with values. A value is a plain one
(numbers, texts, containers and what else `_CONTAINERS` and `_OTHERS` name) or, for any other object, its handle
(`Remote`). So whatever a program does to its own interpreter (leaving early, printing, patching `assert`, equality or
the checker), all that can reach the tests is a value, and the verdict is written by a process it cannot touch.

A message is a length (4 bytes) and JSON. Requests stand in the program's standard input, replies in its standard
output, what it prints goes to standard error. The tests' process writes two JSON lines to its standard error: started
(the program's process is ready; nothing of the program has run yet) and the verdict.
"""

import builtins
import collections
import importlib
import json
import operator
import os
import resource
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

PROGRAM, TESTS = "/program.py", "/tests.json"
"""Where `sandbox` puts the program and its tests (preamble, tests, names)."""
MAX_MESSAGE_BYTES = 16 * 2**20
MAX_REASON_CHARACTERS = 200

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "name": lambda values, name: values[name],
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "eq": operator.eq,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
}
_TYPES = ("bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "set", "frozenset", "dict", "range")
_CONTAINERS: dict[str, Any] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
}  # fmt: skip
_OTHERS: dict[str, tuple[str, Callable[[Any], str], str]] = {
    "Decimal": ("decimal", str, "Decimal"),
    "Fraction": ("fractions", str, "Fraction"),
    "datetime": ("datetime", lambda value: value.isoformat(), "datetime.fromisoformat"),
    "date": ("datetime", lambda value: value.isoformat(), "date.fromisoformat"),
    "time": ("datetime", lambda value: value.isoformat(), "time.fromisoformat"),
}
"""Type to its module, how it becomes text, and what makes it from that text again."""


class ProgramEnded(BaseException):
    """The program's process is gone or no longer answers in the form agreed; no test may catch this."""


def limit_resources(limits: dict[str, int]) -> None:
    """Kernel limits of this process, for good; it cannot start another one (see `sandbox.make_filter`)."""
    for name, value in limits.items():
        number = getattr(resource, name)
        ceiling = resource.getrlimit(number)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(number, (value, value))


# ------------------------------------------------------------------------------------------------------------- values


class Coder:
    """Values to JSON and back. Objects that are no plain values stay where they are and travel as a number."""

    def __init__(self, channel: "Channel") -> None:
        self.channel = channel
        self.objects: list[Any] = []
        self.handles: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        """JSON-ready. Instances of subclasses become instances of the plain class."""
        if value is None or isinstance(value, (bool, float, str)):
            return value if value is None or isinstance(value, bool) else _plain(value)
        if isinstance(value, int):
            return int(value) if abs(value) < 2**63 else ["int", hex(value)]
        for name, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                return [name, [self.encode(one) for one in value]]
        if isinstance(value, dict):
            name = "Counter" if isinstance(value, collections.Counter) else "dict"
            return [name, [[self.encode(key), self.encode(one)] for key, one in value.items()]]
        return self._encode_rare(value)

    def _encode_rare(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["own", value._handle]
        if isinstance(value, (bytes, bytearray)):
            return ["bytes", value.hex()]
        if isinstance(value, complex):
            return ["complex", [value.real, value.imag]]
        if isinstance(value, range):
            return ["range", [value.start, value.stop, value.step]]
        kind = type(value)
        if kind is type and value.__module__ == "builtins" and value.__name__ in _TYPES:
            return ["type", value.__name__]
        if kind.__name__ in _OTHERS and kind.__module__ == _OTHERS[kind.__name__][0]:
            return [kind.__name__, _OTHERS[kind.__name__][1](value)]
        if id(value) not in self.handles:
            self.handles[id(value)] = len(self.objects)
            self.objects.append(value)
        return ["object", self.handles[id(value)]]

    def decode(self, data: Any) -> Any:
        """The value again. Makes nothing but plain values and `Remote`s, whatever the data."""
        if not isinstance(data, list):
            return data
        name, content = data
        if name in _CONTAINERS:
            return _CONTAINERS[name](self.decode(one) for one in content)
        if name in ("dict", "Counter"):
            made: dict[Any, Any] = {} if name == "dict" else collections.Counter()
            made.update({self.decode(key): self.decode(one) for key, one in content})
            return made
        return self._decode_rare(name, content)

    def _decode_rare(self, name: str, content: Any) -> Any:
        if name == "object":
            return Remote(self.channel, int(content))
        if name == "own":
            return self.objects[content]
        if name == "int":
            return int(content, 16)
        if name == "bytes":
            return bytes.fromhex(content)
        if name in ("complex", "range"):
            return getattr(builtins, name)(*content)
        if name == "type" and content in _TYPES:
            return getattr(builtins, content)
        module, _, maker = _OTHERS[name]
        return operator.attrgetter(maker)(importlib.import_module(module))(str(content))


def _plain(value: float | str) -> float | str:
    return float(value) if isinstance(value, float) else str.__str__(value)


class Channel:
    """Messages over a pair of pipes."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        self.coder = Coder(self)
        self.ended = False

    def send(self, message: Any) -> None:
        """Write one message. Raises `ProgramEnded` where nobody reads, `ValueError` for one that is too long."""
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError("a value is too large")
        try:
            self.writing.write(struct.pack(">I", len(data)) + data)
            self.writing.flush()
        except OSError:
            self.ended = True
            raise ProgramEnded from None

    def receive(self) -> Any:
        """Read one message; raises `ProgramEnded` at the end and for anything that is none."""
        head = self.reading.read(4)
        length = struct.unpack(">I", head)[0] if len(head) == 4 else MAX_MESSAGE_BYTES + 1
        data = self.reading.read(length) if length <= MAX_MESSAGE_BYTES else b""
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            self.ended = True
            raise ProgramEnded from None

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Let the program's process do something; returns the value or raises what was raised there.

        Lists, dicts and sets among the arguments are changed here as they were changed there.
        """
        encode, decode = self.coder.encode, self.coder.decode
        self.send([operation, [encode(one) for one in args], {name: encode(one) for name, one in kwargs.items()}])
        reply = self.receive()
        try:
            kind, content, rest = reply
            value = decode(content) if kind == "value" else None
            changed = [decode(one) for one in rest or []] if kind == "value" else []
            error = None if kind == "value" else make_error(str(content), str(rest))
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError):
            self.ended = True
            raise ProgramEnded from None
        if error is not None:
            raise error
        for one, new in zip(args, changed, strict=False):
            _change(one, new)
        return value


def make_error(name: str, message: str) -> Exception:
    """The built-in exception of that name, or a RuntimeError that names it."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError wants five arguments
            pass
    return RuntimeError(f"{name}: {message}")


def _change(one: Any, new: Any) -> None:
    if isinstance(one, list) and isinstance(new, list):
        one[:] = new
    elif isinstance(one, (dict, set)) and type(one) is type(new):
        one.clear()
        one.update(new)


class Remote:
    """An object that lives in the program's process. It equals no plain value, whatever its own `__eq__` says."""

    __slots__ = ("_channel", "_handle")

    def __init__(self, channel: Channel, handle: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("getitem", self, key)

    def __iter__(self) -> Any:
        return self._channel.ask("iter", self)

    def __next__(self) -> Any:
        return self._channel.ask("next", self)

    def __len__(self) -> int:
        return int(self._channel.ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._channel.ask("bool", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and bool(self._channel.ask("eq", self, other))

    def __hash__(self) -> int:
        return hash(self._handle)

    def __repr__(self) -> str:
        return "an object of the program"


# ---------------------------------------------------------------------------------------------------------- processes


def run_program() -> None:
    """Load the program, then answer requests until there are none."""
    channel = Channel(os.dup(0), os.dup(1))
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(2, 1)
    with open(PROGRAM, "rb") as file:
        source = file.read()
    channel.send("ready")
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(source, "program", "exec"), module.__dict__)
    except BaseException as error:  # noqa: BLE001  # whatever a program raises is its answer, SystemExit too
        channel.send(_describe(error))
        return
    channel.send(["value", None, None])
    while True:
        try:
            operation, args, kwargs = channel.receive()
        except ProgramEnded:
            return
        channel.send(_answer(channel.coder, module, operation, args, kwargs))


def _answer(coder: Coder, module: types.ModuleType, operation: str, sent: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        args = [coder.decode(one) for one in sent]
        if operation == "name":
            args = [module.__dict__, *args]
        value = _OPERATIONS[operation](*args, **{name: coder.decode(one) for name, one in kwargs.items()})
        after = [coder.encode(one) for one in args] if operation == "call" else sent
        return ["value", coder.encode(value), None if after == sent else after]
    except BaseException as error:  # noqa: BLE001
        return _describe(error)


def _describe(error: BaseException) -> list[Any]:
    return ["raised", type(error).__name__, str(error)[:MAX_REASON_CHARACTERS]]


def run_tests() -> None:
    """Run the tests against the program's process; writes "started" and the verdict."""
    channel, verdict = Channel(os.dup(0), os.dup(1)), os.fdopen(os.dup(2), "w")
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    with open(TESTS, encoding="utf-8") as file:
        given = json.load(file)
    try:
        channel.receive()
    except ProgramEnded:
        return  # without "started": the program's sandbox did not open
    print(json.dumps({"started": True}), file=verdict, flush=True)
    reason = _find_fault(channel, given)
    print(json.dumps({"passed": reason is None, "reason": reason or ""}), file=verdict, flush=True)
    os._exit(0)  # what the tests left behind is of no interest


def _find_fault(channel: Channel, given: dict[str, Any]) -> str | None:
    """Why the program does not pass; None if it does."""
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    try:
        kind, name, message = channel.receive()
        if kind == "raised":
            return f"the program raised {name}: {message}"[:MAX_REASON_CHARACTERS]
        exec(compile(given["preamble"], "preamble", "exec"), module.__dict__)
        for wanted in given["names"]:
            try:
                module.__dict__[wanted] = channel.ask("name", wanted)
            except KeyError:
                module.__dict__.pop(wanted, None)
        exec(compile(given["tests"], "tests", "exec"), module.__dict__)
    except ProgramEnded:
        return "the program ended before its tests did"
    except AssertionError:
        return "a test failed"
    except BaseException as error:  # noqa: BLE001  # a test that cannot be finished is a test not passed
        return f"a test raised {type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
    return "the program ended before its tests did" if channel.ended else None


if __name__ == "__main__":
    limit_resources(json.loads(sys.argv[2]))
    run_program() if sys.argv[1] == "program" else run_tests()
