"""The output head and the cross-entropy, one chunk of positions at a time, over the whole vocabulary or a part of it.

The logits of a whole batch would be 1024 × 50257 numbers: 206 MB for the head alone. Here they exist for one chunk at a
time. The gradient of the chunk is computed while its logits are at hand, as in fused linear cross-entropy kernels (Hsu
et al., "Liger Kernel", 2024). With the whole vocabulary, arithmetic and result are those of the full softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from svitlo.training.products import add_product, product_into

CHUNK = 512
"""Positions whose logits exist at the same time: 103 MB with 50257 tokens in float32."""
_POSITIONS_MULTIPLE = 32
"""Positions are padded to a multiple of this. Matrix products are compiled for each size, which takes time and memory,
and in phase 2 the number of positions with loss differs from micro-batch to micro-batch."""
_EXACT = 64
"""Positions whose softmax is computed at the same time, in float32."""
_EXACT_WITHOUT_GRADIENT = 16
"""The same in an evaluation: their logits stay in the cache."""
_MULTIPLE = 256
"""The size of a sample is a multiple of this."""
_EXPONENT = 0.75
"""The probability of drawing a token is proportional to its frequency raised to this power."""
_TINY = torch.finfo(torch.float32).tiny
"""A target less probable than this counts as 87 nats."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Cross-entropy over the whole vocabulary, summed over positions, in nats. Computes no gradient.

    `hidden` [positions, width], `weight` [vocabulary, width], `targets` [positions]. Matrices are multiplied as
    `dtype`, as in training. The softmax is always computed in float32.
    """
    losses = torch.empty(len(targets))
    buffer = torch.empty(CHUNK, len(weight), dtype=dtype)
    with torch.no_grad():
        parts = _padded(hidden).to(dtype), targets, losses
        matrix = weight.to(dtype)
        for chunk, target, loss in zip(*(part.split(CHUNK) for part in parts), strict=True):
            product_into(buffer[: len(chunk)], chunk, matrix.T)
            rows = buffer[: len(target)], target, loss
            for logits, its_target, its_loss in zip(*(row.split(_EXACT_WITHOUT_GRADIENT) for row in rows), strict=True):
                log_probabilities = torch.log_softmax(logits.float(), dim=1)
                its_loss.copy_(-log_probabilities.gather(1, its_target[:, None]).squeeze(1))
    return float(losses.double().sum())


def _padded(hidden: Tensor) -> Tensor:
    """[positions, width] with rows of zeros appended, up to a multiple of `_POSITIONS_MULTIPLE`."""
    return functional.pad(hidden, (0, 0, 0, -len(hidden) % _POSITIONS_MULTIPLE))


@dataclass(frozen=True)
class VocabularySample:
    """The part of the vocabulary that the head computes in one step."""

    tokens: Tensor
    """Token ids, int64, ascending. Includes every target of the step. The last one is repeated as padding."""
    corrections: Tensor
    """Nats added to each token's logit: the logarithm of how many tokens it stands for. -∞ for padding."""


class VocabularySampler:
    """Draws the part of the vocabulary for a step: the step's targets, and other tokens by their frequency.

    Importance sampling of the softmax's normaliser (Bengio and Senécal, "Adaptive Importance Sampling to Accelerate
    Training of a Neural Probabilistic Language Model", 2008), with one sample shared by all positions of a step (Jean
    et al., "On Using Very Large Target Vocabulary", 2015). Each token is drawn independently of the others. A token
    drawn with probability p stands for 1 / p tokens (Horvitz and Thompson, 1952). p is proportional to
    (count + 1)^0.75, word2vec's choice (Mikolov et al., 2013), and is 1 for the most frequent tokens.
    """

    def __init__(self, counts: Tensor, num_tokens: int) -> None:
        """`counts` [vocabulary]: how often each token is a target in training. `num_tokens`: mean size of a draw."""
        probabilities = _capped((counts.double() + 1) ** _EXPONENT, num_tokens)
        self._probabilities = probabilities.float()
        self._corrections = -probabilities.log().float()

    def draw(self, targets: Tensor, seed: int) -> VocabularySample:
        """The sample for a step with these `targets`. A pure function of both arguments."""
        generator = torch.Generator().manual_seed(seed)
        is_drawn = torch.rand(len(self._probabilities), generator=generator) < self._probabilities
        is_drawn[targets] = True
        corrections = self._corrections.clone()
        corrections[targets] = 0
        tokens = is_drawn.nonzero().squeeze(1)
        # Memory blocks of a different size in each step leave holes: twice the memory after a thousand steps.
        padding = -len(tokens) % _MULTIPLE
        return VocabularySample(
            functional.pad(tokens, (0, padding), value=int(tokens[-1])),
            functional.pad(corrections[tokens], (0, padding), value=-torch.inf),
        )


