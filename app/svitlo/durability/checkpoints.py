"""The training state on disk: saved by one function, found again after anything.

A phase's folder holds `last_checkpoint.pt` (always complete), older generations `checkpoint-<step>.pt`, and
`best_checkpoint.pt` (the state whose validation loss is lowest). All of them are the same kind of file, readable with
`torch.load(path, weights_only=True)`, and any of them can be resumed from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from svitlo.durability.files import (
    fsync_folder,
    link_durably,
    make_folder,
    remove_temporaries,
    rename_durably,
    write_durably,
)
from svitlo.errors import CheckpointError

LAST = "last_checkpoint.pt"
BEST = "best_checkpoint.pt"
BROKEN_SUFFIX = ".broken"
_GENERATIONS = "checkpoint-*.pt"


@dataclass
class TrainingState:
    """Everything that must survive a power cut. All else is a pure function of configuration, seed and step."""

    phase: int
    vocab_size: int
    model: dict[str, Any]
    """The model's shape: the fields of `ModelConfig`."""
    configuration: dict[str, Any]
    """What decides about the result: `Phase2Config.identity()`."""
    configuration_digest: str
    data_digest: str
    numerics: dict[str, Any]
    """Threads, precision and instruction set that the bits depend on."""
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
    best_loss: float | None = None
    """Lowest validation loss, nats per token."""
    best_step: int = -1
    evaluations_without_improvement: int = 0
    finished: str = ""
    """Why the phase is over; empty while it is not."""
    training_seconds: float = 0.0
    """Time spent on steps and evaluations, over all interruptions."""
    timestamp: float = 0.0
    """When it was saved, in seconds since 1970 by a clock that may be wrong: for people, never for order."""
    periodic_save: bool = True


@dataclass(frozen=True)
class Rejected:
    """A file that looked like a checkpoint and could not be used."""

    path: Path
    reason: str


def save_checkpoint(state: TrainingState, folder: Path, keep: int) -> float:
    """Write `state` as the newest checkpoint and remove generations beyond `keep`. Returns the seconds it took.

    Raises `OSError` or `RuntimeError` (torch's, when the disk is full); the checkpoints on disk are then untouched.
    """
    start = time.perf_counter()
    make_folder(folder)
    last = folder / LAST
    previous_step = _step_of(last)
    keeps_previous = previous_step is not None and previous_step != state.global_step
    fields = {item.name: getattr(state, item.name) for item in dataclasses.fields(state)}
    write_durably(
        last,
        lambda file: torch.save(fields, file),
        verify=_check_archive,
        keep_previous_as=folder / f"checkpoint-{previous_step:09d}.pt" if keeps_previous else None,
    )
    _prune(folder, keep)
    return time.perf_counter() - start


def mark_best(folder: Path) -> None:
    """Make the checkpoint just saved also the best one: a second name for the same file."""
    link_durably(folder / LAST, folder / BEST)


def load_checkpoint(path: Path, phase: int | None = None) -> TrainingState:
    """Verify and read one checkpoint. Raises `CheckpointError` with the reason why it cannot be used."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("not a regular file")
        _check_archive(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
        state = _state_from(values)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read by user {os.getuid()} ({error.strerror})") from error
    except Exception as error:  # torch and zipfile raise many kinds, some without any text
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{path}: damaged or not a checkpoint of Svitlo ({reason})") from error
    if phase is not None and state.phase != phase:
        raise CheckpointError(f"{path}: belongs to phase {state.phase}, not to phase {phase}")
    return state


def find_newest(folder: Path, phase: int, on_rejected: Callable[[Rejected], None]) -> TrainingState | None:
    """The newest usable checkpoint of a phase, by the step inside, or None where none was ever saved.

    What cannot be used is set aside as `.broken` and reported; the next newest takes its place. Raises
    `CheckpointError` where checkpoints exist and none is usable: training must not start from zero over them.
    """
    if not folder.is_dir():
        return None
    remove_temporaries(folder)
    candidates = [path for path in (folder / LAST, *folder.glob(_GENERATIONS), folder / BEST) if os.path.lexists(path)]
    rejected = []
    # What does not even tell its step comes first, so that it is set aside and not left under a name that is used.
    steps = {path: _step_of(path) for path in candidates}
    for path in sorted(candidates, key=lambda path: (steps[path] is not None, -(steps[path] or 0), path.name != LAST)):
        try:
            state = load_checkpoint(path, phase)
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            rejected.append(Rejected(path, str(error).removeprefix(f"{path}: ")))
            set_aside(path, BROKEN_SUFFIX)
            on_rejected(rejected[-1])
            continue
        if not (folder / LAST).exists():
            link_durably(path, folder / LAST)
        return state
    if rejected or any(folder.glob("*" + BROKEN_SUFFIX + "*")):
        raise CheckpointError(
            f"{folder}: checkpoints exist and none of them is usable (they are kept as *{BROKEN_SUFFIX}). Training "
            f"does not start from zero over them. Bring back a backup with `make restore FROM=...`, or begin again "
            f"with `make new-run`, which moves them aside"
        )
    return None


def find_best(folder: Path, phase: int, on_rejected: Callable[[Rejected], None]) -> TrainingState:
    """The state with the lowest validation loss; where its file is damaged, the newest usable one."""
    newest = find_newest(folder, phase, on_rejected)
    if newest is None:
        raise CheckpointError(f"{folder}: phase {phase} has left no checkpoint to start from. Run phase {phase} first")
    with contextlib.suppress(CheckpointError):
        best = load_checkpoint(folder / BEST, phase)
        if best.global_step == newest.best_step:
            return best
    for path in folder.glob(_GENERATIONS):
        if _step_of(path) == newest.best_step:
            with contextlib.suppress(CheckpointError):
                return load_checkpoint(path, phase)
    on_rejected(Rejected(folder / BEST, f"the best state (step {newest.best_step:,}) is missing or damaged"))
    return newest


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file so that it is not used any more; nothing is deleted. Returns the new name."""
    target = path.with_name(path.name + suffix)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{suffix}{number}")
    rename_durably(path, target)
    return target


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Set aside what is newer than `step`: a person has chosen to go on from there."""
    paths = (folder / LAST, *folder.glob(_GENERATIONS), folder / BEST)
    return [set_aside(path, ".superseded") for path in paths if (_step_of(path) or 0) > step]


def _state_from(values: Any) -> TrainingState:
    names = {item.name for item in dataclasses.fields(TrainingState)}
    if not isinstance(values, dict) or not names <= set(values):
        missing = sorted(names - set(values)) if isinstance(values, dict) else ["everything"]
        raise ValueError(f"fields are missing: {', '.join(missing)}")
    return TrainingState(**{name: values[name] for name in names})


def _check_archive(path: Path) -> None:
    """Check the CRC of every record, which `torch.load` does not do. 0.2 s for 283 MB. Raises on any damage."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"the checksum of its record {bad} is wrong")


def position_of(path: Path) -> tuple[str, int, int] | None:
    """Run, phase and step inside a checkpoint, read without its tensors; None where it is missing or unreadable."""
    try:
        if path.is_symlink():
            return None
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(content["run_id"]), int(content["phase"]), int(content["global_step"])
    except Exception:  # unreadable is an answer here; whoever loads the file finds out why
        return None


def _step_of(path: Path) -> int | None:
    position = position_of(path)
    return None if position is None else position[2]


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest generations, `last_checkpoint.pt` counting as one of `keep`."""
    generations = sorted(folder.glob(_GENERATIONS))
    for path in generations[: max(0, len(generations) - (keep - 1))]:
        path.unlink(missing_ok=True)
    fsync_folder(folder)
