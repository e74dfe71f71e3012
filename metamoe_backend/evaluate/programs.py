"""Tasks scored by running a program: what a prompt shows, where a program ends, and how it is tested.

Two benchmarks' conventions, told apart by the question's metadata. MBPP (test_list): the model writes the whole
program after [BEGIN] and ends it with [DONE]. HumanEval (entry_point): the model goes on from the prompt, the head of a
function, until something else begins on the left. Both as lm-evaluation-harness has them, scored by pass@1 of the
greedy answer.
"""

import ast
import builtins
import json
import re
from typing import Any

import pandas as pd

from metamoe_backend.errors import InputError
from metamoe_backend.evaluate.sandbox import Problem, check_sandbox

END_OF_PROGRAM = "[DONE]"
_CONTINUED_UNTIL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def read_metadata(metadata: str | None) -> dict[str, Any]:
    """A code question's metadata; raises `InputError` where it holds no tests."""
    found = json.loads(metadata) if isinstance(metadata, str) else {}
    if "test_list" not in found and "entry_point" not in found:
        raise InputError("A question scored by running code has no tests in its metadata; ingest its task again.")
    return dict(found)


def list_stops(metadata: str | None) -> tuple[str, ...]:
    """Texts that end a generated program."""
    return _CONTINUED_UNTIL if "entry_point" in read_metadata(metadata) else (END_OF_PROGRAM,)


def mark_end(program: str, metadata: str | None) -> str:
    """A reference program as an example shows it: MBPP's ends with [DONE]."""
    return program if "entry_point" in read_metadata(metadata) else f"{program}\n{END_OF_PROGRAM}"


def check_code_questions(questions: pd.DataFrame) -> None:
    """Raise `InputError` where a question scored by code has no tests, `UnavailableError` where none can be run."""
    programs = questions[questions["regime"] == "code"]
    for task, metadata in zip(programs["task"], programs["metadata"], strict=True):
        try:
            read_metadata(metadata)
        except InputError as error:
            raise InputError(f"Task {task!r}: {error}") from None
    if len(programs):
        check_sandbox()


def make_problem(output: str, answer: str, metadata: str | None) -> Problem:
    """A generated output as a program with its tests. answer: the reference program.

    The tests take from the program what the question asks for; imports, and helpers that a HumanEval prompt defines,
    come from the reference, so that a program cannot put its own in their place.
    """
    found = read_metadata(metadata)
    if "entry_point" in found:
        name, prompt = found["entry_point"], found["prompt"]
        return Problem(prompt + output, f"{found['test']}\ncheck({name})", [name], prompt)
    tests = "\n".join([found.get("test_setup_code") or "", *(found.get("test_imports") or ()), *found["test_list"]])
    imports, defined = _list_bound(answer)
    names = _list_loaded(tests) - _list_bound(tests)[1]
    asked = sorted(name for name in names if name in defined or not (hasattr(builtins, name) or name in imports))
    preamble = "\n".join(dict.fromkeys(imports.values()))
    return Problem(extract_program(output), tests, asked, preamble)


def extract_program(output: str) -> str:
    """The program in an output: what stands in its first fenced block, or all before a fence that only ends it."""
    fenced = re.search(r"^```\w*\n(.*?)^```", output, re.DOTALL | re.MULTILINE)
    return fenced[1] if fenced else output.split("```")[0]


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _list_bound(source: str) -> tuple[dict[str, str], set[str]]:
    """At the top of a program: names it imports, with the statement, and names it defines or sets."""
    imports: dict[str, str] = {}
    defined: set[str] = set()
    for node in _parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports |= {(one.asname or one.name).partition(".")[0]: ast.unparse(node) for one in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        else:
            stored = (one for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))
            defined |= {one.id for one in stored}
    return imports, defined


def _list_loaded(source: str) -> set[str]:
    nodes = ast.walk(_parse(source))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
