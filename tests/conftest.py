"""What the tests share: the real command, and a small real job (2 layers × 64, the demo's text) to run it on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

# Unit tests promise nothing about time: on a shared machine the same call has taken 1 ms and 400 ms.
# The suite looks at the same examples each time. To look elsewhere and longer: --hypothesis-profile hunt --timeout 0
settings.register_profile("svitlo", deadline=None, derandomize=True)
settings.register_profile("hunt", deadline=None, max_examples=10_000, suppress_health_check=list(HealthCheck))
settings.load_profile("svitlo")

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "config" / "demo" / "raw"
SHARED_DATA = ROOT.parent / "shared" / "data"

PHASE_1 = {
    "model": {"layers": 2, "width": 64, "heads": 2, "positions": 64},
    "training": {
        "max_epochs": 2,
        "max_steps": 24,
        "micro_batch": 2,
        "gradient_accumulation": 2,
        "learning_rate": 6e-3,
        "dropout": 0.1,
    },
    # Uses both ways of computing the head. The switch falls in the middle of what is killed and resumed.
    "head": {"sampled_fraction": 0.5},
    "evaluation": {"every_n_steps": 8, "max_sequences": 16},
    "checkpoints": {"save_every_seconds": 1, "save_every_n_steps": 5},
    "reporting": {"line_every_seconds": 0.05, "sample_prompts": ["The sun is"], "sample_tokens": 4},
    "numerics": {"threads": 2},
}
PHASE_2 = {key: value for key, value in PHASE_1.items() if key not in ("model", "numerics")}
PHASE_2["head"] = {"sampled_fraction": 0.25}
DATA = {
    "phase1": {
        "validation_fraction": 0.1,
        "shard_tokens": 4096,
        "sources": [{"name": "encyclopedia", "files": ["encyclopedia.txt"], "format": "text"}],
    },
    "phase2": {
        "sequence_length": 64,
        "validation_fraction": 0.1,
        "shard_conversations": 64,
        "sources": [
            {"name": "instructions", "files": ["instructions.json"], "format": "alpaca"},
            {"name": "dialogues", "files": ["dialogues.txt"], "format": "dailydialog"},
        ],
    },
}


@dataclass(frozen=True)
class Job:
    """A configuration folder, a volumes folder, and the command that works on them."""

    config: Path
    volumes: Path

    def command(self, *arguments: str) -> list[str]:
        """`svitlo ARGUMENTS` with this job's folders."""
        config = ["--config", str(self.config)] if arguments[0] in ("prepare", "train", "backup") else []
        return [sys.executable, "-m", "svitlo", arguments[0], *config, "--volumes", str(self.volumes), *arguments[1:]]

    def environment(self) -> dict[str, str]:
        """What the command sees of the environment."""
        return environment()

    def run(self, *arguments: str, check: int | None = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run to the end. `check` is the expected exit code, None for any."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
            check=False,
        )
        if check is not None:
            assert done.returncode == check, (
                f"exit code {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start in the background. `stdout` carries both outputs."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
            start_new_session=True,
        )
        _started.append(process)
        return process

    def change(self, file: str, section: str, **values: object) -> None:
        """Change keys of one section of a configuration file."""
        path = self.config / file
        content = yaml.safe_load(path.read_text())
        content.setdefault(section, {}).update(values)
        path.write_text(yaml.safe_dump(content))

    def copy(self, folder: Path) -> Job:
        """A copy of the job in another folder, with everything that it has done."""
        shutil.copytree(self.config, folder / "config")
        shutil.copytree(self.volumes, folder / "volumes")
        return Job(folder / "config", folder / "volumes")


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _leave_no_process() -> Iterator[None]:
    """A test that fails must not leave its trainer behind."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill(process)


def environment() -> dict[str, str]:
    """This environment, without settings that a developer may have made for the program."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SVITLO_")}


def new_job(folder: Path) -> Job:
    """A job whose data is not prepared yet."""
    job = Job(folder / "config", folder / "volumes")
    job.config.mkdir(parents=True)
    for name, content in (
        ("data.yaml", DATA),
        ("phase1_pretraining.yaml", PHASE_1),
        ("phase2_instruction_tuning.yaml", PHASE_2),
    ):
        (job.config / name).write_text(yaml.safe_dump(content))
    job.run("setup")
    for path in RAW.iterdir():
        shutil.copy(path, job.volumes / "raw")
    return job


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
    """Send a signal and wait for the end. Returns the exit code."""
    process.send_signal(number)
    code = process.wait(60)
    if process.stdout is not None:
        process.stdout.close()
    return code


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> str:
    """Read the output up to a line that matches. The time limit is pytest's."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"no line matches {pattern!r}:\n" + "".join(seen[-30:]))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with its data prepared and nothing trained. Copy it before changing anything."""
    job = new_job(tmp_path_factory.mktemp("prepared"))
    job.run("prepare")
    return job


@pytest.fixture(scope="session")
def trained(prepared: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The same job trained to the end without any interruption. All others are compared with it."""
    job = prepared.copy(tmp_path_factory.mktemp("trained"))
    job.run("train")
    return job
