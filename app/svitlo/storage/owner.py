"""Whoever runs a command, what it makes belongs to the owner of the volume, or the trainer could not replace it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def give_to_owner_of(path: Path, owner: Path) -> int:
    """Give what belongs to root at and below `path` to the user and group of `owner`. Only root can, others need not.

    Never follows a link: one to /etc would give that away. Returns how many files could not be given, as in a
    container without the right to do so.
    """
    if os.geteuid() != 0 or not path.exists():
        return 0
    status = owner.stat()
    if status.st_uid == 0:
        return 0
    top = Path(os.path.realpath(path))
    parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        failed = _give(top.name, parent, status)
    finally:
        os.close(parent)
    for _, folders, files, descriptor in os.fwalk(top):
        failed += sum(_give(name, descriptor, status) for name in (*folders, *files))
    return failed


def _give(name: str, folder: int, owner: os.stat_result) -> int:
    try:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid == 0:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return 1
    return 0
