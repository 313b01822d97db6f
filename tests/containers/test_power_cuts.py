"""The power fails and the machine boots unattended: a separate engine is cut off and started again."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from svitlo.appliance.endings import MOST_DEATHS
from svitlo.reporting.metrics import last_step
from tests.containers.engine import Engine
from tests.containers.stack import Stack, assert_same_result, unmounted
from tests.crash.forks import new_seed, torture

pytestmark = [pytest.mark.containers, pytest.mark.crash, pytest.mark.timeout(1800)]

SERVICES = ("data-prep", "trainer")


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
    with unmounted(stack.volumes / "checkpoints") as empty_folder:
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
    # The worst that such a cut does to the engine: it no longer knows the container. The boot unit repairs that.
    engine.damage(trainer)
    engine.start()
    assert "trainer" not in stack.compose("ps", "--all", "--services").stdout.split()
    stack.command("docker/boot.sh")

    stack.wait_until_complete()
    assert_same_result(stack, finished)
    assert len(stack.events("cut off")) == 3, "every cut is noticed, and the orderly end is none"
    assert len(stack.events("began")) == 2, "no phase begins twice"
    assert stack.events("resumed", phase=1)[-1]["repeated_steps"] == 0, "the orderly end cost nothing"

    # What is finished stays finished, and what someone stopped stays stopped.
    engine.cut_the_power()
    engine.start()
    for service in SERVICES:
        stack.wait_until_idle(service)
        assert stack.inside(service, "head -1 /tmp/health") == "healthy"
    assert_same_result(stack, finished)
    stack.compose("stop", *SERVICES)
    engine.cut_the_power()
    engine.start()
    stack.command("docker/boot.sh")
    for service in SERVICES:
        assert stack.inspect(service)["State"]["Status"] == "exited"


def test_a_damaged_network_database_does_not_keep_the_stack_down(
    engine: Engine, powered_stack: Stack, tmp_path: Path
) -> None:
    """With damage in the middle of the file, the engine does not start. With an empty file, it has no networks."""
    stack = powered_stack
    stack.up()
    stack.wait_for_shard(2)
    engine.cut_the_power()
    assert not (stack.volumes / "data" / "phase1" / "manifest.json").exists(), "the cut came in the middle of the work"
    content = engine.networks.read_bytes()
    damaged = content[:8192] + bytes(len(content) - 8192)
    engine.networks.write_bytes(damaged)
    with pytest.raises(AssertionError, match="the daemon has ended"):
        engine.start()

    environment, asked = engine.systemd(tmp_path / "systemd")
    with ThreadPoolExecutor() as pool:
        unit = pool.submit(lambda: stack.command("docker/boot.sh", **environment))
        while not (asked.exists() or unit.done()):
            time.sleep(0.1)
        engine.start()
        said = unit.result().stderr
    (aside,) = engine.networks.parent.glob("local-kv.db.damaged-*")
    assert aside.read_bytes() == damaged, "nothing is deleted"
    assert str(aside) in said
    assert [event["message"].split()[0] for event in stack.events("engine repaired")] == ["the", "data-prep"]
    stack.wait_for_step(1, 1)

    engine.cut_the_power()
    engine.networks.write_bytes(b"")
    engine.start()
    assert "not found" in stack.inspect("data-prep")["State"]["Error"], "the engine cannot start it"
    stack.command("docker/boot.sh")
    assert stack.inspect("data-prep")["State"]["Status"] == "running"
    assert "nothing to repair" in stack.command("docker/boot.sh").stderr
    assert len(stack.events("engine repaired")) == 3


NUM_CUTS = 20
MOST_SECONDS = 20.0


@pytest.mark.timeout(7200)
@pytest.mark.skipif(not torture(), reason="a long test; SVITLO_TORTURE=1 runs it")
def test_power_cuts_at_random_moments(engine: Engine, finished: Stack, tmp_path: Path) -> None:
    """At any moment of any part of the work. When a run is over, another one begins with empty volumes."""
    rng = random.Random(new_seed())
    moments = Counter[str]()
    for number in range(NUM_CUTS):
        stack = Stack(tmp_path / str(number), engine.host)
        stack.write_job()
        try:
            stack.up()
            moments += cut_until_complete(engine, stack, rng, NUM_CUTS - moments.total())
            stack.wait_until_complete()
            assert_same_result(stack, finished)
        finally:
            stack.remove()
        if moments.total() == NUM_CUTS:
            break
    where = ", ".join(f"{state} {count}" for state, count in sorted(moments.items()))
    print(f"{NUM_CUTS} cuts in {number + 1} runs, while: {where}")


def cut_until_complete(engine: Engine, stack: Stack, rng: random.Random, times: int) -> Counter[str]:
    """Cut the power up to this many times, the last time when the run is complete. Returns when that was."""
    moments = Counter[str]()
    furthest, fruitless, is_over = (0, 0), 0, False
    while moments.total() < times and not is_over:
        if fruitless == MOST_DEATHS - 1:
            # To the kernel this is still the same boot, so that more cuts would be deaths of the trainer.
            stack.wait_for("progress", lambda: reached(stack) > furthest or completed(stack))  # noqa: B023
        time.sleep(rng.uniform(0, MOST_SECONDS))
        engine.cut_the_power()
        is_over = completed(stack)
        moments[activity(stack)] += 1
        fruitless = 1 if reached(stack) > furthest else fruitless + 1
        furthest = max(furthest, reached(stack))
        engine.start()
    return moments


def reached(stack: Stack) -> tuple[int, int]:
    return last_step(stack.volumes / "logs" / "metrics.jsonl")


def completed(stack: Stack) -> bool:
    return (stack.volumes / "checkpoints" / "complete.json").exists()


def activity(stack: Stack) -> str:
    """What the stack was at, by what its parts have left behind."""
    if completed(stack):
        return "complete"
    prepared = [phase for phase in (1, 2) if (stack.volumes / "data" / f"phase{phase}" / "manifest.json").exists()]
    status = stack.volumes / "logs" / "status.json"
    known = json.loads(status.read_text()) if status.exists() else {"state": "starting"}
    preparing = "" if prepared == [1, 2] else ", preparing data"
    return f"{known['state']} {known.get('phase') or ''}".strip() + preparing
