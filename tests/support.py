"""Helpers that read a run's volumes and compare two runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from svitlo import cli
from svitlo.config import load_phase_config
from svitlo.interruption import Interruption
from svitlo.manifest import load_manifest
from svitlo.phases import PRETRAINING, Phase
from svitlo.reporting.metrics import comparable, read_metrics
from svitlo.reporting.observer import Observer
from svitlo.training.checkpoints import find_newest
from svitlo.training.loop import PhaseRun
from svitlo.training.setup import set_up_phase
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes

OnRejected = Callable[[Path, str], object]


def quiet(_: str) -> None:
    """Ignore the message."""


def no_rejection(path: Path, reason: str) -> None:
    raise AssertionError(f"{path}: {reason}")


def contents(volumes: Path) -> dict[str, bytes | None]:
    """Everything below a folder of volumes, but for what the services last said about themselves and their locks."""
    said = {"logs/data-prep.json", "logs/status.json"}
    return {
        name: path.read_bytes() if path.is_file() else None
        for path in volumes.rglob("*")
        if (name := str(path.relative_to(volumes))) not in said and path.name != ".lock"
    }


def run_main(*arguments: str) -> tuple[int, str]:
    """`svitlo ARGUMENTS` in this process: the exit code, and what it wrote to standard error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    errors, code = io.StringIO(), 0
    try:
        with (
            unittest.mock.patch.object(sys, "argv", ["svitlo", *arguments]),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
        ):
            cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, errors.getvalue()


class Rejections(list[tuple[Path, str]]):
    """Collects each checkpoint that could not be used, with the reason."""

    def __call__(self, path: Path, reason: str) -> None:
        self.append((path, reason))


def newest(
    folder: Path, on_rejected: OnRejected = no_rejection, run_id: str | None = None, phase: Phase = PRETRAINING
) -> TrainingState | None:
    """What the trainer finds in a folder of checkpoints, setting aside what it cannot use."""
    return find_newest(folder, phase, run_id=run_id, set_aside=True, on_rejected=on_rejected)


class Run(Protocol):
    """Anything that trains on a volumes folder: a `Job`, or a stack of containers."""

    @property
    def volumes(self) -> Path: ...


CLOCK_FIELDS = {"timestamp", "training_seconds", "run_id", "periodic_save"}


def checkpoint_state(
    step: int, weights: dict[str, torch.Tensor], phase: int = 1, run_id: str = "r", **fields: Any
) -> TrainingState:
    """A state with these weights, for tests of files that need no trainable model."""
    values = {
        "vocab_size": 10,
        "model": {},
        "configuration": {},
        "configuration_digest": "c",
        "data_digest": "d",
        "numerics": {},
        **fields,
    }
    return TrainingState(phase=phase, run_id=run_id, global_step=step, model_state_dict=weights, **values)


def last(job: Run, phase: int, name: str = "last_checkpoint.pt") -> dict[str, Any]:
    return torch.load(job.volumes / "checkpoints" / f"phase{phase}" / name, weights_only=True)


def metrics(job: Run) -> list[dict[str, Any]]:
    return comparable(read_metrics(job.volumes / "logs" / "metrics.jsonl"))


def events(job: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.volumes / "logs" / "events.jsonl").read_text().splitlines()]


def run_of_phase_1(config: Path, folder: Path) -> PhaseRun:
    """What the loop works with, in this process, at the step that the volumes in `folder` have reached."""
    volumes = Volumes(folder)
    run = set_up_phase(
        volumes=volumes,
        config=load_phase_config(config, PRETRAINING),
        manifest=load_manifest(volumes.data(PRETRAINING)),
        resume=None,
        interruption=Interruption(signals=()),
        observer=Observer(),
    )
    assert run is not None
    return run


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, through tensors, dictionaries and lists."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert one.equal(other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - (CLOCK_FIELDS if not where else set()):
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{number}")
    else:
        assert one == other, where


def assert_same_run(job: Run, reference: Run) -> None:
    for phase in (1, 2):
        for name in ("last_checkpoint.pt", "best_checkpoint.pt"):
            assert_same(last(job, phase, name), last(reference, phase, name))
    assert metrics(job) == metrics(reference)
    model = "export/model/model.safetensors"
    assert (job.volumes / model).read_bytes() == (reference.volumes / model).read_bytes()


def die_at(operation: str, number: int, work: Callable[[], object]) -> NoReturn:
    """In a forked child: do the work, and be killed just before the so many-th call of an operation of `os`."""
    original, left = getattr(os, operation), number

    def counted(*arguments: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, operation, counted)
    try:
        with open(os.devnull, "w") as sys.stdout:
            work()
    except BaseException:
        os._exit(1)
    os._exit(0)
