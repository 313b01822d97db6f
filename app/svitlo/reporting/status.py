"""What a service is doing now: `logs/status.json` (the trainer), `logs/data-prep.json`, and the health file for Docker.

Both services write the same fields every few seconds. The file is replaced atomically but not fsynced: after a power
cut, an old status is as good as none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svitlo.machine import boot_id, boot_seconds, oom_kills
from svitlo.reporting.events import now_as_text
from svitlo.storage.files import write_durably, write_json
from svitlo.storage.space import reason_of
from svitlo.units import duration, file_size
from svitlo.volumes import VolumeWatch

WAITING_FOR_DATA = "waiting for data"
WAITING_FOR_HUB = "waiting for the hub"
RUNNING_STATES = (WAITING_FOR_DATA, WAITING_FOR_HUB, "starting", "preparing", "training", "evaluating", "exporting")
"""A service in one of these states writes its status at least every `STALE_SECONDS`. If not, it no longer runs."""
FINAL_STATES = ("complete", "stopped", "error")
STATES = RUNNING_STATES + FINAL_STATES
STALE_SECONDS = 120.0
"""Longer than any evaluation step or save, so that a busy trainer is not called dead."""
HEALTH_FILE = "SVITLO_HEALTH_FILE"
"""Environment variable that names the file of the health check. Unset outside containers."""


@dataclass(frozen=True)
class Status:
    """What a service last said about itself. A field is None if it is unknown or does not concern the service."""

    state: str
    """One of `STATES`."""
    message: str = ""
    """One sentence for people: why it waits, stopped or failed."""
    phase: int | None = None
    step: int | None = None
    """Optimizer steps done in this phase."""
    num_steps: int | None = None
    """Optimizer steps of this phase at most."""
    epoch: int | None = None
    """From 1."""
    max_epochs: int | None = None
    loss: float | None = None
    """Training loss, nats per token that carries loss."""
    validation_loss: float | None = None
    """The last one measured."""
    best_loss: float | None = None
    """The best validation loss of this phase."""
    evaluated_batches: int | None = None
    """Of the evaluation that is under way."""
    evaluation_seconds: float | None = None
    """Spent on them."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """In this phase, at the current speed."""
    documents: int | None = None
    """Data preparation: documents and conversations that it has kept."""
    tokens: int | None = None
    """Data preparation: tokens in them."""
    checkpoint_age_seconds: float | None = None
    """At the time that the status was written."""
    checkpoint_time: str | None = None
    checkpoint_step: int | None = None
    checkpoint_problem: str = ""
    """Why the last attempt to save failed. Empty if it succeeded."""
    memory_bytes: int | None = None
    """Resident memory of the process."""
    oom_kills: int | None = None
    """Processes killed by the kernel because it ran out of memory. If the number grows, this one may be among them."""
    run_id: str | None = None
    pid: int | None = None
    updated: str = ""
    """ISO 8601, UTC. For people only: clocks jump after a power cut."""
    boot_id: str = ""
    """Which boot of the machine wrote this."""
    boot_seconds: float | None = None
    """The machine's time since boot. The age of the status is measured with this clock, because it never jumps."""

    @property
    def age_seconds(self) -> float | None:
        """Seconds since this was written. None if unknown, because the machine has restarted since."""
        if self.boot_seconds is None or self.boot_id != boot_id():
            return None
        return max(0.0, boot_seconds() - self.boot_seconds)

    @property
    def is_alive(self) -> bool:
        """Whether a service in a running state wrote this recently enough to count as running."""
        age = self.age_seconds
        return self.state in RUNNING_STATES and age is not None and age <= STALE_SECONDS


_unwritten: dict[Path, str] = {}
"""Why this process could not write a status the last time."""
_watched: dict[Path, VolumeWatch] = {}
"""The volumes that this process has written a status to."""

FIELDS = {field.name for field in dataclasses.fields(Status)}


def write_status(path: Path, **fields: Any) -> None:
    """Replace the status atomically.

    `fields` are those of `Status`. `state` is required; `pid`, the times and `oom_kills` are filled in.

    Raises `TypeError` for an unknown field and `ValueError` for an unknown state. Never raises `OSError`: on a full
    disk the old status stays, and its age shows that it is old. The health then says so, because it lies elsewhere.
    Nothing is written where the volume is not there any more: its disk went away.
    """
    fields.setdefault("pid", os.getpid())
    fields.update(updated=now_as_text(), boot_id=boot_id(), boot_seconds=boot_seconds(), oom_kills=oom_kills())
    status = Status(**fields)
    if status.state not in STATES:
        raise ValueError(f"state {status.state!r} is none of {', '.join(STATES)}")
    try:
        _watched.setdefault(path.parent, VolumeWatch(path.parent)).require()
        write_json(path, dataclasses.asdict(status), fsync=False)
    except OSError as error:
        _unwritten[path] = f"{path}: the status cannot be written ({reason_of(error)})"
        if _is_called_healthy():  # a worse reason stays
            set_health(False, _unwritten[path])
    else:
        _unwritten.pop(path, None)


def ensure_complete(path: Path, message: str) -> None:
    """Report that the run is complete, in case the power failed just before that was reported."""
    status = read_status(path)
    if status is not None and status.state == "complete":
        return
    kept = () if status is None else ("phase", "step", "num_steps", "best_loss", "run_id")
    write_status(path, state="complete", message=message, **{name: getattr(status, name) for name in kept})


def read_status(path: Path) -> Status | None:
    """The status, or None if there is none or it is torn."""
    try:
        values = json.loads(path.read_bytes())
        return Status(**{key: value for key, value in values.items() if key in FIELDS})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def set_health(healthy: bool, reason: str) -> None:
    """Tell Docker's health check, if `$SVITLO_HEALTH_FILE` names its file. Never raises `OSError`.

    A service whose status cannot be written is not healthy, whatever it thinks.
    """
    name = os.environ.get(HEALTH_FILE)
    if not name:
        return
    if healthy and _unwritten:
        healthy, reason = False, next(iter(_unwritten.values()))
    text = f"{'healthy' if healthy else 'unhealthy'}\n{' '.join(reason.split())}\n"
    with contextlib.suppress(OSError):
        write_durably(Path(name), lambda file: file.write(text.encode()), fsync=False)


def _is_called_healthy() -> bool:
    try:
        return Path(os.environ[HEALTH_FILE]).read_text(encoding="utf-8").startswith("healthy")
    except (KeyError, OSError, ValueError):
        return False


def progress_line(status: Status) -> str:
    """The status as one line for a log, without the fields that are unknown."""
    parts = [] if status.phase is None else [f"phase {status.phase}"]
    if status.step is not None:
        parts.append(f"step {status.step:,}" + (f" of {status.num_steps:,}" if status.num_steps else ""))
    if status.epoch is not None:
        parts.append(f"epoch {status.epoch}" + (f"/{status.max_epochs}" if status.max_epochs else ""))
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.learning_rate is not None:
        parts.append(f"lr {status.learning_rate:.1e}")
    if status.tokens_per_second is not None:
        parts.append(f"{status.tokens_per_second:,.0f} tok/s")
    if status.seconds_left is not None:
        parts.append(f"{duration(status.seconds_left)} left")
    if status.checkpoint_age_seconds is not None:
        parts.append(f"checkpoint {duration(status.checkpoint_age_seconds)} old")
    if status.memory_bytes is not None:
        parts.append(file_size(status.memory_bytes))
    if status.checkpoint_problem:
        parts.append(f"NOT SAVED: {status.checkpoint_problem}")
    if status.state != "training" or not parts:
        parts.insert(0, status.state)
    return " | ".join(parts)
