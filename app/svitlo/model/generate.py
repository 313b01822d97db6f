"""`svitlo generate "…"`: the newest model answers, also while training goes on.

Only reads: a checkpoint or an exported model never changes once it has its name, so no lock is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from svitlo.data.conversations import prompt_text
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import CheckpointError, ConfigError, DataError
from svitlo.storage.sums import read_sums, sum_problem
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from torch import Tensor

    from svitlo.training.model import GPT2

END_OF_TEXT = 50_256
REPETITION_PENALTY = 1.15
"""Small models repeat themselves when they always take the likeliest token. Keskar et al. 2019 (CTRL) suggest 1.2.
Only what the model itself has written counts: an answer is often made of words of the question."""
MAX_GENERATION_THREADS = 4


def answer(
    volumes: Volumes,
    question: str,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    seed: int | None = None,
    say: Callable[[str], object] = lambda message: print(message, file=sys.stderr, flush=True),
) -> str:
    """Let the newest model answer (after phase 2) or continue the text (phase 1). `say` is told which model it is.

    `temperature` 0 always takes the likeliest token. Raises `CheckpointError` where there is no model yet and
    `ConfigError` for what the model cannot take.
    """
    if not question.strip():
        raise ConfigError('the prompt is empty: give some text, as in `svitlo generate "What is water?"`')
    if max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens = {max_new_tokens}: must be at least 1")
    if temperature < 0:
        raise ConfigError(f"--temperature = {temperature}: must be 0 (the likeliest token) or more")
    from svitlo.training import numerics

    # Training has the cores; an answer of a few seconds need not take them all.
    numerics.set_threads(min(MAX_GENERATION_THREADS, len(os.sched_getaffinity(0))))
    model, phase, name = newest_model(volumes)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    tokenizer = Tokenizer()
    num_tokens, window = len(tokenizer.encode(_prompt(question, phase))), model.shape.positions
    if num_tokens >= window:
        raise ConfigError(f"the prompt has {num_tokens} tokens, the model's window only {window}: shorten it")
    say(f"answer by {name}")
    return complete(model, tokenizer, question, phase, max_new_tokens, temperature)


def complete(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    phase: int,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> str:
    """What the model writes after `prompt`: in phase 2 a reply, in phase 1 a continuation. Without the prompt itself.

    With `temperature` 0 the result depends on model and prompt alone, and no random number is drawn.
    """
    window = model.shape.positions
    ids = tokenizer.encode(_prompt(prompt, phase))
    ids = ids[-max(1, window - max_new_tokens) :] if len(ids) >= window else ids
    text = tokenizer.decode(continuation(model, ids, max_new_tokens, temperature))
    return text.strip() if phase == 2 else text


def continuation(model: GPT2, ids: list[int], max_new_tokens: int, temperature: float = 0.0) -> list[int]:
    """The tokens that the model writes after `ids`, up to its `<|endoftext|>` or the end of the window."""
    import torch

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
                if token == END_OF_TEXT:
                    break
                written.append(token)
    finally:
        model.train(was_training)
    return [token for token in written if token < END_OF_TEXT]  # the padding token has no text


def last_logits(model: GPT2, ids: list[int]) -> Tensor:
    """The logits [vocabulary] of the token after `ids`: the head only where it is needed."""
    import torch

    hidden = model.transformer(model.transformer.wte(torch.tensor([ids])))
    logits: Tensor = model.lm_head(hidden[0, -1])
    return logits


def newest_model(volumes: Volumes) -> tuple[GPT2, int, str]:
    """The newest model with its phase and a description: the exported one unless a checkpoint is newer.

    Raises `CheckpointError` where there is none.
    """
    from svitlo.model.export import NoModelYet, model_from, newest_state

    record = exported_record(volumes)
    try:
        state = newest_state(volumes)
    except NoModelYet:
        state = None
    except CheckpointError:
        if record is None:
            raise
        state = None
    if record is not None and (
        state is None
        or (record["run_id"], record["phase"], record["last_step"]) == (state.run_id, state.phase, state.global_step)
    ):
        from safetensors.torch import load_file

        from svitlo.config import ModelConfig
        from svitlo.training.model import EMBEDDING, GPT2, HEAD

        weights = load_file(volumes.model / "model.safetensors")  # where tied tensors are stored once
        weights[HEAD] = weights[EMBEDDING]
        model = GPT2(ModelConfig(**record["model"]), record["vocab_size"], weights=weights)
        model.eval()
        return model, record["phase"], f"the exported model (phase {record['phase']}, step {record['step']:,})"
    if state is None:
        raise CheckpointError(
            f"{volumes.root}: there is no model yet: no export and no checkpoint. Training saves the first "
            f"one within a minute of its start; `svitlo status` shows where it is"
        )
    description = f"the newest checkpoint (phase {state.phase}, step {state.global_step:,})"
    return model_from(state), state.phase, description


def exported_record(volumes: Volumes) -> dict[str, Any] | None:
    """The training record of the exported model, or None where there is no complete, undamaged one."""
    folder = volumes.model
    try:
        sums = read_sums(folder)
        if any(sum_problem(folder, name, expected) for name, expected in sums.items()):
            return None
        record = json.loads((folder / "training_record.json").read_bytes())
    except (DataError, OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"run_id", "phase", "step", "last_step"} <= set(record) else None


def _prompt(text: str, phase: int) -> str:
    return prompt_text(text) if phase == 2 else text
