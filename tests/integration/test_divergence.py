"""A loss that is not finite never reaches the weights: the run stops, explained, with its last good checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from svitlo.config import PretrainingConfig
from svitlo.interruption import Interruption
from svitlo.reporting.observer import Observer
from svitlo.training import loop
from svitlo.training.batches import MicroBatch
from svitlo.training.loop import Diverged, PhaseRun, train_step
from svitlo.training.machine_check import MachineCheck, MachineFault
from svitlo.training.saving import Saver
from svitlo.training.state import TrainingState
from tests.conftest import Job
from tests.support import events, last


def test_a_learning_rate_that_is_too_high_stops_the_run_and_leaves_its_checkpoints(
    prepared: Job, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    rates = {"learning_rate": 0.99, "muon_learning_rate": 0.99, "max_gradient_norm": 1e9, "warmup_fraction": 0.0}
    job.change("phase1_pretraining.yaml", "training", **rates, max_epochs=20, max_steps=400)
    job.change("phase1_pretraining.yaml", "evaluation", every_n_steps=1_000)
    for _ in range(2):
        done = job.run("train", check=1)
        assert "Traceback" not in done.stderr
        for part in ("Computed again, it is the same", "learning_rate (0.99)", "make new-run", "of phase 1: loss"):
            assert part in done.stderr
    state = last(job, 1)
    assert all(bool(weights.isfinite().all()) for weights in state["model_state_dict"].values())
    assert math.isfinite(state["loss"])
    assert not list((job.volumes / "checkpoints").rglob("*.broken*"))
    assert [event["event"] for event in events(job)].count("cut off") == 0, "it ended in an orderly way"


class Scripted:
    """A gradient whose results are given."""

    def __init__(self, model: torch.nn.Module, losses: list[float], norms: list[float]) -> None:
        self._model = model
        self._results = list(zip(losses, norms, strict=True))
        self.forgotten = 0

    def compute(self, *_: Any, **__: Any) -> float:
        loss, norm = self._results.pop(0)
        for parameter in self._model.parameters():
            parameter.grad = torch.full_like(parameter, norm)
        return loss

    def forget(self) -> None:
        self.forgotten += 1


def run_of(losses: list[float], norms: list[float], folder: Path) -> tuple[PhaseRun, torch.nn.Module, Any]:
    model = torch.nn.Linear(1, 1, bias=False)
    steps: list[float] = []

    class Optimizer:
        def step(self, fraction: float) -> None:
            steps.append(fraction)

    class Train:
        steps_per_epoch = 10

        def step(self, _: int) -> list[MicroBatch]:
            tokens = torch.zeros(1, 4, dtype=torch.int64)
            return [MicroBatch(tokens, tokens)]

    config, observer, interruption = PretrainingConfig(), Observer(), Interruption(signals=())
    parts: dict[str, Any] = {"model": model, "gradient": Scripted(model, losses, norms), "optimizer": Optimizer()}
    run = PhaseRun(
        state=TrainingState(1, 50_257, {}, {}, "", "", {"precision": "fp32"}, "r"),
        config=config,
        train=Train(),  # type: ignore[arg-type]
        validation=Train(),  # type: ignore[arg-type]
        saver=Saver(folder, config.checkpoints, observer, interruption),
        interruption=interruption,
        observer=observer,
        write_samples=lambda _: [],
        machine_check=MachineCheck(observer.clock),
        whole_head_cost=1.0,
        **parts,
    )
    return run, model, steps


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (5.0, math.nan), (5.0, math.inf), (30.0, 1.0)]
)
def test_what_comes_out_the_same_again_is_the_data_or_the_rate(loss: float, norm: float, tmp_path: Path) -> None:
    run, _, steps = run_of([loss, loss], [norm, norm], tmp_path)
    with pytest.raises(Diverged, match="it is the same, so the learning rate or the data"):
        train_step(run)
    assert steps == []
    assert run.state.global_step == 0


@pytest.mark.parametrize(("losses", "norms"), [([math.nan, 5.0], [1.0, 1.0]), ([5.0, 5.0], [math.inf, 1.0])])
def test_what_comes_out_differently_is_the_machine(losses: list[float], norms: list[float], tmp_path: Path) -> None:
    run, _, steps = run_of(losses, norms, tmp_path)
    with pytest.raises(MachineFault, match="two results, so the memory or the CPU of this machine made a mistake"):
        train_step(run)
    assert steps == []


def test_an_ordinary_step_is_taken(tmp_path: Path) -> None:
    run, _, steps = run_of([10.9], [3.0], tmp_path)
    assert train_step(run)
    assert len(steps) == run.state.global_step == 1


def test_an_evaluation_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = run_of([], [], tmp_path)
    run.state.evaluated_batches = [(1.0, 1), (math.nan, 1)]
    monkeypatch.setattr(loop, "evaluate_batches", lambda _: None)
    with pytest.raises(Diverged, match="validation loss nan"):
        loop.evaluate(run)
    assert run.state.best_loss is None
