"""What a disk can do of what the promises rest on. Tried in a folder of its own that is removed again.

ext4, XFS, Btrfs and tmpfs can do all of it. exFAT, FAT, network and FUSE disks often lack something.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from svitlo.errors import VolumeError
from svitlo.storage.files import NO_FOLDER_FSYNC, NO_LINKS, can_exchange
from svitlo.storage.locks import NO_LOCKS, no_locks
from svitlo.storage.mounts import disk_in_words

FOLDER_FSYNC = "folder-fsync"
ACCEPTABLE = (FOLDER_FSYNC,)
"""What a user may do without, by this name."""
_PREFIX = ".svitlo-probe-"
_LEFTOVER_SECONDS = 3600.0


class UnsuitableDisk(VolumeError):  # noqa: N818 — says what is wrong
    """A disk that cannot keep a promise. It will not learn it by itself."""

    is_permanent = True


@dataclass(frozen=True)
class Abilities:
    """What a disk can do. True also where that could not be tried: what fails later says so itself."""

    links: bool = True
    """Give a file a second name."""
    locks: bool = True
    folder_fsync: bool = True
    """Promise that a name is there after a power cut."""
    chmod: bool = True
    exchange: bool = True
    """Exchange two names in one step."""
    note: str = ""
    """What it cannot do and how that is made up for, for people."""


def abilities_of(folder: Path) -> Abilities:
    """Try everything on the disk that holds `folder`. Takes a few milliseconds and leaves nothing."""
    _remove_leftovers(folder)
    try:
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    except OSError:
        return Abilities()
    one, other = place / "one", place / "other"
    try:
        with open(one, "wb") as file, open(other, "wb"):
            return Abilities(
                links=_works(lambda: os.link(one, place / "link"), NO_LINKS),
                locks=_works(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), NO_LOCKS),
                folder_fsync=_works(lambda: _fsync(place), NO_FOLDER_FSYNC),
                chmod=_works(lambda: one.chmod(0o644), (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)),
                exchange=can_exchange(one, other),
            )
    except OSError:
        return Abilities()
    finally:
        _remove(place)


def require_able_disk(folder: Path, accepted: Collection[str], how_to_accept: str) -> Abilities:
    """What the disk of `folder` can do.

    Raises `VolumeError` where a promise falls that the user has not given up by name. `how_to_accept` is the command
    for that.
    """
    able = abilities_of(folder)
    notes = _notes(able)
    if not able.locks:
        raise VolumeError(_joined(f"{folder}: {no_locks(folder)}", notes))
    if not able.folder_fsync and FOLDER_FSYNC not in accepted:
        raise UnsuitableDisk(
            _joined(
                f"{folder}: {disk_in_words(folder)} cannot promise that a renamed file is there after a power cut "
                f"(fsync of a folder fails). The newest checkpoint may then be gone, and more than a minute of work "
                f"with it. Choose another disk (--volumes or SVITLO_VOLUMES), or accept that: {how_to_accept}",
                notes,
            )
        )
    if not able.folder_fsync:
        notes.insert(0, "promise that a renamed file is there after a power cut (accepted)")
    note = f"{folder}: {disk_in_words(folder)} cannot {'; '.join(notes)}" if notes else ""
    return dataclasses.replace(able, note=note)


def _notes(able: Abilities) -> list[str]:
    """What is done in another way, each as what the disk cannot do and the price."""
    notes = []
    if not able.links:
        notes.append(
            "give a file a second name, so each save and each best checkpoint also copies a whole checkpoint: the same "
            "safety, twice the time and more room"
        )
    if not able.exchange:
        notes.append(
            "exchange two names, so a power cut in the moment when a new export or new data takes its place may leave "
            "the old one as *.old; the next start goes on"
        )
    if not able.chmod:
        notes.append("keep permissions, so its mount options say who may read and write")
    return notes


def _joined(problem: str, notes: list[str]) -> str:
    return f"{problem}. It also cannot {'; '.join(notes)}" if notes else problem


def _works(do: Callable[[], object], unable: Collection[int]) -> bool:
    try:
        do()
    except OSError as error:
        return error.errno not in unable
    return True


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process has left of this."""
    with contextlib.suppress(OSError):
        for path in folder.glob(_PREFIX + "*"):
            if abs(time.time() - path.stat().st_mtime) > _LEFTOVER_SECONDS:
                _remove(path)


def _remove(place: Path) -> None:
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
