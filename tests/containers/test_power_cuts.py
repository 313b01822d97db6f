"""The power fails, the machine boots, nobody is there: an engine of our own is cut off and started again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import Engine
from tests.containers.stack import Stack, assert_same_result

pytestmark = [pytest.mark.containers, pytest.mark.crash, pytest.mark.timeout(1800)]

SERVICES = ("data-prep", "trainer")


@contextlib.contextmanager
def _unmounted(volume: Path) -> Iterator[Path]:
    """A volume as it is while its disk is not mounted: an empty folder."""
    disk = volume.with_name("disk")
    volume.rename(disk)
    volume.mkdir()
    os.chown(volume, disk.stat().st_uid, disk.stat().st_gid)
    yield volume
    volume.rmdir()
    disk.rename(volume)


def test_a_run_survives_any_number_of_power_cuts(engine: Engine, powered_stack: Stack, finished: Stack) -> None:
    stack = powered_stack
    stack.up()

    stack.wait_for_shard(5)
    engine.cut_the_power()
    assert not (stack.volumes / "data" / "phase1" / "manifest.json").exists(), "the cut came in the middle of the work"
    engine.start()

    stack.wait_for_step(1, 6)
    engine.cut_the_power()
    assert not stack.events("phase finished"), "the cut came in the middle of phase 1"
    with _unmounted(stack.volumes / "checkpoints") as empty_folder:
        engine.start()
        message = "volume /volumes/checkpoints: its marker file .svitlo-volume is missing"
        stack.wait_for("three attempts", lambda: stack.logs("trainer").count(message) >= 3, every=0.2)
        assert list(empty_folder.iterdir()) == [], "an empty folder is not taken for a new volume"

    stack.wait_for_step(1, 12)
    engine.shut_down()
    assert not stack.events("phase finished"), "the machine was switched off in the middle of phase 1"
    assert stack.events("stopped")
    engine.start()

    stack.wait_for_step(2, 6)
    trainer = stack.inspect("trainer")["Id"]
    engine.cut_the_power()
    assert not stack.events("phase finished", phase=2), "the cut came in the middle of phase 2"
    # The worst that such a cut does to the engine: it no longer knows the container. The unit run at boot mends that.
    engine.damage(trainer)
    engine.start()
    assert "trainer" not in stack.compose("ps", "--all", "--services").stdout.split()
    stack.command("docker/boot.sh")

    stack.wait_until_complete()
    assert_same_result(stack, finished)
    assert len(stack.events("cut off")) == 3, "every cut is noticed, and the orderly end is none"
    assert len(stack.events("began")) == 2, "no phase begins twice"
    assert stack.events("resumed", phase=1)[-1]["repeated_steps"] == 0, "the orderly end cost nothing"

    # What is finished stays finished, and what a person stopped stays stopped.
    engine.cut_the_power()
    engine.start()
    for service in SERVICES:
        stack.wait_until_idle(service)
        stack.wait_for_health(service, "healthy")
    assert_same_result(stack, finished)
    stack.compose("stop", *SERVICES)
    engine.cut_the_power()
    engine.start()
    stack.command("docker/boot.sh")
    for service in SERVICES:
        assert stack.inspect(service)["State"]["Status"] == "exited"
