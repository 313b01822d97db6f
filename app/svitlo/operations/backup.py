"""Moving house: backup while training runs, restore after verifying, moving a run aside. Nothing is ever deleted."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from svitlo.errors import SvitloError, VolumeError
from svitlo.reporting.events import now_as_text, print_line
from svitlo.reporting.status import file_size
from svitlo.storage.files import (
    copy_durably,
    exclusive_lock,
    fsync_tree,
    link_durably,
    make_folder,
    remove_durably,
    rename_durably,
    write_json,
)
from svitlo.storage.sums import SUMS, read_sums, sum_problem, write_sums
from svitlo.volumes import VOLUME_NAMES, Volumes

Say = Callable[[str], object]

RUN_VOLUMES = ("checkpoints", "logs", "export")
"""What belongs to one run; the data is the same for the next one."""
BACKUP_VOLUMES = ("data", "checkpoints", "export", "logs")
"""In this order: metrics may be newer than the checkpoint, which cuts them back, but never older."""
_LEFT_OUT_SUFFIXES = (".tmp", ".partial", ".lock", ".old")
_LEFT_OUT_NAMES = ("process.json", "status.json")
"""What a process says about itself now: no longer true where the backup is put back."""
_RUNS = "runs"
_STAGING = ".restore.partial"
_EXPORT_ATTEMPTS = 3


class BackupError(SvitloError):
    """A backup that is not complete and undamaged, or that must not be put where it was asked to."""

    exit_code = 2


# --- backup ----------------------------------------------------------------------------------------------------------


def backup(volumes: Volumes, destination: Path, config_dir: Path | None = None, say: Say = print_line) -> str:
    """Copy data, checkpoints, export, logs and configuration into a new folder below `destination`.

    Training may go on meanwhile: a checkpoint never changes once it has its name, so an open file is copied whole. The
    folder is called `.partial` until everything in it is on the disk, `SHA256SUMS` last. Returns what was done, in a
    sentence. Raises `BackupError` and `VolumeError` where the destination cannot take it.
    """
    volumes.require("data", "checkpoints", "logs")
    for name in VOLUME_NAMES:
        if destination.resolve().is_relative_to((volumes.root / name).resolve()):
            raise BackupError(
                f"{destination}: lies inside the volume {name}, which is backed up. Choose another folder"
            )
    with _explained(destination):
        make_folder(destination)
        final = _unused(destination / f"svitlo-{_timestamp()}")
        partial = final.with_name(final.name + ".partial")
        _require_space(destination, _num_bytes(path for name in BACKUP_VOLUMES for path in _files(volumes.root / name)))
        try:
            make_folder(partial)
            sums: dict[str, str] = {}
            for volume in BACKUP_VOLUMES:
                sums |= _copy_volume(volumes, volume, partial)
            for path in sorted(config_dir.glob("*.yaml")) if config_dir is not None else []:
                sums[f"config/{path.name}"] = _copy_file(path, partial / "config" / path.name)
            write_sums(partial, sums)
            fsync_tree(partial)
            rename_durably(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk it would keep it full
            raise
    say(f"backed up {len(sums)} files, {file_size(_num_bytes(final / name for name in sums))}")
    return f"complete: {final.name}"


def _copy_volume(volumes: Volumes, volume: str, target: Path) -> dict[str, str]:
    """Copy what belongs into a backup of one volume. Returns the sums by name."""
    for _ in range(_EXPORT_ATTEMPTS if volume == "export" else 1):
        sums = _copy_files(volumes, volume, target)
        model = f"{volume}/{volumes.model.name}"
        if volume != "export" or f"{model}/{SUMS}" not in sums:
            break
        expected = read_sums(target / model)
        if all(sums.get(f"{model}/{name}") == expected[name] for name in expected):
            break
        shutil.rmtree(target / volume)  # the model was exported anew meanwhile: half of this is the older one
    return sums


def _copy_files(volumes: Volumes, volume: str, target: Path) -> dict[str, str]:
    """Names of one file, as the best and the last checkpoint often are, stay names of one file."""
    sums: dict[str, str] = {}
    copied: dict[tuple[int, int], str] = {}
    with contextlib.ExitStack() as held_open:
        for path in _files(volumes.root / volume):
            name = str(path.relative_to(volumes.root))
            try:
                source = open(path, "rb")  # noqa: SIM115 — closed below; opening it is what may fail
            except FileNotFoundError:
                continue  # an older checkpoint that was removed meanwhile
            held_open.callback(source.close)
            status = os.fstat(source.fileno())
            first = copied.get((status.st_dev, status.st_ino))
            make_folder((target / name).parent)
            if first is not None and _link(target / first, target / name):
                sums[name] = sums[first]
                continue
            sums[name] = copy_durably(source, target / name)
            if status.st_nlink > 1:
                copied[status.st_dev, status.st_ino] = name  # its number is not given away while it is open
            else:
                source.close()
    return sums


def _files(folder: Path) -> list[Path]:
    """The files of a volume that belong into a backup. Hidden ones (markers, locks, half-done work) do not."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") or part.endswith(_LEFT_OUT_SUFFIXES) for part in path.relative_to(folder).parts)
        and path.name not in _LEFT_OUT_NAMES
        and ".broken" not in path.name
        and path.is_file()
        and not path.is_symlink()
    ]


