"""JSON files larger than memory: yields their records one at a time, each with its number.

A file is JSON lines if its first line is one whole object. Each line is then read separately, so that a mistake is
reported with its line. Everything else (an array, an object that holds the array, or several of them in a row) goes to
ijson, with the fastest backend available.

What people's tools write is not always JSON. `_repaired` runs before ijson and fixes what ijson rejects or changes:
control characters and unpaired surrogates in strings, and NaN. It also finds where one value ends and the next begins,
which ijson only does if both are of the same kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, TextIO

BLOCK_CHARACTERS = 1 << 18
LONGEST_RECORD = 64 << 20
"""A single record longer than this (in characters) is considered a mistake."""
_TOO_LONG = "it has more than {} MB"
DEEPEST = 500
"""Levels of nested arrays and objects. ijson's memory grows with the square of the depth."""
_MOST_LINES = 64
"""A record with line ends in it may span this many lines."""


class NotJson(ValueError):  # noqa: N818 — says what it is
    """The text is not JSON. The message says where, and what was found."""


def json_records(text: TextIO, head: str, under: str | None = None) -> Iterator[tuple[str, int, Any]]:
    """Each record as (`line` or `record`, its number from 1, its value).

    Records are the elements of arrays, and objects outside arrays. `under`: if an object has an array under this key,
    the elements of that array are the records. `head`: the beginning of the text, not yet read. Raises `NotJson`.
    """
    if _is_json_lines(head):
        for number, record in _line_records(text):
            yield "line", number, record
    else:
        for number, record in enumerate(_streamed_records(text, under), start=1):
            yield "record", number, record


# --- JSON lines ------------------------------------------------------------------------------------------------------

_decoder = json.JSONDecoder(strict=False, parse_constant=lambda _: None)  # NaN is how pandas writes nothing


_INCOMPLETE = ("the line ends in the middle of it", "Unterminated string")


def _is_json_lines(head: str) -> bool:
    first, line_end, _ = head.lstrip().partition("\n")
    try:
        return bool(line_end) and isinstance(_decoder.decode(first.strip()), dict)
    except (ValueError, RecursionError):
        return False


def _line_records(text: TextIO) -> Iterator[tuple[int, Any]]:
    lines = enumerate(iter(lambda: text.readline(LONGEST_RECORD), ""), start=1)
    waiting: list[tuple[int, str]] = []
    while True:
        number, line = waiting.pop(0) if waiting else next(lines, (0, ""))
        if not number:
            return
        values, problem = _values(line)
        if len(line) >= LONGEST_RECORD:
            problem = _TOO_LONG.format(LONGEST_RECORD >> 20)
        elif problem is not None and problem.startswith(_INCOMPLETE):
            # A line end inside a string or an object: the record continues on the next lines.
            waiting += islice(lines, _MOST_LINES - len(waiting))
            whole = line
            for used, (_, more) in enumerate(waiting, start=1):
                whole += more
                if more.startswith("{"):
                    break
                joined, left = _values(whole)
                if left is None:
                    values, problem = joined, None
                    del waiting[:used]
                    break
        for value in values:
            yield number, value
        if problem is not None:
            raise NotJson(f"line {number:,}: {problem}")


def _values(line: str) -> tuple[list[Any], str | None]:
    """The records in a line, and what is wrong after them."""
    found: list[Any] = []
    line = line.strip()
    position = 0
    try:
        while position < len(line):
            value, position = _decoder.raw_decode(line, position)
            found += value if isinstance(value, list) else [value]
            while position < len(line) and line[position].isspace():
                position += 1
    except json.JSONDecodeError as error:
        if error.pos >= len(line):
            return found, _INCOMPLETE[0]
        return found, f"{error.msg.removesuffix(' starting at')} at {line[error.pos : error.pos + 60]!r}"
    except ValueError as error:  # a number of thousands of digits
        return found, str(error)
    except RecursionError:
        return found, f"nested too deep, in {line[position : position + 60]!r}"
    return found, None


# --- arrays ----------------------------------------------------------------------------------------------------------


class _Problem(Exception):  # noqa: N818 — never leaves this module
    """What is wrong with a record."""


