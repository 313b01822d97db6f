"""Muon for the matrices of the blocks, AdamW for embeddings, norms and biases; or AdamW for all.

These are not subclasses of `torch.optim.Optimizer`: creating the first one imports torch's compiler. That takes nearly
as long as importing torch itself, and would be paid after each power cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from svitlo.config import TrainingConfig
from svitlo.training.model import GPT2
from svitlo.training.products import product, sum_with_product

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""Coefficients of the quintic iterations: singular values between 0.01 and 1 end between 0.4 and 1.6. Four of these
iterations do as well as five with the coefficients of Muon's paper, for a fifth less work (docs/log.md)."""


class AdamW:
    """AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019), by torch's fused kernel."""

    def __init__(self, decayed: list[Tensor], others: list[Tensor], lr: float, config: TrainingConfig) -> None:
        """`weight_decay` applies to `decayed` only."""
        self.parameters = [*decayed, *others]
        self.state: list[dict[str, Tensor]] = []
        """For each parameter, after the first step: `step`, `exp_avg`, `exp_avg_sq`."""
        self._groups = ((slice(len(decayed)), config.weight_decay), (slice(len(decayed), None), 0.0))
        self._lr = lr
        self._betas = config.beta1, config.beta2

    @torch.no_grad()
    def step(self, fraction: float) -> None:
        """One update from the gradients, at `fraction` of the learning rate."""
        if not self.state:
            self.state = [
                {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                for p in self.parameters
            ]
        beta1, beta2 = self._betas
        for group, weight_decay in self._groups:
            parameters, state = self.parameters[group], self.state[group]
            adamw(
                parameters,
                [_gradient(p) for p in parameters],
                [s["exp_avg"] for s in state],
                [s["exp_avg_sq"] for s in state],
                [],
                [s["step"] for s in state],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=fraction * self._lr,
                weight_decay=weight_decay,
                eps=1e-8,
                maximize=False,
            )


class Muon:
    """Momentum, orthogonalised (Jordan et al., "Muon", 2024) by the iterations of Polar Express (Amsel et al., 2025).

    Made for Hugging Face's GPT-2, whose linear weights are stored [inputs, outputs], with queries, keys and values side
    by side in one matrix. The three are orthogonalised separately. The update of a matrix is scaled by √max(1, outputs
    / inputs).
    """

    def __init__(
        self,
        parameters: list[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype`: type of the products while orthogonalising. The state has the type of the parameters."""
        self.parameters = parameters
        self.state: list[dict[str, Tensor]] = []
        """For each parameter, after the first step: `momentum_buffer`."""
        self._lr = lr
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._dtype = dtype

    @torch.no_grad()
    def step(self, fraction: float) -> None:
        """One update from the gradients, at `fraction` of the learning rate."""
        if not self.state:
            self.state = [{"momentum_buffer": torch.zeros_like(p)} for p in self.parameters]
        lr = fraction * self._lr
        for parameter, state in zip(self.parameters, self.state, strict=True):
            gradient = _gradient(parameter)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - self._momentum)
            update = gradient.lerp(momentum, self._momentum)  # Nesterov's
            parameter.mul_(1 - lr * self._weight_decay)
            for matrix, direction in zip(_parts(parameter), _parts(update), strict=True):
                inputs, outputs = matrix.shape
                scale = max(1.0, outputs / inputs) ** 0.5
                matrix.add_(orthogonalised(direction, self._dtype), alpha=-lr * scale)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _parts(matrix: Tensor) -> tuple[Tensor, ...]:
    """The matrices in a weight [inputs, outputs]: three if queries, keys and values are fused, else one."""
    inputs, outputs = matrix.shape
    return matrix.split(inputs, dim=1) if outputs == 3 * inputs else (matrix,)


def orthogonalised(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Roughly the nearest matrix with orthonormal rows, or columns if there are fewer of them: [inputs, outputs].

    Matrices are multiplied as `dtype`. In float32, the iterations for a wide matrix work only on its small Gram matrix
    X Xᵀ, which is three fifths of the work (Zhang et al., "Gram Newton-Schulz", 2026). bf16 is too coarse for that.
    """
    rows, columns = matrix.shape
    if rows > columns:
        return orthogonalised(matrix.T, dtype).T
    # Scale the norm to a little below 1. Above 1 the first iteration would diverge.
    matrix = (matrix / (1.01 * matrix.norm() + 1e-7)).to(dtype)
    gram = product(matrix, matrix.T)
    through_gram = dtype == torch.float32 and columns >= 2 * rows
    # Each iteration multiplies by a polynomial in X Xᵀ, a + b X Xᵀ + c (X Xᵀ)². It multiplies either X itself, or the
    # factor that X is multiplied by in the end.
    factor = torch.eye(rows) if through_gram else matrix
    for iteration, (a, b, c) in enumerate(POLAR_EXPRESS, 1):
        polynomial = sum_with_product(b, gram, c, gram, gram)
        if dtype == torch.float32:
            polynomial.diagonal().add_(a)
            factor = product(polynomial, factor)
        else:  # bf16 would round a sum with the diagonal too much
            factor = sum_with_product(a, factor, 1.0, polynomial, factor)
        if iteration == len(POLAR_EXPRESS):
            break
        gram = product(polynomial, product(polynomial, gram)) if through_gram else product(factor, factor.T)
    return product(factor, matrix) if through_gram else factor.float()


class PhaseOptimizer:
    """One optimizer for the loop, one or two inside: AdamW and, if configured, Muon."""

    def __init__(self, model: GPT2, config: TrainingConfig, dtype: torch.dtype = torch.float32) -> None:
        """Norms and biases are not decayed: they have no scale to keep small. `dtype`: type of Muon's products."""
        blocks = {id(p) for p in model.transformer.h.parameters() if p.ndim == 2 and config.optimizer == "muon"}
        others: list[Tensor] = [p for p in model.parameters() if id(p) not in blocks]
        matrices, vectors = [p for p in others if p.ndim >= 2], [p for p in others if p.ndim < 2]
        self._parts: dict[str, AdamW | Muon] = {"adamw": AdamW(matrices, vectors, config.learning_rate, config)}
        if blocks:
            self._parts["muon"] = Muon(
                [p for p in model.parameters() if id(p) in blocks],
                lr=config.muon_learning_rate,
                momentum=config.muon_momentum,
                weight_decay=config.muon_weight_decay,
                dtype=dtype,
            )

    def step(self, fraction: float) -> None:
        """One update with every learning rate at `fraction` of its peak. Does not change the gradients."""
        for part in self._parts.values():
            part.step(fraction)

    def state_dict(self) -> dict[str, Any]:
        """What must survive: the numbered parameter states of each part, laid out like those of torch's optimizers."""
        return {name: {"state": dict(enumerate(part.state))} for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, part in self._parts.items():
            part.state = list(state[name]["state"].values())
