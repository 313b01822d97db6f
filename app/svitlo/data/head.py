"""The first bytes of a file, and what they reveal before the file is read."""

from __future__ import annotations

import csv
import json
import re
from typing import NamedTuple

HEAD_BYTES = 65_536
"""How many bytes can be inspected before they are read."""
_PACKED = (".gz", ".xz", ".bz2", ".zst")
_CUT_OFF = 8
"""A mistake this close to the end of the head (in characters) is caused by cutting it there."""


class Head(NamedTuple):
    """The beginning of a stream."""

    name: str
    """Name of the file in messages."""
    start: str
    """Its first characters, without leading white space and byte-order mark."""
    kind: str | None
    """`json`, `csv` or `parquet` if the file holds records, None for text."""
    fields: frozenset[str]
    """Names of all fields found in records, at any depth."""


def is_parquet(content: bytes) -> bool:
    """Whether a file with these first bytes is a Parquet file."""
    return content.startswith(b"PAR1")


def head_of(name: str, content: bytes) -> Head:
    """What the first bytes of a file say about it."""
    start = content.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if is_parquet(content):
        return Head(name, "", "parquet", frozenset())
    if _is_json(start):
        return Head(name, start, "json", frozenset(_KEY.findall(start)))
    if _has_ending(name, ".csv", ".tsv"):
        return Head(name, start, "csv", frozenset(columns_of(start)))
    return Head(name, start, None, frozenset())


def separator_of(start: str) -> str:
    """The separator between the columns of CSV."""
    return max(",;\t", key=start.partition("\n")[0].count)


def columns_of(start: str) -> list[str]:
    """The first line, read as a CSV header."""
    try:
        return [
            column.strip() for column in next(csv.reader([start.partition("\n")[0]], delimiter=separator_of(start)))
        ]
    except (csv.Error, StopIteration):
        return []


def _has_ending(name: str, *endings: str) -> bool:
    name = name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name.endswith(endings)


_KEY = re.compile(r'"([^"\\\n]{1,60})"\s*:')
_decoder = json.JSONDecoder(strict=False)


def _is_json(start: str) -> bool:
    """Whether it begins with an object, or an array with one. A bracket is not enough: texts may begin with one."""
    if start[:1] not in ("{", "[") or not _KEY.search(start):
        return False
    try:
        _, end = _decoder.raw_decode(start)
    except json.JSONDecodeError as error:
        return error.pos >= len(start) - _CUT_OFF or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return True
    return start[end:].lstrip()[:1] in ("", "{", "[", ",")
