"""Matrix products, in float32 by oneDNN instead of MKL.

torch computes float32 products with MKL. On AMD, MKL reaches four fifths of what AVX2 can do and has no AVX-512 code at
all. oneDNN comes with torch, which uses it for bf16, and generates its code for the CPU it finds. On a Zen 5 core it is
1.15 times as fast with AVX2, and 2.2 times with AVX-512 (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_HAS_ONEDNN = torch.backends.mkldnn.is_available()

SLICE = 2048
"""Columns computed at one time where a result is written into, or added to, existing memory."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b + bias: [rows, inner], [inner, columns] and [columns] → [rows, columns]. Does not work with autograd."""
    if a.dtype != torch.float32 or not _HAS_ONEDNN:
        return a @ b if bias is None else torch.addmm(bias, a, b)
    if not a.is_contiguous():  # oneDNN needs it contiguous; if one of both factors must be copied, copy the smaller one
        if bias is None and a.mT.is_contiguous() and (b.mT.is_contiguous() or b.numel() < a.numel()):
            return product(b.mT, a.mT).mT
        a = a[None].contiguous()[0]  # as a batch of one: torch copies a plain transposed matrix with one thread only
    if not (b.is_contiguous() or b.mT.is_contiguous()):
        b = b.contiguous()  # oneDNN would multiply a part of a matrix with its reference code, 200 times slower
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, bias, "none", [], "")  # type: ignore[no-any-return]


def sum_with_product(beta: float, addend: Tensor, alpha: float, a: Tensor, b: Tensor) -> Tensor:
    """beta × addend + alpha × a @ b, all of one type. In bf16 the result is rounded only once."""
    if a.dtype == torch.float32:
        return product(a, b).mul_(alpha).add_(addend, alpha=beta)
    return torch.addmm(addend, a, b, beta=beta, alpha=alpha)


def product_into(result: Tensor, a: Tensor, b: Tensor) -> None:
    """Write a @ b into `result` [rows, columns], all of one type."""
    if a.dtype == torch.float32 and _HAS_ONEDNN:
        for columns, part in zip(result.split(SLICE, dim=1), b.split(SLICE, dim=1), strict=True):
            columns.copy_(product(a, part))
    else:
        torch.mm(a, b, out=result)


def add_product(result: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Add `scale` × a @ b to `result` [rows, columns], which may be of higher precision."""
    for columns, part in zip(result.split(SLICE, dim=1), b.split(SLICE, dim=1), strict=True):
        columns.add_(product(a, part), alpha=scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight + bias, with gradients: [positions, inputs], [inputs, outputs] and [outputs]."""
    if torch.is_autocast_enabled("cpu"):
        return torch.addmm(bias, x, weight)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return product(gradient, weight.mT), product(x.mT, gradient), gradient.sum(0)
