"""The scripts in docker/ on a machine as people have it: their .env, their shell, their engine.

Needs no engine. What Compose makes of a .env is asked of Compose itself where it is installed. Otherwise, small
stand-ins answer for `docker`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from svitlo.config import load_phase_config
from svitlo.phases import PHASES
from tests.conftest import ROOT
from tests.unit.checkout import Checkout, calls, stand_in


def has_compose() -> bool:
    try:
        return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_compose = pytest.mark.skipif(not has_compose(), reason="needs Docker Compose (no engine)")


ENV_FILES = {
    "plain": "SVITLO_VOLUMES=/mnt/data\nPUID=1234\n",
    "no line feed at the end": "PUID=1234\nSVITLO_VOLUMES=/mnt/data",
    "quotes": "SVITLO_VOLUMES=\"/mnt/my disk\"\nPUID='1234'\n",
    "comments": "SVITLO_VOLUMES=/mnt/data # the big one\nPUID=1234 # me\n",
    "carriage returns": "SVITLO_VOLUMES=/mnt/data\r\nPUID=1234\r\n",
    "export": "export SVITLO_VOLUMES=/mnt/data\nexport PUID=1234\n",
    "variables": "BASE=/mnt\nSVITLO_VOLUMES=${HOME}/x${BASE}\nPUID=1234\n",
    "a home folder": "SVITLO_VOLUMES=~/data\nPUID=1234\n",
    "spaces around": "SVITLO_VOLUMES = /mnt/data\nPUID = 1234\n",
    "twice": "SVITLO_VOLUMES=/old\nSVITLO_VOLUMES=/mnt/data\nPUID=1\nPUID=1234\n",
    "odd names": "SVITLO_VOLUMES='/mnt/é & \"<b>\" $x|\\y'\nPUID=1234\n",
    "relative": "SVITLO_VOLUMES=./elsewhere\nPUID=1234\n",
}


@needs_compose
@pytest.mark.parametrize("text", ENV_FILES.values(), ids=ENV_FILES.keys())
def test_the_scripts_read_the_env_file_as_compose_does(checkout: Checkout, text: str) -> None:
    (checkout.folder / ".env").write_bytes(text.encode())
    seen = checkout.compose()
    assert (
        os.path.normpath(checkout.folder / checkout.setting("SVITLO_VOLUMES", "no", kind="path_setting"))
        == seen["volumes"]
    )
    assert seen["owner"] == f"{checkout.setting('PUID', '1000')}:{checkout.setting('PGID', '1000')}" == "1234:1000"


@needs_compose
@pytest.mark.parametrize("name", ["no line feed at the end", "quotes", "carriage returns", "export", "a home folder"])
def test_make_env_keeps_what_is_set_and_spoils_no_line(checkout: Checkout, name: str) -> None:
    text = ENV_FILES[name].replace("/mnt", f"{checkout.home}/mnt").replace("/old", f"{checkout.home}/old")
    (checkout.folder / ".env").write_bytes(text.encode())
    before = checkout.compose()
    said = checkout.run("make", "env").stderr
    assert checkout.compose()["volumes"] == before["volumes"]
    assert Path(before["volumes"], "raw").is_dir(), "the folder that the stack mounts"
    assert checkout.setting("PUID") == "1234"
    assert "TRAINER_CPUS=" in said
    assert "PUID=" not in said
    assert text.rstrip("\n").encode() in (checkout.folder / ".env").read_bytes()
    assert checkout.setting("TRAINER_CPUS")
    assert "wrote" not in checkout.run("make", "env").stderr, "the second time there is nothing to do"


@needs_compose
def test_an_env_file_that_compose_cannot_read_is_named_once(checkout: Checkout) -> None:
    (checkout.folder / ".env").write_text('PUID=1000\nSVITLO_VOLUMES="/mnt\n')
    done = checkout.run("docker/env.sh", check=False)
    assert done.returncode == 2
    assert ".env: line 2" in done.stderr or ".env: line 3" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_compose_plain_values_are_read_and_others_are_not_guessed(checkout: Checkout) -> None:
    checkout.without_docker()
    assert checkout.setting("PUID", "1000") == "1000"
    (checkout.folder / ".env").write_bytes(b"export PUID=1234\r\nSVITLO_VOLUMES=volumes-1\r\nTRAINER_CPUS=0-1")
    assert checkout.setting("PUID", "1000") == "1234"
    checkout.run("make", "env")
    assert (checkout.folder / "volumes-1" / "raw").is_dir()
    assert b"TRAINER_CPUS=0-1\n" in (checkout.folder / ".env").read_bytes()

    for value in ('"/mnt/my disk"', "/mnt/data # mine", "${HOME}/x"):
        (checkout.folder / ".env").write_text(f"SVITLO_VOLUMES={value}\n")
        done = checkout.run("bash", "-euc", ". docker/lib.sh; x=$(setting SVITLO_VOLUMES no); echo $x", check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "SVITLO_VOLUMES" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "up",
        "down",
        "logs",
        "status",
        "doctor",
        "verify",
        "export",
        "new-run YES=1",
        "backup DEST=out",
        "restore FROM=.",
    ],
)
def test_what_the_shell_has_set_for_another_project_changes_nothing(checkout: Checkout, target: str) -> None:
    stand_in(checkout)
    other = {"COMPOSE_FILE": "/other/compose.yaml", "COMPOSE_PROJECT_NAME": "other", "COMPOSE_PROFILES": "tools"}
    checkout.run("make", *target.split(), check=target != "doctor", **other)
    composed = [line.split("|") for line in calls(checkout) if "|compose " in line]
    assert composed
    assert all(line[:3] == ["", "", ""] for line in composed)

    checkout.calls.write_text("")
    checkout.run("make", *target.split(), check=target != "doctor", SVITLO_PROJECT="second", **other)
    composed = [line.split("|") for line in calls(checkout) if "|compose " in line]
    assert all(line[:3] == ["", "second", ""] for line in composed), "a second stack of this project"


def test_the_demo_has_its_own_project(checkout: Checkout) -> None:
    stand_in(checkout)
    (checkout.folder / "volumes-demo").mkdir()
    checkout.run("make", "clean-demo", COMPOSE_PROJECT_NAME="other")
    assert calls(checkout)[-1] == "|svitlo-demo||compose --progress quiet down"
    assert not (checkout.folder / "volumes-demo").exists()

    checkout.calls.write_text("")
    checkout.program("sleep", "mkdir -p volumes-demo/checkpoints; touch volumes-demo/checkpoints/complete.json")
    checkout.run("make", "demo", check=False, COMPOSE_PROJECT_NAME="other")
    acted = [line for line in calls(checkout) if "|compose " in line and "config" not in line]
    assert len(acted) > 3
    assert all(line.startswith("|svitlo-demo|") for line in acted)


@pytest.mark.parametrize(("cpus", "threads"), [("0-5", 6), ("0,2,4", 3), ("1", 1)])
def test_the_demo_shows_the_speed_of_this_machine(checkout: Checkout, cpus: str, threads: int) -> None:
    """With a fixed number of threads it showed that of a machine with so many cores."""
    stand_in(checkout)
    checkout.program("sleep", "mkdir -p volumes-demo/checkpoints; touch volumes-demo/checkpoints/complete.json")
    checkout.run("make", "demo", check=False, TRAINER_CPUS=cpus)
    for phase in PHASES:
        folder = checkout.folder / "volumes-demo/config"
        assert load_phase_config(folder, phase).numerics.threads == threads
        assert load_phase_config(checkout.folder / "config/demo", phase).numerics.threads == 2, "the original stays"


@pytest.mark.parametrize("network", ["net", "gone"])
def test_make_up_makes_a_container_anew_whose_network_is_gone(checkout: Checkout, network: str) -> None:
    stand_in(checkout, network)
    checkout.run("make", "up")
    removed = [line for line in calls(checkout) if " rm " in line]
    assert [line.split()[-1] for line in removed] == (["data-prep"] if network == "gone" else [])
    assert " up --detach --no-build" in calls(checkout)[-1]


COMMANDS = (
    "down",
    "logs",
    "status",
    "build",
    "verify",
    "export",
    "new-run YES=1",
    "backup DEST=out",
    "restore FROM=.",
    "sbom",
)
NO_ENGINE = """
case "$*" in
compose*) exit 1 ;;
*) echo "Cannot connect to the Docker daemon at unix:///run/docker.sock." >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize("target", COMMANDS)
@pytest.mark.parametrize("docker", ["silent", "missing"])
def test_without_an_engine_a_command_says_so_once_and_installs_nothing(
    checkout: Checkout, target: str, docker: str
) -> None:
    checkout.without_docker()
    for program in ("apt-get", "systemctl", "dockerd", "setsid", "dpkg-query"):
        checkout.program(program, f'echo "{program} $*" >>{checkout.calls}')
    if docker == "silent":
        checkout.program("docker", NO_ENGINE)
    done = checkout.run("make", *target.split(), check=False)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1, said
    assert "not on the PATH" in said[0] or "journalctl -u docker" in said[0]
    assert ("Cannot connect" in said[0]) == (docker == "silent")
    assert calls(checkout) == []
    assert not (checkout.folder / "out").exists()


