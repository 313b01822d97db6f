"""What people see of a preparation: a bar or lines while it runs, a table at the end, and logs/data-prep.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from svitlo.data.division import explained
from svitlo.manifest import SPLITS, Manifest
from svitlo.phases import Phase
from svitlo.reporting.status import set_health, write_status
from svitlo.units import duration

LINE_EVERY_SECONDS = 5.0
STATUS_EVERY_SECONDS = 2.0
BAR_EVERY_SECONDS = 0.2
MOST_NAMES = 8
"""So many of the files that were left out are named in the report. The manifest names more."""


class Reporter:
    """Prints to `output` and keeps the status file up to date. Problems with either never stop the work."""

    def __init__(
        self, status_path: Path, output: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._status_path = status_path
        self._output = output or sys.stdout
        self._clock = clock
        self._is_terminal = self._output.isatty()
        self._bar: Any = None
        self._bar_task: Any = None
        self._phase: Phase | None = None
        self._documents = 0
        self._tokens = 0
        self._tokens_at_start = 0
        self._documents_complete = 0
        self._tokens_complete = 0
        self._fraction = 0.0
        self._fraction_at_start = 0.0
        self._started = 0.0
        self._next_line = self._next_status = self._next_bar = 0.0

    def say(self, message: str) -> None:
        """Print one line."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=self._output, flush=True)

    def begin(self, phase: Phase, documents: int, tokens: int, fraction: float = 0.0) -> None:
        """A phase begins, or goes on after this many documents and tokens."""
        now = self._clock()
        self._phase, self._documents, self._tokens = phase, documents, tokens
        self._tokens_at_start, self._fraction_at_start, self._fraction = tokens, fraction, fraction
        self._started = now
        self._next_line, self._next_status, self._next_bar = now + LINE_EVERY_SECONDS, now, now
        if self._is_terminal:
            self._start_bar()
        self.status("preparing", f"{phase}: reading and tokenising")

    def advance(self, documents: int, tokens: int, fraction: float) -> None:
        """Progress so far: documents and tokens kept, and the share (0 to 1) of the sources that was read."""
        self._documents, self._tokens, self._fraction = documents, tokens, min(fraction, 1.0)
        now = self._clock()
        if now >= self._next_status:
            self._next_status = now + STATUS_EVERY_SECONDS
            self.status("preparing", self._line())
        if self._bar is not None:
            if now >= self._next_bar:
                self._next_bar = now + BAR_EVERY_SECONDS
                self._bar.update(self._bar_task, completed=self._fraction, description=self._line())
        elif now >= self._next_line:
            self._next_line = now + LINE_EVERY_SECONDS
            self.say(self._line())

    def waiting(self, message: str) -> None:
        """What is waited for, printed and in the status."""
        self.say(message)
        self.status("preparing", message)

    def downloading(self, message: str) -> None:
        """Progress of a download. Called often; shown from time to time."""
        now = self._clock()
        if now >= self._next_status:
            self._next_status = now + STATUS_EVERY_SECONDS
            self.status("preparing", message)
        if now >= self._next_line:
            self._next_line = now + LINE_EVERY_SECONDS
            self.say(message)

    def count(self, documents: int, tokens: int) -> None:
        """A phase is complete with this many documents and tokens. The status shows the sum over all phases."""
        self._documents_complete += documents
        self._tokens_complete += tokens

    def end(self) -> None:
        """Remove the bar of the phase."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def status(self, state: str, message: str) -> None:
        """Write `data-prep.json`: `state` is preparing, complete, stopped or error."""
        is_complete = state == "complete"
        if state == "preparing":
            set_health(True, message)
        write_status(
            self._status_path,
            state=state,
            message=message,
            phase=None if self._phase is None else self._phase.number,
            documents=self._documents_complete if is_complete else self._documents,
            tokens=self._tokens_complete if is_complete else self._tokens,
            tokens_per_second=None if is_complete else round(self._rate()),
            seconds_left=None if is_complete else self._seconds_left(),
        )

    def _rate(self) -> float:
        seconds = self._clock() - self._started
        return (self._tokens - self._tokens_at_start) / seconds if seconds > 0 else 0.0

    def _line(self) -> str:
        parts = [
            f"{self._phase}: {self._documents:,} documents",
            f"{self._tokens:,} tokens",
            f"{self._rate():,.0f} tokens/s",
            f"{self._fraction:.0%}",
        ]
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        """At the rate so far. None if it is too early to tell."""
        seconds = self._clock() - self._started
        done = self._fraction - self._fraction_at_start
        return seconds * (1 - self._fraction) / done if done > 0.01 and seconds > 1 else None

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=Console(file=self._output),
            transient=True,
        )
        self._bar_task = self._bar.add_task(str(self._phase), total=1.0)
        self._bar.start()

    # --- the result ---

    def summary(self, manifest: Manifest) -> None:
        """Print documents, words, tokens and everything dropped, by reason, for each source and split."""
        if self._is_terminal:
            self._table(manifest)
        else:
            for line in summary_lines(manifest):
                self.say(line)

    def _table(self, manifest: Manifest) -> None:
        from rich.console import Console
        from rich.table import Table

        noun = manifest.phase.unit
        table = Table(title=f"{manifest.phase}, data identity {manifest.digest[:12]}", title_justify="left")
        table.add_column("source")
        for heading in (noun, "words", "tokens"):
            table.add_column(heading, justify="right")
        table.add_column("dropped, and why")
        for source in manifest.sources:
            notes = _counts(source["dropped"]) + [f"({text})" for text in _counts(source["changed"])]
            notes += [f"left out: {text}" for text in _left_out(source)]
            table.add_row(
                source["name"], f"{source['documents']:,}", f"{source['words']:,}", f"{source['tokens']:,}",
                "\n".join(notes) or "nothing",
            )  # fmt: skip
        table.add_section()
        for split in SPLITS:
            counts = manifest.content["splits"][split]
            replies = f"{counts['reply_tokens']:,} tokens in replies" if "reply_tokens" in counts else ""
            table.add_row(
                split, f"{counts['documents']:,}", f"{counts['words']:,}", f"{counts['tokens']:,}",
                _shards(counts) + (f"; {replies}" if replies else ""),
            )  # fmt: skip
        Console(file=self._output).print(table)
        for line in _division_lines(manifest):
            self.say(line)


def summary_lines(manifest: Manifest) -> list[str]:
    """The report as plain lines."""
    noun = manifest.phase.unit
    lines = []
    for source in manifest.sources:
        line = (
            f"{manifest.phase}, {source['name']}: {source['documents']:,} {noun}, {source['words']:,} words, "
            f"{source['tokens']:,} tokens; dropped: {', '.join(_counts(source['dropped'])) or 'nothing'}"
        )
        if source["changed"]:
            line += f"; changed: {', '.join(_counts(source['changed']))}"
        if left_out := _left_out(source):
            line += f"; left out: {', '.join(left_out)}"
        lines.append(line)
    for split in SPLITS:
        counts = manifest.content["splits"][split]
        line = (
            f"{manifest.phase}, {split}: {counts['documents']:,} {noun}, {counts['words']:,} words, "
            f"{counts['tokens']:,} tokens in {_shards(counts)}"
        )
        if "reply_tokens" in counts:
            line += f"; {counts['reply_tokens']:,} tokens in replies"
        lines.append(line)
    return lines + _division_lines(manifest)


def _division_lines(manifest: Manifest) -> list[str]:
    division = manifest.content["splits"].get("division")
    return [f"{manifest.phase}: {explained(division)}"] if division else []


def _left_out(source: dict[str, Any]) -> list[str]:
    names: list[str] = source.get("left_out", [])
    return names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"{len(names) - MOST_NAMES:,} or more others"]


def _counts(counted: dict[str, int]) -> list[str]:
    return [f"{count:,} {reason}" for reason, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]


def _shards(counts: dict[str, Any]) -> str:
    number = len(counts["shards"])
    return "1 shard" if number == 1 else f"{number} shards"
