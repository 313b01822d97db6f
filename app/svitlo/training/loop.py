"""One phase, step by step: batch → gradient → finite? → step → save? → evaluate? → report → stop?

Everything that outlives the process is in `TrainingState`. The power may fail between any two lines: the loop then goes
on from the last checkpoint with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from svitlo.config import PhaseConfig
from svitlo.errors import DamagedData, SvitloError
from svitlo.interruption import Interruption
from svitlo.reporting.observer import Observer
from svitlo.training.batches import Batches, MicroBatch
from svitlo.training.evaluation import loss_of, mean_loss, standard_error_of_change
from svitlo.training.gradient import Gradient
from svitlo.training.machine_check import MachineCheck, MachineFault, difference, gradients_of
from svitlo.training.model import GPT2
from svitlo.training.optimizer import PhaseOptimizer
from svitlo.training.saving import Saver
from svitlo.training.schedule import learning_rate_fraction
from svitlo.training.state import TrainingState

_MOST_LOSS = 2.0
"""In multiples of log(vocabulary)."""


class Diverged(SvitloError):  # noqa: N818 — says what is wrong
    """A loss or a gradient that must not reach the weights."""


@dataclass
class PhaseRun:
    """What the loop works with."""

    state: TrainingState
    config: PhaseConfig
    model: GPT2
    gradient: Gradient
    optimizer: PhaseOptimizer
    train: Batches
    validation: Batches
    saver: Saver
    interruption: Interruption
    observer: Observer
    write_samples: Callable[[GPT2], list[tuple[str, str]]]
    machine_check: MachineCheck
    whole_head_cost: float
    """How many times longer a step takes with the whole vocabulary than with a sampled one."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return planned_steps(self.config, self.train)

    @property
    def num_sampled_steps(self) -> int:
        """Optimizer steps at the beginning that compute only a part of the vocabulary."""
        return math.ceil(self.config.head.sampled_fraction * self.num_steps)

    @property
    def num_validation_sequences(self) -> int:
        """Sequences that an evaluation sees."""
        num_sequences = self.validation.num_sequences
        return min(num_sequences, self.config.evaluation.max_sequences or num_sequences)

    @property
    def is_sampled(self) -> bool:
        """Whether the next step computes only a part of the vocabulary."""
        return self.state.global_step < self.num_sampled_steps

    def work_left(self, step: int) -> float:
        """Work from `step` to the end of the phase, in units of one optimizer step with a sampled vocabulary."""
        num_whole = self.num_steps - max(step, self.num_sampled_steps)
        return max(0, self.num_sampled_steps - step) + num_whole * self.whole_head_cost


def planned_steps(config: PhaseConfig, train: Batches) -> int:
    """Optimizer steps that `max_epochs` and `max_steps` allow."""
    steps = config.training.max_epochs * train.steps_per_epoch
    return min(steps, config.training.max_steps or steps)


def train_phase(run: PhaseRun) -> None:
    """Train until the phase is finished.

    Saves and raises `Interrupted` when a signal asks to stop, and `DamagedData` where a shard is not what was written.
    """
    state = run.state
    run.model.train()
    run.gradient.warm_up(run.train.step(state.global_step), state.global_step, is_sampled=run.is_sampled)
    while not state.finished:
        if run.interruption.requested:
            stop_early(run)
        try:
            if is_evaluation_due(run):
                run.saver.save_at_any_price(state, run.model, run.optimizer)
                evaluate(run)
                state.finished = reason_to_finish(run)
            elif train_step(run) and run.saver.is_due(state.global_step) and not is_evaluation_due(run):
                run.saver.save(state, run.model, run.optimizer)  # before an evaluation the state is saved anyway
        except DamagedData:  # found before it was used
            run.saver.save(state, run.model, run.optimizer)
            raise
        run.observer.update(state, run.num_steps, run.config.training.max_epochs, run.work_left)
    run.saver.save_at_any_price(state, run.model, run.optimizer)


def train_step(run: PhaseRun) -> bool:
    """One optimizer step. Returns False if a signal interrupted it: model and optimizer are then unchanged."""
    state, config = run.state, run.config.training
    start = run.observer.clock()
    step = state.global_step
    batch = run.train.step(step)

    def keep_going() -> bool:
        run.observer.alive()
        return not run.interruption.requested

    loss = run.gradient.compute(batch, step, is_sampled=run.is_sampled, keep_going=keep_going)
    if loss is None or (run.machine_check.is_due() and not is_the_same_again(run, batch, loss, keep_going)):
        return False
    norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.max_gradient_norm))
    if not is_sane(run, loss, norm):
        raise explained_divergence(run, batch, loss, norm)
    fraction = learning_rate_fraction(step, run.num_steps, config)
    run.optimizer.step(fraction)
    run.gradient.forget()

    seconds = run.observer.clock() - start
    state.global_step = step + 1
    state.epoch = step // run.train.steps_per_epoch
    state.loss = loss
    state.tokens_seen += sum(micro_batch.num_targets for micro_batch in batch)
    state.training_seconds += seconds
    num_tokens = sum(micro_batch.inputs.numel() for micro_batch in batch)
    run.observer.step(state, fraction * config.learning_rate, norm, num_tokens, seconds)
    return True


def is_the_same_again(run: PhaseRun, batch: list[MicroBatch], loss: float, keep_going: Callable[[], bool]) -> bool:
    """Compute the gradient of this step once more. Returns False if a signal interrupted that.

    Raises `MachineFault` where a single bit is not as it was the first time.
    """
    before = gradients_of(run.model)
    run.gradient.forget()
    again = run.gradient.compute(batch, run.state.global_step, is_sampled=run.is_sampled, keep_going=keep_going)
    if again is None:
        return False
    num_different = difference(run.model, before)
    if num_different or repr(again) != repr(loss):
        raise MachineFault(
            f"step {run.state.global_step + 1:,} of phase {run.state.phase} was computed twice, and {num_different:,} "
            f"numbers of the gradient differ (loss {loss!r} and {again!r}): the memory or the CPU of this machine made "
            f"a mistake. Training goes on from the last checkpoint. If it happens again, take back any overclocking "
            f"and test the memory, for example with memtest86+"
        )
    return True