@pytest.mark.parametrize("target", ["up", "demo", "install"])
def test_no_second_engine_is_installed_beside_one_that_does_not_answer(checkout: Checkout, target: str) -> None:
    checkout.without_docker()
    for program in ("apt-get", "systemctl", "setsid", "dpkg-query"):
        checkout.program(program, f'echo "{program} $*" >>{checkout.calls}')
    checkout.program("docker", NO_ENGINE)
    checkout.program("id", "echo 0")
    done = checkout.run("make", target, check=False, DOCKER_HOST="tcp://elsewhere:2375")
    assert "does not answer" in done.stderr
    checkout.program("dockerd", "")
    checkout.program("id", "echo 1000")
    done = checkout.run("make", target, check=False)
    assert "does not answer" in done.stderr
    assert calls(checkout) == []


@pytest.mark.parametrize("target", ["up", "demo", "doctor"])
def test_a_mount_that_the_containers_cannot_read_is_named(checkout: Checkout, target: str) -> None:
    stand_in(checkout)
    owner = {"PUID": str(os.getuid() + 1), "PGID": str(os.getgid() + 1)}
    config = checkout.folder / "config" / ("demo" if target == "demo" else "")
    (config / "data.yaml").chmod(0o600)
    (checkout.folder / "token").touch(mode=0o400)
    done = checkout.run("make", target, check=False, HUB_TOKEN_FILE="./token", **owner)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "cannot read" in line]
    assert len(said) == 1
    assert "data.yaml" in said[0]
    assert "./token" in said[0]
    assert "phase1" not in said[0]
    assert not [line for line in calls(checkout) if "build" in line or " up " in line], "nothing was started"


