"""Files that survive a crash: a reader sees the old content or the new, never half of it."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from metamoe_backend.errors import DiskFullError, MetaMoEError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, write: Callable[[BinaryIO], object], keep: bool = True) -> None:
    """Write a file through a hidden temporary one beside it, and rename that over `path`.

    With `keep`, file and folder are flushed to disk first; without, a power cut may bring the old content back.
    Raises `DiskFullError` where there is no room; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with room_needed(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                if keep:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if keep:
            sync_folder(path.parent)


def replace_text(path: Path, text: str, keep: bool = True) -> None:
    """`replace_file` with UTF-8 text."""
    replace_file(path, lambda file: file.write(text.encode("utf-8")), keep)


@contextmanager
def room_needed(path: Path) -> Iterator[None]:
    """Where the disk of `path` fills up in the block, raises `DiskFullError` with one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MetaMoEError) or not _is_disk_full(error):
            raise
        raise DiskFullError(
            f"The disk of {path} is full, or a quota is used up; free some space, then do it again or resume the run."
        ) from error


def _is_disk_full(error: Exception) -> bool:
    """DuckDB and safetensors say it in words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(code) in str(error) for code in _FULL)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names made, renamed, removed) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes and between threads; waits for it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> BinaryIO | None:
    """Like `locked`, but None if another holds it. Closing the file gives the lock back, and so does dying."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
