"""Locks between processes that share a volume."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from svitlo.errors import VolumeError
from svitlo.storage.mounts import disk_in_words

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""How `flock` fails where a file cannot be locked: NFS whose lock service does not answer, some FUSE disks."""


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Hold an advisory lock. Yields False if another process holds it. The lock ends with the process.

    Raises `VolumeError` where the disk cannot lock.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = True
        except BlockingIOError:
            is_mine = False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise VolumeError(f"{path}: {no_locks(path.parent)}") from error
        yield is_mine


def no_locks(folder: Path) -> str:
    """What is wrong with a disk that cannot lock, and the remedy."""
    return (
        f"{disk_in_words(folder)} cannot lock files, and without locks two processes could overwrite each other's "
        f"work. On NFS, start the lock service of the server or mount with `-o local_lock=flock`; or choose a local "
        f"disk (--volumes or SVITLO_VOLUMES)"
    )
