"""AdamW, fused, with weight decay for matrices only."""

from __future__ import annotations

import torch
from transformers import GPT2LMHeadModel

from svitlo.config import TrainingConfig


def build_optimizer(model: GPT2LMHeadModel, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019). Norms and biases are not decayed: they have no scale to keep small."""
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
