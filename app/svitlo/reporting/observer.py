"""What training reports while it works. An `Observer` does nothing: `Progress` inherits from it, and tests use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class RunState(Protocol):
    """What an observer sees of the state of a run. `training/state.py` explains the fields."""

    phase: int
    run_id: str
    epoch: int
    global_step: int
    loss: float
    tokens_seen: int
    last_evaluated_step: int
    evaluated_batches: list[tuple[float, int]]
    best_loss: float | None
    best_step: int
    finished: str
    numerics: dict[str, Any]


class Observer:
    """Is told what happens, and decides nothing."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    """In seconds, for what is timed: without the time during which the process could not run, where that is known."""

    def alive(self) -> None:
        """Work goes on. Called often."""

    def began(self, state: RunState, origin: str, num_steps: int, num_parameters: int) -> None:
        """A phase starts from step 0. `origin` says where its weights come from."""

    def resumed(self, state: RunState, num_steps: int, steps_per_epoch: int) -> None:
        """A phase goes on from a checkpoint."""

    def numerics_changed(self, changes: str) -> None:
        """This machine or image gives other bits than the one that the run began on."""

    def threads_do_not_fit(self, threads: int, num_cores: int, file: str) -> None:
        """A run begins with another number of threads than the cores it may use."""

    def fell_back(self, path: Path, reason: str) -> None:
        """A checkpoint could not be used. The next newest takes its place."""

    def step(
        self, state: RunState, learning_rate: float, gradient_norm: float, num_tokens: int, seconds: float
    ) -> None:
        """An optimizer step is done. `num_tokens` counts all positions that were computed."""

    def update(self, state: RunState, num_steps: int, max_epochs: int, work_left: Callable[[int], float]) -> None:
        """One iteration of the loop is done. `work_left` gives the cost of a step and all after it, in any unit."""

    def evaluating(self, state: RunState, num_done: int, num_sequences: int) -> None:
        """An evaluation is at work: so many of the sequences are done, 0 at its beginning."""

    def evaluated(
        self,
        state: RunState,
        loss: float,
        change: tuple[float, float] | None,
        is_best: bool,
        verdict: str,
        samples: list[tuple[str, str]],
    ) -> None:
        """An evaluation is done.

        `change`: since the evaluation before, in nats per token, with its standard error. `samples` are prompts with
        what the model wrote.
        """

    def phase_finished(self, state: RunState) -> None:
        """A phase is over and saved."""

    def make_durable(self) -> None:
        """A checkpoint is about to be saved. What was reported before it must not get lost any more."""

    def saved(self, state: RunState, seconds: float) -> None:
        """A checkpoint is on disk."""

    def save_failed(self, state: RunState, error: BaseException) -> None:
        """A checkpoint could not be written. The older one is untouched and training goes on."""
