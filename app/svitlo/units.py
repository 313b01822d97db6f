"""Time spans, sizes and values in a form that is easy to read."""

from __future__ import annotations

import itertools
import reprlib
from typing import Any

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """A time span in its two largest units: "41 s", "12 min 5 s", "3 h 12 min", "2 d 4 h". Never negative."""
    total = max(0, round(seconds))
    for (unit, length), (smaller, smaller_length) in itertools.pairwise(_UNITS):
        if total >= length:
            rest = total % length // smaller_length
            return f"{total // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{total} s"


def file_size(num_bytes: float) -> str:
    """Bytes in powers of ten: "812 MB", "1.4 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{num_bytes:,.0f} bytes"


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60


def shown(value: Any) -> str:
    """Any value, shortened for a message."""
    return printable(_short.repr(value))[:100]


def printable(text: str) -> str:
    """Text for a one-line message. Escapes what cannot be printed, such as line ends and unpaired surrogates."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
