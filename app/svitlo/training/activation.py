"""GPT-2's activation, computed with the sigmoid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def gelu(x: Tensor) -> Tensor:
    """Hugging Face's `gelu_new` (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016), of any shape.

    x (1 + tanh z) / 2 is x σ(2 z). torch computes the hyperbolic tangent in both passes. With AVX2 the sigmoid takes
    half that time, and the backward pass reuses it. In bf16 it would have to be converted, so torch is faster there.
    """
    if x.dtype != torch.float32:
        return functional.gelu(x, approximate="tanh")
    return _Gelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigmoid = _factor(x, _CUBIC).mul_(x).sigmoid_()
        ctx.save_for_backward(x, sigmoid)
        return x * sigmoid

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, sigmoid = ctx.saved_tensors
        # σ + x σ', where σ' is σ (1 - σ) times the derivative of its argument.
        inner = _factor(x, 3 * _CUBIC).mul_(x)
        slope: Tensor = torch.ops.aten.sigmoid_backward(inner, sigmoid).add_(sigmoid)
        return slope.mul_(gradient)


def _factor(x: Tensor, square: float) -> Tensor:
    """A constant + `square` × x²."""
    return torch.addcmul(torch.tensor(_LINEAR), x, x, value=square)
