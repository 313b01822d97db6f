"""Freed memory stays with the process, but for the largest blocks; waiting threads do not sleep at once. Counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


WAITING = """
import resource
import svitlo.training  # sets how threads wait
import torch

torch.set_num_threads(2)
numbers = torch.zeros(200_000)
numbers.add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
for _ in range(3_000):
    numbers.add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
"""


def test_threads_that_wait_for_each_other_do_not_sleep_at_once() -> None:
    """Counted: how often a thread gave up its core by itself, against threads that sleep at once."""

    def sleeps(**settings: str) -> int:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, "-c", WAITING]
        return int(subprocess.run(command, env=kept | settings, capture_output=True, text=True, check=True).stdout)

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: nobody to wait for")
    assert 3 * sleeps() < sleeps(GOMP_SPINCOUNT="0")
