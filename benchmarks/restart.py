"""From the start of the process to work: what a power cut costs besides the steps that are repeated.

    python -m benchmarks.restart --volumes volumes          # volumes/ must hold prepared data of phase 1
    python -m benchmarks.restart --volumes volumes --image svitlo/trainer:local      # the same in containers

The full-size model trains with a checkpoint after each step, is killed, and is started again, several times. Counted
from the start of the process, or of `docker run`: until the checkpoint is verified and loaded (the line "resumed at"),
and until the first optimizer step is done.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workers import ROOT


class Trainer:
    """The real command on volumes of its own."""

    def __init__(self, folder: Path, volumes: Path, threads: int, image: str) -> None:
        """`image`: of the container that it runs in; empty: none."""
        self._folder = folder
        self._image = image
        self._container = f"svitlo-restart-{secrets.token_hex(4)}"
        shutil.copytree(ROOT / "config", folder / "config")
        (folder / "config" / "data.yaml").unlink()  # or it would wait until the data is what this file asks for
        self.change("numerics", threads=threads)
        self.change("evaluation", max_sequences=4)
        self.change("checkpoints", save_every_n_steps=1)
        self.change("reporting", line_every_seconds=0.01, sample_prompts=[])
        subprocess.run(self._command("setup"), capture_output=True, check=True)
        shutil.copytree(volumes / "data", folder / "volumes" / "data", dirs_exist_ok=True)

    def change(self, section: str, **values: Any) -> None:
        """Change keys of the configuration of phase 1."""
        path = self._folder / "config" / "phase1_pretraining.yaml"
        content = yaml.safe_load(path.read_text())
        content[section].update(values)
        path.write_text(yaml.safe_dump(content))

    def _command(self, name: str) -> list[str]:
        return [sys.executable, "-m", "svitlo", name, "--volumes", str(self._folder / "volumes")]

    def _contained(self) -> list[str]:
        run = ["docker", "run", "--rm", "--init", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}"]
        folders = [f"--volume={self._folder.resolve() / name}:/{name}" for name in ("config", "volumes")]
        return [*run, "--name", self._container, *folders, self._image, "train"]

    def _kill(self, process: subprocess.Popen[str]) -> None:
        if self._image:
            subprocess.run(["docker", "kill", self._container], capture_output=True, check=True)
        else:
            process.kill()
        process.wait()

    def seconds_to(self, *marks: str) -> list[float]:
        """Start it, note when a line with each of the marks comes, in this order, and kill it."""
        start = time.perf_counter()
        config = ["--config", str(self._folder / "config")]
        command = self._contained() if self._image else [*self._command("train"), *config]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        assert process.stdout is not None
        seconds: list[float] = []
        said = ""
        for line in process.stdout:
            said += line
            if marks[len(seconds)] in line:
                seconds.append(time.perf_counter() - start)
                if len(seconds) == len(marks):
                    self._kill(process)
                    return seconds
        raise SystemExit(f"the trainer ended with code {process.wait()}:\n{said}")


def environment() -> dict[str, str]:
    """This environment, without what a developer may have set for the program."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SVITLO_")}


def measure(volumes: Path, threads: int, rounds: int, image: str = "") -> None:
    """Print the medians."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        trainer = Trainer(Path(folder), volumes, threads, image)
        trainer.seconds_to("| step 2 of")
        # Until the step after the first one, so that each round leaves a newer checkpoint: a trainer that dies three
        # times at the same step stops trying.
        times = [trainer.seconds_to("resumed at", "| step ", "| step ") for _ in range(rounds)]
    loaded, done, _ = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"  a trainer that was killed: checkpoint verified and loaded after {loaded:.1f} s, next step done {done:.1f} s"
    )


def main() -> None:
    """Five starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path, default=Path("volumes"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", default="", help="run the trainer in a container of this image")
    options = parser.parse_args()
    measure(options.volumes, options.threads, options.rounds, options.image)


if __name__ == "__main__":
    main()
