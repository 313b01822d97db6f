"""Everything that a screen or a page shows of a run, as plain data. `svitlo status --json` prints exactly this.

It only reads files and imports nothing heavy, so it answers at once even while training uses every core. The classes
below are the schema, and docs/status.md explains it to people. Increase `SCHEMA` when you rename or remove a key.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, TypedDict

from svitlo.errors import SvitloError
from svitlo.manifest import DataNotReady, load_manifest
from svitlo.phases import PHASES, Phase
from svitlo.reporting.events import read_events
from svitlo.reporting.jsonlines import parse_json_line
from svitlo.reporting.status import RUNNING_STATES, WAITING_FOR_DATA, WAITING_FOR_HUB, Status, read_status
from svitlo.storage.mounts import mount_of
from svitlo.storage.space import free_bytes
from svitlo.storage.sums import SUMS
from svitlo.units import duration
from svitlo.volumes import VOLUME_NAMES, Volumes

SCHEMA = 1
NUM_EVENTS = 8
_AT_WORK = ("preparing data", "not running")
"""States besides those of a running trainer in which something is to be written, now or at the next start."""


class ServiceOverview(TypedDict):
    """What a service last said about itself."""

    status: dict[str, Any]
    """The fields of `Status`. Null if the service does not know a field, or the field does not concern it."""
    is_running: bool
    """Whether it has reported recently enough to count as running."""
    age_seconds: float | None
    """Since its last report. Null if the machine has restarted since."""


class DataOverview(TypedDict):
    """One phase's prepared data."""

    problem: str | None
    """Why it cannot be used. Everything else is then null."""
    digest: str | None
    tokens: int | None
    documents: int | None
    validation_tokens: int | None
    validation_documents: int | None
    sources: list[dict[str, Any]] | None
    """Name, documents, words, tokens, and how many were dropped or changed, by reason."""


class ValidationOverview(TypedDict):
    """One phase's validation losses, in nats per token."""

    first: float | None
    last: float | None
    best: float | None
    best_step: int
    steps: list[int]
    losses: list[float | None]


class PhaseOverview(TypedDict):
    """One phase of the run."""

    number: int
    title: str
    unit: str
    """What its data consists of: documents or conversations."""
    state: str
    """`not started`, `begun` or `done`."""
    step: int | None
    """Optimizer steps done. Null if that is unknown."""
    num_steps: int | None
    epoch: int | None
    max_epochs: int | None
    data: DataOverview | None
    """Null if it is not prepared."""
    validation: ValidationOverview | None
    """Null if nothing was measured yet."""


class CheckpointOverview(TypedDict):
    """The newest checkpoint of the current phase."""

    step: int | None
    age_seconds: float | None
    problem: str
    """Why the last attempt to save failed. Empty if it succeeded."""


class Overview(TypedDict):
    """Everything. JSON has no NaN: a loss that is not finite is null."""

    schema: int
    state: str
    """The true state now, even if an old status file says something else."""
    message: str
    """One sentence for people. Empty if the state says it all."""
    is_running: bool
    """Whether the trainer is at work."""
    run_id: str | None
    trainer: ServiceOverview | None
    data_preparation: ServiceOverview | None
    phases: list[PhaseOverview]
    checkpoint: CheckpointOverview | None
    model: str | None
    """Folder of the exported model. Null if there is none."""
    events: list[dict[str, Any]]
    """The latest events, oldest first."""
    free_bytes: int | None
    volumes: str


def overview(volumes: Volumes) -> Overview:
    """What is known about the run on these volumes."""
    trainer, preparation = read_status(volumes.status), read_status(volumes.prepare_status)
    is_complete = volumes.completion.is_file()
    losses = _validation_losses(volumes.metrics)
    phases = [_phase(volumes, phase, trainer, losses, is_complete=is_complete) for phase in PHASES]
    # A save a minute would push everything else off the screen.
    events = [event for event in read_events(volumes.events) if event["event"] != "saved"][-NUM_EVENTS:]
    state, message = _state(volumes, trainer, preparation, phases, events, is_complete=is_complete)
    read_only = _read_only(volumes, trainer or preparation) if state in (*RUNNING_STATES, *_AT_WORK) else ""
    if read_only:
        state, message = "error", read_only
    known: Overview = {
        "schema": SCHEMA,
        "state": state,
        "message": message,
        "is_running": trainer is not None and trainer.is_alive and not read_only,
        "run_id": None if trainer is None else trainer.run_id,
        "trainer": _service(trainer),
        "data_preparation": _service(preparation),
        "phases": phases,
        "checkpoint": _checkpoint(trainer),
        "model": str(volumes.model) if (volumes.model / SUMS).is_file() else None,
        "events": events,
        "free_bytes": free_bytes(volumes.root / "checkpoints"),
        "volumes": str(volumes.root),
    }
    finite: Overview = _finite(known)
    return finite