def _streamed_records(text: TextIO, under: str | None) -> Iterator[Any]:
    import ijson  # type: ignore[import-untyped]

    found: list[Any] = ijson.sendable_list()
    parser: Any = None
    count = waiting = 0
    try:
        for piece, is_end in _repaired(text):
            if parser is None:
                piece = piece.lstrip()
                if not piece:
                    continue
                if piece[0] not in "[{":
                    raise _Problem(f"expected an array or an object and found {piece[:60]!r}")
                parser = ijson.items_coro(found, _place_of_records(piece, under))
            problem = None
            try:
                if piece:
                    parser.send(piece.encode())
                if is_end:
                    parser.close()
                    parser = None
            except (ijson.JSONError, ArithmeticError, ValueError, RecursionError) as error:
                problem = _reason(error)
            waiting = 0 if found else waiting + len(piece)
            for record in found:
                count += 1
                yield record
            found.clear()
            if problem is not None:
                raise _Problem(problem)
            if waiting > LONGEST_RECORD:
                raise _Problem(_TOO_LONG.format(LONGEST_RECORD >> 20))
    except _Problem as problem:
        raise NotJson(f"record {count + 1:,}: {problem}") from None


def _place_of_records(value: str, under: str | None) -> str:
    """ijson's prefix for the records in a value with this beginning."""
    if value[0] == "[":
        return "item"
    if under and re.match(rf'\{{.*?"{re.escape(under)}"\s*:\s*\[', value, re.DOTALL):
        return f"{under}.item"
    return ""


def _reason(error: BaseException) -> str:
    """The error in one line. ijson's C library points to the place with an arrow below it."""
    lines = str(error).splitlines() or [type(error).__name__]
    if "premature EOF" in lines[0] or "ncomplete" in lines[0]:
        return "the file ends in the middle of it: it is cut short"
    if len(lines) > 2 and "^" in lines[2]:
        return f"{lines[0]} at {lines[1][max(0, lines[2].index('^') - 1) :].strip()[:60]!r}"
    return " ".join(lines)[:200]


_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:[^u\x00-\x1f]|u[^dD])[^"\\\x00-\x1f]*+)*+"'
_FILLER = r'[^"\[\]{}NI-]++|-(?!I|\Z)'
_CLEAN = re.compile(rf"(?:{_FILLER}|{_STRING}|\{{(?:{_FILLER}|{_STRING})*+\}})++")
"""What needs no repair. Skips nearly all of a file in one go."""
_TOKEN = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)'  # a string, whole or cut off
    r"|[\[\]{}]"
    r"|-?[A-Za-z]++",
    re.DOTALL,
)
_HALF = re.compile("[\ud800-\udfff]")


def _repaired(text: TextIO) -> Iterator[tuple[str, bool]]:
    """The text in pieces that a strict parser accepts, each with whether a value ends with it."""
    rest, is_last, depth = "", False, 0
    while not is_last:
        block = text.read(max(BLOCK_CHARACTERS, len(rest)))
        is_last = not block
        if len(rest) > LONGEST_RECORD:
            raise _Problem(_TOO_LONG.format(LONGEST_RECORD >> 20))
        buffer, rest = rest + block, ""
        parts: list[str] = []
        start = position = 0
        while True:
            if depth and (clean := _CLEAN.match(buffer, position)):
                position = clean.end()
            found = _TOKEN.search(buffer, position)
            if found is None:
                break
            token, position = found[0], found.end()
            if token in "[{":
                depth += 1
                if depth > DEEPEST:
                    yield "".join([*parts, buffer[start : found.start()]]), False
                    raise _Problem(f"nested deeper than {DEEPEST:,} levels")
            elif token in "]}":
                depth -= 1
                if depth <= 0:
                    yield "".join([*parts, buffer[start:position]]), True
                    parts, start, depth = [], position, 0
            elif position == len(buffer) and not is_last and found[1] != '"':
                rest = token  # the next block shows what it is
                break
            elif (repaired := _repaired_token(token)) != token:
                parts += [buffer[start : found.start()], repaired]
                start = position
        yield "".join([*parts, buffer[start : len(buffer) - len(rest)]]), is_last


def _repaired_token(token: str) -> str:
    """null for NaN. In strings, escapes control characters and replaces unpaired surrogates with U+FEFF.

    Cleaning drops both.
    """
    if token in ("NaN", "Infinity", "-Infinity"):
        return "null"
    if token[0] != '"':
        return token
    try:
        return json.dumps(_HALF.sub("\ufeff", json.loads(token, strict=False)))
    except ValueError:
        return token  # ijson says what is wrong
