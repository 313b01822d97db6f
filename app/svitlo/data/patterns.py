"""Patterns for names of files below a folder and of members of archives, and what they leave out by default.

*.txt         any name, in one folder       ?, [ab] as in a shell
docs/**/*.txt `**`: any number of folders. At the end: everything in them
"""

from __future__ import annotations

import fnmatch
import unicodedata
from collections.abc import Sequence

_LITTER = {
    "left there by a system": ("desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r"),
    "a backup or lock of an editor": ("*~", "~$*", "*.bak", "*.swp", "#*#"),
    "a checksum or signature": (
        "*.md5", "*.sha1", "*.sha224", "*.sha256", "*.sha384", "*.sha512", "*.asc", "*.sig", "md5sums", "sha1sums",
        "sha256sums", "sha512sums",
    ),
    "an unfinished download": ("*.part", "*.partial", "*.crdownload", "*.download", "*.aria2", "*.tmp"),
}  # fmt: skip
_LITTER_FOLDERS = {"__MACOSX": "left there by a system", "$RECYCLE.BIN": "deleted"}


def problem_of(pattern: str) -> str | None:
    """Why a pattern cannot be used, if so, and what was meant."""
    parts = pattern.split("/")
    if not pattern or any(part in ("", ".") for part in parts[:-1]) or parts[-1] == ".":
        return "names no file"
    for number, part in enumerate(parts):
        if "**" in part and part != "**":
            rest = part.replace("**", "*")
            meant = "/".join([*parts[:number], "**", rest, *parts[number + 1 :]])
            return f"`**` stands for whole folders; `{meant}` was probably meant"
    return None


def parts_of(name: str) -> list[str]:
    """The parts of a name or pattern, in the Unicode form in which they are compared."""
    return [part for part in unicodedata.normalize("NFC", name).split("/") if part not in ("", ".")]


def fits(parts: Sequence[str], patterns: Sequence[str], *, with_hidden: bool = False) -> bool:
    """Whether a name fits. Parts that begin with a dot fit only patterns that do, unless `with_hidden`."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        rest = patterns[1:] or ["*"]
        for skipped in range(len(parts)):
            if fits(parts[skipped:], rest, with_hidden=with_hidden):
                return True
            if parts[skipped].startswith(".") and not with_hidden:
                return False
        return False
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], patterns[0])
        and (with_hidden or not parts[0].startswith(".") or patterns[0].startswith("."))
        and fits(parts[1:], patterns[1:], with_hidden=with_hidden)
    )


def leads_to(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether something below the folder `parts` can fit, hidden or not."""
    if not parts or not patterns:
        return bool(patterns)
    return patterns[0] == "**" or (fnmatch.fnmatchcase(parts[0], patterns[0]) and leads_to(parts[1:], patterns[1:]))


def why_left_out(parts: Sequence[str], patterns: Sequence[str]) -> str | None:
    """Why a name that fits a pattern, hidden parts included, is left out. None if it is not."""
    for part in parts[:-1]:
        if part in _LITTER_FOLDERS and part not in patterns:
            return _LITTER_FOLDERS[part]
    if not fits(parts, patterns):
        return "hidden"
    name, last = parts[-1].lower(), patterns[-1].lower()
    for reason, kinds in _LITTER.items():
        for kind in kinds:
            if fnmatch.fnmatchcase(name, kind) and not _names(last, kind):
                return reason
    return None


def _names(pattern: str, kind: str) -> bool:
    """Whether a pattern means files of this kind: `*.part` does, `t.txt*` only happens to fit them."""
    if "*" not in kind:
        return pattern == kind
    if kind.endswith("*"):
        return pattern.startswith(kind.rstrip("*"))
    return pattern.endswith(kind.lstrip("*"))


def in_other_case(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a name would fit if it did not matter which letters are capitals."""
    return fits([part.casefold() for part in parts], [pattern.casefold() for pattern in patterns])


def recorded_name(name: str) -> str:
    """A name for manifests. Bytes that are not UTF-8 are escaped. Messages escape more: see `storage.sums.shown`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
