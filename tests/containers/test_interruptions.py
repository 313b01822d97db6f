"""Kills and stops: the stack goes on by itself and ends in the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from svitlo.reporting.metrics import read_metrics
from tests.containers.stack import PHASE_FILES, Stack, assert_same_result, unmounted
from tests.support import last

pytestmark = [pytest.mark.containers, pytest.mark.crash, pytest.mark.timeout(1800)]


def test_killed_in_every_part_of_the_work_it_ends_in_the_same_bits(stack: Stack, finished: Stack) -> None:
    """Kills as the kernel does when memory runs out: the engine is not asked, and its restart policy brings it back."""
    stack.up()
    with killed_at_the_end(stack, "data-prep"):
        stack.wait_for_shard(5)
    assert not (stack.volumes / "data" / "phase1" / "manifest.json").exists(), "the kill came in the middle of the work"
    for phase in (1, 2):
        with killed_at_the_end(stack, "trainer"):
            stack.wait_for_step(phase, 6)
        assert not stack.events("phase finished", phase=phase), "the kill came in the middle of the phase"
    with killed_at_the_end(stack, "trainer"):
        stack.wait_for_export()
    assert not (stack.volumes / "export" / "model").exists(), "the kill came in the middle of the export"

    stack.wait_until_complete()
    assert_same_result(stack, finished)
    assert stack.restarts("data-prep") == 1
    assert stack.restarts("trainer") == 3
    assert len(stack.events("cut off")) == 3, "every kill of the trainer is noticed"
    assert len(stack.events("began")) == 2, "no phase begins twice"
    for service in ("data-prep", "trainer"):
        assert stack.inside(service, "head -1 /tmp/health") == "healthy"


def test_stop_saves_the_last_finished_step_and_start_goes_on(stack: Stack, finished: Stack) -> None:
    for file in PHASE_FILES:  # so that only the signal is a reason to save between two evaluations
        stack.change(file, "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    stack.up()
    stack.wait_for_shard(0)
    stop(stack)
    assert not (stack.volumes / "data" / "phase1" / "manifest.json").exists()
    stack.compose("start", "data-prep", "trainer")
    for phase in (1, 2):
        stack.wait_for_step(phase, 3)
        assert stop(stack) < 10
        steps = [r["step"] for r in read_metrics(stack.volumes / "logs" / "metrics.jsonl") if r["kind"] == "step"]
        assert last(stack, phase)["global_step"] == steps[-1], "no finished step is lost"
        assert not stack.events("phase finished", phase=phase), "the stop came in the middle of the phase"
        assert stack.status is not None
        assert stack.status.state == "stopped"
        with unmounted(stack.volumes / "checkpoints") as empty_folder:
            refused = stack.compose("start", "data-prep", "trainer", check=False)
            assert refused.returncode != 0
            assert "its disk is not mounted" in stack.logs("setup")
            assert list(empty_folder.iterdir()) == [], "an empty folder is not taken for a new volume"
        stack.compose("start", "data-prep", "trainer")
    stack.wait_until_complete()
    assert_same_result(stack, finished)
    assert [event["repeated_steps"] for event in stack.events("resumed")] == [0, 0]
    assert not stack.events("cut off")
    assert stack.restarts("trainer") == 0


@contextlib.contextmanager
def killed_at_the_end(stack: Stack, service: str) -> Iterator[None]:
    """SIGKILL, from outside, the program that runs in a container when this begins."""
    pid = stack.pid(service)
    yield
    os.kill(pid, signal.SIGKILL)
    stack.wait_for("the end of what was killed", lambda: not Path(f"/proc/{pid}").exists())


def stop(stack: Stack) -> float:
    """`docker compose stop`. Returns the seconds it took."""
    start = time.monotonic()
    stack.compose("stop", "data-prep", "trainer")
    return time.monotonic() - start
