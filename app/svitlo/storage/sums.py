"""`SHA256SUMS`: the contents of a folder in the format of `sha256sum`. Anyone can check it without Svitlo.

The file is written last: a folder without it is incomplete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from svitlo.errors import DataError
from svitlo.storage.files import sha256_of, write_durably

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path, sums: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write `SHA256SUMS` for every file below `folder`, or from `sums` (relative path → SHA-256) if already known."""
    if sums is None:
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        sums = {name: sha256_of(folder / name) for name in names if name != SUMS}
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_durably(folder / SUMS, lambda file: file.write(text.encode()))
    return dict(sums)


def read_sums(folder: Path) -> dict[str, str]:
    """The sums by relative path. Raises `DataError` if the file is missing, damaged or names a path outside."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: missing, so this folder was never finished. Choose a complete one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    sums = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{path}: line {number} is damaged: {line[:80]!r}")
        name = match[2]
        parts = PurePosixPath(name).parts
        if name != str(PurePosixPath(name)) or name.startswith("/") or ".." in parts or "\\" in name or name in sums:
            raise DataError(f"{path}: line {number} names {name!r}, which is not a plain path inside the folder")
        sums[name] = match[1]
    if not sums:
        raise DataError(f"{path}: empty. Choose a complete folder")
    return sums


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