# --- restore ---------------------------------------------------------------------------------------------------------


def restore(volumes: Volumes, source: Path, force: bool = False, say: Say = print_line) -> str:
    """Verify the backup at `source` and put it into the volumes; what is there now is moved aside first.

    Refuses to replace a newer run, or another one, unless `force` is given. Raises `BackupError`, `DataError` or
    `VolumeError`; nothing has changed then. A power cut in the middle leaves a journal: nothing trains on the volumes
    until the restore is run again.
    """
    is_repeated = volumes.restore_journal.exists()
    volumes.require_writable(*(name for name in BACKUP_VOLUMES if name != "checkpoints" or not is_repeated))
    # Before anything is read: a file of holes can claim a million times the size of its disk.
    _require_space(volumes.root, _num_bytes(path for path in source.rglob("*") if path.is_file()))
    sums = verify_backup(source)
    say(f"{len(sums)} files verified")
    wanted = _newest(source / "checkpoints")
    with _alone(volumes):
        present = None if is_repeated else _newest(volumes.root / "checkpoints")
        if present is not None and not force and (wanted is None or present[0] != wanted[0] or present > wanted):
            raise BackupError(
                f"{volumes.root}: holds {_in_words(present)}, and the backup {source} holds {_in_words(wanted)}. It is "
                f"not put over a newer or another run; to do so all the same: `svitlo restore --force` or "
                f"`make restore FROM=... FORCE=1` (the present run is moved aside)"
            )
        with _explained(volumes.root):
            try:
                _stage(volumes, source, sums)
                write_json(volumes.restore_journal, {"from": str(source), "began": now_as_text()})
                aside = _move_aside(volumes, BACKUP_VOLUMES)
                for volume in BACKUP_VOLUMES:
                    staging = volumes.root / volume / _STAGING
                    for path in sorted(staging.iterdir()) if staging.is_dir() else []:
                        rename_durably(path, volumes.root / volume / path.name)
                remove_durably(volumes.restore_journal)
            finally:
                for volume in BACKUP_VOLUMES:
                    shutil.rmtree(volumes.root / volume / _STAGING, ignore_errors=True)
    if (source / "config").is_dir():
        say(f"the configuration that it was made with is in {source / 'config'}: a run goes on only with the same")
    return f"restored {_in_words(wanted)}" + (f"; what was there is now in {aside}" if aside is not None else "")


def _stage(volumes: Volumes, source: Path, sums: dict[str, str]) -> None:
    """Copy the backup beside its places, each part on its own volume, and bring it to the disk."""
    for volume in BACKUP_VOLUMES:
        shutil.rmtree(volumes.root / volume / _STAGING, ignore_errors=True)
    names = [name for name in sums if name.split("/")[0] in BACKUP_VOLUMES]
    _require_space(volumes.root, _num_bytes(source / name for name in names))
    copied: dict[str, Path] = {}
    for name in names:
        volume, _, rest = name.partition("/")
        target = volumes.root / volume / _STAGING / rest
        make_folder(target.parent)
        first = copied.get(sums[name]) if volume == "checkpoints" else None
        if first is not None and _link(first, target):
            continue
        if _copy_file(source / name, target) != sums[name]:
            raise BackupError(f"{source / name}: changed while it was being read. Try again")
        if volume == "checkpoints":
            copied[sums[name]] = target
    for volume in BACKUP_VOLUMES:
        staging = volumes.root / volume / _STAGING
        if staging.is_dir():
            _give_to_owner_of(staging, volumes.root / volume)
            fsync_tree(staging)


