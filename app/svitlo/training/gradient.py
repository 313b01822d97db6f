"""Batch → loss and gradients. The only module that knows how the work of a step is divided."""

from __future__ import annotations

from collections.abc import Callable

import torch

from svitlo.training.batches import IGNORED, MicroBatch
from svitlo.training.evaluation import hidden_states
from svitlo.training.loss import Head, VocabularySampler
from svitlo.training.model import GPT2, add_embedding_gradient, embedded
from svitlo.training.numerics import DTYPES, seed_for


class Gradient:
    """Computes the gradient of one optimizer step: of the mean loss over all tokens in the batch that carry loss.

    The mean is over the whole batch, so cutting it into other micro-batches changes the result only by rounding.
    Dropout and the sampled vocabulary depend on seed, phase and step alone.
    """

    def __init__(self, model: GPT2, sampler: VocabularySampler, precision: str, phase: int, seed: int) -> None:
        self._model = model
        self._head = Head(model.lm_head.weight, DTYPES[precision])
        self._sampler = sampler
        self._precision = precision
        self._phase = phase
        self._seed = seed

    def compute(
        self,
        batch: list[MicroBatch],
        step: int,
        *,
        is_sampled: bool,
        keep_going: Callable[[], bool] = lambda: True,
    ) -> float | None:
        """Add the gradient to `.grad` of all parameters, which must be zero. Returns the loss in nats per token.

        `is_sampled`: compute the head over a part of the vocabulary. `keep_going` is asked before each micro-batch. If
        it says no, the step is abandoned: the gradients are zero again and the result is None.
        """
        num_targets = sum(micro_batch.num_targets for micro_batch in batch)
        self._begin(batch, step, is_sampled)
        total = 0.0
        for number, micro_batch in enumerate(batch):
            if not keep_going():
                self.forget()
                return None
            torch.manual_seed(seed_for("dropout", self._seed, self._phase, step, number))
            total += self._add(micro_batch, 1.0 / num_targets)
        self._head.finish()
        return total / num_targets

    def forget(self) -> None:
        """Zero all gradients, in place."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def warm_up(self, batch: list[MicroBatch], step: int, *, is_sampled: bool) -> None:
        """Compute one sequence in both modes and discard the result.

        The math libraries initialise themselves at their first call, partly inside parallel regions. Once, on a machine
        with four times as many busy threads as cores, the very first evaluation of a process differed in its last
        digits from the same evaluation in every other process. So no first call computes anything that counts.
        """
        sequence = MicroBatch(batch[0].inputs[:1], batch[0].targets[:1])
        self._begin([sequence], step, is_sampled)
        for is_training in (False, True):
            self._model.train(is_training)
            self._add(sequence, 1.0)
        self.forget()

    def _begin(self, batch: list[MicroBatch], step: int, is_sampled: bool) -> None:
        """Set up the head for a step: over a part of the vocabulary, or over all of it."""
        if is_sampled:
            targets = torch.cat([micro_batch.targets[micro_batch.targets != IGNORED] for micro_batch in batch])
            self._head.begin(self._sampler.draw(targets, seed_for("head", self._seed, self._phase, step)))
        else:
            self._head.begin()

    def _add(self, batch: MicroBatch, scale: float) -> float:
        """Add the gradient of `scale` × loss. Returns the loss, in nats, summed over the micro-batch."""
        embeddings = embedded(self._model, batch.inputs)
        hidden, targets = hidden_states(self._model, embeddings, batch, self._precision)
        loss, gradient = self._head.loss_and_gradient(hidden, targets, scale)
        # A scalar with this gradient. Passing the gradient to `backward` instead would import sympy, which takes a
        # second.
        torch.sum(hidden * gradient).backward()
        add_embedding_gradient(self._model, batch.inputs, embeddings)
        return loss
