"""JSON documents larger than memory: their values one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

BLOCK_CHARACTERS = 1 << 20
LONGEST_VALUE = 64 << 20
"""A single record longer than this (in characters) is taken for a mistake."""

_DATA = re.compile(r'"data"\s*:\s*\[')


class NotJson(ValueError):  # noqa: N818 — says what it is
    """What stands there is not JSON; the text says what was seen."""


def json_values(text: TextIO, *, inside_data: bool = False) -> Iterator[Any]:
    """The elements of a JSON array, or the values that stand one after the other (JSON lines).

    `inside_data`: the elements of the array under the key `data` of the outermost object. Raises `NotJson`.
    """
    reader = _Reader(text)
    if inside_data:
        reader.skip_past(_DATA)
        is_array = True
    else:
        is_array = reader.next_is("[")
    count = 0
    while reader.has_more():
        if is_array:
            if reader.next_is("]"):
                return
            if count:
                reader.expect(",")
        yield reader.value()
        count += 1
    if is_array:
        raise NotJson(f"the file ends in the middle of the array, after {count:,} records: it is cut short")


class _Reader:
    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._position = 0
        self._at_end = False
        self._decoder = json.JSONDecoder(strict=False)  # control characters stand unescaped in some files

    def _read_more(self) -> bool:
        block = "" if self._at_end else self._text.read(max(BLOCK_CHARACTERS, len(self._buffer) - self._position))
        self._at_end = not block
        self._buffer = self._buffer[self._position :] + block
        self._position = 0
        return bool(block)

    def has_more(self) -> bool:
        """Skip white space; is anything left?"""
        while True:
            rest = len(self._buffer)
            while self._position < rest and self._buffer[self._position] in " \t\r\n":
                self._position += 1
            if self._position < rest:
                return True
            if not self._read_more():
                return False

    def next_is(self, character: str) -> bool:
        """Skip white space and the character, if it is next."""
        if self.has_more() and self._buffer[self._position] == character:
            self._position += 1
            return True
        return False

    def expect(self, character: str) -> None:
        if not self.next_is(character):
            raise NotJson(f"expected `{character}` before {self._seen()}")
        self.has_more()

    def skip_past(self, pattern: re.Pattern[str]) -> None:
        while True:
            found = pattern.search(self._buffer, self._position)
            if found:
                self._position = found.end()
                return
            self._position = max(self._position, len(self._buffer) - 100)
            if not self._read_more():
                raise NotJson("there is no list under the key `data`")

    def value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                seen = f"{error.msg} at {self._seen(error.pos)}"
                left = len(self._buffer) - self._position
                is_inside = error.pos < len(self._buffer) - 64 and not _may_be_cut(error)
                if is_inside or left > LONGEST_VALUE or not self._read_more():
                    raise NotJson(seen) from None
                continue
            if end == len(self._buffer) and not self._at_end and self._read_more():
                continue  # a number may go on in the next block
            self._position = end
            return value

    def _seen(self, position: int | None = None) -> str:
        start = self._position if position is None else position
        return repr(self._buffer[start : start + 60]) if start < len(self._buffer) else "the end of the file"


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """A string that is cut off by the end of a block is reported at its beginning."""
    return error.msg.startswith(("Unterminated string", "Invalid \\"))
