"""The training state on disk: saved by one function, found again after anything.

A phase's folder holds `last_checkpoint.pt` (always complete), older generations `checkpoint-<step>.pt`, and
`best_checkpoint.pt` (the state whose validation loss is lowest). All of them are the same kind of file, readable with
`torch.load(path, weights_only=True)`, and any of them can be resumed from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from svitlo.errors import CheckpointError, VolumeError
from svitlo.storage.files import (
    link_durably,
    make_folder,
    remove,
    remove_temporaries,
    rename_durably,
    write_durably,
    write_json,
)
from svitlo.storage.seal import check_seal, label_of, save_sealed

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
        lambda file: save_sealed(fields, file, f"{state.run_id} {state.phase} {state.global_step}"),
        verify=check_seal,
        keep_previous_as=folder / f"checkpoint-{previous_step:09d}.pt" if keeps_previous else None,
    )
    _prune(folder, keep)
    return time.perf_counter() - start


def mark_best(folder: Path) -> None:
    """Make the checkpoint just saved also the best one: a second name for the same file.

    Damage to that file hits both names. A copy would not help the run, which goes on from an older generation, and
    would cost a whole save at each improvement; where the best state is lost, `find_best` says so and hands on the
    newest.
    """
    link_durably(folder / LAST, folder / BEST)


def load_checkpoint(path: Path, phase: int | None = None) -> TrainingState:
    """Verify and read one checkpoint. Raises `CheckpointError` with the reason why it cannot be used."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("not a regular file")
        check_seal(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
        state = _state_from(values)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read by user {os.getuid()} ({error.strerror})") from error
    except pickle.UnpicklingError as error:  # torch's own words advise to switch the protection off
        raise CheckpointError(
            f"{path}: not a checkpoint of Svitlo (it holds something else than tensors, numbers and text, which is "
            f"never unpickled)"
        ) from error
    except Exception as error:  # torch raises many kinds, some without any text
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{path}: damaged or not a checkpoint of Svitlo ({reason})") from error
    if phase is not None and state.phase != phase:
        raise CheckpointError(f"{path}: belongs to phase {state.phase}, not to phase {phase}")
    return state


def find_newest(
    folder: Path, phase: int, on_rejected: Callable[[Rejected], None], run_id: str | None = None
) -> TrainingState | None:
    """The newest usable checkpoint of a phase, by the step inside, or None where none was ever saved.

    With a `run_id`, checkpoints of other runs are not usable: somebody has put them there.
    What cannot be used is set aside as `.broken` and reported; the next newest takes its place. Raises
    `CheckpointError` where checkpoints exist and none is usable: training must not start from zero over them.
    """
    if not folder.is_dir():
        return None
    remove_temporaries(folder)
    candidates = [path for path in _all_in(folder) if os.path.lexists(path)]
    rejected = []
    # What does not even tell its step comes first, so that it is set aside and not left under a name that is used.
    steps = {path: _step_of(path) for path in candidates}
    for path in sorted(candidates, key=lambda path: (steps[path] is not None, -(steps[path] or 0), path.name != LAST)):
        try:
            state = load_checkpoint(path, phase)
            if run_id is not None and state.run_id != run_id:
                raise CheckpointError(f"{path}: belongs to another run ({state.run_id} instead of {run_id})")
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


def find_best(
    folder: Path, phase: int, on_rejected: Callable[[Rejected], None], run_id: str | None = None
) -> TrainingState:
    """The state with the lowest validation loss; where its file is damaged, the newest usable one."""
    newest = find_newest(folder, phase, on_rejected, run_id)
    if newest is None:
        raise CheckpointError(f"{folder}: phase {phase} has left no checkpoint to start from. Run phase {phase} first")
    with contextlib.suppress(CheckpointError):
        best = load_checkpoint(folder / BEST, phase)
        if (best.run_id, best.global_step) == (newest.run_id, newest.best_step):
            return best
    for path in folder.glob(_GENERATIONS):
        if _step_of(path) == newest.best_step:
            with contextlib.suppress(CheckpointError):
                return load_checkpoint(path, phase)
    on_rejected(Rejected(folder / BEST, f"the best state (step {newest.best_step:,}) is missing or damaged"))
    return newest


def _all_in(folder: Path) -> list[Path]:
    """Every name under which a checkpoint of a phase may stand."""
    return [folder / LAST, *folder.glob(_GENERATIONS), folder / BEST]


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file so that it is not used any more; nothing is deleted. Returns the new name."""
    target = path.with_name(path.name + suffix)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{suffix}{number}")
    rename_durably(path, target)
    return target


def set_aside_newer(folder: Path, step: int, run_id: str) -> list[Path]:
    """Set aside what is newer than `step` or of another run: a person has chosen to go on from there."""
    positions = {path: position_of(path) for path in _all_in(folder)}
    return [
        set_aside(path, ".superseded")
        for path, position in positions.items()
        if position is not None and (position[0] != run_id or position[2] > step)
    ]


def note_run(path: Path, run_id: str) -> None:
    """Write down which run the checkpoints beside `path` belong to, so that those of another are recognised."""
    if noted_run(path) != run_id:
        make_folder(path.parent)
        with contextlib.suppress(OSError):  # on a full disk there is one check less; saving has its own say about it
            write_json(path, {"run_id": run_id})


def noted_run(path: Path) -> str | None:
    """The run that was written down; None where nothing readable was."""
    try:
        return str(json.loads(path.read_bytes())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_room(folder: Path, num_bytes: int) -> None:
    """Raise `VolumeError` unless two checkpoints of `num_bytes` fit: the valid one and the one being written."""
    num_missing = 1 if (folder / LAST).exists() else 2
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < num_missing * num_bytes:
        raise VolumeError(
            f"{folder}: {free / 1e6:,.0f} MB are free, and {num_missing * num_bytes / 1e6:,.0f} MB are needed: "
            f"two checkpoints must fit, each {num_bytes / 1e6:,.0f} MB. Make room on this disk; nothing is lost"
        )


def _state_from(values: Any) -> TrainingState:
    names = {item.name for item in dataclasses.fields(TrainingState)}
    if not isinstance(values, dict) or not names <= set(values):
        missing = sorted(names - set(values)) if isinstance(values, dict) else ["everything"]
        raise ValueError(f"fields are missing: {', '.join(missing)}")
    return TrainingState(**{name: values[name] for name in names})


def position_of(path: Path) -> tuple[str, int, int] | None:
    """Run, phase and step of a checkpoint, as its seal says; None where it is missing or unreadable."""
    try:
        if path.is_symlink():
            return None
        run_id, phase, step = label_of(path).split(" ")
        return run_id, int(phase), int(step)
    except (OSError, ValueError):  # unreadable is an answer here; whoever loads the file finds out why
        return None


def _step_of(path: Path) -> int | None:
    position = position_of(path)
    return None if position is None else position[2]


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest generations, `last_checkpoint.pt` counting as one of `keep`."""
    generations = sorted(folder.glob(_GENERATIONS))
    for path in generations[: max(0, len(generations) - (keep - 1))]:
        remove(path)  # where it comes back after a power cut, it is an older checkpoint more
