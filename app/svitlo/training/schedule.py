"""The learning rate as a pure function of the step. There is no scheduler whose state could get lost."""

from __future__ import annotations

import math

from svitlo.config import TrainingConfig


def learning_rate_fraction(step: int, num_steps: int, config: TrainingConfig) -> float:
    """The share of the peak learning rate: a linear warm-up, then a decay. `step` counts from 0.

    `cosine` and `linear` fall from the end of the warm-up to `final_learning_rate_fraction`. `trapezoid` stays at the
    peak and falls in a straight line over the last `decay_fraction` of the steps.
    """
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = max(1, num_steps - warmup_steps)
    if config.schedule == "trapezoid":
        decay_steps = min(decay_steps, max(1, round(config.decay_fraction * num_steps)))
    progress = min(1.0, max(0.0, (step - (num_steps - decay_steps)) / decay_steps))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    floor = config.final_learning_rate_fraction
    return floor + (1 - floor) * left
