"""Signals and power cuts: being asked to stop, and noticing afterwards that nobody asked."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from svitlo.durability.files import write_json

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Interrupted(Exception):  # noqa: N818 — not an error: somebody asked
    """Raised where work stops because of a signal, after what had to be saved was saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class Interruption:
    """Turns SIGTERM and SIGINT into a flag that the work looks at between its steps.

    The first signal wins; more of them change nothing, so that an impatient second Ctrl-C cannot damage a save.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signal_number: int = signal.SIGTERM
        # A pipe and not threading.Event: the handler may run while the main thread is inside Event.wait, and hang.
        self._reader, self._writer = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self._signal_number = number
            self.requested = True
            os.write(self._writer, b"!")

    @property
    def error(self) -> Interrupted:
        """The exception to raise once everything is safe."""
        return Interrupted(self._signal_number)

    def wait(self, seconds: float) -> None:
        """Sleep. Raises `Interrupted` as soon as a signal arrives."""
        readable, _, _ = select.select([self._reader], [], [], seconds)
        if readable:
            raise self.error


class ProcessRecord:
    """A file that says whether the last trainer ended by itself, so that the next one can tell when it did not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self) -> str | None:
        """Note that this process runs. Returns in words what ended the last one, if nothing orderly did."""
        before = self._read()
        boot_id = _read_boot_id()
        write_json(self._path, {"state": "running", "boot_id": boot_id, "pid": os.getpid()})
        if before.get("state") != "running":
            return None
        if before.get("boot_id") != boot_id:
            return "a power cut or a restart of the machine"
        return "a kill (or the end of its container) without warning"

    def end(self, how: str) -> None:
        """Note that this process ends in an orderly way."""
        write_json(self._path, {"state": "ended", "how": how, "boot_id": _read_boot_id()})

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
