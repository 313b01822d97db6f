"""`make install` and `make uninstall`: the unit that they install, and what its script decides.

Needs neither systemd nor an engine: small stand-ins answer for `docker` and `systemctl`.
tests/containers/test_power_cuts.py runs the same script with a real engine.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

SERVICES = ("data-prep", "trainer")
DOCKER = """#!/bin/sh
echo "$*" >>{calls}
case "$*" in
info) exit {engine} ;;
"compose config"* | "compose version"*) exit 1 ;;
"network ls"*) cat {state}/network ;;
"compose ps --all --quiet") cat {state}/data-prep {state}/trainer ;;
"compose ps --all --quiet "*) cat "{state}/$5" ;;
"inspect --format"*) cat "{state}/inspect-$4" ;;
esac
"""


class Machine:
    """A separate project folder, and programs that record how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.units = folder / "units"
        self.state = folder / "state"
        self.calls = folder / "calls"
        for path in (self.project, self.units, self.state, folder / "bin"):
            path.mkdir(parents=True)
        shutil.copytree(ROOT / "docker", self.project / "docker")
        self.program("id", "echo 0")
        self.program("systemctl", f'echo "systemctl $*" >>{self.calls}')
        (self.project / "docker" / "install-engine.sh").write_text("#!/bin/sh\n")
        self.calls.touch()
        self.set_state("")

    def program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def set_state(self, network: str, **containers: str) -> None:
        """What the engine knows: the state of each service's container. A service that is not named has none."""
        self.program("docker", DOCKER.format(calls=self.calls, state=self.state, engine=0))
        (self.state / "network").write_text(network)
        for service in SERVICES:
            state = containers.get(service.replace("-", "_"))
            (self.state / service).write_text("" if state is None else f"id-{service}\n")
            (self.state / f"inspect-id-{service}").write_text(f"{state}\n")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.project / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
            env={
                **environment(),
                "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "SVITLO_UNIT_FOLDER": str(self.units),
            },
        )

    def started(self) -> list[str]:
        """The services that boot.sh has started."""
        ups = [line.split(" up ")[1].split() for line in self.calls.read_text().splitlines() if " up " in line]
        assert len(ups) <= 1
        assert all("--no-recreate" in words and "--no-deps" in words and "setup" not in words for words in ups)
        return [word for words in ups for word in words if not word.startswith("--")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_unit_is_installed_once_and_can_be_removed(machine: Machine) -> None:
    unit = machine.units / "svitlo.service"
    for _ in range(2):
        machine.run("docker/install.sh")
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(unit.read_text())
        assert "@" not in unit.read_text()
        script = Path(parser["Service"]["ExecStart"])
        assert script == machine.project / "docker" / "boot.sh"
        assert os.access(script, os.X_OK)
        assert parser["Unit"]["RequiresMountsFor"].split() == [
            str(machine.project),
            str(machine.project / "volumes"),
        ], "it waits for the disk that holds the volumes"
        assert "docker.service" in parser["Unit"]["After"]
        assert parser["Install"]["WantedBy"] == "multi-user.target"
    said = machine.run("docker/install.sh", "--remove").stderr
    assert not unit.exists()
    assert "the images and the volumes stay" in said
    assert "systemctl disable svitlo.service" in machine.calls.read_text()
    assert "no boot unit is installed" in machine.run("docker/install.sh", "--remove").stderr


@pytest.mark.parametrize(
    ("network", "containers", "started"),
    [
        ("net", {"data_prep": "running 0", "trainer": "running 0"}, []),
        ("net", {"data_prep": "running 0"}, ["trainer"]),
        ("net", {}, ["data-prep", "trainer"]),
        ("net", {"data_prep": "created 0", "trainer": "exited 127 failed"}, ["data-prep", "trainer"]),
        ("net", {"data_prep": "running 0", "trainer": "exited 127 "}, ["trainer"]),
        ("net", {"data_prep": "dead 137", "trainer": "running 0"}, ["data-prep"]),
        ("net", {"data_prep": "exited 0 ", "trainer": "exited 143 "}, []),
        ("", {}, []),
    ],
    ids=[
        "all is well", "the trainer is lost", "both are lost", "created and failed", "failed to start", "dead",
        "stopped by a person", "taken down by a person",
    ],
)  # fmt: skip
def test_the_boot_script_starts_what_the_engine_lost_and_nothing_else(
    machine: Machine, network: str, containers: dict[str, str], started: list[str]
) -> None:
    machine.set_state(network, **containers)
    machine.run("docker/boot.sh")
    assert machine.started() == started


def test_the_boot_script_waits_for_the_engine(machine: Machine) -> None:
    machine.set_state("net", data_prep="running 0")
    docker = (machine.folder / "bin" / "docker").read_text()
    tries = machine.folder / "tries"
    machine.program(
        "docker", docker.replace("info) exit 0 ;;", f"info) echo >>{tries}; [ $(wc -l <{tries}) -gt 2 ]; exit ;;")
    )
    machine.run("docker/boot.sh")
    assert machine.started() == ["trainer"]
