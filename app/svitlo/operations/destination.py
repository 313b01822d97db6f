"""Where a backup may go: never into what it copies, and it is said where it shares a disk with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from svitlo.operations.contents import FileId, file_id
from svitlo.operations.shared import BACKUP_VOLUMES, BackupError
from svitlo.storage.sums import shown
from svitlo.volumes import VOLUME_NAMES, Volumes

_SENDING = ".backup"
"""In the volumes' root: where docker/backup.sh gathers what it then sends to another machine."""


def require_outside(volumes: Volumes, destination: Path, copied: Mapping[FileId, Path]) -> None:
    """Raise `BackupError` if `destination` lies in the volumes or in one of the `copied` folders, behind links also.

    A mount is recognised by the folder itself: in a container every destination is called /backup.
    """
    real = destination.resolve()
    for folder in (*(volumes.root / name for name in VOLUME_NAMES), volumes.root):
        if real.is_relative_to(folder.resolve()):
            raise _inside(destination, folder)
    for path in (real, *real.parents):
        if path.exists() and file_id(path) in copied:
            raise _inside(destination, copied[file_id(path)])


def _inside(destination: Path, folder: Path) -> BackupError:
    return BackupError(
        f"{shown(destination)}: lies inside {shown(folder)}, so each backup would copy the ones before it. Choose "
        f"a folder outside the volumes, best on another disk"
    )


def same_disk_warning(volumes: Volumes, destination: Path) -> str | None:
    """What to tell a person whose backup will be lost together with the disk of the volumes. None if it will not."""
    sending = volumes.root / _SENDING
    if sending.exists() and sending.samefile(destination):
        return None
    if _disk_of(destination) not in {_disk_of(volumes.root / name) for name in BACKUP_VOLUMES}:
        return None
    return (
        f"warning: {shown(destination)} is on the same disk as {shown(volumes.root)}, so this backup does not survive "
        f"that disk. Copy it to another disk or machine, too"
    )


def _disk_of(folder: Path) -> Path:
    """What the kernel calls the disk of a folder; for file systems without one, such as tmpfs, something as unique."""
    device = folder.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return node.parent if (node / "partition").exists() else node
