"""`svitlo status`: what is known about a run, gathered from the volumes, as one screen or as JSON.

Only reads files, and imports nothing heavy: it answers in a blink while training has every core.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.data.shards import DataNotReady, load_manifest
from svitlo.errors import SvitloError
from svitlo.machine import boot_id, boot_seconds
from svitlo.reporting.events import read_events
from svitlo.reporting.lines import parse_json_line
from svitlo.reporting.status import (
    RUNNING_STATES,
    STALE_SECONDS,
    Status,
    duration,
    file_size,
    read_status,
)
from svitlo.volumes import VOLUME_NAMES, Volumes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

NUM_EVENTS = 8
PHASE_NAMES = {1: "Phase 1, plain text", 2: "Phase 2, instructions"}
_FINISHED_PREPARING = ("complete", "stopped", "error")


def as_json(volumes: Volumes) -> dict[str, Any]:
    """All that is known, as JSON values. `state` is what holds now, whatever an old status file says."""
    status = read_status(volumes.status)
    complete = _read_object(volumes.completion)
    preparation = _read_object(volumes.prepare_status)
    data = {f"phase{phase}": _data(volumes, phase) for phase in (1, 2)}
    is_set_up = any((volumes.root / name).is_dir() for name in VOLUME_NAMES)
    has_checkpoints = any(any(volumes.checkpoints(phase).glob("*.pt")) for phase in (1, 2))
    events = read_events(volumes.events)[-NUM_EVENTS:]
    if volumes.restore_journal.exists():
        state, message = "error", "a restore was interrupted: run the same `make restore FROM=...` again"
    elif status is None and complete is None and has_checkpoints:
        state, message = "not running", _last_known(events)  # a power cut may have emptied the status file
    else:
        state, message = _state(status, complete, preparation, data, is_set_up)
    known: dict[str, Any] = _finite(
        {
            "state": state,
            "message": message,
            "is_running": status is not None and status.is_alive,
            "trainer": None if status is None else dataclasses.asdict(status),
            "trainer_age_seconds": None if status is None else status.age_seconds,
            "checkpoint_age_seconds": None if status is None else _checkpoint_age(status),
            "data_preparation": preparation,
            "data": data,
            "validation": {f"phase{phase}": losses for phase, losses in _validation_losses(volumes.metrics).items()},
            "model": str(volumes.model) if (volumes.model / "SHA256SUMS").is_file() else None,
            "complete": complete,
            "events": events,
            "free_bytes": _free_bytes(volumes),
            "volumes": str(volumes.root),
        }
    )
    return known


def print_screen(volumes: Volumes) -> None:
    """Print the screen to standard output, in colour on a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(render_screen(volumes))


def render_screen(volumes: Volumes) -> RenderableType:
    """The same as `as_json`, for eyes."""
    from rich.box import ROUNDED
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    known = as_json(volumes)
    status = read_status(volumes.status)
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("State", Text(known["state"], style=f"bold {_colour(known['state'])}"))
    if known["message"]:
        rows.add_row("", known["message"])
    for label, text in _data_rows(known):
        rows.add_row(label, text)
    for phase, name in PHASE_NAMES.items():
        rows.add_row(name, _phase_text(phase, known, status))
    if status is not None:
        for label, text in _trainer_rows(status, known):
            rows.add_row(label, text)
    if known["model"]:
        rows.add_row("Model", Text(known["model"], style="bold green"))
    if known["free_bytes"] is not None:
        rows.add_row("Free on disk", file_size(known["free_bytes"]))

    parts: list[RenderableType] = [rows]
    if known["events"]:
        events = Table.grid(padding=(0, 2))
        events.add_column(style="dim", no_wrap=True)
        events.add_column(overflow="fold")
        for event in known["events"]:
            events.add_row(_readable_time(event.get("time")), Text(str(event.get("message", ""))))
        parts += [Text(""), Text("Last events (times in UTC)", style="bold"), events]
    run_id = (status.run_id if status else None) or ""
    return Panel(
        Group(*parts),
        title="[bold]Svitlo[/bold]" + (f" · run {run_id[:8]}" if run_id else ""),
        title_align="left",
        subtitle=str(volumes.root),
        subtitle_align="right",
        box=ROUNDED,
        padding=(1, 2),
    )


