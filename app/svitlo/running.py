"""Time during which this process was able to run.

A container can be paused for hours (`docker compose pause`, the freezer of control groups). Every clock of the system
goes on meanwhile, and nothing tells the process. A thread that wakes up once a second notices afterwards: it was away
for much longer than a second, and so was everything else in the process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

_TICK_SECONDS = 1.0
_LONGEST_GAP_SECONDS = 5.0
"""A thread may be late by so much on a busy machine. What is beyond that was a pause."""
_BACKSTOP = 50
"""In multiples of the watchdog's limit: faulthandler's own thread then ends a process whose threads can no longer run.
It counts pauses, too, so it must not be short."""


class RunningClock:
    """Seconds since this object was made, without pauses. Never goes back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._seconds = 0.0
        threading.Thread(target=self._tick, daemon=True).start()

    def __call__(self) -> float:
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._last, _LONGEST_GAP_SECONDS)
            self._last = now
            return self._seconds

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            self()


class Watchdog:
    """Ends the process, with the stacks of all threads in the log, if nobody says for too long that work goes on."""

    def __init__(self, clock: RunningClock, limit_seconds: float) -> None:
        self._clock = clock
        self._limit = limit_seconds
        self._alive_at = clock()
        self._is_off = False
        threading.Thread(target=self._watch, daemon=True).start()

    def alive(self) -> None:
        """Work goes on."""
        self._alive_at = self._clock()
        if not self._is_off:
            faulthandler.dump_traceback_later(self._limit * _BACKSTOP, exit=True)

    def stop(self) -> None:
        """Watch no longer."""
        self._is_off = True
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._is_off:
            time.sleep(_TICK_SECONDS)
            silent = self._clock() - self._alive_at
            if silent > self._limit and not self._is_off:
                print(f"Timeout: no progress for {silent:.0f} s (the limit is {self._limit:g} s)", file=sys.stderr)
                faulthandler.dump_traceback(all_threads=True)
                os._exit(1)
