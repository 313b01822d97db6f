"""Being asked to stop: SIGTERM and SIGINT, for data preparation and for training."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """Raised where work stops because of a signal, after what had to be saved was saved.

    Not an `Exception`: code that takes any error for a damaged file must not take this for one.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class Interruption:
    """Turns signals into a flag that the work looks at between its steps.

    The first signal wins. More of them change nothing, so that an impatient second Ctrl-C cannot damage a save.
    """

    def __init__(self, signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Listens to `signals` from now on; to none, where nobody can ask."""
        self.requested = False
        self._signal_number: int = signal.SIGTERM
        self._stops_at_once = False
        # A pipe and not threading.Event: the handler may run while the main thread is inside Event.wait, and hang.
        self._reader, self._writer = os.pipe()
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
            self.check()  # also where something has swallowed the exception or made another one of it
