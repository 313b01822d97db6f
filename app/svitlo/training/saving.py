"""When to save, and how. `save_checkpoint` is the only function that writes a checkpoint."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from svitlo.config import CheckpointConfig
from svitlo.errors import VolumeError
from svitlo.interruption import Interruption
from svitlo.reporting.observer import Observer
from svitlo.storage.files import link_durably, make_folder, remove, write_durably
from svitlo.storage.probe import abilities_of
from svitlo.storage.seal import check_seal, save_sealed
from svitlo.storage.space import free_bytes
from svitlo.training.checkpoints import BEST, GENERATIONS, LAST, position_of
from svitlo.training.model import GPT2
from svitlo.training.optimizer import PhaseOptimizer
from svitlo.training.state import TrainingState
from svitlo.volumes import VolumeWatch

_SECONDS_BEFORE_SAVING_AGAIN = 30.0
_RECENT_SAVES = 5


class SaveSchedule:
    """When the next periodic save is due: at the configured interval, later if saving is slow.

    The cost of a save is the median of the last ones. A single slow save, on a disk that was briefly busy, changes
    nothing.

    `is_due` is called after each step. It looks one step ahead, because a power cut at the end of the next step would
    cost that step too. With steps of 6 s and an interval of 60 s, the save comes after 54 to 60 s.
    """

    def __init__(self, config: CheckpointConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._saved_at = self._asked_at = clock()
        self._costs: deque[float] = deque(maxlen=_RECENT_SAVES)
        self._step = -1

    def is_due(self, step: int) -> bool:
        every = self._config.save_every_n_steps
        is_milestone = every is not None and step % every == 0 and step != self._step
        now = self._clock()
        seconds_of_a_step, self._asked_at = now - self._asked_at, now
        seconds = now - self._saved_at
        is_affordable = seconds >= statistics.median(self._costs or [0.0]) / self._config.max_cost
        return is_milestone or (is_affordable and seconds + seconds_of_a_step > self._config.save_every_seconds)

    def saved(self, step: int, seconds: float) -> None:
        """Note that a save, or an attempt at one, has just ended, and how long it took."""
        self._saved_at = self._asked_at = self._clock()
        self._costs.append(seconds)
        self._step = step


class Saver:
    """Saves the state of one phase: when a save is due, before an evaluation, at the end, and when asked to stop.

    Only to the disk that was there at the start: where it went away, saving fails until it is back.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        observer: Observer,
        interruption: Interruption,
        saved_step: int = -1,
    ) -> None:
        """`saved_step`: the step of the newest checkpoint in `folder`, or -1 if there is none."""
        self._folder = folder
        self._volume = VolumeWatch(folder.parent)
        self._config = config
        self._observer = observer
        self._interruption = interruption
        self._saved = saved_step, 0
        self._saved_state: TrainingState | None = None
        self._schedule = SaveSchedule(config)

    def is_due(self, step: int) -> bool:
        """Whether a periodic save is due after this step."""
        return self._schedule.is_due(step)

    def save(self, state: TrainingState, model: GPT2, optimizer: PhaseOptimizer, *, periodic: bool = True) -> bool:
        """Save. A failed save is reported and tried again later. Returns whether the state is on disk."""
        reached = state.global_step, len(state.evaluated_batches)
        if reached == self._saved and not state.finished and periodic:
            return True
        state.model_state_dict = model.state_dict()
        state.optimizer_state_dict = optimizer.state_dict()
        state.timestamp = time.time()
        state.periodic_save = periodic
        start = time.perf_counter()
        try:
            self._volume.require()
            self._observer.make_durable()
            seconds = save_checkpoint(state, self._folder, self._config.keep)
        except (OSError, RuntimeError) as error:
            self._schedule.saved(state.global_step, time.perf_counter() - start)
            self._observer.save_failed(state, error.__context__ if isinstance(error.__context__, OSError) else error)
            return False
        self._saved = reached
        self._saved_state = state
        self._schedule.saved(state.global_step, seconds)
        self._observer.saved(state, seconds)
        return True

    def save_at_any_price(self, state: TrainingState, model: GPT2, optimizer: PhaseOptimizer) -> None:
        """Save what later work starts from (the best weights, the end of a phase). Retries until it succeeds."""
        while not self.save(state, model, optimizer, periodic=False):
            self._interruption.wait(_SECONDS_BEFORE_SAVING_AGAIN)
            if self._volume.is_there:
                self._observer.alive()

    def mark_best(self) -> None:
        """The checkpoint that was just saved is the best so far. Retries until that is on the disk.

        It needs room only on a disk without hard links.
        """
        while True:
            try:
                self._volume.require()
                mark_best(self._folder)
                return
            except OSError as error:
                is_lost = isinstance(error, FileNotFoundError) and self._volume.is_there
                if is_lost or self._saved_state is None:  # waiting would not bring it back
                    raise
                self._observer.save_failed(self._saved_state, error)
            self._interruption.wait(_SECONDS_BEFORE_SAVING_AGAIN)
            if self._volume.is_there:
                self._observer.alive()


