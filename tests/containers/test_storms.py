"""A trainer that the kernel kills repeatedly stops trying and says why. It tries again after someone has acted."""

from __future__ import annotations

import pytest

from svitlo.appliance.endings import MOST_DEATHS
from tests.containers.stack import Stack

pytestmark = [pytest.mark.containers, pytest.mark.crash, pytest.mark.timeout(1800)]

TOO_LITTLE = "256m"
# Weights and their gradient alone need more than that. If only file pages lack room, nothing is killed: all just
# crawls.
LARGE_MODEL = {"width": 640, "heads": 10}


def test_a_trainer_without_enough_memory_is_held_and_explained(stack: Stack) -> None:
    stack.change("phase1_pretraining.yaml", "model", **LARGE_MODEL)
    stack.environment["TRAINER_MEMORY"] = TOO_LITTLE
    stack.up()
    stack.wait_for("it gives up", lambda: stack.events("gave up"), every=0.5)
    stack.wait_until_idle("trainer")
    assert stack.restarts("trainer") == MOST_DEATHS
    assert len(stack.events("cut off")) == MOST_DEATHS
    assert all("because memory ran out" in event["message"] for event in stack.events("cut off"))
    said = stack.logs("trainer")
    for part in ("died 3 times in a row", "memory ran out", "its limit is 268 MB", "TRAINER_MEMORY", "restart trainer"):
        assert part in said
    assert stack.status is not None
    assert stack.status.state == "error"
    verdict = stack.inside("trainer", "cat /tmp/health").splitlines()
    assert verdict[0] == "unhealthy"
    assert "memory ran out" in verdict[1]

    stack.environment["TRAINER_MEMORY"] = "4g"
    stack.up()
    stack.wait_for_step(1, 1)
    assert stack.inside("trainer", "head -1 /tmp/health") == "healthy"
    assert len(stack.events("gave up")) == 1
