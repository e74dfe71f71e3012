"""Checkpoints that can be trusted: sealed when complete, checked before use, two kept.

A checkpoint is a folder checkpoint-STEP of safetensors and JSON files. It counts only once COMPLETE.json lies in it,
written last, with the step and the size and sha256 of every other file; whatever a crash left half-written is ignored.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from metamoe_backend.errors import DiskFullError

SEAL = "COMPLETE.json"
KEPT = 2


def seal_checkpoint(folder: Path, step: int) -> None:
    """Flush the files of a finished checkpoint to disk and write its COMPLETE.json."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != SEAL:
            flush(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    temporary = folder.with_name(folder.name + ".seal")
    temporary.write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    flush(temporary)
    temporary.replace(folder / SEAL)
    flush(folder)
    flush(folder.parent)


def require_room(scratch: Path, parameters: int) -> None:
    """Raise `DiskFullError` unless the checkpoints of a training of so many parameters fit on the disk of `scratch`.

    Each holds the parameters and AdamW's two moments of them, 4 bytes a number; `KEPT` lie there while one is written.
    """
    needed, free = 3 * 4 * parameters * (KEPT + 1), shutil.disk_usage(scratch).free
    if needed > free:
        raise DiskFullError(
            f"The checkpoints of {parameters:,} trained parameters need {needed / 1e6:,.0f} MB, and the disk of "
            f"{scratch} has {free / 1e6:,.0f} MB left; free some space, or train fewer (a lower rank, fewer modules)."
        )


def find_checkpoint(scratch: Path) -> Path | None:
    """The newest checkpoint in `scratch` whose files are all as sealed, or None."""
    return next((folder for folder in _by_step(scratch) if is_complete(folder)), None)


def prune_checkpoints(scratch: Path) -> None:
    """Keep the newest `KEPT` complete checkpoints; remove older and unfinished ones."""
    complete = [folder for folder in _by_step(scratch) if (folder / SEAL).is_file()]
    for folder in _by_step(scratch):
        if folder not in complete[:KEPT]:
            shutil.rmtree(folder)


def is_complete(folder: Path) -> bool:
    """Whether COMPLETE.json is there and every file it names has the size and sha256 it says."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        return all(
            (folder / name).stat().st_size == said["bytes"] and hash_file(folder / name) == said["sha256"]
            for name, said in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def hash_file(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _by_step(scratch: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not scratch.is_dir():
        return []
    found = [
        (int(match[1]), path) for path in scratch.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]
