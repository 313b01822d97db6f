"""What saving costs and what a power cut costs, on this disk and on slower ones.

    make bench-saving                                       # about a minute
    python -m benchmarks.saving --folder /mnt/other-disk    # another disk

Each round writes as many bytes as a checkpoint has, in blocks of 4 MiB with one fsync: the floor, below which nothing
that is durable can be. Then it saves the state of the real model with `save_checkpoint`. Rounds alternate, because
absolute times on a shared machine mean nothing; figures are medians. A slower disk is this one with every fsync made
to last as long as that disk needs for the bytes written since.

The last columns are an hour of training with the program's own `SaveSchedule` and a clock that is only counted: how
often it saves, which share of the time that takes, and the most work that a power cut can cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from svitlo.config import CheckpointConfig, ModelConfig
from svitlo.training import numerics, saving
from svitlo.training.checkpoints import LAST
from svitlo.training.model import GPT2
from svitlo.training.saving import SaveSchedule, save_checkpoint
from svitlo.training.state import TrainingState

BLOCK = 4 << 20
PARTS = {"save_sealed": "write", "fsync": "fsync", "check_seal": "read back", "_prune": "prune", "position_of": "look"}


def real_state() -> TrainingState:
    """The model of the default configuration with two moments for each weight: as large as a checkpoint can be."""
    model = GPT2(ModelConfig(), 50_257)
    weights = model.state_dict()
    moments = {number: [weight.detach().clone() for weight in model.parameters()] for number in range(2)}
    return TrainingState(
        phase=1,
        vocab_size=50_257,
        model={},
        configuration={},
        configuration_digest="",
        data_digest="",
        numerics={},
        run_id="benchmark",
        model_state_dict=weights,
        optimizer_state_dict={"state": moments},
    )


class Stopwatch:
    """Sums up the seconds spent inside some functions, and makes a disk slower."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes_per_second: float | None = None
        self.unsynced = 0

    def watch(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = real(*arguments)
            if name == "fsync" and self.bytes_per_second is not None:
                needed, self.unsynced = self.unsynced / self.bytes_per_second, 0
                time.sleep(max(0.0, needed - (time.perf_counter() - start)))
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        setattr(module, name, watched)


def floor(path: Path, num_bytes: int) -> float:
    """Seconds to write that many bytes durably with nothing else to do."""
    block = memoryview(os.urandom(BLOCK))
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for position in range(0, num_bytes, BLOCK):
            file.write(block[: num_bytes - position])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def rounds(folder: Path, state: TrainingState, count: int, watch: Stopwatch) -> Iterator[dict[str, float]]:
    """Floor and save in turns. The first round, which meets a cold machine, is not counted."""
    save_checkpoint(state, folder, 2)
    num_bytes = (folder / LAST).stat().st_size
    for number in range(1, count + 1):
        watch.unsynced = num_bytes
        lowest = floor(folder / "floor", num_bytes)
        watch.seconds.clear()
        watch.unsynced = num_bytes
        state.global_step += 1
        cpu = time.process_time()
        seconds = save_checkpoint(state, folder, 2)
        cpu = time.process_time() - cpu
        parts = {title: watch.seconds.get(name, 0.0) for name, title in PARTS.items()}
        if number > 1 or count == 1:
            yield {"floor": lowest, "save": seconds, "cpu": cpu, **parts}


def an_hour(seconds_per_save: float, seconds_per_step: float) -> tuple[int, float, float]:
    """Saves, share of the time spent on them, and the most seconds of work at stake, in an hour of training."""
    now = 0.0
    schedule = SaveSchedule(CheckpointConfig(), clock=lambda: now)
    saves, step, since, at_stake, spent = 0, 0, 0.0, 0.0, 0.0
    while now < 3600:
        now += seconds_per_step
        since += seconds_per_step
        step += 1
        at_stake = max(at_stake, since)
        if schedule.is_due(step):
            now += seconds_per_save
            spent += seconds_per_save
            saves += 1
            since = 0.0
            schedule.saved(step, seconds_per_save)
    return saves, spent / now, at_stake


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the folder for temporary files")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--step-seconds", type=float, default=5.0, help="of one optimizer step, for the hour")
    parser.add_argument("--slower", type=float, nargs="*", default=[120.0, 30.0], help="MB/s of slower disks")
    options = parser.parse_args()
    numerics.keep_freed_memory()
    torch.set_num_threads(1)
    watch = Stopwatch()
    watch.watch(os, "fsync")
    for name in ("save_sealed", "check_seal", "_prune", "position_of"):
        watch.watch(saving, name)
    state = real_state()
    folder = Path(tempfile.mkdtemp(prefix="svitlo-saving-", dir=options.folder))
    columns = ["floor", "save", *PARTS.values(), "cpu"]
    print(
        f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; "
        f"a step of {options.step_seconds:g} s"
    )
    try:
        rows: list[tuple[str, dict[str, float]]] = []
        for speed in (None, *options.slower):
            watch.bytes_per_second = None if speed is None else speed * 1e6
            measured = list(rounds(folder, state, options.rounds if speed is None else 2, watch))
            medians = {name: statistics.median(row[name] for row in measured) for name in columns}
            rows.append(("this disk" if speed is None else f"{speed:g} MB/s", medians))
        print(f"a checkpoint: {(folder / LAST).stat().st_size / 1e6:.0f} MB; seconds:\n")
    finally:
        shutil.rmtree(folder)
    print("disk       " + "".join(f"{name:>10}" for name in columns) + "  save/floor  saves/h   share  at stake")
    for name, medians in rows:
        saves, share, at_stake = an_hour(medians["save"], options.step_seconds)
        times = "".join(f"{medians[column]:10.2f}" for column in columns)
        ratio = medians["save"] / medians["floor"]
        print(f"{name:11}{times}{ratio:12.2f}{saves:9}{share:8.2%}{at_stake:8.0f} s")


if __name__ == "__main__":
    main()
