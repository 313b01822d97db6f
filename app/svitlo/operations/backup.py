"""`svitlo backup`: everything that matters into one folder, with sums, while training runs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from svitlo.errors import SvitloError
from svitlo.operations.contents import Contents, FileId, contents, file_id, refuse_dangling
from svitlo.operations.destination import require_outside, same_disk_warning
from svitlo.operations.restore import verify_files
from svitlo.operations.shared import (
    BACKUP_VOLUMES,
    BackupError,
    NothingThere,
    Say,
    copy_file,
    is_in_model,
    link,
    timestamp,
    total_bytes,
    unused,
)
from svitlo.reporting.events import print_line
from svitlo.storage.files import copy_durably, fsync_tree, make_folder, rename_durably
from svitlo.storage.owner import give_to_owner_of
from svitlo.storage.space import explained, require_space
from svitlo.storage.sums import SUMS, read_sums, shown, write_sums
from svitlo.training.checkpoints import BROKEN_SUFFIX
from svitlo.units import file_size
from svitlo.volumes import Volumes

_LEFT_OUT_SUFFIXES = (".tmp", ".partial", ".lock", ".old")
_LEFT_OUT = (Path("checkpoints/process.json"), Path("logs/status.json"), Path("logs/data-prep.json"))
"""What a process says about itself now: no longer true where the backup is put back."""
_EXPORT_ATTEMPTS = 3


def backup(volumes: Volumes, destination: Path, config_dir: Path | None = None, say: Say = print_line) -> str:
    """Copy data, checkpoints, export, logs and configuration into a new folder below `destination`.

    Training may go on meanwhile: a checkpoint never changes once it has its name, so an open file is copied whole. The
    folder is called `.partial` until everything in it is on the disk, `SHA256SUMS` last. Returns what was done, in a
    sentence. Raises `BackupError` and `VolumeError` where the destination cannot take it, and
    `NothingThere` where there is nothing to copy.
    """
    volumes.require("data", "checkpoints", "logs")
    with explained(volumes.root):
        found = [_contents(volumes, name) for name in BACKUP_VOLUMES]
        require_outside(volumes, destination, {key: path for part in found for key, path in part.folders.items()})
    if not any(part.files for part in found):
        raise NothingThere(
            f"{volumes.root}: nothing to back up: no data, no checkpoints, no export. If there was something, mount "
            f"the disk that holds it, or name the right folder with --volumes or SVITLO_VOLUMES"
        )
    with explained(destination), _names_taken(destination):
        make_folder(destination)
        warning = same_disk_warning(volumes, destination)
        final = unused(destination / f"svitlo-{timestamp()}")
        partial = final.with_name(final.name + ".partial")
        require_space(destination, total_bytes(path for part in found for path in part.files))
        try:
            make_folder(partial)
            sums: dict[str, str] = {}
            for volume in BACKUP_VOLUMES:
                sums |= _copy_volume(volumes, volume, partial)
            for path in sorted(config_dir.glob("[!.]*.yaml")) if config_dir is not None else []:
                sums[f"config/{path.name}"] = copy_file(path, partial / "config" / path.name)
            write_sums(partial, sums)
            give_to_owner_of(partial, volumes.root)
            fsync_tree(partial)
            _read_back(partial, sums)
            rename_durably(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk it would keep it full
            raise
    for path in (path for part in found for path in part.others):
        say(f"left out, because it is neither a file nor a folder: {shown(path)}")
    say(f"backed up {len(sums)} files, {file_size(total_bytes(final / name for name in sums))}")
    if warning is not None:
        say(warning)
    return f"complete: {final.name}"


@contextlib.contextmanager
def _names_taken(destination: Path) -> Iterator[None]:
    """Say which name it is, where the destination's file system cannot take it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.EEXIST) or not error.filename:
            raise
        raise BackupError(
            f"{destination}: its file system cannot take the name {shown(error.filename)} ({error.strerror}). Rename "
            f"that file in the volumes, or choose a disk with ext4, XFS or Btrfs"
        ) from error


def _read_back(folder: Path, sums: dict[str, str]) -> None:
    """Read everything from the disk again. Raises `BackupError` unless each file is there under its name, undamaged."""
    for name in (*sums, SUMS):
        with open(folder / name, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what is in memory proves nothing
    try:
        found = verify_files(folder)
    except SvitloError as error:
        raise BackupError(f"{error}. What was just written there cannot be read back: check that disk") from error
    if found != sums:
        name = min(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))
        raise BackupError(f"{folder / SUMS}: does not name {shown(name)} as it was copied. Check that disk, try again")


def _copy_volume(volumes: Volumes, volume: str, target: Path) -> dict[str, str]:
    """Copy what belongs into a backup of one volume. Returns the sums by name."""
    sums: dict[str, str] = {}
    for attempt in range(_EXPORT_ATTEMPTS if volume == "export" else 1):
        if attempt:
            shutil.rmtree(target / volume)  # the model was exported again meanwhile: half of this is the older one
        sums = _copy_files(volumes, volume, target)
        model = f"{volume}/{volumes.model.name}"
        if volume != "export" or f"{model}/{SUMS}" not in sums:
            break
        expected = read_sums(target / model)
        if all(sums.get(f"{model}/{name}") == expected[name] for name in expected):
            break
    return sums  # also where somebody has changed a file of the export: it is copied as it is


def _copy_files(volumes: Volumes, volume: str, target: Path) -> dict[str, str]:
    """Names of one file, as the best and the last checkpoint often are, stay names of one file. Links are followed."""
    sums: dict[str, str] = {}
    copied: dict[FileId, str] = {}
    paths = _contents(volumes, volume).files
    names_of = Counter(filter(None, map(_id_if_there, paths)))
    with contextlib.ExitStack() as held_open:
        for path in paths:
            name = str(path.relative_to(volumes.root))
            try:
                source = open(path, "rb")  # noqa: SIM115 — closed below; opening it is what may fail
            except FileNotFoundError:
                refuse_dangling(path)
                continue  # an older checkpoint that was removed meanwhile
            held_open.callback(source.close)
            status = os.fstat(source.fileno())
            identity = status.st_dev, status.st_ino
            first = copied.get(identity)
            make_folder((target / name).parent)
            if first is not None and link(target / first, target / name):
                sums[name] = sums[first]
                continue
            sums[name] = copy_durably(source, target / name)
            if status.st_nlink > 1 or names_of[identity] > 1:
                copied[identity] = name  # its number is not given away while it is open
            else:
                source.close()
    return sums


def _id_if_there(path: Path) -> FileId | None:
    try:
        return file_id(path)
    except FileNotFoundError:
        return None


def _contents(volumes: Volumes, volume: str) -> Contents:
    return contents(volumes.root / volume, lambda path: _belongs(path.relative_to(volumes.root)))


def _belongs(path: Path) -> bool:
    """Whether a file, named from the volumes' root, belongs into a backup. In the model's folder each name does."""
    if is_in_model(path):
        return True
    is_work = any(part.startswith(".") or part.endswith(_LEFT_OUT_SUFFIXES) for part in path.parts)
    return not is_work and path not in _LEFT_OUT and BROKEN_SUFFIX not in path.name
