"""Moving house: backup while training runs, restore after verifying, moving a run aside. Nothing is ever deleted."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from svitlo.durability.files import (
    copy_durably,
    exclusive_lock,
    fsync_tree,
    make_folder,
    rename_durably,
)
from svitlo.durability.sums import SUMS, read_sums, sum_problem, write_sums
from svitlo.errors import DataError, SvitloError, VolumeError
from svitlo.reporting.events import print_line
from svitlo.reporting.status import file_size
from svitlo.volumes import MARKER, Volumes

Say = Callable[[str], object]

RUN_VOLUMES = ("checkpoints", "logs", "export")
"""What belongs to one run; the data is the same for the next one."""
BACKUP_VOLUMES = ("data", "checkpoints", "export", "logs")
"""In this order: metrics may be newer than the checkpoint, which cuts them back, but never older."""
_LEFT_OUT_SUFFIXES = (".tmp", ".partial", ".lock", ".old")
_LEFT_OUT_NAMES = (MARKER, ".lock", "process.json")
_RUNS = "runs"


class BackupError(SvitloError):
    """A backup that is not complete and undamaged, or that must not be put where it was asked to."""

    exit_code = 2


# --- backup ----------------------------------------------------------------------------------------------------------


def backup(volumes: Volumes, destination: Path, config_dir: Path | None = None, say: Say = print_line) -> str:
    """Copy data, checkpoints, export, logs and configuration into a new folder below `destination`.

    Training may go on meanwhile: a checkpoint never changes once it has its name, so an open file is copied whole. The
    folder is called `.partial` until everything in it is on the disk, `SHA256SUMS` last. Returns what was done, in a
    sentence. Raises `VolumeError` where the destination cannot take it.
    """
    volumes.require("data", "checkpoints", "logs")
    final = destination / f"svitlo-{_timestamp()}"
    partial = final.with_name(final.name + ".partial")
    with _explained(destination):
        make_folder(partial)
        sums: dict[str, str] = {}
        for name, path in _files_to_back_up(volumes, config_dir):
            try:
                source = open(path, "rb")  # noqa: SIM115 — closed below; opening it is what may fail
            except FileNotFoundError:
                continue  # an older checkpoint that was removed meanwhile
            with source:
                make_folder((partial / name).parent)
                sums[name] = copy_durably(source, partial / name)
        write_sums(partial, sums)
        fsync_tree(partial)
        rename_durably(partial, final)
    num_bytes = sum((final / name).stat().st_size for name in sums)
    say(f"backed up {len(sums)} files, {file_size(num_bytes)}")
    return f"complete: {final.name}"


def _files_to_back_up(volumes: Volumes, config_dir: Path | None) -> Iterator[tuple[str, Path]]:
    """Name in the backup and path of each file."""
    for volume in BACKUP_VOLUMES:
        folder = volumes.root / volume
        for path in sorted(folder.rglob("*")):
            is_wanted = path.name not in _LEFT_OUT_NAMES and not any(
                part.endswith(_LEFT_OUT_SUFFIXES) for part in path.relative_to(folder).parts
            )
            if is_wanted and path.is_file() and not path.is_symlink():
                yield f"{volume}/{path.relative_to(folder)}", path
    for path in sorted(config_dir.glob("*.yaml")) if config_dir is not None else []:
        yield f"config/{path.name}", path


# --- restore ---------------------------------------------------------------------------------------------------------


def restore(volumes: Volumes, source: Path, force: bool = False, say: Say = print_line) -> str:
    """Verify the backup at `source` and put it into the volumes; what is there now is moved aside first.

    Refuses to replace a newer run, or another one, unless `force` is given. Raises `BackupError`, `DataError` or
    `VolumeError`; nothing has changed then.
    """
    volumes.require_writable(*BACKUP_VOLUMES)
    sums = verify_backup(source)
    say(f"{len(sums)} files verified")
    wanted = _newest(source / "checkpoints")
    with _alone(volumes):
        present = _newest(volumes.root / "checkpoints")
        if present is not None and not force and (wanted is None or present[0] != wanted[0] or present > wanted):
            raise BackupError(
                f"{volumes.root}: holds {_in_words(present)}, and the backup {source} holds {_in_words(wanted)}. It is "
                f"not put over a newer or another run; to do so all the same: `svitlo restore --force` or "
                f"`make restore FROM=... FORCE=1` (the present run is moved aside)"
            )
        staging = volumes.root / f".restore-{_timestamp()}.partial"
        with _explained(volumes.root):
            for name in sums:
                if name.split("/")[0] in BACKUP_VOLUMES:
                    make_folder((staging / name).parent)
                    with open(source / name, "rb") as file:
                        if copy_durably(file, staging / name) != sums[name]:
                            raise BackupError(f"{source / name}: changed while it was being read. Try again")
            aside = _move_aside(volumes, BACKUP_VOLUMES)
            for volume in BACKUP_VOLUMES:
                for path in sorted((staging / volume).iterdir()) if (staging / volume).is_dir() else []:
                    rename_durably(path, volumes.root / volume / path.name)
            shutil.rmtree(staging)
    return f"restored {_in_words(wanted)}" + (f"; what was there is now in {aside}" if aside is not None else "")


def verify_backup(source: Path) -> dict[str, str]:
    """Compare every file with its sum. Raises `BackupError` that names what is wrong, `DataError` without sums."""
    if not source.is_dir():
        raise BackupError(f"{source}: there is no such folder. Name one that `make backup` made (svitlo-…)")
    if source.name.endswith(".partial"):
        raise BackupError(f"{source}: this backup was interrupted and is not complete. Choose another one")
    sums = read_sums(source)
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BackupError(f"{path}: a backup holds only files and folders, and this is neither")
        if path.is_file() and name not in sums and name != SUMS:
            raise BackupError(f"{path}: not named in {SUMS}, so it does not belong to this backup. Remove it")
    for name, expected in sums.items():
        problem = sum_problem(source, name, expected)
        if problem:
            raise BackupError(f"{source / name}: {problem}. Choose another backup")
    return sums


# --- the rest --------------------------------------------------------------------------------------------------------


def new_run(volumes: Volumes) -> str:
    """Move checkpoints, logs and export aside, so that training begins anew on the same data. Returns a sentence."""
    volumes.require_writable(*RUN_VOLUMES)
    with _alone(volumes), _explained(volumes.root):
        aside = _move_aside(volumes, RUN_VOLUMES)
    return "there was no run to move aside" if aside is None else f"the run before is now in {aside}"


def verify_volumes(volumes: Volumes, say: Say = print_line) -> bool:
    """Check shards, checkpoints and exported files, and say of each what was found. Returns whether all are good."""
    from svitlo.data.shards import SPLITS, DataNotReady, file_problem, load_manifest
    from svitlo.durability.checkpoints import load_checkpoint

    problems = num_files = 0

    def report(path: Path, problem: str | None) -> None:
        nonlocal problems, num_files
        num_files += 1
        problems += problem is not None
        say(f"{path.relative_to(volumes.root)}: {problem or 'good'}")

    for phase in (1, 2):
        folder = volumes.data(phase)
        try:
            manifest = load_manifest(folder)
        except DataNotReady:
            say(f"data of phase {phase}: not prepared (yet)")
            continue
        except DataError as error:
            report(folder / "manifest.json", str(error))
            continue
        for split in SPLITS:
            for shard in manifest.shards(split):
                for file in shard.files:
                    report(folder / file.name, file_problem(folder, file) or None)
    for path in sorted((volumes.root / "checkpoints").glob("phase*/*.pt")):
        try:
            load_checkpoint(path, int(path.parent.name[-1]))
        except SvitloError as error:
            report(path, str(error))
        else:
            report(path, None)
    if volumes.model.is_dir():
        try:
            for name, expected in read_sums(volumes.model).items():
                report(volumes.model / name, sum_problem(volumes.model, name, expected))
        except DataError as error:
            report(volumes.model, str(error))
    say(f"{num_files} files checked: " + ("all good" if not problems else f"{problems} NOT GOOD"))
    return not problems


def _newest(checkpoints: Path) -> tuple[str, int, int] | None:
    """Run, phase and step of the newest readable checkpoint below a folder."""
    from svitlo.durability.checkpoints import position_of

    positions = [position_of(path) for path in checkpoints.glob("phase*/*.pt")]
    return max(filter(None, positions), key=lambda position: position[1:], default=None)


def _in_words(position: tuple[str, int, int] | None) -> str:
    return "no checkpoint" if position is None else "run {} at phase {}, step {:,}".format(*position)


def _move_aside(volumes: Volumes, names: tuple[str, ...]) -> Path | None:
    """Move what is in these volumes, but for markers and locks, to a new folder. Returns it; None where nothing was."""
    found = {
        name: [path for path in sorted((volumes.root / name).iterdir()) if path.name not in (MARKER, ".lock")]
        for name in names
    }
    if not any(found.values()):
        return None
    target = volumes.root / _RUNS / _timestamp()
    for name, paths in found.items():
        make_folder(target / name)
        for path in paths:
            rename_durably(path, target / name / path.name)
    return target


@contextlib.contextmanager
def _alone(volumes: Volumes) -> Iterator[None]:
    """Only while neither trainer nor data-prep works on these volumes."""
    with exclusive_lock(volumes.trainer_lock) as no_trainer, exclusive_lock(volumes.prepare_lock) as no_preparation:
        if not (no_trainer and no_preparation):
            who = "data preparation" if no_trainer else "a trainer"
            raise BackupError(f"{volumes.root}: {who} is at work on these volumes. Stop it first (`make down`)")
        yield


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """File system errors as one line that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VolumeError(f"{where}: no space is left on this disk. Free some, or choose another one") from error
        raise VolumeError(f"{where}: {error.strerror}. May this user (PUID, PGID) write there?") from error


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
