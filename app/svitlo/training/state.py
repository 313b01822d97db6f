"""All that must survive a power cut, in one dataclass.

Everything else is a pure function of configuration, seed and step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

_ADDED_LATER = {"evaluated_batches", "validation_batches"}
"""Checkpoints of version 0.1.0 do not have these. They then have their defaults."""


@dataclass
class TrainingState:
    """The state of one phase. A checkpoint holds these fields and nothing else."""

    phase: int
    vocab_size: int
    model: dict[str, Any]
    """The model's shape: the fields of `ModelConfig`."""
    configuration: dict[str, Any]
    """The settings that decide the result: `PhaseConfig.identity()`."""
    configuration_digest: str
    data_digest: str
    numerics: dict[str, Any]
    """What the bits depend on: threads, precision, instruction set and torch's version."""
    run_id: str
    epoch: int = 0
    global_step: int = 0
    """Finished optimizer steps in this phase."""
    model_state_dict: dict[str, Any] = field(default_factory=dict)
    optimizer_state_dict: dict[str, Any] = field(default_factory=dict)
    loss: float = 0.0
    """Training loss of the last step, nats per token."""
    tokens_seen: int = 0
    """Tokens with loss that the model has been trained on in this phase."""
    last_evaluated_step: int = -1
    evaluated_batches: list[tuple[float, int]] = field(default_factory=list)
    """Of the evaluation that is under way: the summed loss and the number of tokens of each batch so far."""
    validation_batches: list[tuple[float, int]] = field(default_factory=list)
    """The same of the last complete evaluation, to compare the next one with."""
    best_loss: float | None = None
    """Lowest validation loss, nats per token."""
    best_step: int = -1
    evaluations_without_improvement: int = 0
    finished: str = ""
    """Why the phase is over. Empty while it is not."""
    training_seconds: float = 0.0
    """Time spent on steps and evaluations, over all interruptions."""
    timestamp: float = 0.0
    """When it was saved, in seconds since 1970. The clock may be wrong: this is for people and never decides order."""
    periodic_save: bool = True

    def fields(self) -> dict[str, Any]:
        """What a checkpoint holds: a plain dictionary, readable without any class of Svitlo."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @classmethod
    def from_fields(cls, values: Any) -> TrainingState:
        """The state in a checkpoint. Raises `ValueError` if something is missing."""
        names = {item.name for item in dataclasses.fields(cls)}
        found = set(values) if isinstance(values, dict) else set()
        missing = sorted(names - _ADDED_LATER - found)
        if missing:
            raise ValueError(f"fields are missing: {', '.join(missing)}")
        return cls(**{name: values[name] for name in names & found})
