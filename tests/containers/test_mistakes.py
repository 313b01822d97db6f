"""A mistake in the configuration gives one message, no restart storm and no noise. Once fixed, training starts."""

from __future__ import annotations

import pytest

from tests.containers.stack import Stack, is_idle

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


def test_a_mistake_is_explained_once_and_waits_to_be_fixed(finished: Stack, mistaken: Stack) -> None:
    """`finished` is asked for only because a whole run beside it is time enough to be called unhealthy."""
    mistaken.wait_for_health("trainer", "unhealthy")
    mistaken.wait_for_health("data-prep", "healthy")
    inspected = mistaken.inspect("trainer")
    assert inspected["State"]["Status"] == "running"
    assert inspected["RestartCount"] == 0
    assert is_idle(mistaken.processes("trainer"))
    said = mistaken.logs("trainer")
    for part in ("phase1_pretraining.yaml", "learning_rat", "learning_rate", "Nothing is lost"):
        assert part in said
    assert len(said.splitlines()) < 10
    assert "Traceback" not in said
    assert mistaken.status is not None
    assert mistaken.status.state == "error"
    assert "learning_rat" in mistaken.status.message
    verdict = mistaken.inside("trainer", "cat /tmp/health").splitlines()
    assert verdict[0] == "unhealthy"
    assert "learning_rat" in verdict[1]
    checked = inspected["State"]["Health"]["Log"][-1]["Output"]
    assert "learning_rat" in checked, "`docker inspect` says why, too"

    mistaken.change("phase1_pretraining.yaml", "training", learning_rat=None, learning_rate=3e-3)
    mistaken.compose("restart", "trainer")
    mistaken.wait_for_step(1, 1)
    mistaken.wait_for_health("trainer", "healthy")
