"""Validation loss with the exact softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch

from svitlo.training.batches import IGNORED, Batches, MicroBatch
from svitlo.training.loss import head_loss
from svitlo.training.model import GPT2, embedded
from svitlo.training.numerics import autocast


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


def validation_loss(
    model: GPT2,
    batches: Batches,
    max_sequences: int | None,
    precision: str,
    on_batch: Callable[[int, int], None],
) -> float:
    """Mean loss in nats, per token that carries loss.

    `on_batch` is called before each batch with the sequences done and the sequences in all. It may raise to stop.
    """
    total, num_targets, num_done = 0.0, 0, 0
    num_sequences = min(batches.num_sequences, max_sequences or batches.num_sequences)
    model.train(False)
    try:
        with torch.no_grad():
            for batch in batches.in_order(max_sequences):
                on_batch(num_done, num_sequences)
                hidden, targets = hidden_states(model, embedded(model, batch.inputs), batch, precision)
                total += head_loss(hidden, model.lm_head.weight, targets)
                num_targets += len(targets)
                num_done += len(batch.inputs)
    finally:
        model.train()
    return total / max(1, num_targets)
