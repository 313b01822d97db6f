"""A machine that computes wrongly is noticed: one step in so many is computed twice and compared bit for bit."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from svitlo.training.machine_check import MachineCheck
from tests.conftest import Job
from tests.crash.forks import fork
from tests.support import assert_same_run, events

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class FlipABit:
    """Every step is computed twice, and at the call `call` of the gradient one bit of it flips."""

    call: int

    def install(self) -> None:
        import torch

        from svitlo.training import machine_check
        from svitlo.training.gradient import Gradient

        machine_check._MOST_COST = 1e9
        original, calls = Gradient.compute, itertools.count(1)

        def compute(self_: Gradient, *arguments: Any, **options: Any) -> float | None:
            loss = original(self_, *arguments, **options)
            if next(calls) == self.call:
                gradient = self_._model.transformer.h[0].mlp.c_fc.weight.grad
                assert gradient is not None
                gradient.view(torch.int32)[3, 5] ^= 1  # the lowest bit of one number
            return loss

        Gradient.compute = compute  # type: ignore[method-assign]


def faults(job: Job) -> list[str]:
    return [str(event["message"]) for event in events(job) if event["event"] == "machine fault"]


@pytest.mark.parametrize("call", [7, 8])
def test_one_bit_is_noticed_and_the_run_ends_in_the_same_bits(
    trained: Job, prepared: Job, tmp_path: Path, call: int
) -> None:
    """It flips in the computation that is used, or in the one that is only compared."""
    job = prepared.copy(tmp_path)
    with fork(job, "train", hook=FlipABit(call)) as trainer:
        assert trainer.wait(300) == 1
        said = trainer.output()
    assert "Traceback" not in said
    assert "step 4 of phase 1 was computed twice, and 1 numbers of the gradient differ" in said
    assert len(faults(job)) == 1
    status = json.loads((job.volumes / "logs" / "status.json").read_text())
    assert status["state"] == "error"
    with fork(job, "train") as trainer:
        assert trainer.wait(300) == 0, trainer.output()
    assert_same_run(job, trained)
    assert not [event for event in events(job) if event["event"] == "cut off"], "it ended in an orderly way"


def test_three_faults_hold_the_trainer_until_a_person_acts(trained: Job, prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    for number in (1, 2, 3):
        with fork(job, "train", hook=FlipABit(3)) as trainer:
            assert trainer.wait(300) == 1, trainer.output()
        assert len(faults(job)) == number
    with fork(job, "train", "--hold") as trainer:
        trainer.wait_for_line("Nothing is lost")
        said = trainer.output()
        trainer.kill(signal.SIGTERM)
    for part in ("in two ways 3 times", "memtest86+", "docker compose restart trainer"):
        assert part in said
    with fork(job, "train") as trainer:
        assert trainer.wait(300) == 0, trainer.output()
    assert_same_run(job, trained)


@pytest.mark.parametrize("seconds_of_a_step", [1.0, 0.5])
def test_the_check_costs_what_it_may(seconds_of_a_step: float) -> None:
    """At most one step in 500 is computed twice."""
    clock = [0.0]
    check = MachineCheck(lambda: clock[0])
    checks = 0
    for _ in range(int(3_000 / seconds_of_a_step)):
        clock[0] += seconds_of_a_step
        if check.is_due():
            checks += 1
            clock[0] += seconds_of_a_step
    assert 0.0015 < checks * seconds_of_a_step / clock[0] <= 0.002
