"""The devices of this machine, found without importing torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Device:
    """One device that runs jobs, one job at a time."""

    name: str
    """cpu, or cuda:N: the N-th GPU this process may use"""
    description: str
    uuid: str = ""
    """What CUDA_VISIBLE_DEVICES calls it; empty for the CPU, which is then given no GPU."""
    memory_bytes: int | None = field(default=None, compare=False)
    """In all, free or not; None where the driver does not tell."""


def list_devices() -> list[Device]:
    """Every GPU that NVIDIA's library reports and CUDA_VISIBLE_DEVICES allows, then the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total
    return [
        *_list_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")),
        Device("cpu", f"{cores} core{'' if cores == 1 else 's'}, {memory / 1e9:.0f} GB memory", memory_bytes=memory),
    ]


def worker_environment(devices: Sequence[Device]) -> dict[str, str]:
    """What to add to a worker's environment so that it sees the GPUs it was given and no others.

    A trainer that sees several GPUs spreads over all of them, and an encoder takes the first one unasked.
    """
    return {"CUDA_VISIBLE_DEVICES": ",".join(device.uuid for device in devices)}


def _list_gpus(allowed: str | None) -> list[Device]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no NVIDIA driver on this machine
    try:
        found = []
        for index, handle in enumerate(_find_handles(allowed)):
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            memory = _read_memory(handle)
            told = "" if memory is None else f", {memory / 1e9:.0f} GB memory"
            found.append(Device(f"cuda:{index}", f"{name}{told}", uuid, memory))
        return found
    finally:
        pynvml.nvmlShutdown()


def _find_handles(allowed: str | None) -> list[Any]:
    """NVML handles of the GPUs that `allowed` (CUDA_VISIBLE_DEVICES: numbers or UUIDs) names, in its order."""
    import pynvml

    if allowed is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    handles = []
    for token in (text.strip() for text in allowed.split(",")):
        try:
            by_number = token.isdecimal()
            handle = (
                pynvml.nvmlDeviceGetHandleByIndex(int(token)) if by_number else pynvml.nvmlDeviceGetHandleByUUID(token)
            )
        except pynvml.NVMLError:
            break  # CUDA, too, takes what stands before the first name it does not know
        handles.append(handle)
    return handles


def _read_memory(handle: Any) -> int | None:
    import pynvml

    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError_NotSupported:
        return None  # a GPU that shares the CPU's memory
