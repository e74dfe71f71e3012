"""Verifiable questions from reasoning-gym's generators, and its own scorers for the answers.

A scorer gets what a model wrote, and some of them hand it to Python's `eval` or to sympy, which evaluates too. Such
text is looked at first (`_is_harmless`): a model's answer must never run as code here.
"""

import ast
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from metamoe_backend.errors import ConfigError, InputError, NotFoundError
from metamoe_backend.ingest.records import Record, Records, make_rejected_row

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

DEFAULT_SIZE = 100
SEED_STEP = 1_000_000
"""reasoning-gym makes item i from seed + i, so neighbouring seeds give the same questions one place apart: a test set
of seed 1 would lie inside a training set of seed 0. Our seeds therefore count in steps of a million."""
_UNSCORED = "its scorer does not give full marks to its own gold answers"
LEFT_OUT = {
    "boxnet": _UNSCORED,
    "composite": "it only joins other generators; ingest these one by one",
    "graph_color": _UNSCORED,
    "propositional_logic": _UNSCORED,
    "rubiks_cube": _UNSCORED,
    "rush_hour": _UNSCORED,
}
"""Generators that are not offered, and why."""

_EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
"""Their scorers call eval() on an answer that is not the gold one."""
_FUNCTIONS = frozenset({"sin", "cos", "tan", "exp", "log", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh"})
_PARSED: dict[str, frozenset[str]] = {
    "countdown": frozenset(),
    "intermediate_integration": _FUNCTIONS,
    "polynomial_multiplication": frozenset(),
    "puzzle24": frozenset(),
    "simple_integration": _FUNCTIONS,
}
"""Their scorers call sympy.parse_expr on the answer; the functions an answer may use."""
MAX_FORMULA_CHARACTERS = 1000
MAX_POWER = 40
"""Largest power a formula may build up: 9**9**9 must not be worked out."""


@dataclasses.dataclass(frozen=True, slots=True)
class Generator:
    """One generator that can be ingested as reasoning_gym:NAME."""

    name: str
    category: str
    summary: str
    options: dict[str, Any]
    """Its settings with their defaults: numbers, texts and lists of these."""


def list_generators() -> list[Generator]:
    """All generators on offer, by category and name."""
    found = []
    for name, (dataset, config) in _registry().items():
        if name in LEFT_OUT:
            continue
        summary = (dataset.__doc__ or "").strip().split("\n")[0] or name.replace("_", " ")
        category = dataset.__module__.split(".")[1]
        found.append(Generator(name, category, summary, _plain_defaults(config)))
    return sorted(found, key=lambda one: (one.category, one.name))


def _registry() -> dict[str, tuple[Any, Any]]:
    from reasoning_gym.factory import DATASETS

    return DATASETS


def _plain_defaults(config: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name in ("seed", "size"):
            continue
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        if value is None or isinstance(value, (bool, int, float, str)):
            defaults[field.name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(one, (bool, int, float, str)) for one in value):
            defaults[field.name] = list(value)
    return defaults


def check_generator(name: str) -> None:
    """Raise `NotFoundError` for an unknown generator, naming similar ones, and `InputError` for one left out."""
    if name in LEFT_OUT:
        raise InputError(f"reasoning_gym:{name} is left out, because {LEFT_OUT[name]}; choose another generator.")
    known = [one for one in _registry() if one not in LEFT_OUT]
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:8]
        raise NotFoundError(
            f"reasoning-gym has no generator {name[:80]!r}; did you mean {', '.join(near)}? "
            "The Tasks page lists all of them."
        )


def read_generator(name: str, options: dict[str, Any], size: int, seed: int) -> Records:
    """`size` generated rows: question, answer, and metadata holding what `score_answer` needs.

    The same name, options and seed give the same rows. A few generators fail now and then (maze), which makes a
    rejected row. Raises `ConfigError` for options the generator refuses.
    """
    check_generator(name)
    for reserved, instead in (("seed", "the seed setting"), ("size", "the limit setting")):
        if reserved in options:
            raise ConfigError(f"options: {reserved} is not set here; use {instead}.")
    dataset = _make_dataset(name, options | {"size": size, "seed": seed * SEED_STEP % 2**31})
    for number in range(size):
        try:
            with _no_chatter():
                entry = dataset[number]
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
            reason = f"the generator fails with these options ({type(error).__name__}: {error})"
            yield make_rejected_row(number + 1, reason, "")
            continue
        metadata = {"generator": name, "options": options, "entry": _pack(entry)}
        yield Record(number + 1, {"question": entry["question"], "answer": entry["answer"], "metadata": metadata})


def _make_dataset(name: str, settings: dict[str, Any]) -> "ProceduralDataset":
    import reasoning_gym

    known = {field.name for field in dataclasses.fields(_registry()[name][1])}
    for option in settings:
        if option not in known:
            offered = ", ".join(sorted(known - {"seed", "size"})) or "none"
            raise ConfigError(f"options: {name} has no option {option!r}; it has {offered}.")
    try:
        with _no_chatter():
            return reasoning_gym.create_dataset(name, **settings)
    except (AssertionError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ConfigError(f"options: {name} refuses them ({error}); change the options.") from None


def _no_chatter() -> contextlib.AbstractContextManager[Any]:
    """Some generators print; standard output belongs to the caller's result."""
    return contextlib.redirect_stdout(sys.stderr)


# ------------------------------------------------------------------------------------------------- metadata as JSON


def _pack(value: Any) -> Any:
    """JSON-ready; tuples, sets and dicts with keys other than text are marked, since scorers tell them apart."""
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {str(key): _pack(one) for key, one in value.items()}
        return {"__dict__": [[_pack(key), _pack(one)] for key, one in value.items()]}
    if isinstance(value, list):
        return [_pack(one) for one in value]
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(one) for one in value]}
    if isinstance(value, (set, frozenset)):
        return {"__set__": sorted((_pack(one) for one in value), key=repr)}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "tolist"):  # numpy numbers and arrays
        return _pack(value.tolist())
    return str(value)


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "__dict__" in value:
        return {_unpack(key): _unpack(one) for key, one in value["__dict__"]}
    if "__tuple__" in value:
        return tuple(_unpack(one) for one in value["__tuple__"])
    if "__set__" in value:
        return {_unpack(one) for one in value["__set__"]}
    return {key: _unpack(one) for key, one in value.items()}


