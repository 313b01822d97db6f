"""`svitlo status`: an overview as one screen of a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from svitlo.reporting.overview import Overview, PhaseOverview, readable_time
from svitlo.reporting.status import RUNNING_STATES
from svitlo.units import duration, file_size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Row = tuple[str, "str | Text"]

_COLOURS = {"complete": "green", "error": "red", "not running": "red", "stopped": "yellow"}
_BAR_WIDTH = 30
_SPARKS = "▁▂▃▄▅▆▇█"
_PLAIN = str.maketrans("·→░…—" + _SPARKS, "->.~-" + "_.-~=+*#")
"""For terminals that know no more than ASCII."""


def print_screen(known: Overview) -> None:
    """Print the screen to standard output, in colour on a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    if not console.options.ascii_only:
        console.print(render_screen(known))
        return
    with console.capture() as captured:  # rich draws a plain frame by itself
        console.print(render_screen(known))
    print(captured.get().translate(_PLAIN), end="")


def render_screen(known: Overview) -> RenderableType:
    """The screen, for rich to print."""
    from rich.box import ROUNDED
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[RenderableType] = [_table([*_state_rows(known), *_data_rows(known), *_work_rows(known)])]
    if known["events"]:
        events = [(readable_time(event.get("time")), Text(str(event.get("message", "")))) for event in known["events"]]
        parts += [Text(""), Text("Last events (times in UTC)", style="bold"), _table(events)]
    run_id = known["run_id"] or ""
    return Panel(
        Group(*parts),
        title="[bold]Svitlo[/bold]" + (f" · run {run_id[:8]}" if run_id else ""),
        title_align="left",
        subtitle=known["volumes"],
        subtitle_align="right",
        box=ROUNDED,
        padding=(1, 2),
    )


def _table(rows: list[Row] | list[tuple[str, Text]]) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _state_rows(known: Overview) -> list[Row]:
    from rich.text import Text

    state = known["state"]
    colour = _COLOURS.get(state, "green" if state in RUNNING_STATES else "yellow")
    rows: list[Row] = [("State", Text(state, style=f"bold {colour}"))]
    if known["message"]:
        rows.append(("", Text(known["message"])))
    return rows


def _data_rows(known: Overview) -> list[Row]:
    rows: list[Row] = []
    preparation = known["data_preparation"]
    all_prepared = all(phase["data"] for phase in known["phases"])
    if preparation is not None:
        status = preparation["status"]
        is_done = all_prepared and status["state"] == "complete"
        is_told = known["message"].endswith(status["message"])
        if status["message"] and not is_done and not is_told:
            is_stale = status["state"] in RUNNING_STATES and not preparation["is_running"]
            note = f" (not running since {readable_time(status['updated'])} UTC)" if is_stale else ""
            failed = "failed: " if status["state"] == "error" else ""
            rows.append(("Data preparation", f"{failed}{status['message']}{note}"))
    for phase in known["phases"]:
        data = phase["data"]
        if data is None:
            continue
        text = data["problem"] or (
            f"{data['tokens']:,} tokens in {data['documents']:,} {phase['unit']}; "
            f"validation {data['validation_tokens']:,} in {data['validation_documents']:,}"
        )
        rows.append((f"Data, phase {phase['number']}", text))
    return rows


def _work_rows(known: Overview) -> list[Row]:
    from rich.text import Text

    rows: list[Row] = [(f"Phase {phase['number']}, {phase['title']}", _phase_text(phase)) for phase in known["phases"]]
    trainer, checkpoint = known["trainer"], known["checkpoint"]
    if trainer is not None:
        rows += _trainer_rows(
            trainer["status"], is_complete=known["state"] == "complete", is_running=known["is_running"]
        )
    if checkpoint is not None:
        if checkpoint["step"] is not None:
            age = checkpoint["age_seconds"]
            when = f", {duration(age)} old" if age is not None else ""
            rows.append(("Checkpoint", f"step {checkpoint['step']:,}{when}"))
        if checkpoint["problem"]:
            rows.append(("Not saved", checkpoint["problem"]))
    if trainer is not None and known["is_running"] and trainer["age_seconds"] is not None:
        rows.append(("Last report", f"{duration(trainer['age_seconds'])} ago"))
    if known["model"]:
        rows.append(("Model", Text(known["model"], style="bold green")))
    if known["free_bytes"] is not None:
        rows.append(("Free on disk", file_size(known["free_bytes"])))
    return rows


def _trainer_rows(status: dict[str, Any], *, is_complete: bool, is_running: bool) -> list[Row]:
    rows: list[Row] = []
    if status["loss"] is not None and not is_complete:
        rate = f", learning rate {status['learning_rate']:.2e}" if status["learning_rate"] is not None else ""
        rows.append(("Training loss", f"{status['loss']:.3f}{rate}"))
    if is_running and status["tokens_per_second"] is not None:
        left = status["seconds_left"]
        text = f", {duration(left)} left in this phase" if left is not None else ""
        rows.append(("Speed", f"{status['tokens_per_second']:,.0f} tokens/s{text}"))
    if is_running and status["memory_bytes"] is not None:
        rows.append(("Memory", file_size(status["memory_bytes"])))
    return rows


def _phase_text(phase: PhaseOverview) -> Text:
    from rich.text import Text

    text = Text()
    validation = phase["validation"]
    if phase["state"] == "done":
        text.append("done", style="green")
    elif phase["step"] is not None:
        _append_progress(text, phase)
    else:
        text.append("interrupted" if phase["state"] == "begun" else phase["state"], style="dim")
    if validation is not None:
        text.append("\n" if text else "")
        text.append(f"validation loss {_loss(validation['first'])} → {_loss(validation['last'])}")
        text.append(f", best {_loss(validation['best'])} at step {validation['best_step']:,}  ")
        text.append(_sparkline(validation["losses"]), style="cyan")
    return text


def _append_progress(text: Text, phase: PhaseOverview) -> None:
    step, num_steps = phase["step"] or 0, phase["num_steps"]
    if num_steps:
        share = min(1.0, step / num_steps)
        filled = round(share * _BAR_WIDTH)
        text.append("█" * filled, style="green")
        text.append("░" * (_BAR_WIDTH - filled), style="bright_black")
        text.append(f" {share:.1%}  step {step:,} of {num_steps:,}")
    else:
        text.append(f"step {step:,}")
    if phase["epoch"] is not None:
        text.append(f", epoch {phase['epoch']}" + (f" of {phase['max_epochs']}" if phase["max_epochs"] else ""))


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _sparkline(losses: list[float | None], width: int = 24) -> str:
    """A curve in one line of at most `width` block characters, sampled evenly from `losses`."""
    values = [value for value in losses if value is not None and math.isfinite(value)]
    if len(values) < 2:
        return ""
    if len(values) > width:
        values = [values[round(index * (len(values) - 1) / (width - 1))] for index in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_SPARKS[round((value - low) / span * 7)] for value in values)
