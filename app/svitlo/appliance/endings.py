"""How the last trainer ended: noticing afterwards that nobody asked it to."""

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
from svitlo.volumes import Volumes

MOST_DEATHS = 3
"""A trainer that died so often in a row at the same step does not try again by itself."""
_SECONDS_TO_BE_RESTARTED = 120.0
"""The engine starts a container again after a minute at most."""


@dataclass(frozen=True)
class Traces:
    """What the last trainer left behind, besides its record."""

    phase: int = 0
    step: int = 0
    """The last optimizer step that it finished, in which phase; 0 where it finished none."""
    was_waiting: bool = False
    """It was waiting for data: nothing to die of."""
    seconds_silent: float | None = None
    """Since its last sign of life; None where the machine was started anew since."""
    memory_bytes: int | None = None
    """What it used then."""
    oom_kills: int | None = None
    """The machine's count then."""


def traces_of_the_last(volumes: Volumes) -> Traces:
    """What the trainer before this one left behind. To be read before this one reports anything."""
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
    """How the last trainer ended, where nothing orderly did."""

    cause: str
    """In words."""
    deaths: int = 0
    """So many in a row, this one included, since the machine was started, none of which got any further: not beyond
    step `step` of phase `phase`. A power cut is none."""
    phase: int = 0
    step: int = 0

    @property
    def in_words(self) -> str:
        """The cause, and where it happened again and again."""
        return self.cause + (f" ({self.deaths} times in a row {self.place})" if self.deaths > 1 else "")

    @property
    def place(self) -> str:
        """Where it died."""
        return f"at step {self.step:,} of phase {self.phase}" if self.phase else "before the first step"


class ProcessRecord:
    """A file that says whether the last trainer ended by itself, so that the next one can tell when it did not.

    Never raises `OSError`: on a full disk a death may go unnoticed, and training goes on.
    """

    def __init__(self, path: Path, watchdog_seconds: float) -> None:
        """`watchdog_seconds`: after so long without progress the watchdog ends a trainer."""
        self._path = path
        self._watchdog_seconds = watchdog_seconds
        self._content: dict[str, Any] = {}

    def begin(self, traces: Traces) -> Ending | None:
        """Note that this process runs. Returns what ended the last one, if nothing orderly did."""
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
        """Note that this process ends in an orderly way: deaths are no longer in a row."""
        self._write(state="ended", how=how)

    def fail(self, error: Exception) -> None:
        """Note the error that this process dies of: something that nobody has foreseen."""
        reason = (str(error).splitlines() or [""])[0][:200]
        self._write(**{**self._content, "error": f"{type(error).__name__}: {reason}".removesuffix(": ")})

    def _ending(self, traces: Traces) -> Ending | None:
        try:
            before = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):  # empty or zeros: the power failed while it was being written
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
            write_json(self._path, self._content)


def _memory_in_words(used: int | None, limit: int | None) -> str:
    last = "what it used is not known" if used is None else f"it last used {used / 1e6:,.0f} MB"
    return f"{last}; its limit is {limit / 1e6:,.0f} MB" if limit else f"{last}; it has no limit of its own"
