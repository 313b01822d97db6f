"""The output head and the cross-entropy, a chunk of positions at a time, over the whole vocabulary or a part of it.

The logits of a whole batch would be 1024 × 50257 numbers, 206 MB, for the head alone. Here they exist for one chunk,
and the gradient of the chunk is computed while its logits are at hand, as in fused linear cross-entropy kernels
(Hsu et al., "Liger Kernel", 2024). With the whole vocabulary, arithmetic and result are those of the full softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from svitlo.training.products import add_product, product_into

CHUNK = 512
"""Positions whose logits exist at one time: 103 MB with 50257 tokens in float32."""
_CHUNK_WITHOUT_GRADIENT = 128
"""Where nothing is added up, small and new memory is quicker."""
_POSITIONS_MULTIPLE = 32
"""Positions are padded to a multiple of this: matrix products are compiled for each size, which takes time and memory,
and in phase 2 every micro-batch has another number of positions with loss."""
_EXACT = 64
"""Positions whose softmax is computed at one time, in float32."""
_MULTIPLE = 256
"""The size of a sample is a multiple of this."""
_EXPONENT = 0.75
"""Of a token's frequency, in its probability to be drawn."""
_TINY = torch.finfo(torch.float32).tiny
"""A target less probable than this counts as 87 nats."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Cross-entropy summed over positions, in nats, over the whole vocabulary; no gradient.

    `hidden` [positions, width], `weight` [vocabulary, width], `targets` [positions].
    """
    total = 0.0
    buffer = torch.empty(_CHUNK_WITHOUT_GRADIENT, len(weight))
    with torch.no_grad():
        for chunk, target in zip(_padded(hidden).split(len(buffer)), targets.split(len(buffer)), strict=True):
            product_into(buffer[: len(chunk)], chunk, weight.T)
            logits = buffer[: len(target)]
            log_probabilities = torch.log_softmax(logits, dim=1, out=logits)
            total -= float(log_probabilities.gather(1, target[:, None]).double().sum())
    return total


def _padded(hidden: Tensor) -> Tensor:
    """[positions, width] with rows of zeros up to a multiple of positions."""
    return functional.pad(hidden, (0, 0, 0, -len(hidden) % _POSITIONS_MULTIPLE))


@dataclass(frozen=True)
class VocabularySample:
    """The part of the vocabulary that the head computes in one step."""

    tokens: Tensor
    """Token ids, int64, ascending; every target of the step is among them. The last one is repeated as padding."""
    corrections: Tensor
    """Nats added to each token's logit: the logarithm of how many tokens it stands for; -∞ for padding."""


class VocabularySampler:
    """Draws the part of the vocabulary for a step: the step's targets, and others the likelier the more frequent.

    Importance sampling of the softmax's normaliser (Bengio and Senécal, "Adaptive Importance Sampling to Accelerate
    Training of a Neural Probabilistic Language Model", 2008), with one sample shared by all positions of a step (Jean
    et al., "On Using Very Large Target Vocabulary", 2015). Each token is drawn or not, independent of the others, and
    one that is drawn with probability p stands for 1 / p tokens (Horvitz and Thompson, 1952). p is proportional to
    (count + 1)^0.75, word2vec's choice (Mikolov et al., 2013), and 1 for the most frequent tokens.
    """

    def __init__(self, counts: Tensor, num_tokens: int) -> None:
        """`counts` [vocabulary]: how often each token is a target in training; `num_tokens`: size of a draw."""
        probabilities = _capped((counts.double() + 1) ** _EXPONENT, num_tokens)
        self._probabilities = probabilities.float()
        self._corrections = -probabilities.log().float()

    def draw(self, targets: Tensor, seed: int) -> VocabularySample:
        """The sample for a step with these `targets`; a pure function of both arguments."""
        generator = torch.Generator().manual_seed(seed)
        is_drawn = torch.rand(len(self._probabilities), generator=generator) < self._probabilities
        is_drawn[targets] = True
        corrections = self._corrections.clone()
        corrections[targets] = 0
        tokens = is_drawn.nonzero().squeeze(1)
        # Blocks of memory with another size in each step would leave holes: twice the memory after a thousand steps.
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

    For each step `begin`, for each micro-batch `loss_and_gradient`, and `finish`. Nothing here goes through autograd:
    the caller goes on with `hidden.backward(gradient)`.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """`weight` [vocabulary, width].

        Matrices are multiplied as `dtype`; the softmax and the sums over chunks are computed in float32 all the same.
        """
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        self._weight = weight
        # Memory for all steps, whatever the size of their samples; what is not used is never touched.
        largest = len(weight) + _MULTIPLE  # with the padding of a sample
        self._all_products = torch.empty(CHUNK * largest, dtype=dtype)
        self._all_gradients = torch.empty(largest * weight.shape[1])

    def begin(self, sample: VocabularySample | None = None) -> None:
        """Begin an optimizer step. `sample`: the part of the vocabulary to compute, or all of it."""
        self._sample = sample
        whole = self._weight.detach()
        rows = whole if sample is None else whole[sample.tokens]
        self._matrix = rows.to(self._all_products.dtype)
        self._products = self._all_products[: CHUNK * len(rows)].view(CHUNK, len(rows))
        # Transposed, because of the two factors of its products the transposed one should be the small one.
        self._gradient = self._all_gradients[: rows.numel()].view(-1, len(rows)).zero_()

    def loss_and_gradient(self, hidden: Tensor, targets: Tensor, scale: float) -> tuple[float, Tensor]:
        """The cross-entropy of `targets` [positions] summed, in nats, and the gradient of `scale` × it for `hidden`.

        `hidden` [positions, width], as its gradient, is float32.
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
        """Put the gradient of the loss in the place of the logits, in float32 in between. Returns the loss."""
        logits = products.float()
        if self._sample is not None:
            logits.add_(self._sample.corrections)
        # In place, a row at a time while it is in the cache: the logits are read and written only once.
        probabilities = torch.softmax(logits, dim=1, out=logits)
        correct = probabilities.gather(1, targets).clamp_min_(_TINY)
        # The gradient of the cross-entropy with respect to the logits: probabilities minus the one-hot target.
        probabilities.scatter_add_(1, targets, torch.full_like(correct, -1.0))
        products.copy_(probabilities)
        return -float(correct.double().log().sum())

    def finish(self) -> None:
        """Add what was collected to the gradient of the weight."""
        assert self._weight.grad is not None
        if self._sample is None:
            self._weight.grad.add_(self._gradient.T)
        else:
            self._weight.grad.index_add_(0, self._sample.tokens, self._gradient.T.contiguous())
