"""The devices of this machine, found without importing torch."""

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Device:
    """One device that runs jobs, one job at a time."""

    name: str
    """cpu or cuda:N"""
    description: str


def list_devices() -> list[Device]:
    """Every GPU that NVIDIA's library reports, in PCI order, then the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gb = psutil.virtual_memory().total / 1e9
    return [*_list_gpus(), Device("cpu", f"{cores} cores, {memory_gb:.0f} GB memory")]


def _list_gpus() -> list[Device]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no NVIDIA driver on this machine
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory_gb = pynvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9
            found.append(Device(f"cuda:{index}", f"{pynvml.nvmlDeviceGetName(handle)}, {memory_gb:.0f} GB memory"))
        return found
    finally:
        pynvml.nvmlShutdown()
