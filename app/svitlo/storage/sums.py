"""`SHA256SUMS`: the contents of a folder in the format of `sha256sum`. Anyone can check it without Svitlo.

The file is written last: a folder without it is incomplete. A name is whatever Linux allows: bytes, most often UTF-8.
As with `sha256sum`, a line begins with a backslash where its name holds a line feed, a carriage return or a backslash,
written as `\\n`, `\\r` and `\\\\`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from svitlo.errors import DataError
from svitlo.storage.files import sha256_of, write_durably

SUMS = "SHA256SUMS"
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  ([^\n]+)")
_ESCAPES = {b"\\": rb"\\", b"\n": rb"\n", b"\r": rb"\r"}
_MEANINGS = {escape: plain for plain, escape in _ESCAPES.items()}


def write_sums(folder: Path, sums: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write `SHA256SUMS` for every file below `folder`, or from `sums` (relative path → SHA-256) if already known."""
    if sums is None:
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        sums = {name: sha256_of(folder / name) for name in names if name != SUMS}
    lines = b"".join(_line(sums[name], name) for name in sorted(sums))
    write_durably(folder / SUMS, lambda file: file.write(lines))
    return dict(sums)


def _line(digest: str, name: str) -> bytes:
    plain = os.fsencode(name)
    escaped = re.sub(rb"[\\\n\r]", lambda match: _ESCAPES[match[0]], plain)
    return (b"\\" if escaped != plain else b"") + digest.encode() + b"  " + escaped + b"\n"


def read_sums(folder: Path) -> dict[str, str]:
    """The sums by relative path. Raises `DataError` if the file is missing, damaged or names a path outside."""
    path = folder / SUMS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path}: missing, so this folder was never finished. Choose a complete one") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Choose another folder") from error
    if lines[-1] == b"":
        lines.pop()
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(
            line.removesuffix(b"\r")
        )  # as `sha256sum` does: the file may have passed through Windows
        if match is None:
            raise DataError(f"{path}: line {number} is damaged: {str(line[:80])[1:]}. Choose another folder")
        name = os.fsdecode(_unescaped(match[3]) if match[1] else match[3])
        parts = PurePosixPath(name).parts
        if name != str(PurePosixPath(name)) or name.startswith("/") or ".." in parts or name in sums:
            raise DataError(f"{path}: line {number} names {name!r}, which is not a plain path inside the folder")
        sums[name] = match[2].decode()
    if not sums:
        raise DataError(f"{path}: empty. Choose a complete folder")
    return sums


def _unescaped(name: bytes) -> bytes:
    return re.sub(rb"\\[\\nr]", lambda match: _MEANINGS[match[0]], name)


def shown(name: str | Path) -> str:
    """A name as people see it, in one line: what cannot be printed is written with backslashes."""
    return "".join(
        char if char.isprintable() else repr(char.encode(errors="surrogateescape"))[2:-1] for char in str(name)
    )


def sum_problem(folder: Path, name: str, expected: str) -> str | None:
    """How one file differs from what `SHA256SUMS` says, or None if it does not."""
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            return "is not a regular file" if path.is_symlink() or path.exists() else "is missing"
        found = sha256_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else f"is damaged (SHA-256 {found[:12]}… instead of {expected[:12]}…)"
