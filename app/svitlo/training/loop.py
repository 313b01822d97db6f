"""One phase, step by step: batch → loss → step → save? → evaluate? → log → stop?

Everything that outlives the process is in `TrainingState`; the loop can be cut off between any two lines and goes on
from the last checkpoint with the same bits.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from svitlo.config import CheckpointConfig, Phase2Config
from svitlo.interruption import Interruption
from svitlo.reporting.progress import Progress
from svitlo.training.batches import IGNORED, Batches, MicroBatch
from svitlo.training.checkpoints import TrainingState, mark_best, save_checkpoint
from svitlo.training.evaluation import hidden_states, validation_loss
from svitlo.training.loss import Head, VocabularySampler
from svitlo.training.model import GPT2, add_embedding_gradient, embedded
from svitlo.training.numerics import seed_for
from svitlo.training.optimizer import PhaseOptimizer
from svitlo.training.schedule import learning_rate_fraction

_SECONDS_BEFORE_SAVING_AGAIN = 30.0
_RECENT_SAVES = 5
_WORK_WITH_WHOLE_HEAD = {1: 2.2, 2: 1.5}
"""By phase: how many times as long as with a sampled vocabulary a step takes (docs/performance.md)."""


class SaveSchedule:
    """When the next periodic save is due: as early as configured, later where saving is slow.

    How slow is the median of the last saves: a single slow one, on a disk that was busy for a moment, changes nothing.

    Asked after each step. It looks one step ahead, because a power cut at the end of the next step would take that step
    too: with steps of 6 s and an interval of 60 s, the save comes after 54 to 60 s.
    """

    def __init__(self, config: CheckpointConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._saved_at = self._asked_at = clock()
        self._costs: deque[float] = deque(maxlen=_RECENT_SAVES)
        self._step = -1

    def is_due(self, step: int) -> bool:
        every = self._config.save_every_n_steps
        is_milestone = every is not None and step % every == 0 and step != self._step
        now = self._clock()
        seconds_of_a_step, self._asked_at = now - self._asked_at, now
        seconds = now - self._saved_at
        is_affordable = seconds >= statistics.median(self._costs or [0.0]) / self._config.max_cost
        return is_milestone or (is_affordable and seconds + seconds_of_a_step > self._config.save_every_seconds)

    def saved(self, step: int, seconds: float) -> None:
        """Note that a save (or the attempt) has just ended and what it cost."""
        self._saved_at = self._asked_at = self._clock()
        self._costs.append(seconds)
        self._step = step


@dataclass
class PhaseRun:
    """What the loop works with."""

    state: TrainingState
    model: GPT2
    optimizer: PhaseOptimizer
    head: Head
    sampler: VocabularySampler
    train: Batches
    validation: Batches
    config: Phase2Config
    folder: Path
    interruption: Interruption
    progress: Progress
    write_samples: Callable[[GPT2], list[tuple[str, str]]]

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`, as chosen when the phase began."""
        return str(self.state.numerics["precision"])

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return planned_steps(self.config, self.train)

    @property
    def num_sampled_steps(self) -> int:
        """Optimizer steps at the beginning that compute a part of the vocabulary only."""
        return math.ceil(self.config.head.sampled_fraction * self.num_steps)

    def work_left(self, step: int) -> float:
        """From `step` to the end of the phase, in optimizer steps with a sampled vocabulary."""
        num_whole = self.num_steps - max(step, self.num_sampled_steps)
        return max(0, self.num_sampled_steps - step) + num_whole * _WORK_WITH_WHOLE_HEAD[self.state.phase]


def planned_steps(config: Phase2Config, train: Batches) -> int:
    """Optimizer steps that `max_epochs` and `max_steps` allow."""
    steps = config.training.max_epochs * train.steps_per_epoch
    return min(steps, config.training.max_steps or steps)


def train_phase(run: PhaseRun) -> None:
    """Train until the phase is finished. Raises `Interrupted` after saving where a signal asks to stop."""
    state = run.state
    schedule = SaveSchedule(run.config.checkpoints)
    run.model.train()
    warm_up(run)
    while not state.finished:
        if run.interruption.requested:
            stop_early(run, schedule)
        if is_evaluation_due(run):
            save_at_any_price(run, schedule)
            evaluate(run)
            state.finished = reason_to_finish(run)
        elif train_step(run) and schedule.is_due(state.global_step) and not is_evaluation_due(run):
            save(run, schedule)  # before an evaluation the state is saved anyway
        run.progress.update(state, run.num_steps, run.config.training.max_epochs, run.work_left)
    save_at_any_price(run, schedule)


def warm_up(run: PhaseRun) -> None:
    """Compute one sequence in both modes and forget it.

    The math libraries set themselves up at their first call, here partly inside parallel regions. Once, on a machine
    with four times as many busy threads as cores, the very first evaluation of a process differed in its last digits
    from the same evaluation in every other process; nothing that counts is computed by a first call any more.
    """
    first = run.train.step(run.state.global_step)[0]
    sequence = MicroBatch(first.inputs[:1], first.targets[:1])
    begin_step(run, [sequence])
    for is_training in (False, True):
        run.model.train(is_training)
        forward_and_backward(run, sequence, 1.0)
    run.optimizer.forget_gradients()


