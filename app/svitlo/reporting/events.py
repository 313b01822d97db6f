"""`logs/events.jsonl`: what happened to the run, one JSON object per line, for people and for programs.

    {"time": "2026-03-01T18:02:11+00:00", "event": "resumed", "message": "resumed at step 12,300 ...", "step": 12300}

Reporting must never stop training: if the disk is full or went away, an event is printed but not kept.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svitlo.reporting.jsonlines import read_json_lines
from svitlo.storage.files import append_line
from svitlo.storage.space import reason_of
from svitlo.volumes import VolumeWatch


def now_as_text() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def print_line(message: str) -> None:
    """Print one line and flush it: a pipe to a log must not hold it back."""
    print(message, flush=True)


class EventLog:
    """Appends events to one file and shows their messages to people."""

    def __init__(self, path: Path, say: Callable[[str], object] = print_line) -> None:
        self.path = path
        self._volume = VolumeWatch(path.parent)
        self._say = say

    def record(self, kind: str, message: str, **fields: Any) -> None:
        """Durably append an event of this kind and show its message. Never raises `OSError`."""
        event = {"time": now_as_text(), "event": kind, "message": message, **fields}
        try:
            self._volume.require()
            append_line(self.path, json.dumps(event, ensure_ascii=False, default=str))
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):
                print(f"{self.path}: this event could not be kept ({reason_of(error)})", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):  # standard output may be closed
            self._say(message)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events, oldest first. Skips lines torn by a power cut. Empty if the file is missing."""
    return [event for event in read_json_lines(path) if "event" in event]