# --- the state now ---------------------------------------------------------------------------------------------------


def _state(
    volumes: Volumes,
    trainer: Status | None,
    preparation: Status | None,
    phases: list[PhaseOverview],
    events: list[dict[str, Any]],
    *,
    is_complete: bool,
) -> tuple[str, str]:
    """The state now, and a sentence about it."""
    if volumes.restore_journal.exists():
        return "error", "a restore was interrupted: run the same `make restore FROM=...` again"
    if trainer is not None:
        if trainer.is_alive and trainer.state == WAITING_FOR_DATA:
            if preparation is None:
                remedy = "`docker compose up -d` or `svitlo prepare`"
                return trainer.state, f"{trainer.message}, and nothing prepares it: {remedy}"
            return _what_is_waited_for(preparation) or (trainer.state, trainer.message)
        return _state_of_trainer(trainer, is_complete=is_complete)
    if is_complete:
        return "complete", "training is finished"
    if any(any(volumes.checkpoints(phase).glob("*.pt")) for phase in PHASES):
        return "not running", _last_known(events)  # a power cut may have emptied the status file
    if preparation is not None and (trouble := _what_is_waited_for(preparation)) is not None:
        return trouble
    if preparation is not None and preparation.is_alive:
        return "preparing data", ""
    if preparation is not None and preparation.state in RUNNING_STATES:
        return "not running", f"data preparation was interrupted (last sign of life {full_time(preparation)})"
    if any(phase["data"] for phase in phases):
        return "not started", "data is prepared, nothing was trained yet: `docker compose up -d` or `svitlo train`"
    if any((volumes.root / name).is_dir() for name in VOLUME_NAMES):
        return "not started", "nothing was prepared or trained yet: `docker compose up -d` or `svitlo prepare`"
    return "not set up", "these volumes do not exist yet: `docker compose up -d` or `svitlo setup`"


def _what_is_waited_for(preparation: Status) -> tuple[str, str] | None:
    """The state where training waits for data and data preparation cannot go on. None where it can."""
    if preparation.state == "error":
        return "error", f"data preparation failed: {preparation.message}"
    if preparation.state == WAITING_FOR_HUB and preparation.is_alive:
        return WAITING_FOR_HUB, preparation.message
    return None


def _read_only(volumes: Volumes, service: Status | None) -> str:
    """What is wrong where a disk that must be written is read-only. Empty where none is.

    Looked at here and not asked of the service, because it cannot report any more.
    """
    for name in ("checkpoints", "logs"):
        mount = mount_of(volumes.root / name)
        if mount is not None and mount.is_read_only:
            heard = "nothing was ever reported"
            if service is not None:
                age = service.age_seconds
                ago = "before the machine was restarted" if age is None else f"{duration(age)} ago"
                heard = f"the last report is of {full_time(service)}, {ago}"
            return (
                f"{volumes.root / name}: its disk ({mount.kind}) is read-only, so nothing is saved and nothing "
                f"reported: {heard}. Look for its error in the kernel's log (`dmesg`), check it (fsck), and mount it "
                f"so that it can be written"
            )
    return ""


def _state_of_trainer(trainer: Status, *, is_complete: bool) -> tuple[str, str]:
    if trainer.is_alive:
        return trainer.state, trainer.message
    if is_complete:
        return "complete", (trainer.message if trainer.state == "complete" else "") or "training is finished"
    if trainer.state not in RUNNING_STATES:
        return trainer.state, trainer.message
    age = trainer.age_seconds
    at = f" at step {trainer.step:,} of phase {trainer.phase}" if trainer.step is not None and trainer.phase else ""
    how = "the machine has restarted since" if age is None else f"no sign of life for {duration(age)}"
    return "not running", (
        f"not running since {full_time(trainer)}, when it was {trainer.state}{at}: {how}. When started, it goes on "
        f"from the last checkpoint"
    )


