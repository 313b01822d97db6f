"""The weights that people get: the best of the highest phase, found without touching anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svitlo.errors import CheckpointError
from svitlo.phases import PHASES, phase_numbered
from svitlo.training.checkpoints import best_beside, find_newest
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.training.model import GPT2


class NoModelYet(CheckpointError):  # noqa: N818 — says what is the matter
    """Nothing was trained yet, so there is nothing to export or to ask."""


def newest_state(volumes: Volumes) -> TrainingState:
    """The newest usable state of the highest phase that was begun.

    Raises `NoModelYet`, and `CheckpointError` where checkpoints exist and none is usable.
    """
    problem: CheckpointError | None = None
    for phase in reversed(PHASES):
        try:
            state = find_newest(volumes.checkpoints(phase), phase)
        except CheckpointError as error:
            problem = problem or error
        else:
            if state is not None:
                return state
    if problem is not None:
        raise problem
    raise NoModelYet(
        f"{volumes.root}: nothing was trained yet. Training saves its first checkpoint within a minute of its start; "
        f"`svitlo status` shows where it is"
    )


def best_state(volumes: Volumes) -> tuple[TrainingState, TrainingState]:
    """The state with the lowest validation loss of the highest phase, and that phase's newest state.

    Raises `NoModelYet` and `CheckpointError`.
    """
    newest = newest_state(volumes)
    phase = phase_numbered(newest.phase)
    return best_beside(newest, volumes.checkpoints(phase), phase), newest


def model_from(state: TrainingState) -> GPT2:
    """The model with the weights of a checkpoint, ready to be asked."""
    from svitlo.config import ModelConfig
    from svitlo.training.model import GPT2

    model = GPT2(ModelConfig(**state.model), state.vocab_size, weights=state.model_state_dict)
    model.eval()
    return model
