"""Run every benchmark and rewrite the tables in docs/benchmarks.md; what people wrote below them stays."""

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
SCRIPTS = ("mixture_forward.py", "packed_scoring.py", "map_scale.py", "page_open.py", "labelling.py")
READS_DATA = "labelling.py"
BEGIN, END = "<!-- written by `make bench` -->", "<!-- end of what `make bench` writes -->"


def main() -> None:
    """Each script in a process of its own; the page is written only when all have ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", metavar="DIR", help=f"folder of data sets for {READS_DATA}")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    lines = [
        "Median (least to greatest). Where two sides are compared (`_vs_`): ratios of alternated runs in one process;",
        "below 1 is faster than the reference.",
        f"Written by `make bench` on {date.today()}: {platform.machine()}, {cores} cores, "
        f"Python {platform.python_version()}, {packages}.",
    ]
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.json"
            command = [sys.executable, str(HERE / script), "--json", str(out), *(["--quick"] if options.quick else [])]
            command += ["--data", options.data] if options.data and script == READS_DATA else []
            environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
            subprocess.run(command, check=True, env=environment)
            figures = json.loads(out.read_text())
        head = (HERE / script).read_text(encoding="utf-8").split('"""')[1].strip()
        lines += ["", f"## {script}", "", head, "", "| figure | median | least to greatest | n |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {f['median']:.2f} | {f['min']:.2f} to {f['max']:.2f} | {f['n']} |"
            for name, f in figures.items()
            if "/" not in name  # those of one pool stay in the script's own output
        ]
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    PAGE.write_text(replace_tables(page, "\n".join(lines)), encoding="utf-8")


def replace_tables(page: str, tables: str) -> str:
    """The page with what stands between BEGIN and END replaced; below its heading where there was nothing yet."""
    block = f"{BEGIN}\n{tables}\n{END}"
    if BEGIN in page:
        before, rest = page.split(BEGIN, 1)
        return before + block + rest.split(END, 1)[1]
    heading, _, rest = page.partition("\n")
    return f"{heading}\n\n{block}\n{rest}"


if __name__ == "__main__":
    main()
