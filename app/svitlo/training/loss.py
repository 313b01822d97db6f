"""The output head and the cross-entropy, a chunk of positions at a time.

The logits of a whole batch would be 1024 × 50257 numbers, 206 MB, for the head alone. Here they exist for one chunk,
and the gradient of the chunk is computed while its logits are at hand, as in fused linear cross-entropy kernels
(Hsu et al., "Liger Kernel", 2024). The arithmetic and the result are those of the full softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 256
"""Positions whose logits exist at one time: 51 MB with 50257 tokens."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Cross-entropy summed over positions, in nats; no gradient.

    `hidden` [positions, width], `weight` [vocabulary, width], `targets` [positions].
    """
    total = 0.0
    with torch.no_grad():
        for chunk, target in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            logits = (chunk @ weight.T).float()
            correct = logits.gather(1, target[:, None]).squeeze(1)
            total += float((logits.logsumexp(dim=1) - correct).double().sum())
    return total


def head_loss_and_gradient(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[float, Tensor]:
    """Like `head_loss`, with the gradient of `scale` × loss.

    Adds the weight's part to `weight.grad` and returns (loss sum in nats, gradient for `hidden`). Nothing here goes
    through autograd: the caller goes on with `hidden.backward(gradient)`.
    """
    total = 0.0
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    hidden = hidden.detach()
    hidden_gradient = torch.empty_like(hidden)
    matrix = weight.detach().to(hidden.dtype)
    with torch.no_grad():
        parts = [torch.split(tensor, CHUNK) for tensor in (hidden, targets, hidden_gradient)]
        for chunk, target, gradient in zip(*parts, strict=True):
            logits = (chunk @ matrix.T).float()
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            correct = logits.gather(1, target[:, None])
            total += float((normaliser - correct).double().sum())
            # The gradient of the cross-entropy with respect to the logits: probabilities minus the one-hot target.
            probabilities = logits.sub_(normaliser).exp_()
            probabilities.scatter_add_(1, target[:, None], torch.full_like(correct, -1.0))
            logits_gradient = probabilities.mul_(scale).to(hidden.dtype)
            torch.mm(logits_gradient, matrix, out=gradient)
            if hidden.dtype == weight.dtype:
                weight.grad.addmm_(logits_gradient.T, chunk)
            else:
                weight.grad.add_(logits_gradient.T @ chunk)
    return total, hidden_gradient
