"""Slurm's programs as far as `jobs.slurm` uses them. One script under each of their names; the jobs are files.

FOLDER/N         job N: its state in Slurm's words, and after a | why it waits; a test may write another
FOLDER/N_M       task M of the array N, likewise
FOLDER/N.script  the path of its batch script
FOLDER/away      while it exists, the controller does not answer
FOLDER/refuse    what sbatch complains of, while it exists
FOLDER/accounting  what sacct says, where there is accounting
FOLDER/calls     one line a call
"""

import os
import re
import stat
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")


def install(folder: Path) -> Path:
    """Put the programs into `folder`/bin; returns that."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        path = programs / name
        path.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return programs


def fail(sentence: str) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr)
    sys.exit(1)


def main(program: str, arguments: list[str], folder: Path) -> None:
    with (folder / "calls").open("a") as calls:
        calls.write(f"{program} {' '.join(arguments)}\n")
    if (folder / "away").exists():
        fail("Unable to contact slurm controller (connect failure)")
    jobs = {path.name: path for path in folder.iterdir() if path.name.replace("_", "").isdecimal()}
    if program == "sbatch":
        if (folder / "refuse").exists():
            fail((folder / "refuse").read_text())
        number = max((int(job.partition("_")[0]) for job in jobs), default=0) + 1
        tasks = re.search(r"^#SBATCH --array=1-(\d+)$", Path(arguments[-1]).read_text(), re.MULTILINE)
        for name in [f"{number}_{task + 1}" for task in range(int(tasks[1]))] if tasks else [str(number)]:
            (folder / name).write_text("PENDING")
        (folder / f"{number}.script").write_text(arguments[-1])
        print(f"Submitted batch job {number}")
    elif program == "squeue":
        wanted = arguments[-1].removeprefix("--jobs=").split(",")
        if len(wanted) == 1 and wanted[0] not in jobs:
            fail("Invalid job id specified")
        told = {job: f"{jobs[job].read_text()}|None".split("|") for job in wanted if job in jobs}
        print("".join(f"{job}|{word}|{reason}\n" for job, (word, reason, *_) in told.items()), end="")
    elif program == "sacct":
        if not (folder / "accounting").exists():
            fail("Slurm accounting storage is disabled")
        print((folder / "accounting").read_text(), end="")
    elif arguments[-1] not in jobs:
        fail("Invalid job id specified")
    else:
        jobs[arguments[-1]].write_text("CANCELLED" if program == "scancel" else "PENDING")


if __name__ == "__main__":
    main(Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["FAKE_SLURM"]))