def _last_known(events: list[dict[str, Any]]) -> str:
    last = f"; the last thing noted was at {readable_time(events[-1].get('time'))} UTC" if events else ""
    return (
        f"there are checkpoints, and no trainer has reported{last}. When started, it goes on from the last checkpoint"
    )


def readable_time(value: Any) -> str:
    """ISO 8601 without the "T" and the time zone: "2026-03-01 18:02:11"."""
    return str(value or "")[:19].replace("T", " ")


def full_time(status: Status) -> str:
    """When a status was written, for people."""
    return f"{readable_time(status.updated) or 'an unknown time'} UTC"


# --- the parts -------------------------------------------------------------------------------------------------------


def _service(status: Status | None) -> ServiceOverview | None:
    if status is None:
        return None
    return {
        "status": dataclasses.asdict(status),
        "is_running": status.is_alive,
        "age_seconds": status.age_seconds,
    }


def _checkpoint(trainer: Status | None) -> CheckpointOverview | None:
    """Its age keeps growing after the status was written. It is unknown if the machine has restarted since."""
    if trainer is None or (trainer.checkpoint_step is None and not trainer.checkpoint_problem):
        return None
    age, when_written = trainer.age_seconds, trainer.checkpoint_age_seconds
    return {
        "step": trainer.checkpoint_step,
        "age_seconds": None if age is None or when_written is None else max(0.0, when_written) + age,
        "problem": trainer.checkpoint_problem,
    }


def _phase(
    volumes: Volumes,
    phase: Phase,
    trainer: Status | None,
    losses: dict[int, ValidationOverview],
    *,
    is_complete: bool,
) -> PhaseOverview:
    validation = losses.get(phase.number)
    at_work = trainer is not None and trainer.phase == phase.number and trainer.step is not None
    has_successor = any(number > phase.number for number in losses) or (
        trainer is not None and (trainer.phase or 0) > phase.number
    )
    is_done = validation is not None and (is_complete or has_successor or (trainer and trainer.state == "complete"))
    position = trainer if at_work else None
    return {
        "number": phase.number,
        "title": phase.title,
        "unit": phase.unit,
        "state": "done" if is_done else "begun" if at_work or validation else "not started",
        "step": position.step if position else None,
        "num_steps": position.num_steps if position else None,
        "epoch": position.epoch if position else None,
        "max_epochs": position.max_epochs if position else None,
        "data": _data(volumes, phase),
        "validation": validation,
    }


def _data(volumes: Volumes, phase: Phase) -> DataOverview | None:
    unknown: DataOverview = {
        "problem": None,
        "digest": None,
        "tokens": None,
        "documents": None,
        "validation_tokens": None,
        "validation_documents": None,
        "sources": None,
    }
    try:
        manifest = load_manifest(volumes.data(phase))
    except DataNotReady:
        return None
    except SvitloError as error:
        return {**unknown, "problem": str(error)}
    shown = ("name", "documents", "words", "tokens", "dropped", "changed")
    return {
        "problem": None,
        "digest": manifest.digest,
        "tokens": manifest.num_tokens("train"),
        "documents": manifest.num_documents("train"),
        "validation_tokens": manifest.num_tokens("validation"),
        "validation_documents": manifest.num_documents("validation"),
        "sources": [{key: source.get(key) for key in shown} for source in manifest.sources],
    }


def _validation_losses(path: Path) -> dict[int, ValidationOverview]:
    """By phase. Skips the many step lines without parsing them."""
    points: dict[int, list[tuple[int, float]]] = {}
    try:
        with open(path, "rb") as file:
            for line in file:
                if b'"evaluation"' not in line:
                    continue
                record = parse_json_line(line)
                loss = record.get("validation_loss") if record else None
                if record and record.get("kind") == "evaluation" and isinstance(loss, (int, float)):
                    points.setdefault(int(record["phase"]), []).append((int(record["step"]), float(loss)))
    except (OSError, KeyError, ValueError):
        pass
    return {phase: _curve(curve) for phase, curve in points.items()}


def _curve(points: list[tuple[int, float]]) -> ValidationOverview:
    best_step, best = min(points, key=lambda point: point[1])
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    return {
        "first": losses[0],
        "last": losses[-1],
        "best": best,
        "best_step": best_step,
        "steps": steps,
        "losses": [*losses],
    }


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
