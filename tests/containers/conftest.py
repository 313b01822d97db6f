"""Stacks for the container tests. These are skipped, with the reason, if no engine answers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.containers.engine import PROGRAMS, Engine
from tests.containers.stack import Stack

IMAGES = ("svitlo/trainer:local", "svitlo/data-prep:local")


@pytest.fixture(scope="session", autouse=True)
def _torn_down_also_when_terminated() -> None:
    """Make SIGTERM end the tests as Ctrl-C does. Containers left behind would be started at every boot."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def images() -> None:
    """The images, built from the checkout."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no Docker engine with Compose answers ({' '.join(command)}: {error})")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SVITLO_", "COMPOSE_"))}
    done = subprocess.run(
        ["docker/build.sh"],
        cwd=ROOT,
        env={**environment, "SVITLO_VERSION": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def mistaken(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose configuration has a mistake, just started."""
    stack = Stack(tmp_path_factory.mktemp("mistaken"))
    stack.write_job()
    stack.change("phase1_pretraining.yaml", "training", learning_rate=None, learning_rat=3e-3)
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="session")
def finished(mistaken: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that ran from empty volumes to the end undisturbed. All others are compared with it.

    `mistaken` starts before it, because the engine needs a minute to call it unhealthy.
    """
    stack = Stack(tmp_path_factory.mktemp("finished"))
    stack.write_job()
    try:
        stack.up()
        stack.wait_until_complete()
        yield stack
    finally:
        stack.remove()


@pytest.fixture
def stack(images: None, tmp_path: Path) -> Iterator[Stack]:
    """A stack that is not started yet. Its volumes are empty except for raw text."""
    new = Stack(tmp_path)
    new.write_job()
    try:
        yield new
    finally:
        new.remove()


@pytest.fixture(scope="session")
def engine(images: None) -> Iterator[Engine]:
    """A running engine of our own, with the images."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.getuid() != 0:
        pytest.skip("a second engine, whose power is cut, can be run only by root")
    if missing:
        pytest.skip(f"a second engine, whose power is cut, needs {' and '.join(missing)} on this machine")
    new = Engine()
    try:
        new.start()
        new.load(*IMAGES)
        yield new
    finally:
        new.remove()


@pytest.fixture
def powered_stack(engine: Engine, tmp_path: Path) -> Iterator[Stack]:
    """Like `stack`, on the engine whose power can be cut."""
    new = Stack(tmp_path, engine.host)
    new.write_job()
    try:
        yield new
    finally:
        new.remove()