# ---------------------------------------------------------------------------------------------------------- scoring


def score_answer(name: str, output: str, metadata: str | None) -> float:
    """The generator's own score of an output, 0 to 1.

    metadata: the question's metadata column, as `read_generator` made it. Text that its scorer would evaluate as code
    and that is not a plain literal or formula counts as a wrong answer, and so does text its scorer cannot read.
    Raises `InputError` when the metadata does not come from a generator.
    """
    stored = json.loads(metadata) if metadata else {}
    if not isinstance(stored, dict) or "entry" not in stored:
        raise InputError(f"A question of reasoning_gym:{name} has no generator state in its metadata; ingest it again.")
    name = stored.get("generator", name)
    entry = _unpack(stored["entry"])
    output = output.strip()
    if not _is_harmless(name, output):
        accepted = entry["metadata"].get("valid_answers") or [entry["answer"]]
        return float(output in [str(answer).strip() for answer in accepted])
    score = _scorer(name, json.dumps(stored.get("options", {}), sort_keys=True))
    try:
        with _no_chatter():
            return float(score(output, entry))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return 0.0  # scorers meet odd text with these: it is no answer


@lru_cache(maxsize=256)
def _scorer(name: str, options: str) -> Callable[[str, dict[str, Any]], float]:
    check_generator(name)
    return _make_dataset(name, json.loads(options) | {"size": 1, "seed": 0}).score_answer


def _is_harmless(name: str, output: str) -> bool:
    if re.search(r"[0-9.]\s*[eE][+-]?[0-9]{4}", output):  # Fraction("1e999999999") would fill the memory
        return False
    if name in _EVALUATED:
        return _is_literal(output)
    return name not in _PARSED or _is_formula(output, _PARSED[name])


def _is_literal(text: str) -> bool:
    """True for a Python literal, and for text that is no Python expression at all (eval then fails at once)."""
    try:
        ast.literal_eval(text)
    except SyntaxError:
        return True
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_formula(text: str, functions: frozenset[str]) -> bool:
    """True for a formula of numbers, one-letter variables, + - * / **, these functions and moderate powers."""
    if len(text) > MAX_FORMULA_CHARACTERS:
        return False
    try:
        return _power(ast.parse(text, mode="eval").body, functions) <= MAX_POWER
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _power(node: ast.expr, functions: frozenset[str]) -> float:
    """Largest product of nested exponents in a formula; infinite if it holds anything else than a formula does."""
    match node:
        case ast.Constant(value=int() | float()):
            return 1
        case ast.Name(id=name) if len(name) == 1:
            return 1
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _power(operand, functions)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _power(left, functions) * _exponent(right)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
            return max(_power(left, functions), _power(right, functions))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in functions:
            return _power(argument, functions)
    return float("inf")


def _exponent(node: ast.expr) -> float:
    """Size of an exponent: a number or a fraction of numbers; a variable counts as 1."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return max(1.0, abs(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _exponent(operand)
        case ast.BinOp(op=ast.Div(), left=left, right=ast.Constant(value=int())):
            return _exponent(left)
        case ast.Name():
            return 1
    return float("inf")