def test_modes_count_for_the_owner_of_the_volumes(checkout: Checkout) -> None:
    stand_in(checkout)
    me = {"PUID": str(os.getuid()), "PGID": str(os.getgid())}
    others = {"PUID": str(os.getuid() + 1), "PGID": str(os.getgid() + 1)}
    group = {"PUID": str(os.getuid() + 1), "PGID": str(os.getgid())}
    config = checkout.folder / "config"
    for mode, unreadable in ((0o700, (others, group)), (0o750, (others,)), (0o754, (others,)), (0o755, ())):
        config.chmod(mode)
        for owner in (me, others, group):
            said = checkout.run("bash", "-euc", ". docker/lib.sh; mounts_problem", **owner).stdout
            assert bool(said) == (owner in unreadable), (mode, owner)


def test_git_writes_line_feeds_whatever_it_is_set_to(checkout: Checkout) -> None:
    shutil.copy(ROOT / ".gitattributes", checkout.folder)
    git = ("git", "-c", "core.autocrlf=true", "-c", "user.name=x", "-c", "user.email=x@y")
    for command in (("init", "-q"), ("add", "--all"), ("commit", "-qm", "all")):
        checkout.run(*git, *command)
    tracked = checkout.run(*git, "ls-files").stdout.split()
    for name in tracked:
        (checkout.folder / name).unlink()
    checkout.run(*git, "reset", "-q", "--hard")
    assert "Makefile" in tracked
    assert not [name for name in tracked if b"\r" in (checkout.folder / name).read_bytes()]

    for name in tracked:
        path = checkout.folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    done = checkout.run("make", "doctor", check=False)
    (said,) = done.stderr.splitlines()
    remedy = said.split("lost): ")[1].removesuffix(".  Stop.")
    checkout.run("sh", "-c", remedy)
    assert not [name for name in tracked if b"\r" in (checkout.folder / name).read_bytes()]


