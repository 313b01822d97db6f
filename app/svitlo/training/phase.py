"""What training needs to know about each phase: where its first weights come from, and what its batches are."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svitlo.config import ModelConfig, PhaseConfig, PretrainingConfig
from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.errors import ConfigError
from svitlo.manifest import Manifest
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING, Phase, phase_before
from svitlo.training.batches import Batches, ConversationBatches, TextBatches
from svitlo.training.model import GPT2, grow_vocabulary
from svitlo.training.numerics import seed_for
from svitlo.training.state import TrainingState


@dataclass(frozen=True)
class Beginning:
    """Step 0 of a phase."""

    shape: ModelConfig
    vocab_size: int
    run_id: str
    weights: dict[str, Any]


class TrainingPhase(ABC):
    """One phase, as training sees it."""

    phase: Phase
    origin: str
    """Where its first weights come from, in words."""
    whole_head_cost: float
    """How many times longer a step takes with the whole vocabulary than with a sampled one (docs/performance.md)."""

    @abstractmethod
    def begin(self, config: PhaseConfig, manifest: Manifest, best_of: Callable[[Phase], TrainingState]) -> Beginning:
        """The weights to start from. `best_of` finds what another phase hands on."""

    @abstractmethod
    def batches(
        self, folder: Path, manifest: Manifest, split: str, config: PhaseConfig, state: TrainingState
    ) -> Batches:
        """The batches of a split. Raises `DataError`, or `ConfigError` if data and model do not fit each other."""


class Pretraining(TrainingPhase):
    """Windows of one stream of text, from random weights."""

    phase = PRETRAINING
    origin = "random weights"
    whole_head_cost = 2.2

    def begin(self, config: PhaseConfig, manifest: Manifest, best_of: Callable[[Phase], TrainingState]) -> Beginning:
        assert isinstance(config, PretrainingConfig)
        run_id = uuid.uuid4().hex[:12]
        torch.manual_seed(seed_for("weights", config.training.seed))
        weights = GPT2(config.model, manifest.vocab_size).state_dict()
        return Beginning(config.model, manifest.vocab_size, run_id, weights)

    def batches(
        self, folder: Path, manifest: Manifest, split: str, config: PhaseConfig, state: TrainingState
    ) -> Batches:
        training, positions = config.training, int(state.model["positions"])
        sizes = (training.micro_batch, training.gradient_accumulation, training.seed)
        return TextBatches(TokenStream(folder, manifest, split), positions, *sizes)


class InstructionTuning(TrainingPhase):
    """Conversations, from the best weights of the phase before, with one more embedding row for the padding token."""

    phase = INSTRUCTION_TUNING
    origin = f"the best weights of {phase_before(INSTRUCTION_TUNING)}"
    whole_head_cost = 1.5

    def begin(self, config: PhaseConfig, manifest: Manifest, best_of: Callable[[Phase], TrainingState]) -> Beginning:
        before = best_of(phase_before(self.phase))
        vocab_size = before.vocab_size + 1
        weights = grow_vocabulary(before.model_state_dict, vocab_size)
        return Beginning(ModelConfig(**before.model), vocab_size, before.run_id, weights)

    def batches(
        self, folder: Path, manifest: Manifest, split: str, config: PhaseConfig, state: TrainingState
    ) -> Batches:
        training, positions = config.training, int(state.model["positions"])
        window = int(manifest.configuration["sequence_length"])
        if window > positions:
            raise ConfigError(
                f"data.yaml: {self.phase.name}.sequence_length = {window}, but the model has {positions} positions "
                f"({PRETRAINING.config_file}: model.positions). sequence_length must not exceed model.positions"
            )
        sizes = (training.micro_batch, training.gradient_accumulation, training.seed)
        padding = state.vocab_size - 1
        return ConversationBatches(ConversationSet(folder, manifest, split), window, padding, *sizes)


_ALL: tuple[TrainingPhase, ...] = (Pretraining(), InstructionTuning())


def training_phase(phase: Phase) -> TrainingPhase:
    """How to train this phase."""
    return next(one for one in _ALL if one.phase == phase)
