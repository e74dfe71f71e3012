"""What a forward pass frees stays for the next one: pages are not asked of the system again and again."""

import os
import resource
import subprocess
import sys

import pytest

from metamoe_backend.models import heap

PROGRAM = """
import resource, sys, torch
from metamoe_backend.models.heap import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def work():
    blocks = [torch.ones(2_000_000) for _ in range(4)]  # 8 MB each
    del blocks
for _ in range(5):  # the heap grows to what is needed
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(how: str) -> int:
    # Of itself glibc changes its mind with what a program does; told to give back at once, it does so always.
    gives_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=gives_back, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not heap.keep_freed_memory(), reason="no glibc")
def test_freed_memory_is_used_again():
    pages = 10 * 4 * 8_000_000 // resource.getpagesize()
    assert count_faults("by itself") > pages // 2
    assert count_faults("kept") < pages // 20


def test_another_malloc_is_left_alone(monkeypatch):
    class Without:
        """A C library that has no mallopt."""

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: Without())
    assert heap.keep_freed_memory.__wrapped__() is False
