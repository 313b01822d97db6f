"""Checkpoints on disk. This is the only code that looks for the newest and the best one, whatever happened before.

A phase's folder holds `last_checkpoint.pt` (always complete), older generations `checkpoint-<step>.pt`, and
`best_checkpoint.pt` (the state with the lowest validation loss). All of them are the same kind of file: readable with
`torch.load(path, weights_only=True)`, and good to resume from. `saving.py` writes them.

torch is imported only when a file is loaded. Code that only asks for positions does not need it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

from svitlo.errors import CheckpointError
from svitlo.phases import PHASES, Phase
from svitlo.storage.files import (
    link_durably,
    make_folder,
    name_with_suffix,
    remove_temporaries,
    rename_durably,
    write_json,
)
from svitlo.storage.seal import check_seal, label_of
from svitlo.storage.space import explained, reason_of
from svitlo.storage.sums import shown
from svitlo.training.state import TrainingState

LAST = "last_checkpoint.pt"
BEST = "best_checkpoint.pt"
GENERATIONS = "checkpoint-*.pt"
BROKEN_SUFFIX = ".broken"
SUPERSEDED_SUFFIX = ".superseded"

OnRejected = Callable[[Path, str], object]
"""Called with path and reason for each file that looked like a checkpoint but could not be used."""


def _ignore(path: Path, reason: str) -> None:
    """The default: report nothing."""


def load_checkpoint(path: Path, phase: Phase | None = None) -> TrainingState:
    """Verify and read one checkpoint. Raises `CheckpointError` that says why it cannot be used."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("not a regular file")
        check_seal(path)
        import torch

        state = TrainingState.from_fields(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read by user {os.getuid()} ({reason_of(error)})") from error
    except pickle.UnpicklingError as error:  # torch's own message advises switching the protection off
        raise CheckpointError(
            f"{path}: not a checkpoint of Svitlo (it holds something other than tensors, numbers and text, which is "
            f"never unpickled)"
        ) from error
    except Exception as error:  # torch raises many kinds, some without any text
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{path}: damaged or not a checkpoint of Svitlo ({reason})") from error
    if phase is not None and state.phase != phase.number:
        raise CheckpointError(f"{path}: belongs to phase {state.phase}, not to {phase}")
    return state


def find_newest(
    folder: Path,
    phase: Phase,
    *,
    run_id: str | None = None,
    set_aside: bool = False,
    on_rejected: OnRejected = _ignore,
) -> TrainingState | None:
    """The newest usable checkpoint of a phase, by the step stored in it. None if none was ever saved.

    With a `run_id`, checkpoints of other runs do not count as usable: they were copied in from elsewhere. `set_aside`
    is for the trainer, which owns the folder. It renames unusable files to `.broken`, removes leftovers, and makes sure
    that `last_checkpoint.pt` exists afterwards. All other callers only read.

    Raises `CheckpointError` if checkpoints exist but none is usable: nothing may start from zero over them. Raises
    `VolumeError` where `set_aside` finds no room.
    """
    if not folder.is_dir():
        return None
    if set_aside:
        remove_temporaries(folder)
    rejected: list[str] = []
    for path in _newest_first(folder):
        try:
            state = load_checkpoint(path, phase)
            if run_id is not None and state.run_id != run_id:
                raise CheckpointError(f"{path}: belongs to another run ({state.run_id} instead of {run_id})")
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            if not set_aside and not os.path.lexists(path):
                continue  # a generation that the trainer has just removed
            rejected.append(str(error))
            if set_aside:
                put_aside(path, BROKEN_SUFFIX)
            on_rejected(path, str(error).removeprefix(f"{path}: "))
            continue
        if set_aside and not (folder / LAST).exists():
            with explained(folder, "All checkpoints are kept"):  # a copy, on a disk without hard links
                link_durably(path, folder / LAST)
        return state
    if rejected or any(any(folder.glob(f"*{suffix}*")) for suffix in (BROKEN_SUFFIX, SUPERSEDED_SUFFIX)):
        kept = f" (they are kept as *{BROKEN_SUFFIX} or *{SUPERSEDED_SUFFIX})"
        why = f" ({rejected[0]})" if rejected and not set_aside else kept
        raise CheckpointError(
            f"{folder}: checkpoints exist and none of them is usable{why}. Training does not start from zero over "
            f"them. Restore a backup with `make restore FROM=...`, or start over with `make new-run`, which moves them "
            f"aside"
        )
    return None


def find_best(
    folder: Path,
    phase: Phase,
    *,
    run_id: str | None = None,
    set_aside: bool = False,
    on_rejected: OnRejected = _ignore,
) -> TrainingState:
    """What a phase hands on: the state with the lowest validation loss, or the newest one if that is damaged.

    Arguments and errors are those of `find_newest`. Also raises `CheckpointError` if nothing was ever saved.
    """
    newest = find_newest(folder, phase, run_id=run_id, set_aside=set_aside, on_rejected=on_rejected)
    if newest is None:
        raise CheckpointError(f"{folder}: {phase} has left no checkpoint to start from. Run {phase} first")
    return best_beside(newest, folder, phase, on_rejected)


def best_beside(newest: TrainingState, folder: Path, phase: Phase, on_rejected: OnRejected = _ignore) -> TrainingState:
    """The best state of the run whose newest state is `newest`. Returns `newest` itself if there is no other."""
    if newest.best_step in (-1, newest.global_step):
        return newest
    generations = [path for path in folder.glob(GENERATIONS) if _step_of(path) == newest.best_step]
    for path in (folder / BEST, *generations):
        with contextlib.suppress(CheckpointError):
            best = load_checkpoint(path, phase)
            if (best.run_id, best.global_step) == (newest.run_id, newest.best_step):
                return best
    on_rejected(folder / BEST, f"the best state (step {newest.best_step:,}) is missing or damaged")
    return newest


def _newest_first(folder: Path) -> list[Path]:
    """All candidate files. Those that do not even reveal their step come first, so they do not go unnoticed."""
    steps = {path: _step_of(path) for path in _all_in(folder) if os.path.lexists(path)}
    return sorted(steps, key=lambda path: (steps[path] is not None, -(steps[path] or 0), path.name != LAST))


def _all_in(folder: Path) -> list[Path]:
    """Every name that a checkpoint of a phase can have."""
    return [folder / LAST, *folder.glob(GENERATIONS), folder / BEST]


def put_aside(path: Path, suffix: str) -> Path:
    """Rename a file so that it is no longer used. Deletes nothing. Returns the new name."""
    target = name_with_suffix(path, suffix)
    rename_durably(path, target)
    return target


def set_aside_newer(folder: Path, step: int, run_id: str) -> list[Path]:
    """Set aside what is newer than `step` or belongs to another run: the user has chosen to go on from there."""
    positions = {path: position_of(path) for path in _all_in(folder)}
    return [
        put_aside(path, SUPERSEDED_SUFFIX)
        for path, position in positions.items()
        if position is not None and (position[0] != run_id or position[2] > step)
    ]


def refuse_to_overlook(checkpoints: Path, phase: Phase) -> None:
    """Raise `CheckpointError` where a phase would begin from zero beside checkpoints that lie under another name.

    A copy over a FAT disk may have made `Phase1` of `phase1`. While a run is there already, only what it would need for
    this phase counts: people keep copies.
    """
    known = {path for each in PHASES for path in _all_in(checkpoints / each.name) if os.path.lexists(path)}
    if any(path.parent.name == phase.name for path in known):
        return
    runs = {position[0] for position in map(position_of, known) if position is not None}
    entries = sorted(checkpoints.glob("[!.]*"))
    overlooked = [
        path
        for entry in entries
        for path in (entry.rglob("*") if entry.is_dir() else [entry])
        if path.suffix.lower() == ".pt" and path not in known and (not runs or _is_of(path, runs, phase))
    ]
    if overlooked:
        names = sorted({shown(path.relative_to(checkpoints)) for path in overlooked})
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{checkpoints}: {phase} would begin from zero, beside checkpoints under names that nothing looks for: "
            f"{names[0]}{more}. Rename their folder to {phase.name} (the newest file is {LAST}), or move them out of "
            f"{checkpoints}; `make new-run` moves everything aside"
        )


