"""Reading files of JSON lines that a power cut may have torn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, in order. Skips torn lines. Empty if the file is missing or unreadable."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    records = (parse_json_line(line) for line in data.split(b"\n"))
    return [record for record in records if record is not None]


def parse_json_line(line: bytes) -> dict[str, Any] | None:
    """One line as an object, or None if it is torn: cut short, or zeros because its block was never written."""
    try:
        value = json.loads(line)
    except ValueError:  # also UnicodeDecodeError
        return None
    return value if isinstance(value, dict) else None
