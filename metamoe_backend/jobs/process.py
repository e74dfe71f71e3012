"""Which process works on a run: a pid alone may be reused, so machine, boot and start time go with it."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Self

import psutil
from pydantic import BaseModel, ConfigDict, Field


class ProcessIdentity(BaseModel):
    """One process, for ever."""

    model_config = ConfigDict(frozen=True)

    host: str
    boot: str
    """Boot id of the kernel; empty where start times do not count from the boot."""
    pid: Annotated[int, Field(gt=0)]
    start: float
    """Linux: clock ticks since boot, which no clock adjustment moves. Elsewhere: seconds since 1970."""

    @classmethod
    def of_this_process(cls) -> Self:
        """Identity of the calling process."""
        start = start_time(os.getpid())
        if start is None:
            raise ProcessLookupError(f"process {os.getpid()} does not see itself")
        return cls(host=socket.gethostname(), boot=boot_id(), pid=os.getpid(), start=start)

    def is_alive(self) -> bool | None:
        """Whether it still runs; None if it belongs to another machine and cannot be seen from here."""
        if self.host != socket.gethostname():
            return None
        return self.boot == boot_id() and start_time(self.pid) == self.start


def boot_id() -> str:
    """The kernel's id of this boot on Linux, else empty."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() if sys.platform == "linux" else ""


def start_time(pid: int) -> float | None:
    """When a process began (see `ProcessIdentity.start`), or None if there is none or only its zombie."""
    try:
        if sys.platform == "linux":
            # psutil adds the boot time read off the wall clock, so a clock step would make a live worker look dead.
            # The command, in brackets, may hold spaces: what follows the last bracket is state, ppid, … start time.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return None if fields[0] in "ZX" else float(fields[19])
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return None
