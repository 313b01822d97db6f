"""`make install` and `make uninstall`: the unit that they install, and what its script decides.

Needs neither systemd nor an engine: small stand-ins answer for `docker` and `systemctl`.
tests/containers/test_power_cuts.py runs the same script with a real engine.
"""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
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
"network inspect gone"*) exit 1 ;;
"compose ps --all --quiet") cat {state}/data-prep {state}/trainer ;;
"compose ps --all --quiet "*) cat "{state}/$5" ;;
"inspect --format"*NetworkSettings*) cat "{state}/networks-$4" ;;
"inspect --format"*) cat "{state}/inspect-$4" ;;
esac
"""


class Machine:
    """A separate project folder, and programs that record how they were called."""

    def __init__(self, folder: Path, project: str = "project") -> None:
        self.folder = folder
        self.project = folder / project
        self.units = folder / "units"
        self.state = folder / "state"
        self.calls = folder / "calls"
        self.settings: dict[str, str] = {}
        for path in (self.project, self.units, self.state, folder / "bin"):
            path.mkdir(parents=True)
        shutil.copytree(ROOT / "docker", self.project / "docker")
        self.program("id", "echo 0")
        self.program("setpriv", f'echo "setpriv $*" >>{self.calls}; while [ "$1" != sh ]; do shift; done; exec "$@"')
        self.program("systemctl", f'echo "systemctl $*" >>{self.calls}')
        (self.project / "docker" / "install-engine.sh").write_text("#!/bin/sh\n")
        self.calls.touch()
        self.set_state("")

    def program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def set_state(self, network: str, *, lost: str = "", **containers: str) -> None:
        """What the engine knows: the state of each service's container. A service that is not named has none.

        `lost` is a service whose container was made in a network that is gone.
        """
        self.program("docker", DOCKER.format(calls=self.calls, state=self.state, engine=0))
        (self.state / "network").write_text(network)
        for service in SERVICES:
            state = containers.get(service.replace("-", "_"))
            (self.state / service).write_text("" if state is None else f"id-{service}\n")
            (self.state / f"inspect-id-{service}").write_text(f"{state}\n")
            (self.state / f"networks-id-{service}").write_text("gone \n" if service == lost else "net \n")

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
                **self.settings,
            },
        )

    def started(self) -> list[str]:
        """The services that boot.sh has started as they were."""
        return self._brought_up("--no-recreate")

    def made_anew(self) -> list[str]:
        """The services whose containers boot.sh has made anew."""
        return self._brought_up("--force-recreate")

    def _brought_up(self, option: str) -> list[str]:
        ups = [line.split(" up ")[1].split() for line in self.calls.read_text().splitlines() if " up " in line]
        assert all("--no-deps" in words and "--no-build" in words and "setup" not in words for words in ups)
        assert all(("--no-recreate" in words) != ("--force-recreate" in words) for words in ups)
        return [word for words in ups if option in words for word in words if not word.startswith("--")]

    def make_logs(self, events: str = "") -> Path:
        """The volume of the logs, set up. Returns the file of events."""
        logs = self.project / "volumes" / "logs"
        logs.mkdir(parents=True)
        (logs / ".svitlo-volume").touch()
        (logs / "events.jsonl").write_text(events)
        return logs / "events.jsonl"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("project", ["project", "My Project (1) 5% & it's"])
def test_the_unit_is_installed_once_and_can_be_removed(tmp_path: Path, project: str) -> None:
    machine = Machine(tmp_path, project)
    machine.settings["HOME"] = "/home/some one"
    unit = machine.units / "svitlo.service"
    for _ in range(2):
        machine.run("docker/install.sh")
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(unit.read_text())
        assert "@" not in unit.read_text()
        shell, script = words(parser["Service"]["ExecStart"])
        assert shell == "/bin/bash", "systemd takes no quote in the name of a program"
        assert Path(script) == machine.project / "docker" / "boot.sh"
        assert os.access(script, os.X_OK)
        assert words(parser["Unit"]["RequiresMountsFor"]) == [
            str(machine.project),
            str(machine.project / "volumes"),
        ], "it waits for the disk that holds the volumes"
        assert words(parser["Service"]["Environment"]) == ["HOME=/home/some one", "SVITLO_ENGINE_ROOT=/var/lib/docker"]
        assert "docker.service" in parser["Unit"]["After"]
        assert parser["Install"]["WantedBy"] == "multi-user.target"
    if shutil.which("systemd-analyze"):
        subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], check=True)
    said = machine.run("docker/install.sh", "--remove").stderr
    assert not unit.exists()
    assert "the images and the volumes stay" in said
    assert "systemctl disable svitlo.service" in machine.calls.read_text()
    assert "no boot unit is installed" in machine.run("docker/install.sh", "--remove").stderr


def words(value: str) -> list[str]:
    """What systemd reads: words in quotes, where %% stands for %."""
    return [word.replace("%%", "%") for word in shlex.split(value)]


def test_a_path_that_no_unit_can_express_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 'a "project"')
    installer = machine.project / "docker" / "install-engine.sh"
    installer.write_text(f"#!/bin/sh\necho installed >>{machine.calls}\n")
    done = machine.run("docker/install.sh", check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert machine.calls.read_text() == ""
    assert list(machine.units.iterdir()) == []


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


def test_a_container_whose_network_is_gone_is_made_anew_and_nothing_else(machine: Machine) -> None:
    machine.set_state("", lost="data-prep", data_prep="exited 255 failed", trainer="exited 127 failed")
    events = machine.make_logs('{"event": "torn')
    machine.run("docker/boot.sh")
    assert machine.made_anew() == ["data-prep"]
    assert machine.started() == ["trainer"]
    torn, line = events.read_text().splitlines()
    assert torn == '{"event": "torn'
    event = json.loads(line)
    assert set(event) == {"time", "event", "message"}
    assert event["event"] == "engine repaired"
    assert "data-prep" in event["message"]
    assert abs(datetime.fromisoformat(event["time"]) - datetime.now(UTC)).total_seconds() < 60
    assert "setpriv --reuid 1000 --regid 1000" in machine.calls.read_text(), "root writes nothing into a user's folder"


def test_one_that_a_person_has_stopped_stays_stopped_without_its_network(machine: Machine) -> None:
    machine.set_state("", lost="data-prep", data_prep="exited 0 ", trainer="running 0 ")
    machine.run("docker/boot.sh")
    assert machine.made_anew() == machine.started() == []


def test_a_repair_that_fails_is_tried_again_by_the_unit(machine: Machine) -> None:
    machine.set_state("net", lost="data-prep", data_prep="exited 255 failed")
    docker = (machine.folder / "bin" / "docker").read_text()
    machine.program("docker", docker.replace("esac", '*" up "*" data-prep") exit 1 ;;\nesac'))
    assert machine.run("docker/boot.sh", check=False).returncode != 0
    assert machine.started() == ["trainer"], "the other service does not wait for it"
    assert "Restart=on-failure" in (machine.project / "docker" / "svitlo.service").read_text()


# What Docker 26.1.5 said at each kind of damage, shortened.
DAMAGED = {
    "empty pages": "panic: invalid freelist page: 0, page type is unknown<00>\n\ngoroutine 1 [running]:\n"
    "go.etcd.io/bbolt.(*freelist).read(0x0?, 0x7f37e940e000)\n"
    "github.com/docker/docker/libnetwork/internal/kvstore/boltdb.New({0xc0008bed40, 0x40}, 0xc000011d58)\n",
    "random bytes": "failed to start daemon: Error initializing network controller: error obtaining controller "
    "instance: invalid database\n",
}
NOT_DAMAGED = {
    "another engine has the file": "failed to start daemon: Error initializing network controller: error obtaining "
    "controller instance: timeout\n",
    "no iptables": "failed to start daemon: Error initializing network controller: error obtaining controller "
    'instance: failed to register "bridge" driver: failed to create NAT chain DOCKER: iptables failed\n',
    "a wrong setting": "unable to configure the Docker daemon with file /etc/docker/daemon.json: invalid character\n",
    "another database": "panic: invalid page type: 0: 0\ngo.etcd.io/bbolt.(*Cursor).search\n"
    "github.com/docker/docker/volume/service.NewVolumeStore\n",
    "an older start": DAMAGED["random bytes"] + 'level=info msg="Starting up"\nfailed to start daemon: no space left\n',
}


@pytest.fixture
def database(machine: Machine) -> Path:
    """The engine's network database. `docker info` answers once it is put aside, or at the third time."""
    path = machine.folder / "engine" / "network" / "files" / "local-kv.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    machine.set_state("net", data_prep="running 0 ", trainer="running 0 ")
    docker = (machine.folder / "bin" / "docker").read_text()
    tries = machine.folder / "tries"
    answers = f"info) echo >>{tries}; [ ! -e {path} ] || [ $(wc -l <{tries}) -gt 2 ]; exit ;;"
    machine.program("docker", docker.replace("info) exit 0 ;;", answers))
    machine.program("journalctl", f'echo "journalctl $*" >>{machine.calls}; cat {machine.state}/journal')
    machine.settings["SVITLO_ENGINE_ROOT"] = str(machine.folder / "engine")
    return path


