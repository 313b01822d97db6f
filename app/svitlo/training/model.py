"""The model: Hugging Face's GPT-2, randomly initialised, with the embedding and the output head tied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from svitlo.config import ModelConfig
from svitlo.data.shards import END_OF_TEXT

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"


def build_model(shape: ModelConfig, vocab_size: int, dropout: float = 0.0) -> GPT2LMHeadModel:
    """A model with random weights from torch's current seed."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        # The same function as `gelu_new`, computed by one fused kernel.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=vocab_size - 1 if vocab_size > END_OF_TEXT + 1 else None,
        use_cache=True,
    )
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("sdpa")
    return model


def num_parameters(model: GPT2LMHeadModel) -> int:
    """Trainable numbers; the tied embedding counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def grow_vocabulary(state_dict: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The same weights with the tied embedding grown to `vocab_size` rows; new rows are the mean of the old ones.

    A new token then starts as an average one, instead of taking probability away at random.
    """
    old = state_dict[EMBEDDING]
    mean = old.mean(dim=0, keepdim=True).expand(vocab_size - old.shape[0], -1)
    grown = torch.cat([old, mean])
    return {**state_dict, EMBEDDING: grown, HEAD: grown}


def embedded(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """The embeddings of `tokens` as a leaf of the graph, so that only these rows get a gradient.

    torch's own backward pass of an embedding fills a matrix as large as the vocabulary for each micro-batch.
    """
    rows = torch.nn.functional.embedding(tokens, model.transformer.wte.weight.detach())
    return rows.requires_grad_()


def add_embedding_gradient(model: GPT2LMHeadModel, tokens: Tensor, rows: Tensor) -> None:
    """Add the gradient of `embedded`'s result to that of the embedding matrix."""
    weight = model.transformer.wte.weight
    assert weight.grad is not None
    assert rows.grad is not None
    weight.grad.index_add_(0, tokens.flatten(), rows.grad.flatten(0, -2))
