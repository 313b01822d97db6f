"""The weights that people get: the best of the last phase that was begun, found without touching anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from svitlo.errors import CheckpointError
from svitlo.phases import PHASES, phase_numbered
from svitlo.reporting.events import print_line
from svitlo.reporting.overview import overview
from svitlo.reporting.status import RUNNING_STATES, WAITING_FOR_DATA, WAITING_FOR_HUB
from svitlo.training.checkpoints import best_beside, find_newest
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.training.model import GPT2


class NoModelYet(CheckpointError):  # noqa: N818 — says what is the matter
    """Nothing was saved yet, so there is nothing to export or to ask."""


def newest_state(volumes: Volumes, say: Callable[[str], object] = print_line) -> TrainingState:
    """The newest checkpoint that can be used, of the last phase that has one.

    `say` is told where a later phase has only damaged ones. Raises `NoModelYet`, and `CheckpointError` where
    checkpoints exist and none can be used.
    """
    problem: CheckpointError | None = None
    for phase in reversed(PHASES):
        try:
            state = find_newest(volumes.checkpoints(phase), phase)
        except CheckpointError as error:
            problem = problem or error
        else:
            if state is not None:
                if problem is not None:
                    say(f"warning: {problem}. Until then this is the model of {phase}")
                return state
    if problem is not None:
        raise problem
    why = _why_none(volumes)
    raise NoModelYet(f"{volumes.root}: there is no model yet. {why[:1].upper()}{why[1:]}")


def _why_none(volumes: Volumes) -> str:
    """Why nothing was saved yet and what to do, in one sentence."""
    known = overview(volumes)
    state, message, preparation = known["state"], known["message"], known["data_preparation"]
    if state in RUNNING_STATES and state not in (WAITING_FOR_DATA, WAITING_FOR_HUB):
        return "training has begun and has not saved anything yet. It saves about once a minute: try again then"
    if state == "complete":
        return "training is finished, and its checkpoints are not there any more. Restore a backup"
    if preparation is not None and preparation["status"]["state"] == "error" and state != "error":
        return f"data preparation failed: {preparation['status']['message']}"
    if preparation is not None and preparation["is_running"] and state != WAITING_FOR_HUB:
        return f"data is being prepared ({preparation['status']['message']}). Try again when training has begun"
    if known["trainer"] is not None and state in ("stopped", "not running"):
        return "training ended before it saved anything. Start it again with `docker compose up -d` or `svitlo train`"
    return message


def best_state(volumes: Volumes, say: Callable[[str], object] = print_line) -> tuple[TrainingState, TrainingState]:
    """The checkpoint with the lowest validation loss of the last phase that has any, and that phase's newest one.

    Raises `NoModelYet` and `CheckpointError`.
    """
    newest = newest_state(volumes, say)
    phase = phase_numbered(newest.phase)
    return best_beside(newest, volumes.checkpoints(phase), phase), newest


def model_from(state: TrainingState) -> GPT2:
    """The model with the weights of a checkpoint, ready to be asked."""
    from svitlo.config import ModelConfig
    from svitlo.training.model import GPT2

    model = GPT2(ModelConfig(**state.model), state.vocab_size, weights=state.model_state_dict)
    model.eval()
    return model
