"""Files as UTF-8, whatever they were written in, and watched from the first byte to the last.

A source may name its encoding. What several programs leave in files is put right on the way: byte-order marks at the
beginning of lines (of files that were joined), and line ends that were converted twice. What cannot be text stops the
preparation with its place: bytes of another encoding, and the zeros that a power cut leaves in a file.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import IO, Any, cast

from svitlo.data.head import HEAD_BYTES
from svitlo.errors import DataError
from svitlo.units import printable

FEWEST_ZEROS = 8
"""Zero bytes in a row that no program writes into text. Single ones are dropped with other control characters."""
_ZEROS = bytes(FEWEST_ZEROS)
_MARK = "\ufeff"
_SAMPLE_BYTES = 16_384
_MOSTLY = 20
"""With this many right characters for each wrong byte, a text is damaged UTF-8, and not in another encoding."""


def utf8_stream(name: str, stream: io.BufferedReader, encoding: str | None, source: str) -> io.BufferedReader:
    """The text of `stream` as UTF-8. `encoding`: None for UTF-8. Reading raises `DataError` for what is not text."""
    return io.BufferedReader(cast(io.RawIOBase, _Utf8(name, stream, encoding, source)), HEAD_BYTES)


class _Utf8(io.RawIOBase):
    def __init__(self, name: str, packed: IO[bytes], encoding: str | None, source: str) -> None:
        self._name = name
        self._packed = packed
        self._encoding = encoding
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
        self._before = b""
        """The block before: a block border can cut a character, or a row of zeros, and messages show what is around."""
        self._bytes_read = 0
        self._line = 1
        self._held = ""
        """Carriage returns at the end of a block: what follows decides what they are."""
        self._is_line_start = True
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._packed.read(HEAD_BYTES)
            text = self._repaired(self._held + self._decoded(block), is_end=not block)
            self._line += text.count("\n")
            self._left = text.encode()
            if not block:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _decoded(self, block: bytes) -> str:
        known = self._before + block
        begin = self._bytes_read - len(self._before)
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = max(0, self._bytes_read + len(block) - len(error.object) + error.start - begin)
            self._refuse(known, at, begin + at)
        near = max(0, len(self._before) - FEWEST_ZEROS + 1)
        if _ZEROS in (known[near:] if self._encoding is None else text.encode()):
            at = max(near, known.find(_ZEROS, near))
            line = self._line_of(known, at)
            raise DataError(
                f"{self._name}: not text: a row of zero bytes at byte {begin + at:,} (line {line:,}), as a power cut "
                f"leaves them in a file that is being copied. Copy or download it again"
            )
        self._bytes_read += len(block)
        self._before = block
        return text

    def _repaired(self, text: str, *, is_end: bool) -> str:
        self._held = ""
        if not is_end and text.endswith("\r"):
            stripped = text.rstrip("\r")
            text, self._held = stripped, text[len(stripped) :]
        if "\r\r\n" in text:
            text = _CONVERTED_TWICE.sub("\n", text)
        if _MARK in text:
            if self._is_line_start:
                text = text.removeprefix(_MARK)
            text = text.replace(f"\n{_MARK}", "\n")
        if text:
            self._is_line_start = text.endswith("\n")
        return text

    def _line_of(self, known: bytes, at: int) -> int:
        border = len(self._before)  # `self._line` is the line there
        return self._line + known[border:at].count(b"\n") - known[at:border].count(b"\n")

    def _refuse(self, known: bytes, at: int, offset: int) -> None:
        """Raise `DataError` for the byte `known[at]`."""
        begin = max(known.rfind(b"\n", 0, at) + 1, at - 20)
        place = f"line {self._line_of(known, at):,} (byte {offset:,}, near {known[begin : at + 20]!r})"
        if self._encoding is not None:
            raise DataError(
                f"{self._name}: {place} is not {self._encoding} text. {advice(known, at) or _NO_ADVICE}, or correct "
                f"`encoding` of the source {self._source} in data.yaml"
            )
        if _is_nearly_utf8(known):
            raise DataError(
                f"{self._name}: not UTF-8 text: {place} is damaged, or of another encoding than the text around it. "
                f"Correct that place, or copy the file again"
            )
        raise DataError(
            f"{self._name}: not UTF-8 text: {place}. {advice(known, at) or _NO_ADVICE} for the source {self._source} "
            f"in data.yaml"
        )


_CONVERTED_TWICE = re.compile(r"(?<!\r)\r\r+\n")
_NO_ADVICE = "Find out what it was written in and say that as `encoding: ...`"


def advice(content: bytes, at: int = 0) -> str | None:
    """The encoding that fits a text, with a sample of how it would read. None if none does."""
    from charset_normalizer import from_bytes

    first = max(0, at - _SAMPLE_BYTES // 2) & ~1  # two bytes are one character in UTF-16
    best = from_bytes(content[first : first + _SAMPLE_BYTES]).best()
    if best is None or best.encoding in ("ascii", "utf_8"):
        return None
    encoding = best.encoding.replace("_", "-") if best.encoding.startswith("utf") else best.encoding
    begin = max(content.rfind(b"\n", 0, at) + 1, at - 60)
    if encoding.startswith("utf"):
        begin -= begin % 4
    seen = printable(" ".join(content[begin : begin + 240].decode(encoding, "ignore").split()))[:60]
    return f"It looks like {encoding}, in which it reads {seen!r}: if that is right, say `encoding: {encoding}`"


def _is_nearly_utf8(content: bytes) -> bool:
    text = content.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(not character.isascii() for character in text) - wrong
    return right > _MOSTLY * wrong
