"""A checkout of its own for tests of the scripts in docker/, and small stand-ins for the programs that they call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT

PROGRAMS = (
    "bash",
    "env",
    "sh",
    "id",
    "sed",
    "grep",
    "tail",
    "dirname",
    "mkdir",
    "cp",
    "cat",
    "seq",
    "head",
    "sort",
    "make",
)
PROGRAMS += ("awk", "tr", "wc", "timeout", "mktemp", "rm", "find", "realpath", "cut", "nproc", "chown")


class Checkout:
    """A copy of what `make` uses, and a shell without settings of the developer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        for path in (self.folder, self.home, self.bin):
            path.mkdir()
        self.calls.touch()
        for name in ("docker", "config"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("compose.yaml", "Makefile", ".env.example"):
            shutil.copy(ROOT / name, self.folder)
        self.environment = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.home)}

    def program(self, name: str, script: str) -> None:
        """A stand-in that comes before the real program."""
        path = self.bin / name
        path.unlink(missing_ok=True)  # it may be a link to the real one
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def without_docker(self) -> None:
        """Only the programs that every machine has."""
        for name in PROGRAMS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.environment["PATH"] = str(self.bin)

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def setting(self, name: str, default: str = "", *, kind: str = "setting") -> str:
        return self.run("bash", "-euc", f'. docker/lib.sh; {kind} "$@"', "test", name, default).stdout.rstrip("\n")

    def compose(self) -> dict[str, str]:
        """The folder and the owner of the volumes as the stack gets them."""
        setup = json.loads(self.run("docker", "compose", "config", "--format", "json").stdout)["services"]["setup"]
        return {"volumes": setup["volumes"][0]["source"].replace("$$", "$"), "owner": setup["command"][-1]}


DOCKER = r"""
echo "$COMPOSE_FILE|$COMPOSE_PROJECT_NAME|$COMPOSE_PROFILES|$*" >>{calls}
case "$*" in
"compose config"*)
    printf '{{\n  "x-settings": {{\n'
    printf '"%s": "%s",\n' PUID "$PUID" PGID "$PGID" HUB_TOKEN_FILE "$HUB_TOKEN_FILE" SVITLO_CONFIG "$SVITLO_CONFIG" \
        TRAINER_CPUS "$TRAINER_CPUS"
    printf '}}}}\n' ;;
"compose ps --all --quiet data-prep") echo id-data-prep ;;
"inspect --format"*NetworkSettings*) echo {network} ;;
"network inspect gone") exit 1 ;;
esac
"""


def stand_in(checkout: Checkout, network: str = "net") -> None:
    """An engine that answers and agrees to everything."""
    checkout.program("docker", DOCKER.format(calls=checkout.calls, network=network))
    checkout.program("id", "echo 0")
    checkout.program("chown", "")


def calls(checkout: Checkout) -> list[str]:
    return checkout.calls.read_text().splitlines()