def verify_backup(source: Path) -> dict[str, str]:
    """Compare every file with its sum. Raises `BackupError` that names what is wrong, `DataError` without sums."""
    if not source.is_dir():
        raise BackupError(f"{source}: there is no such folder. Name one that `make backup` made (svitlo-…)")
    if source.name.endswith(".partial"):
        raise BackupError(f"{source}: this backup was interrupted and is not complete. Choose another one")
    inside = sorted(path.parent.name for path in source.glob(f"svitlo-*/{SUMS}"))
    if inside and not (source / SUMS).exists():
        raise BackupError(
            f"{source}: holds {len(inside)} backups; name one of them, for example {source.name}/{inside[-1]}"
        )
    sums = read_sums(source)
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BackupError(f"{path}: a backup holds only files and folders, and this is neither")
        if path.is_file() and name not in sums and name != SUMS:
            raise BackupError(f"{path}: not named in {SUMS}, so it does not belong to this backup. Remove it")
    for name, expected in sums.items():
        if any(part.startswith(".") for part in name.split("/")):
            raise BackupError(f"{source / name}: a hidden file, and no backup holds one. Choose another backup")
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


def _newest(checkpoints: Path) -> tuple[str, int, int] | None:
    """Run, phase and step of the newest readable checkpoint below a folder."""
    from svitlo.training.checkpoints import position_of

    positions = [position_of(path) for path in checkpoints.glob("phase*/*.pt")]
    return max(filter(None, positions), key=lambda position: position[1:], default=None)


def _in_words(position: tuple[str, int, int] | None) -> str:
    return "no checkpoint" if position is None else "run {} at phase {}, step {:,}".format(*position)


def _move_aside(volumes: Volumes, names: tuple[str, ...]) -> Path | None:
    """Move what is in these volumes, but for markers and locks, to a new folder. Returns it; None where nothing was.

    A volume that is a disk of its own keeps its part in `.runs/`.
    """
    entries = {name: sorted((volumes.root / name).iterdir()) for name in names}
    found = {name: [path for path in paths if not path.name.startswith(".")] for name, paths in entries.items()}
    if not any(found.values()):
        return None
    target = _unused(volumes.root / _RUNS / _timestamp())
    for name, paths in found.items():
        folder = target / name
        make_folder(folder)
        for path in paths:
            try:
                rename_durably(path, folder / path.name)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                folder = volumes.root / name / f".{_RUNS}" / target.name
                make_folder(folder)
                rename_durably(path, folder / path.name)
    _give_to_owner_of(target, volumes.root)
    return target


def _copy_file(source: Path, target: Path) -> str:
    make_folder(target.parent)
    with open(source, "rb") as file:
        return copy_durably(file, target)


def _link(source: Path, target: Path) -> bool:
    """Give a copied file a further name; False where the file system has no hard links (a USB stick's FAT)."""
    with contextlib.suppress(OSError):
        link_durably(source, target, fsync=False)
        return True
    return False


def _num_bytes(paths: Iterable[Path]) -> int:
    """Bytes on the disk of these files; a file with several names counts once, one that is gone not at all."""
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise VolumeError(
            f"{folder}: {file_size(num_bytes)} are needed and {file_size(free)} free. Make room, or choose another disk"
        )


def _give_to_owner_of(folder: Path, owner: Path) -> None:
    """Root gives what it has made to the user who trains."""
    if os.getuid() == 0:
        status = owner.stat()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, status.st_uid, status.st_gid)


@contextlib.contextmanager
def _alone(volumes: Volumes) -> Iterator[None]:
    """Only while nobody works on these volumes."""
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


def _unused(path: Path) -> Path:
    """The path, or one with a number where two came in the same second."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_name(candidate.name + ".partial").exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
