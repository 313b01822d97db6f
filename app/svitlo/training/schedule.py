"""The learning rate as a pure function of the step: there is no scheduler whose state could be forgotten."""

from __future__ import annotations

import math

from svitlo.config import TrainingConfig


def learning_rate(step: int, num_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate_fraction` of the peak. `step` counts from 0."""
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    floor = config.final_learning_rate_fraction
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
