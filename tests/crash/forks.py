"""`svitlo` in processes that need not import torch first, so that tests can kill hundreds of them in minutes.

A server process (Python's own "forkserver") imports once what a trainer imports. Each trainer is a fork of it and runs
the real command from its first line on. Hooks make a fork act at an exact moment, for example send itself a signal in
the middle of a save.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.conftest import Job

PRELOADED = [
    "svitlo.cli", "svitlo.training.loop", "svitlo.training.setup", "svitlo.model.export", "svitlo.operations.backup",
    "transformers.models.gpt2.modeling_gpt2", "transformers.generation.utils", __name__,
]  # fmt: skip
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class At:
    """What happens at the `call`-th call of the function or method `name` of `module`, before it does its work (or
    after): the process sends itself these signals, or raises this error."""

    module: str
    name: str
    call: int = 1
    after: bool = False
    signals: tuple[int, ...] = ()
    error: str = ""
    note: str = ""
    """A file that records the time (CLOCK_MONOTONIC) at which it happened."""

    def install(self) -> None:
        *owners, name = self.name.split(".")
        owner: Any = importlib.import_module(self.module)
        for part in owners:
            owner = getattr(owner, part)
        original: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def hooked(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != self.call:
                return original(*arguments, **options)
            if not self.after:
                self._happen()
            result = original(*arguments, **options)
            if self.after:
                self._happen()
            return result

        setattr(owner, name, hooked)

    def _happen(self) -> None:
        if self.note:
            Path(self.note).write_text(str(time.monotonic()))
        if self.error:
            raise RuntimeError(self.error)
        for number in self.signals:
            os.kill(os.getpid(), number)


def torture() -> bool:
    """Whether to run the long versions of the tests (`make torture`)."""
    return bool(os.environ.get("SVITLO_TORTURE"))


def new_seed() -> int:
    """A new seed each time, or SVITLO_SEED to repeat a failure. It is printed, and shown if a test fails."""
    seed = int(os.environ.get("SVITLO_SEED") or random.randrange(10**6))
    print(f"seed {seed} (to repeat: SVITLO_SEED={seed})")
    return seed


def _run(arguments: list[str], log: str, hook: At | None, environment: dict[str, str]) -> None:
    """In the fork: become `svitlo ARGUMENTS`."""
    from svitlo.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in [name for name in os.environ if name.startswith("SVITLO_")]:
        del os.environ[name]
    os.environ.update(environment)
    if hook is not None:
        hook.install()
    sys.argv = ["svitlo", *arguments]
    main()


class Fork:
    """One process of `svitlo`, begun in a few milliseconds."""

    def __init__(self, job: Job, *arguments: str, hook: At | None = None, **environment: str) -> None:
        self._log = job.volumes.parent / f"{job.volumes.name}.log"
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        parts = (job.command(*arguments)[3:], str(self._log), hook, environment)
        self._process: ForkServerProcess = _server.Process(target=_run, args=parts)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it still runs after this many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end. Returns the exit code; -9 for what was killed."""
        os.kill(self.pid, number)
        code = self.wait(60)
        assert code is not None, f"still running 60 s after signal {number}"
        return code

    def output(self) -> str:
        """What it has said so far."""
        try:
            return self._log.read_bytes()[self._begin :].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for_line(self, pattern: str, seconds: float = 300) -> None:
        """Wait until a line of the output matches."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.output()):
            assert self.is_running(), f"ended without a line that matches {pattern!r}:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"no line matches {pattern!r}:\n{self.output()[-3000:]}"
            time.sleep(0.01)


@contextlib.contextmanager
def fork(job: Job, *arguments: str, hook: At | None = None, **environment: str) -> Iterator[Fork]:
    """A fork that is always gone afterwards."""
    one = Fork(job, *arguments, hook=hook, **environment)
    try:
        yield one
    finally:
        if one.is_running():
            one.kill()