def save_checkpoint(state: TrainingState, folder: Path, keep: int) -> float:
    """Write `state` as the newest checkpoint and remove generations beyond `keep`. Returns the seconds it took.

    Raises `OSError` or `RuntimeError` (torch's, when the disk is full). The checkpoints on disk are then untouched.
    """
    start = time.perf_counter()
    make_folder(folder)
    last = folder / LAST
    previous = position_of(last)
    previous_step = None if previous is None else previous[2]
    keeps_previous = previous_step is not None and previous_step != state.global_step
    write_durably(
        last,
        lambda file: save_sealed(state.fields(), file, f"{state.run_id} {state.phase} {state.global_step}"),
        verify=check_seal,
        keep_previous_as=folder / f"checkpoint-{previous_step:09d}.pt" if keeps_previous else None,
    )
    _prune(folder, keep)
    return time.perf_counter() - start


def mark_best(folder: Path) -> None:
    """Make the checkpoint that was just saved the best one, too, by giving the same file a second name.

    Damage to that file hits both names. A copy would not help: the run goes on from an older generation anyway, and
    each improvement would cost a whole save. If the best state is lost, `find_best` says so and hands on the newest.
    On a disk without hard links it is a copy all the same, at that cost.
    """
    link_durably(folder / LAST, folder / BEST)


def require_room(folder: Path, num_bytes: int) -> None:
    """Raise `VolumeError` unless two checkpoints of `num_bytes` fit: the valid one and the one being written.

    On a disk without hard links three: there the one before is a copy.
    """
    make_folder(folder)
    free = free_bytes(folder)
    num_needed, in_words = (2, "two") if abilities_of(folder).links else (3, "three")
    num_missing = num_needed - (folder / LAST).exists()
    if free is not None and free < num_missing * num_bytes:
        raise VolumeError(
            f"{folder}: {free / 1e6:,.0f} MB are free, and {num_missing * num_bytes / 1e6:,.0f} MB are needed: "
            f"{in_words} checkpoints must fit, each {num_bytes / 1e6:,.0f} MB. Make room on this disk; nothing is lost"
        )


def checkpoint_size(state: TrainingState) -> int:
    """Approximate bytes in a checkpoint: the weights (tied ones once) and two moments for each."""
    sizes: dict[int, int] = {}
    for weights in state.model_state_dict.values():
        storage = weights.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return 3 * sum(sizes.values())


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest generations, `last_checkpoint.pt` counting as one of `keep`."""
    generations = sorted(folder.glob(GENERATIONS))
    for path in generations[: max(0, len(generations) - (keep - 1))]:
        remove(path)  # if a power cut brings it back, it is just one more old checkpoint
