"""The one recipe for files that must survive a power cut. Every durable write of the program goes through here.

The reason for each step, measured on ext4 and XFS by cutting the power in the middle:

1. temporary file in the same folder      rename is atomic only within one file system
2. write, flush, fsync                    without it, the renamed file may be empty after a cut
3. verify by reading it back              finds a bad or full disk while the old file still exists
4. keep the previous file under its own name (a hard link: no instant without a file of the final name; on a disk
   without hard links a copy, see `link_durably`)
5. rename over the final name             old or new, never a mixture
6. fsync the folder                       without it, the old name may come back after a cut

A failed fsync is never retried on the same file: the kernel may have dropped the data and would then report success
(Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). Instead the temporary file is removed and
the error is raised. The caller keeps its old file and writes a new one later.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_SUFFIX = ".tmp"
_CHUNK = 1 << 20
NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""How fsync of a folder fails where the disk does not know it: some network and FUSE disks."""
_without_folder_fsync: set[int] = set()
"""Device numbers of disks whose user has accepted that. On any other it is an error."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""How `link` fails where a file cannot have a second name: exFAT, FAT, many CIFS and FUSE disks."""
_AT_FDCWD, _RENAME_EXCHANGE, _SYNC_FILE_RANGE_WRITE = -100, 2, 2  # linux/fcntl.h, linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)


def write_durably(
    path: Path,
    write: Callable[[BinaryIO], Any],
    *,
    verify: Callable[[Path], Any] | None = None,
    keep_previous_as: Path | None = None,
    fsync: bool = True,
) -> None:
    """Atomically replace `path` with what `write` puts into the file object that it receives.

    `verify` reads the temporary file back and raises if the content is wrong. `keep_previous_as` is a second name under
    which the current file stays. With `fsync=False` the replacement is still atomic for readers, but a power cut may
    lose it. Use that only for files such as `status.json` that nothing depends on. Raises `OSError`, or whatever
    `write` and `verify` raise. `path` is then unchanged and no temporary file is left.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        if keep_previous_as is not None and path.exists():
            link_durably(path, keep_previous_as, fsync=False)  # the folder's fsync below covers both names
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if fsync:
        fsync_folder(path.parent)


def write_json(path: Path, value: Any, *, fsync: bool = True) -> None:
    """Write `value` as JSON with sorted keys: equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_durably(path, lambda file: file.write(text.encode()), fsync=fsync)


def link_durably(source: Path, target: Path, *, fsync: bool = True) -> None:
    """Give the file `source` a second name `target` in the same folder. Atomically replaces any file of that name.

    Where the disk has no hard links, `target` becomes a verified copy: complete and durable before it has its name, so
    the guarantees are the same. The price is that of the bytes: reading, writing and keeping a whole checkpoint (253 MB
    for the usual model) where a link costs nothing.
    """
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy_verified(source, temporary)
    with _freed_in_background(target):
        os.rename(temporary, target)
    # rename(2) does nothing when both names are already the same file, and leaves the temporary name behind.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    if fsync:
        fsync_folder(target.parent)


def _copy_verified(source: Path, target: Path) -> None:
    """Copy a file to a new path, sync it, and compare what can be read back. Leaves nothing where that fails."""
    try:
        with open(source, "rb") as content, open(target, "xb") as file:
            while chunk := content.read(_CHUNK):
                file.write(chunk)
                begin_fsync(file)
            fsync_file(file)
        if not _same_content(source, target):
            raise OSError(errno.EIO, "the copy is not what was copied", str(target))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise


def _same_content(one: Path, other: Path) -> bool:
    with open(one, "rb") as left, open(other, "rb") as right:
        while chunk := left.read(_CHUNK):
            if right.read(_CHUNK) != chunk:
                return False
        return not right.read(1)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within a folder, or between two folders of one file system, so that it survives a power cut."""
    os.rename(source, target)
    fsync_folder(target.parent)
    if source.parent != target.parent:
        fsync_folder(source.parent)


def remove_durably(path: Path) -> None:
    """Remove a file so that it does not come back after a power cut."""
    path.unlink(missing_ok=True)
    fsync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file without waiting. It may come back after a power cut: use this only where that does no harm."""
    with _freed_in_background(path):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _freed_in_background(path: Path) -> Iterator[None]:
    """Keep the file at `path` open while its name is removed, then close it in a thread.

    Freeing the blocks of a 283 MB file took ext4 half a second, as long as writing it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no such file, or nothing to wait for
        descriptor = None
    try:
        yield
    finally:
        if descriptor is not None:
            threading.Thread(target=os.close, args=(descriptor,)).start()


def make_folder(path: Path) -> None:
    """Create a folder and its parents so that their names survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line that survives a power cut. If the last line is torn, ends it first, so it spoils only itself."""
    with open_for_append(path) as file:
        file.write(line.encode() + b"\n")
        fsync_file(file)


def open_for_append(path: Path) -> BinaryIO:
    """Open a file of lines for appending. Creates it if missing. Ends a line torn by a power cut with a newline."""
    is_new = not path.exists()
    file = open(path, "ab")  # noqa: SIM115 — the caller closes it
    try:
        if is_new:
            fsync_folder(path.parent)
        elif not _ends_with_newline(path):
            file.write(b"\n")
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    return file


def truncate_durably(path: Path, num_bytes: int) -> None:
    """Cut a file to its first bytes, in place. Needs no space, so it works on a full disk."""
    with open(path, "r+b") as file:
        file.truncate(num_bytes)
        os.fsync(file.fileno())


def fsync_file(file: BinaryIO) -> None:
    """Make everything written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def begin_fsync(file: BinaryIO) -> None:
    """Ask the kernel to start writing to the disk what was written so far, so that a later fsync waits less.

    Guarantees nothing, and leaves errors for the fsync to report. Does nothing if the C library does not support it.
    """
    sync_file_range = getattr(_libc, "sync_file_range", None)
    if sync_file_range is not None:
        sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_FSYNC:
            raise
        if os.fstat(descriptor).st_dev not in _without_folder_fsync:
            raise OSError(error.errno, "this disk cannot make the names in a folder durable", str(path)) from error
    finally:
        os.close(descriptor)


def accept_no_folder_fsync(folder: Path) -> None:
    """From now on, do without on the disk that holds `folder`: its user has accepted that."""
    _without_folder_fsync.add(folder.stat().st_dev)


def copy_durably(source: BinaryIO, target: Path) -> str:
    """Durably copy an open file to a new path. Returns the SHA-256, in hex, of what was copied."""
    digest = hashlib.sha256()
    with open(target, "xb") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        fsync_file(file)
    return digest.hexdigest()


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` durable, no matter which program wrote them."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)


def replace_folder(new: Path, target: Path) -> None:
    """Durably put the finished folder `new` at `target`. A previous `target` ends up at `new`.

    Both must be in the same folder. Linux exchanges the two names in one step, so `target` is complete at every
    instant. On file systems that cannot do that it takes renames: a power cut in between leaves no `target`, never half
    of one.
    """
    if not target.exists():
        rename_durably(new, target)
        return
    if not _exchange(new, target):
        old = replaced_name(target)
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(new, target)
        os.rename(old, new)
    fsync_folder(target.parent)


def name_with_suffix(path: Path, suffix: str) -> Path:
    """`path` with `suffix`, and a number where that name is taken."""
    candidate, number = path.with_name(path.name + suffix), 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}{suffix}{number}")
    return candidate


def replaced_name(target: Path) -> Path:
    """Where `replace_folder` may leave what stood at `target`, where it cannot exchange and the power fails."""
    return target.with_name(target.name + ".old")


def can_exchange(one: Path, other: Path) -> bool:
    """Whether the file system of two files can exchange their names. Where it can, they are exchanged."""
    try:
        return _exchange(one, other)
    except OSError:
        return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically (renameat2, Linux 3.15). Returns False if the file system cannot do it."""
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def remove_temporaries(folder: Path) -> list[str]:
    """Remove what an interrupted write left in `folder`. Returns the names."""
    names = []
    for path in sorted(folder.glob("*" + TEMPORARY_SUFFIX)):
        with contextlib.suppress(OSError):
            path.unlink()
            names.append(path.name)
    return names


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """The SHA-256, in hex, of a JSON-like value. The order of keys does not matter."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
