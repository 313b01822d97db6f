"""Validation loss with the exact softmax, and how certain a change of it is."""

from __future__ import annotations

import math

import torch

from svitlo.training.batches import IGNORED, MicroBatch
from svitlo.training.loss import head_loss
from svitlo.training.model import GPT2, embedded
from svitlo.training.numerics import DTYPES, autocast


def hidden_states(
    model: GPT2, embeddings: torch.Tensor, batch: MicroBatch, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head needs: the last hidden states of positions with loss [positions, width], and their targets."""
    with autocast(precision):
        hidden = model.transformer(embeddings)
    has_loss = batch.targets != IGNORED
    if bool(has_loss.all()):
        return hidden.flatten(0, 1), batch.targets.flatten()
    return hidden[has_loss], batch.targets[has_loss]


BatchLoss = tuple[float, int]
"""Loss of one batch in nats, summed over the tokens that carry loss, and their number."""


def loss_of(model: GPT2, batch: MicroBatch, precision: str) -> BatchLoss:
    """The loss of a validation batch over the whole vocabulary, without dropout."""
    model.train(False)
    try:
        with torch.no_grad():
            hidden, targets = hidden_states(model, embedded(model, batch.inputs), batch, precision)
            return head_loss(hidden, model.lm_head.weight, targets, DTYPES[precision]), len(targets)
    finally:
        model.train()


def mean_loss(losses: list[BatchLoss]) -> float:
    """Nats per token that carries loss."""
    total = 0.0
    for loss, _ in losses:
        total += loss
    return total / max(1, sum(num_targets for _, num_targets in losses))


def standard_error_of_change(losses: list[BatchLoss], before: list[BatchLoss]) -> float | None:
    """Standard error of `mean_loss(losses) - mean_loss(before)`, in nats per token. None if they cannot be compared.

    Both are of the same batches. So what makes one text harder than another cancels, and the error is far smaller than
    that of either loss. Tokens of one batch are not independent of each other: the batches are the sample (the ratio
    estimator for clusters of unequal size in Cochran, "Sampling Techniques", 1977).
    """
    if len(losses) < 2 or [number for _, number in losses] != [number for _, number in before]:
        return None
    num_targets = sum(number for _, number in losses)
    changes = [(now - then, number) for (now, number), (then, _) in zip(losses, before, strict=True)]
    mean = sum(change for change, _ in changes) / max(1, num_targets)
    squares = sum((change - mean * number) ** 2 for change, number in changes)
    return math.sqrt(squares * len(changes) / (len(changes) - 1)) / max(1, num_targets)