def is_sane(run: PhaseRun, loss: float, norm: float = 0.0) -> bool:
    """Whether a loss and a gradient norm may reach the weights.

    A model that knows nothing has a loss of log(vocabulary). Twice as much means that it is sure of what is wrong.
    """
    return loss < _MOST_LOSS * math.log(run.state.vocab_size) and math.isfinite(norm)  # false for NaN, too


def explained_divergence(run: PhaseRun, batch: list[MicroBatch], loss: float, norm: float) -> SvitloError:
    """Compute the same step again: it is a pure function, so another result means that the machine is at fault."""
    state, training = run.state, run.config.training
    run.gradient.forget()
    again = run.gradient.compute(batch, state.global_step, is_sampled=run.is_sampled)
    norm_again = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), training.max_gradient_norm))
    run.gradient.forget()
    seen = f"step {state.global_step + 1:,} of phase {state.phase}: loss {loss:g}, gradient norm {norm:g}"
    kept = "The weights were not changed, and the last checkpoint is untouched"
    if repr((loss, norm)) == repr((again, norm_again)):
        return Diverged(
            f"{seen}. Computed again, it is the same, so the learning rate or the data is the reason. {kept}. Lower "
            f"training.learning_rate ({training.learning_rate:g}) and training.muon_learning_rate "
            f"({training.muon_learning_rate:g}) in the configuration of this phase, and begin again with `make new-run`"
        )
    return MachineFault(
        f"{seen}. Computed again, loss is {again:g} and gradient norm {norm_again:g}: the same step gave two results, "
        f"so the memory or the CPU of this machine made a mistake. {kept}. Training goes on from it. If it happens "
        f"again, take back any overclocking and test the memory, for example with memtest86+"
    )


def is_evaluation_due(run: PhaseRun) -> bool:
    """At the start, every `every_n_steps` steps and at the end, once each."""
    step = run.state.global_step
    is_milestone = step % run.config.evaluation.every_n_steps == 0 or step >= run.num_steps
    return is_milestone and run.state.last_evaluated_step < step


def evaluate(run: PhaseRun) -> None:
    """Measure the validation loss, remember the best state, complete the sample prompts.

    The state was saved just before. So the best weights only need a second name for that file.
    """
    state, config = run.state, run.config
    evaluate_batches(run)
    start = run.observer.clock()
    losses, before = state.evaluated_batches, state.validation_batches
    loss = mean_loss(losses)
    if not is_sane(run, loss):
        raise Diverged(
            f"step {state.global_step:,} of phase {state.phase}: validation loss {loss:g}: the weights are no longer "
            f"usable. Older checkpoints are in the folder of this phase; go on from one with `svitlo train --resume "
            f"FILE`, or begin again with a lower learning rate and `make new-run`"
        )
    error = standard_error_of_change(losses, before)
    change = None if error is None else (loss - mean_loss(before), error)
    improved = state.best_loss is None or loss < state.best_loss - config.training.min_improvement
    keeps_last = config.training.keep_weights == "last"
    is_best = state.best_loss is None or loss < state.best_loss
    if is_best or keeps_last:
        run.saver.mark_best()
        state.best_loss, state.best_step = loss, state.global_step
    state.evaluations_without_improvement = 0 if improved else state.evaluations_without_improvement + 1
    state.last_evaluated_step = state.global_step
    state.validation_batches, state.evaluated_batches = losses, []
    with run.interruption.at_once():  # long, and only for people
        samples = run.write_samples(run.model)
    state.training_seconds += run.observer.clock() - start
    verdict = "the best so far" if is_best else f"best is {state.best_loss:.4f} at step {state.best_step:,}"
    run.observer.evaluated(state, loss, change, is_best, "the last is kept" if keeps_last else verdict, samples)


def evaluate_batches(run: PhaseRun) -> None:
    """Measure the loss of each validation batch that is not in the state yet. Long evaluations are saved in between."""
    state, num_sequences = run.state, run.num_validation_sequences
    precision = str(state.numerics["precision"])
    for batch in run.validation.in_order(num_sequences, skip=len(state.evaluated_batches)):
        if run.interruption.requested:
            stop_early(run)
        num_done = len(state.evaluated_batches) * run.config.training.micro_batch
        run.observer.alive()
        run.observer.evaluating(state, num_done, num_sequences)
        start = run.observer.clock()
        state.evaluated_batches.append(loss_of(run.model, batch, precision))
        state.training_seconds += run.observer.clock() - start
        if run.saver.is_due(state.global_step):
            run.saver.save(state, run.model, run.optimizer)


def reason_to_finish(run: PhaseRun) -> str:
    """Why the phase is over, or an empty string."""
    state, config = run.state, run.config.training
    if state.global_step >= run.num_steps:
        return f"all {run.num_steps:,} steps done"
    if state.evaluations_without_improvement >= config.early_stopping_patience:
        return (
            f"stopped early at step {state.global_step:,}: {state.evaluations_without_improvement} evaluations without "
            f"an improvement of more than {config.min_improvement:g}"
        )
    return ""


def stop_early(run: PhaseRun) -> None:
    """Save, if configured, and raise `Interrupted`."""
    if run.config.checkpoints.emergency_save_on_interrupt:
        run.saver.save(run.state, run.model, run.optimizer, periodic=False)
    raise run.interruption.error