def _is_of(path: Path, runs: set[str], phase: Phase) -> bool:
    position = position_of(path)
    return position is not None and position[0] in runs and position[1] == phase.number


def note_run(path: Path, run_id: str) -> None:
    """Record which run the checkpoints beside `path` belong to, so that those of another run are recognised."""
    if noted_run(path) != run_id:
        make_folder(path.parent)
        with contextlib.suppress(OSError):  # a full disk costs this one check; saving reports the problem
            write_json(path, {"run_id": run_id})


def noted_run(path: Path) -> str | None:
    """The recorded run, or None if there is no readable record."""
    try:
        return str(json.loads(path.read_bytes())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def position_of(path: Path) -> tuple[str, int, int] | None:
    """Run, phase and step of a checkpoint according to its seal. None if it is missing or unreadable."""
    try:
        if path.is_symlink():
            return None
        run_id, phase, step = label_of(path).split(" ")
        return run_id, int(phase), int(step)
    except (OSError, ValueError):  # unreadable is an answer here; loading the file tells why
        return None


def newest_position(checkpoints: Path) -> tuple[str, int, int] | None:
    """Run, phase and step of the newest readable checkpoint of all phases below a folder. Not verified."""
    positions = [position_of(path) for path in checkpoints.glob("phase*/*.pt")]
    return max(filter(None, positions), key=lambda position: position[1:], default=None)


def _step_of(path: Path) -> int | None:
    position = position_of(path)
    return None if position is None else position[2]
