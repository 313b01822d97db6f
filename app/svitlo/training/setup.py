"""Builds what a phase works with: a fresh start, or the newest checkpoint if there is one."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from svitlo.config import PHASE_FILES, ModelConfig, Phase1Config, Phase2Config
from svitlo.data.shards import ConversationSet, Manifest, TokenStream
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import ConfigError, DataError
from svitlo.interruption import Interruption
from svitlo.model.generate import complete
from svitlo.reporting.progress import Progress
from svitlo.storage.files import digest_of
from svitlo.training import numerics
from svitlo.training.batches import Batches, ConversationBatches, TextBatches
from svitlo.training.checkpoints import (
    Rejected,
    TrainingState,
    find_best,
    find_newest,
    load_checkpoint,
    note_run,
    noted_run,
    require_room,
    set_aside_newer,
)
from svitlo.training.identity import changes_since, differences
from svitlo.training.loop import PhaseRun, planned_steps
from svitlo.training.loss import Head, VocabularySampler
from svitlo.training.model import GPT2, grow_vocabulary, num_parameters
from svitlo.training.optimizer import PhaseOptimizer
from svitlo.volumes import Volumes


def phase_of(path: Path) -> int:
    """The phase of a checkpoint file. Raises `CheckpointError`."""
    return load_checkpoint(path).phase


def finished_phases(volumes: Volumes) -> tuple[int, ...]:
    """The phases whose newest checkpoint says that they are over."""
    states = {phase: find_newest(volumes.checkpoints(phase), phase, lambda _: None) for phase in (1, 2)}
    return tuple(phase for phase, state in states.items() if state is not None and state.finished)


def prepare_phase(
    *,
    volumes: Volumes,
    config: Phase2Config,
    phase: int,
    manifest: Manifest,
    resume: Path | None,
    interruption: Interruption,
    progress: Progress,
) -> PhaseRun | None:
    """Everything that the loop needs, at the step where the phase stands; None where the phase is over already."""
    numerics.keep_freed_memory()
    numerics.set_threads(config.numerics.threads)
    folder = volumes.checkpoints(phase)

    def on_rejected(rejected: Rejected) -> None:
        progress.fell_back(rejected)

    state: TrainingState | None
    if resume is not None:
        state = load_checkpoint(resume, phase)
        set_aside_newer(folder, state.global_step, state.run_id)
    else:
        state = find_newest(folder, phase, on_rejected, noted_run(volumes.run_record))
    if state is None:
        state = _fresh_state(volumes, config, phase, manifest, on_rejected)
        is_resumed = False
    else:
        _refuse_another_run(state, config, manifest, volumes, progress)
        if not config.training.auto_resume and resume is None and not state.finished:
            raise ConfigError(
                f"{PHASE_FILES[phase]}: training.auto_resume = false, and {folder} holds a checkpoint of step "
                f"{state.global_step:,}. Set it to true to go on, or move the run aside with `make new-run`"
            )
        is_resumed = True
    note_run(volumes.run_record, state.run_id)
    if state.finished:
        return None
    require_room(folder, _checkpoint_size(state))

    shape = ModelConfig(**state.model)
    model = GPT2(shape, state.vocab_size, config.training.dropout, state.model_state_dict)
    dtype = numerics.DTYPES[state.numerics["precision"]]
    optimizer = PhaseOptimizer(model, config.training, dtype)
    if state.optimizer_state_dict:
        optimizer.load_state_dict(state.optimizer_state_dict)
    train, validation = (_batches(volumes, config, phase, manifest, state, split) for split in ("train", "validation"))
    num_steps = planned_steps(config, train)
    if is_resumed:
        progress.resumed(state, num_steps, train.steps_per_epoch)
    else:
        progress.began(state, num_steps, num_parameters(model))
    return PhaseRun(
        state=state,
        model=model,
        optimizer=optimizer,
        head=Head(model.lm_head.weight, dtype),
        sampler=VocabularySampler(train.target_counts(state.vocab_size), config.head.sampled_tokens),
        train=train,
        validation=validation,
        config=config,
        folder=folder,
        interruption=interruption,
        progress=progress,
        write_samples=_sample_writer(config, phase),
    )


def _fresh_state(
    volumes: Volumes,
    config: Phase2Config,
    phase: int,
    manifest: Manifest,
    on_rejected: Callable[[Rejected], None],
) -> TrainingState:
    """Step 0: random weights in phase 1; in phase 2 phase 1's best weights with a row for the padding token."""
    identity = config.identity()
    if phase == 1:
        assert isinstance(config, Phase1Config)
        shape, vocab_size = config.model, manifest.vocab_size
        run_id = uuid.uuid4().hex[:12]
        torch.manual_seed(numerics.seed_for("weights", config.training.seed))
        weights = GPT2(shape, vocab_size).state_dict()
    else:
        before = find_best(volumes.checkpoints(1), 1, on_rejected, noted_run(volumes.run_record))
        shape, vocab_size, run_id = ModelConfig(**before.model), before.vocab_size + 1, before.run_id
        weights = grow_vocabulary(before.model_state_dict, vocab_size)
    return TrainingState(
        phase=phase,
        vocab_size=vocab_size,
        model=shape.model_dump(),
        configuration=identity,
        configuration_digest=digest_of(identity),
        data_digest=manifest.digest,
        numerics=numerics.describe(config.numerics.threads, numerics.resolve_precision(config.numerics.precision)),
        run_id=run_id,
        model_state_dict=weights,
    )


