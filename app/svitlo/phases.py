"""The two phases of a run: their numbers, names and files.

Each layer of the program adds what it needs to know about a phase: `config/` its configuration, `data/plan.py` how
its documents become shards, `training/phase.py` what its batches are and how it begins.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One phase of a run."""

    number: int
    """From 1. Checkpoints, metrics and events name a phase by its number."""
    title: str
    config_file: str
    unit: str
    """What its data consists of, in the plural."""
    is_chat: bool
    """Whether its data is conversations, in which only the replies carry loss. Its model answers questions. The model
    of another phase continues a text."""

    @property
    def name(self) -> str:
        """`phase1`: the name of its folders and of its section in `data.yaml`."""
        return f"phase{self.number}"

    def __str__(self) -> str:
        return f"phase {self.number}"


PRETRAINING = Phase(1, "plain text", "phase1_pretraining.yaml", "documents", is_chat=False)
INSTRUCTION_TUNING = Phase(2, "instructions", "phase2_instruction_tuning.yaml", "conversations", is_chat=True)
PHASES = (PRETRAINING, INSTRUCTION_TUNING)
"""In the order in which they are trained."""


def phase_numbered(number: int) -> Phase:
    """The phase that a checkpoint or an event names. Raises `ValueError`."""
    for phase in PHASES:
        if phase.number == number:
            return phase
    raise ValueError(f"phase {number!r}")


def phase_before(phase: Phase) -> Phase:
    """The phase whose weights `phase` starts from. Raises `ValueError` for the first."""
    return phase_numbered(phase.number - 1)