def _state(
    status: Status | None,
    complete: dict[str, Any] | None,
    preparation: dict[str, Any] | None,
    data: dict[str, Any],
    is_set_up: bool,
) -> tuple[str, str]:
    """What holds now and a sentence about it."""
    if status is not None and status.is_alive:
        return status.state, status.message
    if complete is not None:
        return "complete", (status.message if status and status.state == "complete" else "") or "training is finished"
    if status is not None and status.state not in RUNNING_STATES:
        return status.state, status.message
    if status is not None:
        return "not running", _since(status)
    if preparation is not None and preparation.get("state") not in _FINISHED_PREPARING:
        if _is_recent(preparation):
            return "preparing data", ""
        return "not running", f"data preparation was interrupted (last sign of life {_full_time(preparation)})"
    if preparation is not None and preparation.get("state") == "error":
        return "error", str(preparation.get("message", ""))
    if any(data.values()):
        return "not started", "data is prepared, nothing was trained yet: `docker compose up -d` or `svitlo train`"
    if is_set_up:
        return "not started", "nothing was prepared or trained yet: `docker compose up -d` or `svitlo prepare`"
    return "not set up", "these volumes do not exist yet: `docker compose up -d` or `svitlo setup`"


def _last_known(events: list[dict[str, Any]]) -> str:
    last = f"; the last thing noted was at {_readable_time(events[-1].get('time'))} UTC" if events else ""
    return (
        f"there are checkpoints, and no trainer has reported{last}. When started, it goes on from the last checkpoint"
    )


def _since(status: Status) -> str:
    when = _full_time({"updated": status.updated})
    age = status.age_seconds
    how = "the machine has been started anew since" if age is None else f"no sign of life for {duration(age)}"
    return (
        f"not running since {when}, when it was {_doing(status)}: {how}. When started, it goes on from the last "
        f"checkpoint"
    )


def _doing(status: Status) -> str:
    at = f" at step {status.step:,} of phase {status.phase}" if status.step is not None and status.phase else ""
    return status.state + at


