"""Text generation, one token at a time, for the samples of an evaluation and for `svitlo generate`."""

from __future__ import annotations

import torch
from torch import Tensor

from svitlo.data.conversations import prompt_text
from svitlo.data.tokenizer import END_OF_TEXT_TOKEN, Tokenizer
from svitlo.phases import Phase
from svitlo.training.model import GPT2

REPETITION_PENALTY = 1.15
"""Small models repeat themselves when they always take the most likely token. Keskar et al. 2019 (CTRL) suggest 1.2.
Only tokens that the model itself has written count: an answer often repeats words of the question."""


def complete(
    model: GPT2, tokenizer: Tokenizer, prompt: str, phase: Phase, max_new_tokens: int, temperature: float = 0.0
) -> str:
    """What the model of a phase writes after `prompt`: a reply or a continuation, without the prompt itself.

    With `temperature` 0 no random number is drawn, and the result depends on model and prompt alone.
    """
    window = model.shape.positions
    ids = prompt_tokens(tokenizer, prompt, phase)
    ids = ids[-max(1, window - max_new_tokens) :] if len(ids) >= window else ids
    text = tokenizer.decode(continuation(model, ids, max_new_tokens, temperature))
    return text.strip() if phase.is_chat else text


def prompt_tokens(tokenizer: Tokenizer, prompt: str, phase: Phase) -> list[int]:
    """The tokens that the model of a phase gets: the prompt, put as a question if the phase learns to reply.

    An empty text begins as every document does in training: after the end of another one.
    """
    return tokenizer.encode(prompt_text(prompt) if phase.is_chat else prompt) or [END_OF_TEXT_TOKEN]


def continuation(model: GPT2, ids: list[int], max_new_tokens: int, temperature: float = 0.0) -> list[int]:
    """The tokens that the model writes after `ids`, up to its `<|endoftext|>` or the end of the window."""
    written: list[int] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            while len(written) < max_new_tokens and len(ids) + len(written) < model.shape.positions:
                logits = last_logits(model, ids + written)
                repeated = torch.tensor(sorted(set(written)), dtype=torch.long)
                values = logits[repeated]
                logits[repeated] = torch.where(values > 0, values / REPETITION_PENALTY, values * REPETITION_PENALTY)
                if temperature > 0:
                    token = int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1))
                else:
                    token = int(logits.argmax())
                if token == END_OF_TEXT_TOKEN:
                    break
                written.append(token)
    finally:
        model.train(was_training)
    return [token for token in written if token < END_OF_TEXT_TOKEN]  # the padding token has no text


def last_logits(model: GPT2, ids: list[int]) -> Tensor:
    """The logits [vocabulary] of the token after `ids`. Computes the head for the last position only."""
    hidden = model.transformer(model.transformer.wte(torch.tensor([ids])))
    logits: Tensor = model.lm_head(hidden[0, -1])
    return logits
