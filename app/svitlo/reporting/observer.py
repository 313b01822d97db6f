"""What training tells whoever watches it. An `Observer` does nothing: the base of `Progress`, and what tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class RunState(Protocol):
    """What an observer looks at in the state of a run; see `training/state.py` for what the fields mean."""

    phase: int
    run_id: str
    epoch: int
    global_step: int
    loss: float
    tokens_seen: int
    last_evaluated_step: int
    best_loss: float | None
    best_step: int
    finished: str
    numerics: dict[str, Any]


class Observer:
    """Is told what happens, and decides nothing."""

    def alive(self) -> None:
        """Work goes on. Called often."""

    def began(self, state: RunState, origin: str, num_steps: int, num_parameters: int) -> None:
        """A phase starts from step 0; `origin` says where its weights come from."""

    def resumed(self, state: RunState, num_steps: int, steps_per_epoch: int) -> None:
        """A phase goes on from a checkpoint."""

    def numerics_changed(self, changes: str) -> None:
        """The machine or the image computes with other bits than the run began with."""

    def fell_back(self, path: Path, reason: str) -> None:
        """A checkpoint could not be used, and the next newest takes its place."""

    def step(
        self, state: RunState, learning_rate: float, gradient_norm: float, num_tokens: int, seconds: float
    ) -> None:
        """An optimizer step is done; `num_tokens` counts all positions that were computed."""

    def update(self, state: RunState, num_steps: int, max_epochs: int, work_left: Callable[[int], float]) -> None:
        """The loop comes round. `work_left` gives what a step and all after it cost, in any unit."""

    def evaluating(self, state: RunState) -> None:
        """An evaluation begins."""

    def evaluated(
        self, state: RunState, loss: float, is_best: bool, verdict: str, samples: list[tuple[str, str]]
    ) -> None:
        """An evaluation is done; `samples` are prompts with what the model wrote."""

    def phase_finished(self, state: RunState) -> None:
        """A phase is over and saved."""

    def make_durable(self) -> None:
        """A checkpoint is about to be saved, and what was told so far must not be lost after it."""

    def saved(self, state: RunState, seconds: float) -> None:
        """A checkpoint is on disk."""

    def save_failed(self, state: RunState, error: BaseException) -> None:
        """A checkpoint could not be written; the older one is untouched and training goes on."""
