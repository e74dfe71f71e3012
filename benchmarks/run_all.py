"""Run every benchmark and rewrite the table in docs/benchmarks.md."""

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
SCRIPTS = ("mixture_forward.py", "packed_scoring.py")


def main() -> None:
    """Each script in a process of its own; the page is written only when all have ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    lines = [
        "# Benchmarks",
        "",
        "Ratios of alternated runs in one process: median (least to greatest). Below 1 is faster than the reference.",
        f"Written by `make bench` on {date.today()}: {platform.machine()}, {cores} cores, "
        f"Python {platform.python_version()}, {packages}.",
    ]
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.json"
            command = [sys.executable, str(HERE / script), "--json", str(out), *(["--quick"] if options.quick else [])]
            environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
            subprocess.run(command, check=True, env=environment)
            figures = json.loads(out.read_text())
        head = (HERE / script).read_text(encoding="utf-8").split('"""')[1].strip()
        lines += ["", f"## {script}", "", head, "", "| figure | median | least to greatest | n |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {f['median']:.2f} | {f['min']:.2f} to {f['max']:.2f} | {f['n']} |"
            for name, f in figures.items()
        ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
