"""How the last trainer ended: detects afterwards whether it died."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svitlo.machine import boot_id, memory_limit, oom_kills
from svitlo.reporting.metrics import last_step
from svitlo.reporting.status import WAITING_FOR_DATA, read_status
from svitlo.storage.files import write_json
from svitlo.volumes import Volumes, VolumeWatch

MOST_DEATHS = 3
"""A trainer that has died this often in a row at the same step does not try again by itself."""
_SECONDS_TO_BE_RESTARTED = 120.0
"""The engine restarts a container within a minute, and this allows for two."""


@dataclass(frozen=True)
class Traces:
    """What the last trainer left behind, besides its record."""

    phase: int = 0
    step: int = 0
    """The last optimizer step that it finished, and its phase. 0 if it finished none."""
    was_waiting: bool = False
    """It was only waiting for data, so this death does not count."""
    seconds_silent: float | None = None
    """Since its last sign of life. None if the machine has restarted since."""
    memory_bytes: int | None = None
    """The memory that it used then."""
    oom_kills: int | None = None
    """The machine's count then."""


def traces_of_the_last(volumes: Volumes) -> Traces:
    """What the previous trainer left behind. Read this before the new one reports anything."""
    status = read_status(volumes.status)
    phase, step = last_step(volumes.metrics)
    if status is None:
        return Traces(phase, step)
    return Traces(
        phase=phase,
        step=step,
        was_waiting=status.state == WAITING_FOR_DATA,
        seconds_silent=status.age_seconds,
        memory_bytes=status.memory_bytes,
        oom_kills=status.oom_kills if status.age_seconds is not None else None,
    )


@dataclass(frozen=True)
class Ending:
    """How the last trainer ended, if it did not end cleanly."""

    cause: str
    """In words."""
    deaths: int = 0
    """Deaths in a row since the machine started, this one included, that never got beyond step `step` of phase `phase`.
    A power cut does not count."""
    phase: int = 0
    step: int = 0

    @property
    def in_words(self) -> str:
        """The cause and, if it happened repeatedly, where."""
        return self.cause + (f" ({self.deaths} times in a row {self.place})" if self.deaths > 1 else "")

    @property
    def place(self) -> str:
        """Where it died."""
        return f"at step {self.step:,} of phase {self.phase}" if self.phase else "before the first step"


class ProcessRecord:
    """A file that tells the next trainer whether the last one ended cleanly.

    Never raises `OSError`: where the disk is full or went away, a death may go unnoticed, but training goes on.
    """

    def __init__(self, path: Path, watchdog_seconds: float) -> None:
        """`watchdog_seconds`: the watchdog ends a trainer after this long without progress."""
        self._path = path
        self._volume = VolumeWatch(path.parent)
        self._watchdog_seconds = watchdog_seconds
        self._content: dict[str, Any] = {}

    def begin(self, traces: Traces) -> Ending | None:
        """Note that this process runs. Returns how the last one ended, if it did not end cleanly."""
        ending = self._ending(traces)
        self._write(
            state="running",
            pid=os.getpid(),
            oom_kills=oom_kills(),
            memory_limit=memory_limit(),
            deaths={"number": ending.deaths, "phase": ending.phase, "step": ending.step} if ending else None,
        )
        return ending

    def end(self, how: str) -> None:
        """Note that this process ends cleanly. That resets the count of deaths in a row."""
        self._write(state="ended", how=how)

    def fail(self, error: Exception) -> None:
        """Note the unexpected error that ends this process."""
        reason = (str(error).splitlines() or [""])[0][:200]
        self._write(**{**self._content, "error": f"{type(error).__name__}: {reason}".removesuffix(": ")})

    def _ending(self, traces: Traces) -> Ending | None:
        try:
            before = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):  # empty or zeros: the power failed during the write
            return Ending("a power cut or a restart of the machine")
        if before.get("state") != "running":
            return None
        if before.get("boot_id") != boot_id():
            return Ending("a power cut or a restart of the machine")
        cause = self._cause(before, traces)
        if traces.was_waiting:
            return Ending(cause)
        known = before.get("deaths") or {"number": 0, "phase": 0, "step": 0}
        furthest = known["phase"], known["step"]
        reached = traces.phase, traces.step
        if reached > furthest:
            return Ending(cause, 1, *reached)
        return Ending(cause, known["number"] + 1, *furthest)

    def _cause(self, before: dict[str, Any], traces: Traces) -> str:
        if before.get("error"):
            return f"an error, {before['error']} (the log has the traceback)"
        known = [count for count in (before.get("oom_kills"), traces.oom_kills) if count is not None]
        now = oom_kills()
        if known and now is not None and now > max(known):
            memory = _memory_in_words(traces.memory_bytes, before.get("memory_limit"))
            return f"the kernel, probably because memory ran out ({memory})"
        silent = traces.seconds_silent
        if silent is not None and 0 <= silent - self._watchdog_seconds <= _SECONDS_TO_BE_RESTARTED:
            return (
                f"its watchdog, probably: it gave no sign of life for {silent:,.0f} s (the log has the stacks of all "
                f"threads)"
            )
        return "a kill (or the end of its container) without warning"

    def _write(self, **content: Any) -> None:
        self._content = {**content, "boot_id": boot_id()}
        with contextlib.suppress(OSError):
            self._volume.require()
            write_json(self._path, self._content)


def _memory_in_words(used: int | None, limit: int | None) -> str:
    last = "its memory use is unknown" if used is None else f"it last used {used / 1e6:,.0f} MB"
    return f"{last}; its limit is {limit / 1e6:,.0f} MB" if limit else f"{last}; it has no memory limit"
