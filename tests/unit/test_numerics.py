"""Memory between steps: what is freed stays with the process, but for the largest blocks. Counted, not timed."""

from __future__ import annotations

import os
import subprocess
import sys

STEPS = """
import ctypes, resource, sys, torch
from svitlo.training import numerics

if sys.argv[1] == "kept":
    numerics.keep_freed_memory()
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one fault
megabytes, blocks, steps = (int(word) for word in sys.argv[2:])

def step():
    return [torch.ones(megabytes * 2**18) for _ in range(blocks)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(steps):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(memory: str, *, megabytes: int, blocks: int, steps: int) -> int:
    """Of a process whose steps allocate, fill and free so many blocks of so many megabytes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    arguments = [memory, str(megabytes), str(blocks), str(steps)]
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_freed_memory_is_used_again_by_the_next_step() -> None:
    shape = {"megabytes": 4, "blocks": 64, "steps": 5}
    assert 5 * page_faults("kept", **shape) < page_faults("as glibc does", **shape)


def test_the_largest_blocks_go_back_to_the_kernel() -> None:
    """Kept among others of many sizes they would leave holes: gigabytes in phase 2."""
    pages = 10 * 32 * 256
    assert page_faults("kept", megabytes=32, blocks=1, steps=10) >= pages
