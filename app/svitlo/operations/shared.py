"""What backup, restore and a new run share: who may touch the volumes, and how a run is moved aside."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from svitlo.errors import SvitloError
from svitlo.storage.files import (
    TEMPORARY_SUFFIX,
    copy_durably,
    link_durably,
    make_folder,
    name_with_suffix,
    rename_durably,
)
from svitlo.storage.locks import exclusive_lock
from svitlo.storage.owner import give_to_owner_of
from svitlo.storage.sums import shown
from svitlo.volumes import VOLUME_NAMES, Volumes, entries_of

Say = Callable[[str], object]

RUN_VOLUMES = ("checkpoints", "logs", "export")
"""What belongs to one run; the data is the same for the next one."""
BACKUP_VOLUMES = ("data", "checkpoints", "export", "logs")
"""In this order: metrics may be newer than the checkpoint, which cuts them back, but never older."""
_RUNS = "runs"


class BackupError(SvitloError):
    """A backup that is not complete and undamaged, or that must not be put where it was asked to."""

    exit_code = 2


class NothingThere(SvitloError):  # noqa: N818 — reads as what it says
    """There is nothing to check or to copy, which must not look like success: most often a disk was swapped."""

    exit_code = 3


@contextlib.contextmanager
def nobody_at_work(volumes: Volumes) -> Iterator[None]:
    """Only while nobody works on these volumes."""
    with exclusive_lock(volumes.trainer_lock) as no_trainer, exclusive_lock(volumes.prepare_lock) as no_preparation:
        if not (no_trainer and no_preparation):
            who = "data preparation" if no_trainer else "a trainer"
            raise BackupError(f"{volumes.root}: {who} is at work on these volumes. Stop it first (`make down`)")
        for lock in (volumes.trainer_lock, volumes.prepare_lock):
            give_to_owner_of(lock, lock.parent)
        yield


def move_aside(volumes: Volumes, names: tuple[str, ...]) -> Path | None:
    """Move what is in these volumes, but for markers and locks, to a new folder. Returns it; None where nothing was.

    A volume that is a disk of its own keeps its part in `.runs/`.
    """
    found = {name: entries_of(volumes.root / name) for name in names}
    if not any(found.values()):
        return None
    _let_links_lead_where_they_do(
        [path for paths in found.values() for path in paths], [volumes.root / n for n in names]
    )
    target = unused(volumes.root / _RUNS / timestamp())
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
    give_to_owner_of(volumes.root / _RUNS, volumes.root)
    return target


def _let_links_lead_where_they_do(paths: list[Path], together: list[Path]) -> None:
    """Make relative links absolute that lead out of the folders that move `together`: to a larger disk, for example."""
    moving = [folder.resolve() for folder in together]
    for link in (link for path in paths for link in (path, *path.rglob("*")) if link.is_symlink()):
        goal = Path(os.path.realpath(link))
        if not link.readlink().is_absolute() and not any(goal.is_relative_to(folder) for folder in moving):
            absolute = name_with_suffix(link, TEMPORARY_SUFFIX)
            absolute.symlink_to(goal)
            rename_durably(absolute, link)


def copy_file(source: Path, target: Path) -> str:
    """Copy one file durably. Returns its SHA-256."""
    make_folder(target.parent)
    with open(source, "rb") as file:
        return copy_durably(file, target)


def is_in_model(name: str | Path) -> bool:
    """Whether a path below the volumes' root lies in the exported model, where people name things as they like."""
    return len(Path(name).parts) > 2 and Path(name).parts[:2] == ("export", "model")


def link(source: Path, target: Path) -> bool:
    """Give a copied file a further name; False where the file system has no hard links (a USB stick's FAT)."""
    with contextlib.suppress(OSError):
        link_durably(source, target, fsync=False)
        return True
    return False


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes on the disk of these files; a file with several names counts once, one that is gone not at all."""
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def give_volumes_to_their_owners(volumes: Volumes) -> None:
    """After a command of root: what it has made in the volumes belongs to those who train. It makes nothing in raw/."""
    folders = {name: volumes.root / name for name in VOLUME_NAMES if name != volumes.raw.name}
    left = sum(give_to_owner_of(folder, folder) for folder in folders.values())
    left += give_to_owner_of(volumes.root / _RUNS, volumes.root)
    if left:
        print(
            f"warning: {shown(volumes.root)}: {left} files belong to root and cannot be given to its owner. Run: "
            f"chown -R {volumes.root.stat().st_uid}:{volumes.root.stat().st_gid} {shown(volumes.root)}",
            file=sys.stderr,
        )


def timestamp() -> str:
    """Now, in UTC, as part of a name."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def unused(path: Path) -> Path:
    """The path, or one with a number where two came in the same second."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_name(candidate.name + ".partial").exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