@pytest.mark.parametrize("log", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_network_database_that_ends_the_engine_is_put_aside(machine: Machine, database: Path, log: str) -> None:
    (machine.state / "journal").write_text(f'level=info msg="Starting up"\n{log}')
    events = machine.make_logs()
    said = machine.run("docker/boot.sh").stderr
    (aside,) = database.parent.iterdir()
    assert aside.name.startswith("local-kv.db.damaged-")
    assert aside.read_bytes() == b"damaged", "nothing is deleted"
    (event,) = [json.loads(line) for line in events.read_text().splitlines()]
    assert str(aside) in event["message"]
    assert event["message"] in said
    assert "systemctl start --no-block docker.service" in machine.calls.read_text()


@pytest.mark.parametrize("log", NOT_DAMAGED.values(), ids=NOT_DAMAGED.keys())
def test_it_stays_where_something_else_ends_the_engine(machine: Machine, database: Path, log: str) -> None:
    (machine.state / "journal").write_text(f'level=info msg="Starting up"\n{log}')
    machine.run("docker/boot.sh")
    assert [path.name for path in database.parent.iterdir()] == ["local-kv.db"]
    assert "systemctl" not in machine.calls.read_text()


def test_no_event_is_written_where_the_disk_is_not_mounted(machine: Machine, database: Path) -> None:
    (machine.state / "journal").write_text(DAMAGED["random bytes"])
    events = machine.make_logs()
    (events.parent / ".svitlo-volume").unlink()
    machine.run("docker/boot.sh")
    assert not database.exists()
    assert events.read_text() == ""
