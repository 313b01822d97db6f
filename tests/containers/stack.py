"""The real stack (compose.yaml, the real images) on a small job, and ways to see what it does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from svitlo.reporting.events import read_events
from svitlo.reporting.status import Status, read_status
from tests.conftest import DATA, PHASE_1, PHASE_2, RAW, ROOT
from tests.support import assert_same_run

Found = TypeVar("Found")
PHASE_FILES = ("phase1_pretraining.yaml", "phase2_instruction_tuning.yaml")
PATIENCE_SECONDS = 240.0
"""A machine that is busy with other things is slow, and right all the same."""
# Enough work that interruptions happen in the middle of it, even on a fast machine.
NUM_DOCUMENTS = 6_000
SHARD_TOKENS = 16_384
ACCUMULATION = 4


class Stack:
    """A compose project with its own name, volumes and configuration, on one engine."""

    def __init__(self, folder: Path, docker_host: str | None = None) -> None:
        self.volumes = folder / "volumes"
        self.config = folder / "config"
        self.project = f"svitlo-test-{secrets.token_hex(4)}"
        owner = (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)
        # All of them, so that a .env in the project's folder has no say.
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SVITLO_", "COMPOSE_"))},
            # The first for the project's own commands, the second for Compose itself.
            "SVITLO_PROJECT": self.project,
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": str(ROOT / "compose.yaml"),
            "SVITLO_VOLUMES": str(self.volumes),
            "SVITLO_CONFIG": str(self.config),
            "SVITLO_VERSION": "local",
            "HUB_TOKEN_FILE": "",
            "PUID": str(owner[0]),
            "PGID": str(owner[1]),
            "TRAINER_CPUS": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
            "TRAINER_MEMORY": "4g",
            "TRAINER_PIDS": "256",
            "DATA_PREP_MEMORY": "2g",
            "DATA_PREP_PIDS": "256",
        }
        if docker_host is not None:
            self.environment["DOCKER_HOST"] = docker_host

    # --- its life ---

    def write_job(self) -> None:
        """A configuration and raw text; the volumes are otherwise empty."""
        self.config.mkdir(parents=True)
        for name, content in zip(("data.yaml", *PHASE_FILES), (DATA, PHASE_1, PHASE_2), strict=True):
            (self.config / name).write_text(yaml.safe_dump(content))
        self.change("data.yaml", "phase1", shard_tokens=SHARD_TOKENS)
        for file in PHASE_FILES:
            self.change(file, "training", gradient_accumulation=ACCUMULATION)
            self.change(file, "reporting", line_every_seconds=0.1)
        raw = self.volumes / "raw"
        raw.mkdir(parents=True)
        for path in RAW.iterdir():
            shutil.copy(path, raw)
        (raw / "encyclopedia.txt").write_text(_mixed_documents((RAW / "encyclopedia.txt").read_text()))

    def change(self, file: str, section: str, **values: object) -> None:
        """Change keys of one section of a configuration file; None removes one."""
        path = self.config / file
        content = yaml.safe_load(path.read_text())
        merged = {**content.get(section, {}), **values}
        content[section] = {key: value for key, value in merged.items() if value is not None}
        path.write_text(yaml.safe_dump(content))

    def up(self) -> None:
        """What a user types."""
        self.compose("up", "--detach", "--no-build")

    def remove(self) -> None:
        """Take down this project, and nothing else."""
        self.compose("down", "--volumes", "--timeout", "0", "--remove-orphans", check=False)
        shutil.rmtree(self.volumes)

    # --- commands ---

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker compose ARGUMENTS`. Returns standard output, then standard error."""
        return self.command("docker", "compose", "--progress", "quiet", *arguments, check=check)

    def command(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Any command in the project's folder and this stack's environment."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={**self.environment, **environment},
            cwd=ROOT,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    def inside(self, service: str, script: str) -> str:
        """The output of a shell script inside a running container, run as its user."""
        return self.compose("exec", "-T", service, "sh", "-c", script).stdout.strip()

    # --- what is seen ---

    def logs(self, *services: str) -> str:
        return self.compose("logs", "--no-color", *services).stdout

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says about a service's container."""
        done = self.command("docker", "inspect", f"{self.project}-{service}-1")
        inspected: dict[str, Any] = json.loads(done.stdout)[0]
        return inspected

    def restarts(self, service: str) -> int:
        return int(self.inspect(service)["RestartCount"])

    def pid(self, service: str) -> int:
        """The host's number of the program in a container: the child of init."""

        def program() -> list[int]:
            init = int(self.inspect(service)["State"]["Pid"])
            return _children(init) if init else []

        return self.wait_for(f"{service}'s program", program)[0]

    def processes(self, service: str) -> list[str]:
        """The command lines of all processes in a container."""
        rows = self.command("docker", "top", f"{self.project}-{service}-1", "-eo", "pid,args").stdout.splitlines()[1:]
        return [row.split(maxsplit=1)[1] for row in rows]

    @property
    def status(self) -> Status | None:
        return read_status(self.volumes / "logs" / "status.json")

    def events(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        """The trainer's events of one kind whose fields have these values, oldest first."""
        found = read_events(self.volumes / "logs" / "events.jsonl")
        return [e for e in found if e["event"] == kind and all(e.get(key) == value for key, value in fields.items())]

    # --- waiting ---

    def wait_for(self, what: str, condition: Callable[[], Found], every: float = 0.01) -> Found:
        """Wait until `condition` gives something true, and return that."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not seen in {PATIENCE_SECONDS:.0f} s: {what}\n{self.logs()[-4000:]}")
            time.sleep(every)
        return found

    def wait_for_shard(self, number: int) -> None:
        """Data preparation has written this shard of phase 1, and is at work on the next."""
        path = self.volumes / "data" / "phase1" / f"train-{number:05d}.npy"
        self.wait_for(path.name, path.exists)

    def wait_for_step(self, phase: int, step: int) -> None:
        """The trainer is between this step and the end of a phase."""
        self.wait_for(f"phase {phase}, step {step}", lambda: self._has_reached(phase, step))

    def _has_reached(self, phase: int, step: int) -> bool:
        status = self.status
        return status is not None and status.phase == phase and status.step is not None and status.step >= step

    def wait_for_export(self) -> None:
        """The trainer is writing the model."""
        self.wait_for("the export", (self.volumes / "export" / ".model.partial").exists)

    def wait_for_health(self, service: str, health: str) -> None:
        """The engine's own health check has come to this verdict."""
        self.wait_for(
            f"{service} is {health}", lambda: self.inspect(service)["State"]["Health"]["Status"] == health, every=0.5
        )

    def wait_until_complete(self) -> None:
        """Both services have nothing left to do."""
        self.wait_for("status complete", lambda: self.status is not None and self.status.state == "complete", every=0.1)
        for service in ("data-prep", "trainer"):
            self.wait_until_idle(service)

    def wait_until_idle(self, service: str) -> None:
        """The container is nothing but init and sleep."""
        self.wait_for(f"{service} idles", lambda: is_idle(self.processes(service)), every=0.2)


def is_idle(processes: list[str]) -> bool:
    """Whether these are only init and `sleep infinity`, plus perhaps a health check.

    In any order: the engine sorts them by process number, and the kernel starts again from low numbers after the last.
    """
    lasting = [command for command in processes if "/tmp/health" not in command]
    others = [command for command in lasting if command != "sleep infinity"]
    return len(lasting) == 2 and len(others) == 1 and "init" in others[0].split()[0]


def shards(stack: Stack) -> dict[str, bytes]:
    """Every file of the prepared data except the notes that preparing it needed."""
    folder = stack.volumes / "data"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("phase?/*.npy", "phase?/manifest.json")
        for path in sorted(folder.glob(pattern))
    }


def assert_same_result(stack: Stack, finished: Stack) -> None:
    """Shards, checkpoints, metrics and model are those of the undisturbed run."""
    assert shards(stack) == shards(finished)
    assert_same_run(stack, finished)


@contextlib.contextmanager
def unmounted(volume: Path) -> Iterator[Path]:
    """A volume while its disk is not mounted: an empty folder."""
    disk = volume.with_name("disk")
    volume.rename(disk)
    volume.mkdir()
    os.chown(volume, disk.stat().st_uid, disk.stat().st_gid)
    yield volume
    volume.rmdir()
    disk.rename(volume)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _mixed_documents(text: str) -> str:
    """Many documents from few: paragraphs of different articles under one title, always the same ones."""
    articles = [article.split("\n") for article in re.split(r"\n\n+", text.strip())]
    documents = []
    for number in range(NUM_DOCUMENTS):
        title = articles[number % len(articles)][0]
        picked = [articles[(number * step + step) % len(articles)] for step in (1, 7, 11, 1 + number // 50)]
        paragraphs = [article[1 + number % (len(article) - 1)] for article in picked]
        documents.append("\n".join([f"{title} {number}", *paragraphs]))
    return "\n\n".join(documents) + "\n"
