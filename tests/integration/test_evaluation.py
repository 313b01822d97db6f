"""An evaluation is part of the run: what is measured of it survives a cut, and how certain its result is is known."""

from __future__ import annotations

import math
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from svitlo.interruption import Interrupted
from svitlo.reporting.metrics import read_metrics
from svitlo.training import loop
from svitlo.training.evaluation import BatchLoss, loss_of, mean_loss, standard_error_of_change
from svitlo.training.loop import evaluate
from tests.conftest import Job
from tests.crash.forks import At, fork
from tests.support import assert_same_run, events, run_of_phase_1

NUM_BATCHES = 8
"""Of an evaluation of 16 sequences, two in a batch."""


class PowerCut(Exception):  # noqa: N818
    """Ends everything at once."""


@pytest.fixture
def job(prepared: Job, tmp_path: Path) -> Iterator[Job]:
    threads = torch.get_num_threads()
    yield prepared.copy(tmp_path)
    torch.set_num_threads(threads)


def cut_after(number: int, happens: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let something happen in the so many-th batch of an evaluation. Returns a list with an entry for each batch."""
    calls: list[int] = []

    def counted(*arguments: object) -> BatchLoss:
        calls.append(len(calls))
        if len(calls) == number:
            happens()
        return loss_of(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "loss_of", counted)
    return calls


def cut() -> None:
    raise PowerCut


def test_a_long_evaluation_goes_on_where_it_was_saved(
    prepared: Job, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = prepared.copy(tmp_path / "undisturbed")
    undisturbed = run_of_phase_1(other.config, other.volumes)
    undisturbed.saver.save_at_any_price(undisturbed.state, undisturbed.model, undisturbed.optimizer)
    evaluate(undisturbed)
    assert len(undisturbed.state.validation_batches) == NUM_BATCHES
    assert undisturbed.state.evaluated_batches == []

    run = run_of_phase_1(job.config, job.volumes)
    run.saver.save_at_any_price(run.state, run.model, run.optimizer)
    monkeypatch.setattr(run.saver, "is_due", lambda _: True)  # as if each batch took a minute
    cut_after(6, cut, monkeypatch)
    with pytest.raises(PowerCut):
        evaluate(run)

    run = run_of_phase_1(job.config, job.volumes)
    assert run.state.evaluated_batches == undisturbed.state.validation_batches[:5]
    calls = cut_after(0, cut, monkeypatch)
    evaluate(run)
    assert len(calls) == NUM_BATCHES - 5, "nothing is measured twice"
    assert run.state.validation_batches == undisturbed.state.validation_batches
    assert run.state.best_loss == undisturbed.state.best_loss


def test_a_signal_in_an_evaluation_loses_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_phase_1(job.config, job.volumes)
    run.saver.save_at_any_price(run.state, run.model, run.optimizer)

    def ask_to_stop() -> None:
        run.interruption.requested = True

    cut_after(3, ask_to_stop, monkeypatch)
    with pytest.raises(Interrupted):
        evaluate(run)
    assert len(run_of_phase_1(job.config, job.volumes).state.evaluated_batches) == 3


@pytest.mark.crash
def test_what_a_cut_in_an_evaluation_costs_is_reported(trained: Job, job: Job) -> None:
    for file in ("phase1_pretraining.yaml", "phase2_instruction_tuning.yaml"):
        job.change(file, "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    kill = (signal.SIGKILL,)
    in_the_middle = At("svitlo.training.evaluation", "hidden_states", call=NUM_BATCHES + 6, signals=kill)
    in_a_step_after = At("svitlo.training.gradient", "hidden_states", call=2 + 2 * 4, signals=kill)
    for hook in (in_the_middle, in_a_step_after):
        with fork(job, "train", hook=hook) as trainer:
            assert trainer.wait(300) == -signal.SIGKILL, trainer.output()
    with fork(job, "train") as trainer:
        assert trainer.wait(300) == 0, trainer.output()
    first, second = [event["message"] for event in events(job) if event["event"] == "resumed"][:2]
    assert re.search(r"resumed at step 8 .*; a part of an evaluation, \d+ s of work repeated", first)
    assert re.search(r"resumed at step 8 .*; 3 steps and 1 evaluation, \d+ s of work repeated", second)
    assert_same_run(job, trained)


def test_changes_are_given_with_their_standard_error(trained: Job) -> None:
    evaluations = [r for r in read_metrics(trained.volumes / "logs" / "metrics.jsonl") if r["kind"] == "evaluation"]
    for phase in (1, 2):
        first, *later = [record for record in evaluations if record["phase"] == phase]
        assert first["change"] is None
        before = first
        for record in later:
            assert record["change"] == pytest.approx(record["validation_loss"] - before["validation_loss"])
            assert 0 < record["standard_error_of_change"] < abs(record["change"])
            before = record
    assert any(" ± " in event["message"] for event in events(trained) if event["event"] == "evaluated")


def test_the_standard_error_is_what_other_text_would_show() -> None:
    """A thousand evaluations, each on other batches of unequal size from the same population."""
    rng = random.Random(1)

    def evaluated_twice() -> tuple[list[BatchLoss], list[BatchLoss]]:
        before, now = [], []
        for _ in range(40):
            tokens = rng.randrange(20, 400)
            how_hard = rng.gauss(5.0, 1.0)  # differs far more from batch to batch than the change does
            before.append((tokens * how_hard, tokens))
            now.append((tokens * (how_hard - 0.1 + rng.gauss(0, 0.05)), tokens))
        return now, before

    pairs = [evaluated_twice() for _ in range(1_000)]
    changes = [mean_loss(now) - mean_loss(before) for now, before in pairs]
    mean = sum(changes) / len(changes)
    spread = math.sqrt(sum((change - mean) ** 2 for change in changes) / (len(changes) - 1))
    errors = [standard_error_of_change(now, before) for now, before in pairs]
    assert sum(error for error in errors if error) / len(errors) == pytest.approx(spread, rel=0.1)

    now, before = pairs[0]
    assert standard_error_of_change(now, now) == 0.0
    assert standard_error_of_change(now, before[1:]) is None, "not the same batches"
    assert standard_error_of_change(now[:1], before[:1]) is None
