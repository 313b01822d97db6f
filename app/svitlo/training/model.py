"""The model: GPT-2 (Radford et al., 2019), randomly initialised, with the embedding and the output head tied.

Weights have the names and shapes of Hugging Face's `GPT2LMHeadModel`, which loads them and gives the same logits. So
the weights in a checkpoint are its state dict, too. The model is written out here because importing transformers takes
three times as long as importing torch, and after a power cut the import is most of the way back to work.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from svitlo.config import ModelConfig
from svitlo.training.activation import gelu
from svitlo.training.attention import causal_attention
from svitlo.training.products import linear

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"


class Linear(nn.Module):
    """A linear layer whose weight is stored [inputs, outputs], as in the original GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[positions, inputs] → [positions, outputs]"""
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Causal self-attention with queries, keys and values side by side in one matrix."""

    def __init__(self, shape: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.c_attn = Linear(shape.width, 3 * shape.width)
        self.c_proj = Linear(shape.width, shape.width)
        self._heads = shape.heads
        self._dropout = dropout

    def forward(self, x: Tensor, length: int) -> Tensor:
        """[sequences × length, width] → the same shape."""
        dropout = self._dropout if self.training else 0.0
        return self.c_proj(causal_attention(self.c_attn(x), length, self._heads, dropout))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers. The hidden one is four times as wide."""

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(shape.width, 4 * shape.width)
        self.c_proj = Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[positions, width] → the same shape"""
        return self.c_proj(gelu(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer, normalised before each part."""

    def __init__(self, shape: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape, dropout)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = FeedForward(shape)
        self._dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, length: int) -> Tensor:
        """[sequences × length, width] → the same shape"""
        x = x + self._dropout(self.attn(self.ln_1(x), length))
        return x + self._dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


def _embedding(rows: int, width: int) -> nn.Embedding:
    """With the weight handed in: without it, the class would draw random numbers by itself."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Transformer(nn.Module):
    """Everything between the embedding of the tokens and the output head."""

    def __init__(self, shape: ModelConfig, vocab_size: int, dropout: float) -> None:
        super().__init__()
        self.wte = _embedding(vocab_size, shape.width)
        self.wpe = _embedding(shape.positions, shape.width)
        self.h = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self._dropout = nn.Dropout(dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embedded tokens [sequences, length, width] → last hidden states [sequences, length, width]."""
        sequences, length, width = embeddings.shape
        x = self._dropout(embeddings + self.wpe.weight[:length]).view(-1, width)
        for block in self.h:
            x = block(x, length)
        return self.ln_f(x).view(sequences, length, width)  # type: ignore[no-any-return]


class GPT2(nn.Module):
    """The whole model."""

    def __init__(
        self, shape: ModelConfig, vocab_size: int, dropout: float = 0.0, weights: dict[str, Tensor] | None = None
    ) -> None:
        """Copies `weights`. Without them, draws random ones from torch's current seed, which takes half a second."""
        super().__init__()
        self.shape = shape
        self.vocab_size = vocab_size
        self.transformer = Transformer(shape, vocab_size, dropout)
        self.lm_head = nn.Linear(shape.width, vocab_size, bias=False, device="meta")  # no memory, no random numbers
        self.lm_head.weight = self.transformer.wte.weight
        if weights is None:
            self._initialise()
        else:
            self.load_state_dict(weights)

    def _initialise(self) -> None:
        """Random weights as in GPT-2: smaller where they add to the residual stream. Biases are 0, norms 1."""
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                is_added = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.shape.layers) if is_added else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [sequences, length] → logits [sequences, length, vocabulary]."""
        return self.lm_head(self.transformer(self.transformer.wte(tokens)))  # type: ignore[no-any-return]


def num_parameters(model: nn.Module) -> int:
    """Number of trainable parameters. The tied embedding counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def grow_vocabulary(state_dict: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The same weights with the tied embedding grown to `vocab_size` rows. New rows are the mean of the old ones.

    A new token then starts as an average one and does not take probability away at random.
    """
    old = state_dict[EMBEDDING]
    mean = old.mean(dim=0, keepdim=True).expand(vocab_size - old.shape[0], -1)
    grown = torch.cat([old, mean])
    return {**state_dict, EMBEDDING: grown, HEAD: grown}


def embedded(model: GPT2, tokens: Tensor) -> Tensor:
    """The embeddings of `tokens` as a leaf of the graph, so that only these rows get a gradient.

    torch's own backward pass of an embedding fills a vocabulary-sized matrix for each micro-batch.
    """
    return functional.embedding(tokens, model.transformer.wte.weight.detach()).requires_grad_()


def add_embedding_gradient(model: GPT2, tokens: Tensor, rows: Tensor) -> None:
    """Add the gradient of `embedded`'s result to that of the embedding matrix."""
    weight = model.transformer.wte.weight
    assert weight.grad is not None
    assert rows.grad is not None
    weight.grad.index_add_(0, tokens.flatten(), rows.grad.flatten(0, -2))
