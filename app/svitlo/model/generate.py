"""`svitlo generate "…"`: the newest model answers, also while training goes on.

Only reads: a checkpoint or an exported model never changes once it has its name, so no lock is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import CheckpointError, ConfigError, DataError
from svitlo.model.weights import NoModelYet, model_from, newest_state
from svitlo.phases import Phase, phase_numbered
from svitlo.storage.sums import read_sums, sum_problem
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.training.model import GPT2

MAX_GENERATION_THREADS = 4


def answer(
    volumes: Volumes,
    question: str,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    seed: int | None = None,
    say: Callable[[str], object] = lambda message: print(message, file=sys.stderr, flush=True),
) -> str:
    """Let the newest model answer a question, or continue a text after pre-training. `say` is told which model it is.

    `temperature` 0 always takes the likeliest token. Raises `CheckpointError` where there is no model yet and
    `ConfigError` for what the model cannot take.
    """
    from svitlo.training import numerics
    from svitlo.training.sampling import complete, prompt_tokens

    # Training has the cores; an answer of a few seconds need not take them all.
    numerics.set_threads(min(MAX_GENERATION_THREADS, len(os.sched_getaffinity(0))))
    model, phase, name = newest_model(volumes, say)
    if phase.is_chat and not question.strip():
        raise ConfigError('the question is empty: give some text, as in `svitlo generate "What is water?"`')
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    tokenizer = Tokenizer()
    num_tokens, window = len(prompt_tokens(tokenizer, question, phase)), model.shape.positions
    if num_tokens >= window:
        raise ConfigError(f"the prompt has {num_tokens} tokens, the model's window only {window}: shorten it")
    say(f"answer by {name}")
    return complete(model, tokenizer, question, phase, max_new_tokens, temperature)


def newest_model(volumes: Volumes, say: Callable[[str], object]) -> tuple[GPT2, Phase, str]:
    """The newest model with its phase and a description: the exported one unless a checkpoint is newer.

    `say` is told of damaged checkpoints. Raises `CheckpointError` where there is no model.
    """
    record = exported_record(volumes)
    state = None
    try:
        state = newest_state(volumes, say)
    except CheckpointError as error:
        if record is None:
            raise
        if not isinstance(error, NoModelYet):
            say(f"warning: {error}")
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
        phase = phase_numbered(record["phase"])
        return model, phase, f"the exported model ({phase}, step {record['step']:,})"
    assert state is not None
    phase = phase_numbered(state.phase)
    return model_from(state), phase, f"the newest checkpoint ({phase}, step {state.global_step:,})"


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
