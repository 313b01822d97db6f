"""The files of a source: what stands below `volumes/raw/`, what its patterns take, and what they leave out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from svitlo.config import Source
from svitlo.data.archives import PackedFile
from svitlo.data.patterns import fits, in_other_case, leads_to, parts_of, problem_of, recorded_name, why_left_out
from svitlo.errors import DataError
from svitlo.storage.sums import shown
from svitlo.units import printable
from svitlo.volumes import MARKER

MOST_NAMED = 100
"""At most so many names of what was left out are recorded."""

_DEAD_LINK = " (a link to something that is not visible here: put the files themselves there)"


class FoundFiles(NamedTuple):
    files: list[PackedFile]
    """In the order of the patterns, and for each pattern sorted by name."""
    left_out: list[str]
    """What nearly fits and is not read, each with the reason."""


class _Entry(NamedTuple):
    name: str
    """Relative to the folder."""
    path: Path
    problem: str | None
    """Why it is no file that can be read, if so. Its name then ends with a slash if it is a folder."""


def find_files(source: Source, raw_folder: Path, announce: Callable[[str], None]) -> FoundFiles:
    """The files of a source. Raises `DataError` if none fits."""
    patterns = source.files or []
    for pattern in patterns:
        _check_pattern(source, pattern, raw_folder)
    globs = [parts_of(pattern.partition("::")[0]) for pattern in patterns]
    looks_in_hidden = any(part.startswith(".") for glob in globs for part in glob)
    there = sorted(_walk(raw_folder, "", (), looks_in_hidden), key=lambda entry: entry.name.split("/"))
    files: dict[tuple[Path, str], PackedFile] = {}
    taken: set[str] = set()
    left_out: dict[str, str] = {}
    unused = []
    for pattern, glob in zip(patterns, globs, strict=True):
        entries = _fitting(there, glob, left_out)
        members = pattern.partition("::")[2]
        for entry in entries:
            taken.add(entry.name)
            packed = PackedFile(entry.path, members or None, recorded_name(entry.name), announce)
            files.setdefault((entry.path, members), packed)
        if not entries:
            unused.append(pattern)
    named = [f"{shown(name)} ({reason})" for name, reason in sorted(left_out.items()) if name not in taken]
    if not files:
        raise DataError(_nothing_fits(source, raw_folder, unused, there, named))
    for pattern in unused:
        announce(f"warning: source {source.name}: nothing fits `{printable(pattern)}` below {raw_folder}")
    return FoundFiles(list(files.values()), at_most(named))


def at_most(named: list[str]) -> list[str]:
    """The first names, and how many there are besides."""
    others = [f"{len(named) - MOST_NAMED:,} more"] if len(named) > MOST_NAMED else []
    return named[:MOST_NAMED] + others


def _check_pattern(source: Source, pattern: str, raw_folder: Path) -> None:
    glob, mark, members = pattern.partition("::")
    problem = problem_of(glob) or (problem_of(members) if mark else None)
    if glob.startswith("/") or ".." in glob.split("/") or not glob:
        problem = f"must be a pattern below {raw_folder}, without `..` and not absolute"
    if problem is not None:
        raise DataError(f"data.yaml: source {source.name}: `{printable(pattern)}`: {printable(problem)}")


def _fitting(there: list[_Entry], glob: list[str], left_out: dict[str, str]) -> list[_Entry]:
    """The files that fit; notes in `left_out` what nearly does. A file of exactly that name is taken before all."""
    exact = [entry for entry in there if entry.problem is None and parts_of(entry.name) == glob]
    if exact:
        return exact
    fitting = []
    for entry in there:
        parts = parts_of(entry.name)
        if entry.problem is not None:
            is_near = leads_to(parts, glob) if entry.name.endswith("/") else fits(parts, glob)
            if is_near:
                left_out[entry.name] = entry.problem
        elif not fits(parts, glob, with_hidden=True):
            if in_other_case(parts, glob):
                left_out[entry.name] = f"fits `{printable('/'.join(glob))}` only in other upper and lower case"
        elif reason := why_left_out(parts, glob):
            left_out[entry.name] = reason
        else:
            fitting.append(entry)
    return fitting


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], looks_in_hidden: bool) -> Iterator[_Entry]:
    """Everything below a folder. Links are followed. `above`: the folders on the way here, to notice a circle."""
    try:
        status = folder.stat()
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir(), entry.is_file()) for entry in found]
    except OSError as error:
        yield _Entry(prefix, folder, f"cannot be read: {error.strerror}")
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        yield _Entry(prefix, folder, "a link in a circle")
        return
    for name, is_folder, is_file in entries:
        path = folder / name
        if is_folder and name.startswith(".") and not looks_in_hidden:
            yield _Entry(f"{prefix}{name}/", path, "hidden")
        elif is_folder:
            yield from _walk(path, f"{prefix}{name}/", (*above, here), looks_in_hidden)
        elif is_file and not (name == MARKER and not prefix):
            yield _Entry(prefix + name, path, None)
        elif path.is_symlink():
            yield _Entry(prefix + name, path, "a link to something that is not visible here")
        elif not is_file:
            yield _Entry(prefix + name, path, "neither a file nor a folder")


def _nothing_fits(source: Source, raw_folder: Path, unused: list[str], there: list[_Entry], named: list[str]) -> str:
    names = [
        shown(entry.name) + (_DEAD_LINK if entry.path.is_symlink() and not entry.path.exists() else "")
        for entry in there
    ]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    left_out = f" Left out: {', '.join(named[:8])}." if named else ""
    folders = [printable(pattern.rstrip("/")) for pattern in unused if (raw_folder / pattern).is_dir()]
    remedy = f"`{folders[0]}/**/*` takes all files in that folder" if folders else "change the pattern"
    patterns = " or ".join(f"`{printable(pattern)}`" for pattern in unused)
    return (
        f"{raw_folder}: no file fits {patterns} (source {source.name} in data.yaml).{left_out} Put the file there, or "
        f"{remedy}. In the folder: {listed or 'nothing'}"
    )