def train_step(run: PhaseRun) -> bool:
    """One optimizer step: the mean loss over all tokens with loss in the whole batch, whatever the micro-batches.

    Returns False where a signal came in between: the step is given up, and model and optimizer are as before it.
    """
    state, config = run.state, run.config.training
    start = time.perf_counter()
    step = state.global_step
    batch = run.train.step(step)
    num_targets = sum(micro_batch.num_targets for micro_batch in batch)
    begin_step(run, batch)
    total = 0.0
    for number, micro_batch in enumerate(batch):
        run.progress.alive()
        if run.interruption.requested:
            run.optimizer.forget_gradients()
            return False
        torch.manual_seed(seed_for("dropout", config.seed, state.phase, step, number))
        total += forward_and_backward(run, micro_batch, 1.0 / num_targets)
    run.head.finish()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.max_gradient_norm)
    fraction = learning_rate_fraction(step, run.num_steps, config)
    run.optimizer.step(fraction)

    seconds = time.perf_counter() - start
    state.global_step = step + 1
    state.epoch = step // run.train.steps_per_epoch
    state.loss = total / num_targets
    state.tokens_seen += num_targets
    state.training_seconds += seconds
    tokens = sum(micro_batch.inputs.numel() for micro_batch in batch)
    run.progress.step(state, fraction * config.learning_rate, float(norm), tokens, seconds)
    return True


def begin_step(run: PhaseRun, batch: list[MicroBatch]) -> None:
    """Set up the head: over a part of the vocabulary at first, over all of it at the end of the phase."""
    state = run.state
    if state.global_step >= run.num_sampled_steps:
        run.head.begin()
    else:
        targets = torch.cat([micro_batch.targets[micro_batch.targets != IGNORED] for micro_batch in batch])
        seed = seed_for("head", run.config.training.seed, state.phase, state.global_step)
        run.head.begin(run.sampler.draw(targets, seed))


def forward_and_backward(run: PhaseRun, batch: MicroBatch, scale: float) -> float:
    """Add the gradient of `scale` × loss to all weights. Returns the loss, in nats, summed over the micro-batch."""
    embeddings = embedded(run.model, batch.inputs)
    hidden, targets = hidden_states(run.model, embeddings, batch, run.precision)
    loss, gradient = run.head.loss_and_gradient(hidden, targets, scale)
    # A scalar with this gradient: handing it to `backward` as an argument would import sympy, a second of every start.
    torch.sum(hidden * gradient).backward()
    add_embedding_gradient(run.model, batch.inputs, embeddings)
    return loss


def is_evaluation_due(run: PhaseRun) -> bool:
    """At the start, every so many steps and at the end, once each."""
    step = run.state.global_step
    is_milestone = step % run.config.evaluation.every_n_steps == 0 or step >= run.num_steps
    return is_milestone and run.state.last_evaluated_step < step


def evaluate(run: PhaseRun) -> None:
    """Measure the validation loss, remember the best state, complete the sample prompts.

    The state was saved just before: the best weights are a second name for that file, and an evaluation that is cut
    off is simply done again.
    """
    state, config = run.state, run.config
    start = time.perf_counter()
    run.progress.evaluating(state)

    def stop_if_asked() -> None:
        run.progress.alive()
        if run.interruption.requested:
            raise run.interruption.error

    loss = validation_loss(run.model, run.validation, config.evaluation.max_sequences, run.precision, stop_if_asked)
    improved = state.best_loss is None or loss < state.best_loss - config.training.min_improvement
    keeps_last = config.training.keep_weights == "last"
    is_best = state.best_loss is None or loss < state.best_loss
    if is_best or keeps_last:
        mark_best(run.folder)
        state.best_loss, state.best_step = loss, state.global_step
    state.evaluations_without_improvement = 0 if improved else state.evaluations_without_improvement + 1
    state.last_evaluated_step = state.global_step
    with run.interruption.at_once():  # the state was saved before the evaluation
        samples = run.write_samples(run.model)
    state.training_seconds += time.perf_counter() - start
    verdict = "the best so far" if is_best else f"best is {state.best_loss:.4f} at step {state.best_step:,}"
    run.progress.evaluated(state, loss, is_best, "the last is kept" if keeps_last else verdict, samples)


def reason_to_finish(run: PhaseRun) -> str:
    """Why the phase is over, or nothing."""
    state, config = run.state, run.config.training
    if state.global_step >= run.num_steps:
        return f"all {run.num_steps:,} steps done"
    if state.evaluations_without_improvement >= config.early_stopping_patience:
        return (
            f"stopped early at step {state.global_step:,}: {state.evaluations_without_improvement} evaluations without "
            f"an improvement of more than {config.min_improvement:g}"
        )
    return ""


def save(run: PhaseRun, schedule: SaveSchedule, *, periodic: bool = True) -> bool:
    """Save the state; where that fails, say so, keep training on and try again later. Returns whether it is on disk."""
    state = run.state
    if state.global_step == run.progress.checkpoint_step and not state.finished and periodic:
        return True
    state.model_state_dict = run.model.state_dict()
    state.optimizer_state_dict = run.optimizer.state_dict()
    state.timestamp = time.time()
    state.periodic_save = periodic
    start = time.perf_counter()
    try:
        run.progress.make_durable()
        seconds = save_checkpoint(state, run.folder, run.config.checkpoints.keep)
    except (OSError, RuntimeError) as error:
        schedule.saved(state.global_step, time.perf_counter() - start)
        run.progress.save_failed(state, error.__context__ if isinstance(error.__context__, OSError) else error)
        return False
    schedule.saved(state.global_step, seconds)
    run.progress.saved(state, seconds)
    return True


def save_at_any_price(run: PhaseRun, schedule: SaveSchedule) -> None:
    """Save what later work starts from (the best weights, the end of a phase): a full disk is waited for."""
    while not save(run, schedule, periodic=False):
        run.interruption.wait(_SECONDS_BEFORE_SAVING_AGAIN)
        run.progress.alive()


def stop_early(run: PhaseRun, schedule: SaveSchedule) -> None:
    """Save, if configured, and raise `Interrupted`."""
    if run.config.checkpoints.emergency_save_on_interrupt:
        save(run, schedule, periodic=False)
    raise run.interruption.error