def _data_rows(known: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    preparation = known["data_preparation"]
    is_prepared = all(known["data"].values()) and preparation is not None and preparation.get("state") == "complete"
    if preparation is not None and not is_prepared and (message := preparation.get("message")):
        stale = preparation.get("state") not in _FINISHED_PREPARING and not _is_recent(preparation)
        note = f" (not running since {_full_time(preparation)})" if stale else ""
        rows.append(("Data preparation", f"{message}{note}"))
    for phase in PHASE_NAMES:
        facts = known["data"][f"phase{phase}"]
        if facts is None:
            continue
        if "problem" in facts:
            rows.append((f"Data, phase {phase}", facts["problem"]))
            continue
        unit = "documents" if phase == 1 else "conversations"
        rows.append(
            (
                f"Data, phase {phase}",
                f"{facts['tokens']:,} tokens in {facts['documents']:,} {unit}; "
                f"validation {facts['validation_tokens']:,} in {facts['validation_documents']:,}",
            )
        )
    return rows


def _phase_text(phase: int, known: dict[str, Any], status: Status | None) -> Text:
    from rich.text import Text

    text = Text()
    losses = known["validation"].get(f"phase{phase}")
    is_current = status is not None and status.phase == phase and status.step is not None
    is_later_begun = (status is not None and (status.phase or 0) > phase) or f"phase{phase + 1}" in known["validation"]
    is_over = bool(losses) and (known["state"] == "complete" or is_later_begun)
    if is_over:
        text.append("done", style="green")
    elif is_current and status is not None:
        _append_progress(text, status)
    else:
        text.append("interrupted" if losses else "not started", style="dim")
    if losses:
        text.append("\n" if text else "")
        text.append(f"validation loss {losses['first']:.3f} → {losses['last']:.3f}")
        text.append(f", best {losses['best']:.3f} at step {losses['best_step']:,}  ")
        text.append(_sparkline(losses["curve"]), style="cyan")
    return text


def _append_progress(text: Text, status: Status) -> None:
    step, num_steps = status.step or 0, status.num_steps
    if num_steps:
        share = min(1.0, step / num_steps)
        width = 30
        filled = round(share * width)
        text.append("█" * filled, style="green")
        text.append("░" * (width - filled), style="bright_black")
        text.append(f" {share:.1%}  step {step:,} of {num_steps:,}")
    else:
        text.append(f"step {step:,}")
    if status.epoch is not None:
        text.append(f", epoch {status.epoch}" + (f" of {status.max_epochs}" if status.max_epochs else ""))


def _trainer_rows(status: Status, known: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    is_running = known["is_running"]
    if status.loss is not None and known["state"] != "complete":
        rate = f", learning rate {status.learning_rate:.2e}" if status.learning_rate is not None else ""
        rows.append(("Training loss", f"{status.loss:.3f}{rate}"))
    if is_running and status.tokens_per_second is not None:
        left = f", {duration(status.seconds_left)} left in this phase" if status.seconds_left is not None else ""
        rows.append(("Speed", f"{status.tokens_per_second:,.0f} tokens/s{left}"))
    age = known["checkpoint_age_seconds"]
    if status.checkpoint_step is not None:
        when = f", {duration(age)} old" if age is not None else ""
        rows.append(("Checkpoint", f"step {status.checkpoint_step:,}{when}"))
    if status.checkpoint_problem:
        rows.append(("Not saved", status.checkpoint_problem))
    if is_running and status.memory_bytes is not None:
        rows.append(("Memory", file_size(status.memory_bytes)))
    if is_running and status.age_seconds is not None:
        rows.append(("Last report", f"{duration(status.age_seconds)} ago"))
    return rows


def _data(volumes: Volumes, phase: int) -> dict[str, Any] | None:
    try:
        manifest = load_manifest(volumes.data(phase))
    except DataNotReady:
        return None
    except SvitloError as error:
        return {"problem": str(error)}
    return {
        "digest": manifest.digest,
        "tokens": manifest.num_tokens("train"),
        "documents": manifest.num_documents("train"),
        "validation_tokens": manifest.num_tokens("validation"),
        "validation_documents": manifest.num_documents("validation"),
        "sources": [source.get("name") for source in manifest.sources],
    }


def _validation_losses(path: Path) -> dict[int, dict[str, Any]]:
    """Per phase: first, last and best validation loss, and all of them. Skips the many step lines unparsed."""
    curves: dict[int, list[tuple[int, float]]] = {}
    try:
        with open(path, "rb") as file:
            for line in file:
                if b'"evaluation"' not in line:
                    continue
                record = parse_json_line(line)
                loss = record.get("validation_loss") if record else None
                if record and record.get("kind") == "evaluation" and isinstance(loss, (int, float)):
                    curves.setdefault(int(record["phase"]), []).append((int(record["step"]), float(loss)))
    except (OSError, KeyError, ValueError):
        pass
    found = {}
    for phase, curve in curves.items():
        best_step, best = min(curve, key=lambda point: point[1])
        losses = [loss for _, loss in curve]
        found[phase] = {"first": losses[0], "last": losses[-1], "best": best, "best_step": best_step, "curve": losses}
    return found


def _sparkline(values: list[float], width: int = 24) -> str:
    """A curve in one line of block characters, at most `width` of them, evenly taken from `values`."""
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2:
        return ""
    if len(values) > width:
        values = [values[round(index * (len(values) - 1) / (width - 1))] for index in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) / span * 7)] for value in values)


def _checkpoint_age(status: Status) -> float | None:
    """Seconds, growing since the status was written; None where the machine was started anew since."""
    age = status.age_seconds
    if age is None or status.checkpoint_age_seconds is None:
        return None
    return max(0.0, status.checkpoint_age_seconds) + age


def _is_recent(preparation: dict[str, Any]) -> bool:
    """Whether data preparation reported lately; without a boot clock in its file, by the wall clock."""
    written = preparation.get("boot_seconds")
    if isinstance(written, (int, float)):
        return preparation.get("boot_id") == boot_id() and boot_seconds() - written <= STALE_SECONDS
    try:
        updated = datetime.fromisoformat(str(preparation.get("updated")))
        return abs((datetime.now(UTC) - updated).total_seconds()) <= STALE_SECONDS
    except (ValueError, TypeError):
        return False


def _readable_time(value: Any) -> str:
    """ISO 8601 without what everybody knows: "2026-03-01 18:02:11"."""
    return str(value or "")[:19].replace("T", " ")


def _full_time(values: dict[str, Any]) -> str:
    return f"{_readable_time(values.get('updated')) or 'an unknown time'} UTC"


def _colour(state: str) -> str:
    return {"complete": "green", "error": "red", "not running": "red", "stopped": "yellow"}.get(
        state, "green" if state in RUNNING_STATES else "yellow"
    )


def _free_bytes(volumes: Volumes) -> int | None:
    try:
        return shutil.disk_usage(volumes.checkpoints(1).parent).free
    except OSError:
        return None


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: a diverged loss becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
