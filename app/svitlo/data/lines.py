"""Files that are read line by line."""

from __future__ import annotations

import io
from collections.abc import Iterator

from svitlo.errors import DataError

LONGEST_LINE = 64 << 20


def lines_of(name: str, stream: io.BufferedReader) -> Iterator[tuple[int, str]]:
    """Each line of a UTF-8 file with its number, from 1. Raises `DataError` for a line that never ends."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=None)
    try:
        number = 0
        while line := text.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise DataError(f"{name}: a line has more than {LONGEST_LINE >> 20} MB, so the format is another one")
            yield number, line
    finally:
        if not text.closed:
            text.detach()  # the stream belongs to the archive
