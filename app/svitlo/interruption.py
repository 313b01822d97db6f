"""Stopping on SIGTERM and SIGINT, for data preparation and for training."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import weakref
from collections.abc import Iterable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """Raised when work stops because of a signal, after everything that matters was saved.

    Not an `Exception`: code that treats any error as a damaged file must not catch this one.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class Interruption:
    """Turns signals into a flag that the work checks between its steps.

    The first signal wins. Later ones change nothing, so an impatient second Ctrl-C cannot damage a save.
    """

    def __init__(self, signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Handles `signals` from now on. Pass none where signals must not be handled."""
        self.requested = False
        self._signal_number: int = signal.SIGTERM
        self._stops_at_once = False
        # A pipe, not a threading.Event: the handler may run while the main thread is inside Event.wait, and then hang.
        self._reader, self._writer = ends = os.pipe()
        for end in ends:
            weakref.finalize(self, os.close, end).atexit = False  # until the very end a signal may come
        for number in signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self._signal_number = number
            self.requested = True
            os.write(self._writer, b"!")
            if self._stops_at_once:
                raise self.error

    @property
    def error(self) -> Interrupted:
        """The exception to raise once everything is safe."""
        return Interrupted(self._signal_number)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.requested:
            raise self.error

    def wait(self, seconds: float) -> None:
        """Sleep. Raises `Interrupted` as soon as a signal arrives."""
        select.select([self._reader], [], [], seconds)
        self.check()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For long work that can be thrown away: a signal raises `Interrupted` in the middle of it."""
        self._stops_at_once = True
        try:
            self.check()
            yield
        finally:
            self._stops_at_once = False
            self.check()  # in case something has swallowed the exception or replaced it with another
