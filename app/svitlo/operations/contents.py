"""What lies in a volume, also behind links. Nothing is passed over in silence."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from svitlo.operations.shared import BackupError
from svitlo.storage.sums import shown
from svitlo.volumes import NOT_OURS

FileId = tuple[int, int]
"""Device and inode: the file or folder itself, under whichever name."""


@dataclass
class Contents:
    """The files below a folder in order, the folders they lie in, and what is neither: pipes, sockets, devices."""

    files: list[Path] = field(default_factory=list)
    folders: dict[FileId, Path] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def contents(folder: Path, is_wanted: Callable[[Path], bool]) -> Contents:
    """All that is wanted below `folder`. Raises `BackupError` for a link that leads nowhere or round in a circle.

    What is removed meanwhile is left out, as if it had been removed before. Raises `OSError` for what cannot be read.
    """
    found = Contents()
    _look(folder, is_wanted, found, {})
    return found


def _look(folder: Path, is_wanted: Callable[[Path], bool], found: Contents, above: dict[FileId, Path]) -> None:
    try:
        identity = file_id(folder)
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return
    if identity in above:
        raise BackupError(f"{shown(folder)}: a link back to {shown(above[identity])}, a circle. Remove this link")
    found.folders[identity] = folder
    for path in (folder / name for name in names if name not in NOT_OURS):
        if not is_wanted(path):
            continue
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            refuse_dangling(path)
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise BackupError(f"{shown(path)}: a link that leads round in a circle. Remove it") from error
        if stat.S_ISDIR(mode):
            _look(path, is_wanted, found, {**above, identity: folder})
        else:
            (found.files if stat.S_ISREG(mode) else found.others).append(path)


def refuse_dangling(path: Path) -> None:
    """Raise `BackupError` if a file is missing because its link leads nowhere, and not because it was removed."""
    if path.is_symlink():
        raise BackupError(
            f"{shown(path)}: a link to {shown(path.readlink())}, and nothing is there. Mount its disk (a container "
            f"sees only what lies in the volumes), or remove the link"
        )


def file_id(path: Path) -> FileId:
    """Which file or folder it is, also behind links."""
    status = path.stat()
    return status.st_dev, status.st_ino
