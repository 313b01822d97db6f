"""`phase1_pretraining.yaml`, `phase2_instruction_tuning.yaml`: how the phases train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from svitlo.config.reading import Count, Section, load
from svitlo.errors import ConfigError
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING, Phase

_LONGEST_SECONDS = 10_000_000
"""115 days. The system's timers do not take any number."""


class ModelConfig(Section):
    """The shape of the GPT-2 model."""

    layers: int = Field(default=6, ge=1, le=96)
    width: int = Field(default=320, ge=8, le=8_192)
    """Embedding and hidden size; a multiple of `heads`."""
    heads: int = Field(default=5, ge=1, le=8_192)
    positions: int = Field(default=256, ge=32, le=4_096)
    """The window in tokens."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"`width` ({self.width}) must be a multiple of `heads` ({self.heads})")
        return self


class TrainingConfig(Section):
    """How long to train, and how."""

    max_epochs: Count = 3
    """At most this many passes over the training data."""
    max_steps: Count | None = None
    """At most this many optimizer steps. Empty means as many as `max_epochs` gives."""
    micro_batch: int = Field(default=4, ge=1, le=65_536)
    """Sequences in one forward and backward pass."""
    gradient_accumulation: Count = 4
    """Micro-batches in one optimizer step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the matrices of the blocks, AdamW for the rest. `adamw`: AdamW for all."""
    learning_rate: float = Field(default=5e-3, gt=0, lt=1)
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = Field(default=0.02, gt=0, lt=1)
    """Peak learning rate of Muon."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    muon_weight_decay: float = Field(default=0.1, ge=0, le=1_000)
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly to its peak."""
    schedule: Literal["cosine", "linear", "trapezoid"] = "linear"
    """How the learning rates fall after the warm-up. `trapezoid` keeps the peak until the last `decay_fraction`."""
    decay_fraction: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps over which `trapezoid` falls."""
    final_learning_rate_fraction: float = Field(default=0.0, ge=0, le=1)
    """The learning rates fall to this share of their peak."""
    weight_decay: float = Field(default=0.1, ge=0, le=1_000)
    """Weight decay of AdamW, for matrices. Norms and biases have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1e9)
    """Gradients longer than this are scaled down to it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    early_stopping_patience: Count = 2
    """Stop after this many evaluations in a row without improvement."""
    min_improvement: float = Field(default=0.001, ge=0, le=1_000)
    """Validation loss must fall by more than this to count as improvement."""
    keep_weights: Literal["best", "last"] = "best"
    """What a phase hands on: the weights with the lowest validation loss, or those of the last evaluation."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    auto_resume: bool = True
    """Go on from the newest good checkpoint. `false` refuses to start where checkpoints exist."""


class HeadConfig(Section):
    """What the loss is computed over while training. Validation always uses the whole vocabulary."""

    sampled_fraction: float = Field(default=0.9, ge=0, le=1)
    """Share of the steps, from the first, that compute only a part of the vocabulary. 0: always all of it."""
    sampled_tokens: Count = 3_072
    """Average number of tokens drawn in each step, in addition to its targets. They stand for the whole vocabulary."""


class EvaluationConfig(Section):
    """When to measure the validation loss, and on how much data."""

    every_n_steps: Count = 2_500
    max_sequences: Count | None = 640
    """Use only this many validation sequences, from the first. Empty means all."""


class CheckpointConfig(Section):
    """When to save. None of these change the result, so you may change them during a run."""

    save_every_seconds: float = Field(default=60, ge=1, le=_LONGEST_SECONDS)
    """The shortest interval. It grows while saving would cost more than `max_cost`."""
    save_every_n_steps: Count | None = None
    """Also save every this many optimizer steps."""
    max_cost: float = Field(default=0.01, gt=0, le=1)
    """The largest share of the time that saving may take."""
    keep: int = Field(default=3, ge=2, le=100)
    """Checkpoints to keep, including the newest. At least 2, because the next power cut may damage the newest."""
    emergency_save_on_interrupt: bool = True
    """Save on SIGTERM and SIGINT."""


class ReportingConfig(Section):
    """What people see. None of these change the result."""

    line_every_seconds: float = Field(default=5, gt=0, le=_LONGEST_SECONDS)
    """Seconds between progress lines."""
    sample_prompts: list[str] = Field(default=["The sun is", "Water is a", "In the winter, people"])
    """Completed at each evaluation."""
    sample_tokens: int = Field(default=40, ge=0, le=1_000)
    stop_after_seconds_without_progress: float = Field(default=1_800, ge=10, le=_LONGEST_SECONDS)
    """The watchdog ends a trainer that has made no progress for this long, so that it restarts."""


class NumericsConfig(Section):
    """What decides the bits of the result besides the data. It belongs to the run, not to the machine or a phase."""

    threads: int = Field(default=6, ge=1, le=256)
    """Threads used for arithmetic, regardless of the number of cores: sums are split into this many parts."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Precision of matrix products in training. `auto` takes bf16 if the CPU has it in hardware. It is chosen once,
    when a phase begins. Weights, optimizer and the softmax are always float32."""


class PhaseConfig(Section):
    """What the configurations of all phases share."""

    training: TrainingConfig = TrainingConfig()
    head: HeadConfig = HeadConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    numerics: NumericsConfig = NumericsConfig()

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that decides the result. A run only goes on if it is unchanged."""
        identity = self.model_dump(mode="json", exclude={"checkpoints", "reporting"})
        del identity["training"]["auto_resume"]
        return identity


class PretrainingConfig(PhaseConfig):
    """`phase1_pretraining.yaml`."""

    model: ModelConfig = ModelConfig()


class InstructionTuningConfig(PhaseConfig):
    """`phase2_instruction_tuning.yaml`. The model has the shape of phase 1, and `numerics` are those of phase 1."""


CONFIG_OF_PHASE: dict[Phase, type[PhaseConfig]] = {
    PRETRAINING: PretrainingConfig,
    INSTRUCTION_TUNING: InstructionTuningConfig,
}


def load_phase_config(folder: Path, phase: Phase) -> PhaseConfig:
    """Read the configuration of one phase. Raises `ConfigError` with every mistake in it.

    `numerics` hold for the whole run and stand in the file of the first phase. Another file may repeat them.
    """
    path = folder / phase.config_file
    config = load(path, CONFIG_OF_PHASE[phase])
    if phase is PRETRAINING:
        return config
    numerics = load_phase_config(folder, PRETRAINING).numerics
    for key in sorted(config.numerics.model_fields_set):
        here, of_the_run = getattr(config.numerics, key), getattr(numerics, key)
        if here != of_the_run:
            raise ConfigError(
                f"{path}: numerics.{key} = {here}, but {PRETRAINING.config_file} says {of_the_run}. It holds for the "
                f"whole run: remove `numerics` from this file"
            )
    return config.model_copy(update={"numerics": numerics})
