"""Builds what a phase works with: from the newest checkpoint if there is one, else from scratch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from svitlo.config import ModelConfig, PhaseConfig, ReportingConfig
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import ConfigError, DataError
from svitlo.interruption import Interruption
from svitlo.machine import num_cores
from svitlo.manifest import Manifest
from svitlo.phases import PHASES, Phase
from svitlo.reporting.observer import Observer
from svitlo.storage.files import digest_of
from svitlo.training import numerics
from svitlo.training.batches import Batches
from svitlo.training.checkpoints import (
    find_best,
    find_newest,
    load_checkpoint,
    note_run,
    noted_run,
    set_aside_newer,
)
from svitlo.training.gradient import Gradient
from svitlo.training.identity import changes_since, differences
from svitlo.training.loop import PhaseRun, planned_steps
from svitlo.training.loss import VocabularySampler
from svitlo.training.machine_check import MachineCheck
from svitlo.training.model import GPT2, num_parameters
from svitlo.training.optimizer import PhaseOptimizer
from svitlo.training.phase import TrainingPhase, training_phase
from svitlo.training.sampling import complete
from svitlo.training.saving import Saver, checkpoint_size, require_room
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes


def set_up_phase(
    *,
    volumes: Volumes,
    config: PhaseConfig,
    manifest: Manifest,
    resume: Path | None,
    interruption: Interruption,
    observer: Observer,
) -> PhaseRun | None:
    """Everything that the loop needs, at the step that the phase has reached. None if the phase is already over."""
    numerics.keep_freed_memory()
    numerics.set_threads(config.numerics.threads)
    phase = manifest.phase
    kind, folder = training_phase(phase), volumes.checkpoints(phase)
    state = _saved_state(volumes, phase, resume, observer)
    is_resumed = state is not None
    if state is None:
        state = _fresh_state(volumes, kind, config, manifest, observer)
    else:
        _refuse_another_run(state, config, manifest, volumes, observer)
        if not config.training.auto_resume and resume is None and not state.finished:
            raise ConfigError(
                f"{phase.config_file}: training.auto_resume = false, and {folder} holds a checkpoint of step "
                f"{state.global_step:,}. Set it to true to go on, or move the run aside with `make new-run`"
            )
    if resume is not None:  # only now: a file that is refused moves nothing
        set_aside_newer(folder, state.global_step, state.run_id)
    note_run(volumes.run_record, state.run_id)
    if state.finished:
        return None
    require_room(folder, checkpoint_size(state))

    model = GPT2(ModelConfig(**state.model), state.vocab_size, config.training.dropout, state.model_state_dict)
    precision = str(state.numerics["precision"])
    optimizer = PhaseOptimizer(model, config.training, numerics.DTYPES[precision])
    if state.optimizer_state_dict:
        optimizer.load_state_dict(state.optimizer_state_dict)
    train, validation = (_batches(volumes, kind, config, manifest, state, split) for split in ("train", "validation"))
    num_steps = planned_steps(config, train)
    if is_resumed:
        observer.resumed(state, num_steps, train.steps_per_epoch)
    else:
        observer.began(state, kind.origin, num_steps, num_parameters(model))
        if phase is PHASES[0] and config.numerics.threads != num_cores():
            observer.threads_do_not_fit(config.numerics.threads, num_cores(), phase.config_file)
    sampler = VocabularySampler(train.target_counts(state.vocab_size), config.head.sampled_tokens)
    return PhaseRun(
        state=state,
        config=config,
        model=model,
        gradient=Gradient(model, sampler, precision, phase.number, config.training.seed),
        optimizer=optimizer,
        train=train,
        validation=validation,
        saver=Saver(folder, config.checkpoints, observer, interruption, state.global_step if is_resumed else -1),
        interruption=interruption,
        observer=observer,
        write_samples=_sample_writer(config.reporting, phase),
        machine_check=MachineCheck(observer.clock),
        whole_head_cost=kind.whole_head_cost,
    )


def _saved_state(volumes: Volumes, phase: Phase, resume: Path | None, observer: Observer) -> TrainingState | None:
    """The state to go on from: the file that the user has chosen, or the newest usable one."""
    folder = volumes.checkpoints(phase)
    if resume is None:
        run_id = noted_run(volumes.run_record)
        return find_newest(folder, phase, run_id=run_id, set_aside=True, on_rejected=observer.fell_back)
    return load_checkpoint(resume, phase)


def _fresh_state(
    volumes: Volumes, kind: TrainingPhase, config: PhaseConfig, manifest: Manifest, observer: Observer
) -> TrainingState:
    """Step 0 of a phase."""

    def best_of(phase: Phase) -> TrainingState:
        run_id = noted_run(volumes.run_record)
        folder = volumes.checkpoints(phase)
        return find_best(folder, phase, run_id=run_id, set_aside=True, on_rejected=observer.fell_back)

    beginning = kind.begin(config, manifest, best_of)
    identity = config.identity()
    return TrainingState(
        phase=kind.phase.number,
        vocab_size=beginning.vocab_size,
        model=beginning.shape.model_dump(),
        configuration=identity,
        configuration_digest=digest_of(identity),
        data_digest=manifest.digest,
        numerics=numerics.describe(config.numerics.threads, numerics.resolve_precision(config.numerics.precision)),
        run_id=beginning.run_id,
        model_state_dict=beginning.weights,
    )


def _refuse_another_run(
    state: TrainingState, config: PhaseConfig, manifest: Manifest, volumes: Volumes, observer: Observer
) -> None:
    """Raise if configuration or data differ from those of the checkpoint. Report a machine with other numerics."""
    phase = manifest.phase
    changes = changes_since(state.configuration, config)
    if changes:
        raise ConfigError(
            f"{phase.config_file}: the configuration has changed since this run began (step {state.global_step:,} of "
            f"{phase}): {'; '.join(changes)}. Undo the change, or begin another run with `make new-run`"
        )
    if state.data_digest != manifest.digest:
        raise DataError(
            f"{volumes.data(phase) / 'manifest.json'}: not the data that this run began with (now "
            f"{manifest.digest[:12]}, then {state.data_digest[:12]}). Restore data.yaml and the source files, so that "
            f"data-prep makes the same shards again, or begin another run with `make new-run`"
        )
    here = numerics.describe(config.numerics.threads, state.numerics["precision"])
    changes = differences(state.numerics, here)
    if changes:
        observer.numerics_changed("; ".join(changes))


def _batches(
    volumes: Volumes,
    kind: TrainingPhase,
    config: PhaseConfig,
    manifest: Manifest,
    state: TrainingState,
    split: str,
) -> Batches:
    folder = volumes.data(kind.phase)
    batches = kind.batches(folder, manifest, split, config, state)
    if batches.num_sequences < 1:
        raise DataError(
            f"{folder}: the {split} data is shorter than one sequence of {state.model['positions']} tokens. Add text, "
            f"or raise validation_fraction in data.yaml if it is the validation data"
        )
    return batches


def _sample_writer(reporting: ReportingConfig, phase: Phase) -> Callable[[GPT2], list[tuple[str, str]]]:
    def write_samples(model: GPT2) -> list[tuple[str, str]]:
        tokenizer = Tokenizer()  # loaded here, so that a start after a power cut does not wait for it
        return [
            (prompt, complete(model, tokenizer, prompt, phase, reporting.sample_tokens))
            for prompt in (reporting.sample_prompts if reporting.sample_tokens else [])
        ]

    return write_samples
