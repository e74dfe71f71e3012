"""Run benchmarks and rewrite their tables in docs/benchmarks.md; what people wrote around them stays."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
SCRIPTS = (
    "routing.py",
    "training.py",
    "packed_scoring.py",
    "harness_parity.py",
    "evaluation.py",
    "bank.py",
    "data_selection.py",
    "page_open.py",
    "activation_rows.py",
    "capture.py",
    "map_scale.py",
    "map_browser.py",
    "labelling.py",
)
NEEDS = {
    "routing.py": ("mixlora",),
    "labelling.py": ("data",),
    "harness_parity.py": ("data", "harness"),
    "evaluation.py": ("data", "harness"),
}
"""Options that a script takes and cannot do without, unless it is one of `OPTIONAL`."""
OPTIONAL = {"labelling.py", "routing.py"}
BEGIN, END = "<!-- {script}: written by `make bench` -->", "<!-- end of {script} -->"


def main() -> None:
    """Each script in a process of its own; its table is written when it has ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"only these of {', '.join(SCRIPTS)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of data sets for " + ", ".join(name for name, needs in NEEDS.items() if "data" in needs),
    )
    parser.add_argument(
        "--harness", metavar="PYTHON", help="interpreter that has lm_eval==0.4.13, in its own environment"
    )
    parser.add_argument(
        "--mixlora", metavar="PYTHON", help="interpreter that has moe-peft==2.0.2, in its own environment"
    )
    options = parser.parse_args()
    for script in options.scripts or SCRIPTS:
        missing = [f"--{name}" for name in NEEDS.get(script, ()) if not getattr(options, name)]
        if missing and script not in OPTIONAL:
            print(f"{script} is left out: give {' and '.join(missing)} to run it.", file=sys.stderr)
            continue
        lines = make_table(script, run(script, options))
        page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
        PAGE.write_text(replace_table(page, script, "\n".join(lines)), encoding="utf-8")


def run(script: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of a script: median, min, max and n by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / script), "--json", str(out), *(["--quick"] if options.quick else [])]
        for name in NEEDS.get(script, ()):
            value = getattr(options, name)
            command += [f"--{name}", value] if value else []
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
        return json.loads(out.read_text())


def make_table(script: str, figures: dict[str, dict[str, float]]) -> list[str]:
    """The section of one script."""
    head = (HERE / script).read_text(encoding="utf-8").split('"""')[1].strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    ratio = (
        " `A_vs_B` is a ratio of alternated runs; below 1, A is the faster."
        if any("_vs_" in f for f in figures)
        else ""
    )
    rows = [
        f"| {name} | {f['median']:.2f} | {f['min']:.2f} to {f['max']:.2f} | {f['n']} |"
        for name, f in figures.items()
        if "/" not in name  # those of one pool stay in the script's own output
    ]
    return [
        f"## {script}", "", head, "", f"{date.today()}: {machine}, {packages}.{ratio}", "",
        "| figure | median | least to greatest | n |", "|---|---|---|---|", *rows,
    ]  # fmt: skip


def replace_table(page: str, script: str, table: str) -> str:
    """The page with the script's table replaced, or put at its end where there was none yet."""
    begin, end = BEGIN.format(script=script), END.format(script=script)
    block = f"{begin}\n{table}\n{end}"
    if begin in page:
        before, rest = page.split(begin, 1)
        return before + block + rest.split(end, 1)[1]
    return f"{page.rstrip()}\n\n{block}\n"


if __name__ == "__main__":
    main()
