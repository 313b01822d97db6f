"""Free space, and file system errors explained to the person who has to act on them."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from svitlo.errors import VolumeError
from svitlo.units import file_size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM)


def is_full(error: BaseException) -> bool:
    """Whether the disk or the user's quota is full."""
    return getattr(error, "errno", None) in _FULL


def reason_of(error: BaseException) -> str:
    """Why a file operation failed, in a few words."""
    return getattr(error, "strerror", None) or str(error).split("\n", 1)[0] or type(error).__name__


def remedy_for(error: BaseException, folder: Path) -> str:
    """What the user can do about it, as a sentence."""
    if is_full(error):
        return f"Free some space in {folder}, or choose another disk"
    if getattr(error, "errno", None) in _FORBIDDEN:
        return f"Give {folder} to the user and group that run this (PUID and PGID in .env)"
    if getattr(error, "errno", None) == errno.EROFS:
        return f"Mount the disk that holds {folder} so that it can be written"
    if getattr(error, "errno", None) == errno.ENODEV:
        return f"Mount the disk that holds {folder} again"
    return f"Check the disk that holds {folder}"


def volume_error(error: OSError, folder: Path, note: str = "") -> VolumeError:
    """The message for the user: the place, the reason, a `note` about what is kept, the remedy."""
    where = Path(error.filename) if isinstance(error.filename, str) else folder
    parts = [f"{where}: {'no space is left on this disk' if is_full(error) else reason_of(error)}", note]
    return VolumeError(". ".join([*filter(None, parts), remedy_for(error, folder)]))


@contextlib.contextmanager
def explained(folder: Path, note: str = "") -> Iterator[None]:
    """Turn an `OSError` into the `VolumeError` that explains it."""
    try:
        yield
    except OSError as error:
        raise volume_error(error, folder, note) from error


def free_bytes(folder: Path) -> int | None:
    """Bytes free on the disk that holds `folder`, or None if that is unknown."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise `VolumeError` unless `num_bytes` are free on the disk that holds `folder`."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise VolumeError(
            f"{folder}: {file_size(num_bytes)} are needed and {file_size(free)} are free. Free some space, or "
            f"choose another disk"
        )
