"""Freed memory stays with the process, except the largest blocks (counts page faults). Also how threads wait."""

from __future__ import annotations

import os
import re
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
    """Page faults of a process whose steps allocate, fill and free this many blocks of this many megabytes."""
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
    """Kept among others of many sizes, they would leave holes: gigabytes in phase 2."""
    pages = 10 * 32 * 256
    assert page_faults("kept", megabytes=32, blocks=1, steps=10) >= pages


def openmp_settings(**settings: str) -> dict[str, str]:
    """The settings of OpenMP in a process that trains, as OpenMP itself reports them."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", "import svitlo.training, torch"],
        env=kept | settings | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(re.findall(r"(\w+) = '(.*)'", done.stderr))


def test_threads_that_wait_for_each_other_spin_for_a_moment_before_they_sleep() -> None:
    settings = openmp_settings()
    assert settings["GOMP_SPINCOUNT"] == "30000"
    assert settings["OMP_DYNAMIC"] == "FALSE", "the number of threads is part of the result"
    assert openmp_settings(GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7", "a user's choice stays"
