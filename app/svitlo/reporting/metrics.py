"""`logs/metrics.jsonl`: the numbers of every optimizer step, evaluation and sample, one JSON object per line.

    {"kind": "step", "phase", "step", "epoch", "loss", "learning_rate", "gradient_norm", "tokens", ...}
    {"kind": "evaluation", "phase", "step", "epoch", "validation_loss", "perplexity", "is_best", ...}
    {"kind": "sample", "phase", "step", "prompt", "completion", ...}

The file is made durable before each checkpoint and cut back to the checkpoint on resumption. So an interrupted run
leaves the same lines as an uninterrupted one: no step is missing and none appears twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from svitlo.reporting.jsonlines import parse_json_line, read_json_lines
from svitlo.storage.files import fsync_file, open_for_append, truncate_durably, write_durably
from svitlo.storage.space import reason_of
from svitlo.volumes import VolumeWatch

_TAIL_BYTES = 1 << 18
"""More than the lines of one evaluation with its samples, so the last step is always within it."""

CLOCK_FIELDS = ("time", "seconds", "tokens_per_second")
"""These depend on the clock and not on the run. They are left out when two runs are compared."""

EVALUATION_KINDS = ("evaluation", "sample")


class MetricsLog:
    """Appends records to one file. If the disk is full or went away, it says so and goes on: that must not stop
    training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._volume = VolumeWatch(path.parent)
        self._file: BinaryIO | None = None
        self._is_failing = False

    def truncate_after(self, phase: int, step: int, last_evaluated_step: int | None = None) -> None:
        """Remove what came after step `step` of `phase`, later phases included. Removes torn lines, too.

        A checkpoint is saved before the evaluation of its step. With its `last_evaluated_step`, evaluations and samples
        after that step are removed as well, because they will be made again. Raises `OSError`.
        """
        self.close()
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        last_evaluation = step if last_evaluated_step is None else min(step, last_evaluated_step)
        kept = []
        for line in data.split(b"\n"):
            record = parse_json_line(line)
            if record is None:
                continue
            last_step = last_evaluation if record.get("kind") in EVALUATION_KINDS else step
            if (record.get("phase", 0), record.get("step", 0)) <= (phase, last_step):
                kept.append(line + b"\n")
        content = b"".join(kept)
        if data.startswith(content):  # the usual case, which needs no space on a full disk
            if len(content) < len(data):
                truncate_durably(self.path, len(content))
        else:
            write_durably(self.path, lambda file: file.write(content))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record. It survives a power cut only after the next `make_durable`. Never raises `OSError`."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file is None:
                self._volume.require()
                self._file = open_for_append(self.path)
            self._file.write(line)
            self._file.flush()  # after a kill, the next process counts from here how much work it repeats
        except OSError as error:
            self._give_up(error)

    def make_durable(self) -> None:
        """Sync every record so far to the disk. Called before each checkpoint. Never raises `OSError`."""
        if self._file is None:
            return
        try:
            fsync_file(self._file)
            self._is_failing = False
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Make everything durable and close the file. The next `append` opens it again."""
        self.make_durable()
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _give_up(self, error: OSError) -> None:
        """Say once why records are being lost, and drop the file. Failed writes are not retried."""
        if not self._is_failing:
            print(f"{self.path}: metrics are not being kept ({reason_of(error)})", file=sys.stderr, flush=True)
        self._is_failing = True
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()  # flushes the rest, which fails again on a full disk


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first. Skips torn lines. Empty if the file is missing."""
    return [record for record in read_json_lines(path) if "kind" in record]


def last_step(path: Path) -> tuple[int, int]:
    """Phase and number of the last step in the file, without reading all of it. (0, 0) if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return 0, 0
    for line in reversed(lines):
        record = parse_json_line(line)
        if record is not None and record.get("kind") == "step":
            return int(record["phase"]), int(record["step"])
    return 0, 0


def comparable(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without the fields that depend on the clock: equal for two runs that did the same."""
    return [{key: value for key, value in record.items() if key not in CLOCK_FIELDS} for record in records]
