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
from svitlo.durability.sums import read_sums, sum_problem
from svitlo.errors import CheckpointError, ConfigError, DataError
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

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
    num_tokens, window = len(tokenizer.encode(_prompt(question, phase))), model.config.n_positions
    if num_tokens >= window:
        raise ConfigError(f"the prompt has {num_tokens} tokens, the model's window only {window}: shorten it")
    say(f"answer by {name}")
    return complete(model, tokenizer, question, phase, max_new_tokens, temperature)


def complete(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    prompt: str,
    phase: int,
    max_new_tokens: int,
    temperature: float = 0.0,
) -> str:
    """What the model writes after `prompt`: in phase 2 a reply, in phase 1 a continuation. Without the prompt itself.

    With `temperature` 0 the result depends on model and prompt alone, and no random number is drawn.
    """
    import torch
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    window = int(model.config.n_positions)
    ids = tokenizer.encode(_prompt(prompt, phase))
    ids = ids[-max(1, window - max_new_tokens) :] if len(ids) >= window else ids
    inputs = torch.tensor([ids], dtype=torch.long)  # (1, prompt tokens)
    choice: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    penalty = RepetitionPenaltyLogitsProcessor(REPETITION_PENALTY, prompt_ignore_length=len(ids))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            output = model.generate(  # type: ignore[misc] # transformers types `self` as another class
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=min(max_new_tokens, window - len(ids)),
                eos_token_id=END_OF_TEXT,
                pad_token_id=END_OF_TEXT,
                repetition_penalty=1.0,  # an exported model's own setting would count the prompt too
                logits_processor=LogitsProcessorList([penalty]),
                **choice,
            )
    finally:
        model.train(was_training)
    new = output[0, len(ids) :].tolist()
    new = new[: new.index(END_OF_TEXT)] if END_OF_TEXT in new else new
    # Whole text minus prompt: a token alone may be part of a character. The padding token has no text.
    text = tokenizer.decode([token for token in new if token < END_OF_TEXT])
    return text.strip() if phase == 2 else text


def newest_model(volumes: Volumes) -> tuple[GPT2LMHeadModel, int, str]:
    """The newest model with its phase and a description: the exported one unless a checkpoint is newer.

    Raises `CheckpointError` where there is none.
    """
    from svitlo.export import NoModelYet, model_from, newest_state

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
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(volumes.model, local_files_only=True)
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
