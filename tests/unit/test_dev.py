"""Where tests, lint and benchmarks run: in .venv where the machine has Python 3.11, in an image elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.unit.checkout import Checkout, calls

ENGINE = """
case "$*" in
"context inspect"*) echo {endpoint} ;;
"compose config"*) printf '{{\\n"x-settings": {{\\n}}\\n' ;;
*"buildx build"*) echo "$*" >>{calls} ;;
run*) printf '%s\\n' "$@" >{arguments} ;;
esac
"""
PYTHON_3_13 = f"""exec {sys.executable} -c 'import sys; sys.version_info = (3, 13, 5); exec(sys.argv[2])' "$@\""""
TARGETS = {
    "test": ["docker/test.sh"],
    "torture": ["docker/test.sh"],
    "lint": ["docker/lint.sh"],
    "bench": [".venv/bin/python", "-m", "benchmarks.speed"],
    "bench-loss MINUTES=7": [".venv/bin/python", "-m", "benchmarks.loss", "--minutes", "7"],
    "bench-saving": [".venv/bin/python", "-m", "benchmarks.saving"],
    ".venv": ["true"],
}


@pytest.fixture
def bare(checkout: Checkout) -> Checkout:
    """A machine that has neither Python nor Docker."""
    checkout.without_docker()
    shutil.copy(ROOT / "pyproject.toml", checkout.folder)
    for name in ("sha256sum", "flock", "true"):
        (checkout.bin / name).symlink_to(str(shutil.which(name)))
    return checkout


def add_engine(checkout: Checkout, endpoint: str = "unix:///run/user/engine.sock") -> Path:
    """An engine that answers. Returns the file with the arguments of its last `docker run`, one in a line."""
    arguments = checkout.folder.parent / "arguments"
    checkout.program("docker", ENGINE.format(endpoint=endpoint, calls=checkout.calls, arguments=arguments))
    return arguments


def add_python(checkout: Checkout, name: str = "python3.11") -> None:
    """A Python 3.11 whose environments hold nothing but itself."""
    copies = 'cp "$0" .venv/bin/python; cp "$0" .venv/bin/pip'
    make = f'echo "made .venv" >>{checkout.calls}; rm -rf .venv; mkdir -p .venv/bin; {copies}'
    checkout.program(name, f'case "$*" in "-m venv"*) {make} ;; esac')


@pytest.mark.parametrize("target", TARGETS)
def test_without_python_3_11_a_command_runs_in_an_image(bare: Checkout, target: str) -> None:
    arguments = add_engine(bare)
    bare.program("python3", PYTHON_3_13)
    said = bare.run("make", *target.split(), SVITLO_SEED="7", TMPDIR=str(bare.home)).stderr
    assert "no Python 3.11" in said
    assert all("--target dev --tag svitlo/dev:local" in build for build in calls(bare))

    given = arguments.read_text().splitlines()
    place = given.index("svitlo/dev:local")
    assert given[place + 1 :] == ["bash", "-euc", 'docker/venv.sh; exec "$@"', "dev", *TARGETS[target]]
    options = list(pairwise(given[:place]))
    assert ("--user", f"{os.getuid()}:{os.getgid()}") in options, "what it writes belongs to the person who called"
    assert ("--workdir", str(bare.folder)) in options
    mounts = [value for option, value in options if option == "--volume"]
    # The engine looks for these on the machine, whatever a test calls them in the container.
    for folder in (bare.folder, bare.home, "/var/tmp", "/dev"):
        assert f"{folder}:{folder}" in mounts
    assert "/run/user/engine.sock:/var/run/docker.sock" in mounts
    assert len({mount.split(":")[1] for mount in mounts}) == len(mounts), (
        "the engine refuses to mount twice at one place"
    )
    assert ("--env", "SVITLO_SEED") in options
    assert not (bare.folder / ".venv").exists()


@pytest.mark.parametrize("name", ["python3.11", "python3"])
def test_with_python_3_11_a_command_runs_in_venv(bare: Checkout, name: str) -> None:
    arguments = add_engine(bare)
    add_python(bare, name)
    bare.program("hello", 'echo "hello $*"')
    done = bare.run("docker/dev.sh", "hello", "there")
    assert done.stdout == "hello there\n"
    assert calls(bare) == ["made .venv"]
    assert not arguments.exists()
    bare.run("docker/dev.sh", "hello")
    assert calls(bare) == ["made .venv"], "it is still good"

    (bare.bin / name).unlink()
    assert bare.run("docker/dev.sh", "hello").stdout == "hello \n"
    assert not arguments.exists(), "an environment that works is enough"


def test_root_gets_python_3_11_from_a_distribution_that_has_it(bare: Checkout) -> None:
    arguments = add_engine(bare)
    bare.program("id", "echo 0")
    bare.program("apt-cache", 'test "$*" = "show python3.11-venv"')
    add_python(bare, "later")
    bare.program("apt-get", f'echo "apt-get $*" >>{bare.calls}; cp {bare.bin}/later {bare.bin}/python3.11')
    bare.run("docker/dev.sh", "true")
    assert calls(bare) == ["apt-get install -y --no-install-recommends python3.11-venv", "made .venv"]
    assert not arguments.exists()


def test_an_environment_whose_python_is_gone_is_made_anew(bare: Checkout) -> None:
    add_python(bare)
    bare.run("make", ".venv")
    (bare.folder / ".venv" / "bin" / "python").unlink()
    (bare.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.11")
    bare.run("make", ".venv")
    assert calls(bare) == ["made .venv", "made .venv"]


@pytest.mark.parametrize("target", TARGETS)
def test_without_python_and_engine_one_message_has_the_remedy(bare: Checkout, target: str) -> None:
    done = bare.run("make", *target.split(), check=False)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1, said
    assert "no Python 3.11" in said[0]
    assert "sudo make install" in said[0]


def test_an_engine_on_another_machine_is_no_help(bare: Checkout) -> None:
    arguments = add_engine(bare, "tcp://elsewhere:2375")
    done = bare.run("docker/dev.sh", "true", check=False)
    assert done.returncode == 2
    assert "tcp://elsewhere:2375" in done.stderr
    assert not arguments.exists()
    assert calls(bare) == []