def _checkpoint_size(state: TrainingState) -> int:
    """About how many bytes a checkpoint has: the weights (tied ones once) and two moments for each."""
    sizes: dict[int, int] = {}
    for weights in state.model_state_dict.values():
        storage = weights.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return 3 * sum(sizes.values())


def _refuse_another_run(
    state: TrainingState, config: Phase2Config, manifest: Manifest, volumes: Volumes, progress: Progress
) -> None:
    """Raise where configuration or data are not those that the checkpoint was made with; note a different machine."""
    file = PHASE_FILES[state.phase]
    changes = changes_since(state.configuration, config)
    if changes:
        raise ConfigError(
            f"{file}: the configuration has changed since this run began (step {state.global_step:,} of phase "
            f"{state.phase}): {'; '.join(changes)}. Take the change back, or begin another run with `make new-run`"
        )
    if state.data_digest != manifest.digest:
        raise DataError(
            f"{volumes.data(state.phase) / 'manifest.json'}: not the data that this run began with (now "
            f"{manifest.digest[:12]}, then {state.data_digest[:12]}). Restore data.yaml and the source files, so that "
            f"data-prep makes the same shards again, or begin another run with `make new-run`"
        )
    here = numerics.describe(config.numerics.threads, state.numerics["precision"])
    changes = differences(state.numerics, here)
    if changes:
        progress.numerics_changed("; ".join(changes))


def _batches(
    volumes: Volumes, config: Phase2Config, phase: int, manifest: Manifest, state: TrainingState, split: str
) -> Batches:
    folder, training, positions = volumes.data(phase), config.training, int(state.model["positions"])
    sizes = (training.micro_batch, training.gradient_accumulation, training.seed)
    batches: Batches
    if phase == 1:
        batches = TextBatches(TokenStream(folder, manifest, split), positions, *sizes)
    else:
        window = int(manifest.configuration["sequence_length"])
        if window > positions:
            raise ConfigError(
                f"data.yaml: phase2.sequence_length = {window}, but the model has {positions} positions "
                f"({PHASE_FILES[1]}: model.positions). Make the first at most the second"
            )
        batches = ConversationBatches(ConversationSet(folder, manifest, split), state.vocab_size - 1, *sizes)
    if batches.num_sequences < 1:
        raise DataError(
            f"{folder}: the {split} data is shorter than one sequence of {positions} tokens. Add text, or raise "
            f"validation_fraction in data.yaml if it is the validation data"
        )
    return batches


def _sample_writer(config: Phase2Config, phase: int) -> Callable[[GPT2], list[tuple[str, str]]]:
    reporting = config.reporting

    def write_samples(model: GPT2) -> list[tuple[str, str]]:
        tokenizer = Tokenizer()  # read here, and not while a start after a power cut waits for it
        return [
            (prompt, complete(model, tokenizer, prompt, phase, reporting.sample_tokens))
            for prompt in (reporting.sample_prompts if reporting.sample_tokens else [])
        ]

    return write_samples