PODMAN = {
    "podman-docker": ('echo "podman version 4.3.1"', "echo 4.3.1"),
    "its socket": (
        'echo "Docker version 28.2.2"',
        'case "$*" in *Components*) echo "Podman Engine Conmon " ;; *) echo 4.3.1 ;; esac',
    ),
}


@pytest.mark.parametrize("kind", PODMAN)
def test_podman_is_called_by_its_name(checkout: Checkout, kind: str) -> None:
    stand_in(checkout)
    docker = (checkout.bin / "docker").read_text()
    client, server = PODMAN[kind]
    versions = f'case "$*" in\n--version) {client} ;;\n"version "*) {server} ;;\n'
    checkout.program("docker", docker.removeprefix("#!/bin/sh\n").replace('case "$*" in\n', versions, 1))
    report = checkout.run("make", "doctor", check=False).stdout
    (line,) = [line for line in report.splitlines() if " engine " in line]
    assert line.startswith("FAIL")
    assert "4.3.1; this is Podman" in line
    said = checkout.run("make", "up").stderr
    assert said.count("this is Podman") == 1
    done = checkout.run("docker/install.sh", check=False, SVITLO_UNIT_FOLDER=str(checkout.home))
    assert done.stderr.count("this is Podman") == 1
    assert not (checkout.home / "svitlo.service").exists()


def test_docker_is_called_docker(checkout: Checkout) -> None:
    stand_in(checkout)
    assert "Podman" not in checkout.run("make", "doctor", check=False).stdout
    assert "Podman" not in checkout.run("make", "up").stderr


def test_threads_and_cpus_that_do_not_match_are_told_before_a_run_begins(checkout: Checkout) -> None:
    stand_in(checkout)
    config = checkout.folder / "config" / "phase1_pretraining.yaml"

    def told(cpus: str, target: str) -> str:
        done = checkout.run("make", target, check=target != "doctor", TRAINER_CPUS=cpus)
        lines = (done.stderr + done.stdout).splitlines()
        return "".join(line for line in lines if "numerics.threads" in line or " threads " in line)

    fits = "0-5"
    assert "numerics.threads" not in told(fits, "up")
    assert told(fits, "doctor").startswith("ok")
    for target in ("up", "doctor"):
        few = told("0,1", target)
        assert f"numerics.threads is 6 in ./config/{config.name}, and the trainer may use 2 CPUs" in few
        assert "(1.2 times with two threads a CPU). Set it to 2 there before the run begins" in few
        assert "2 of these CPUs stay idle. Set it to 8 there" in told("0-7", target)
    assert told("0,1", "doctor").startswith("warn")

    config.write_text("model: {layers: 2}\nnumerics: {threads: 2}  # threads: 6\n")
    assert told("0,1", "doctor").startswith("ok")

    checkpoints = checkout.folder / "volumes" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "run.json").touch()
    assert "numerics.threads" not in told("0-3", "up"), "too late"
    assert "for the next run (make new-run); the run that has begun keeps its number" in told("0-3", "doctor")