def _capped(weights: Tensor, total: int) -> Tensor:
    """Probabilities that add up to `total` and are proportional to the weights wherever they are below 1."""
    is_certain = torch.zeros(len(weights), dtype=torch.bool)
    while total < len(weights):
        scale = (total - is_certain.sum()) / weights[~is_certain].sum()
        grown = is_certain | (weights * scale >= 1)
        if grown.equal(is_certain):
            return (weights * scale).masked_fill(is_certain, 1)
        is_certain = grown
    return torch.ones_like(weights)


class Head:
    """The output head during a phase: collects the gradient of its weight over the micro-batches of a step.

    Call `begin` for each step, `loss_and_gradient` for each micro-batch, then `finish`. Nothing here goes through
    autograd: the caller goes on with the sum of `hidden * gradient`, whose derivative is `gradient`.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """`weight` [vocabulary, width].

        Matrices are multiplied as `dtype`. The softmax and the sums over chunks are always computed in float32.
        """
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        self._weight = weight
        # Memory for all steps, large enough for any sample. The unused part is never touched.
        largest = len(weight) + _MULTIPLE  # with the padding of a sample
        self._all_products = torch.empty(CHUNK * largest, dtype=dtype)
        self._all_gradients = torch.empty(largest * weight.shape[1])

    def begin(self, sample: VocabularySample | None = None) -> None:
        """Begin an optimizer step. `sample`: the part of the vocabulary to compute. None: all of it."""
        self._sample = sample
        whole = self._weight.detach()
        rows = whole if sample is None else whole[sample.tokens]
        self._matrix = rows.to(self._all_products.dtype)
        self._products = self._all_products[: CHUNK * len(rows)].view(CHUNK, len(rows))
        # Stored transposed: of the two factors in its products, the transposed one should be the smaller.
        self._gradient = self._all_gradients[: rows.numel()].view(-1, len(rows)).zero_()

    def loss_and_gradient(self, hidden: Tensor, targets: Tensor, scale: float) -> tuple[float, Tensor]:
        """The summed cross-entropy of `targets` [positions], in nats, and `scale` × its gradient for `hidden`.

        `hidden` [positions, width] and its gradient are float32.
        """
        total = 0.0
        matrix = self._matrix
        padded = _padded(hidden.detach())
        hidden_gradient = torch.zeros_like(padded)
        rows = targets if self._sample is None else torch.searchsorted(self._sample.tokens, targets)
        with torch.no_grad():
            tensors = padded.to(matrix.dtype), rows, hidden_gradient
            for chunk, row, gradient in zip(*(t.split(CHUNK) for t in tensors), strict=True):
                products = self._products[: len(chunk)]
                product_into(products, chunk, matrix.T)
                for part, target in zip(products[: len(row)].split(_EXACT), row[:, None].split(_EXACT), strict=True):
                    total += self._to_gradient(part, target)
                products[len(row) :] = 0  # no loss, no gradient
                add_product(gradient, products, matrix, scale)
                add_product(self._gradient, chunk.T, products, scale)
        return total, hidden_gradient[: len(hidden)]

    def _to_gradient(self, products: Tensor, targets: Tensor) -> float:
        """Replace the logits with the gradient of the loss, computed in float32. Returns the loss."""
        logits = products.float()
        if self._sample is not None:
            logits.add_(self._sample.corrections)
        # In place, one row at a time while it is in the cache: the logits are read and written only once.
        probabilities = torch.softmax(logits, dim=1, out=logits)
        correct = probabilities.gather(1, targets).clamp_min_(_TINY)
        # The gradient of the cross-entropy with respect to the logits: probabilities minus the one-hot target.
        probabilities.scatter_add_(1, targets, torch.full_like(correct, -1.0))
        products.copy_(probabilities)
        return -float(correct.double().log().sum())

    def finish(self) -> None:
        """Add the collected gradient to the gradient of the weight."""
        assert self._weight.grad is not None
        if self._sample is None:
            self._weight.grad.add_(self._gradient.T)
        else:
            self._weight.grad.index_add_(0, self._sample.tokens, self._gradient.T.contiguous())
