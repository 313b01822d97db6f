"""How fast a training step is: against the machine's own matrix products, and against the Hugging Face Trainer.

    make bench                                     # about 5 minutes
    python -m benchmarks.speed --volumes volumes   # prepared data is taken from there; without it, the demo's is made

Everything is measured in turns within one run, because absolute times on a shared machine mean nothing; figures are
medians. The product rate is that of the same shapes as the model's, with nothing in between.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import restart
from benchmarks.workers import ROOT, Setup, Worker, configuration
from svitlo.training import numerics
from svitlo.training.optimizer import POLAR_EXPRESS

LAYERS, WIDTH, POSITIONS, VOCABULARY, MICRO_BATCH = 6, 320, 256, 50_257, 4
SAMPLED = 3_072 + 1_100
"""About how many tokens a sampled head computes: those drawn and the other targets of a step."""


def machine() -> dict[str, Any]:
    """What it is measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "hardware_bf16": numerics.has_hardware_bf16(),
        "torch": torch.__version__,
    }


def products_per_token(head_rows: int) -> float:
    """Multiplications and additions per token in the weights' matrix products, forward and backward, in MFLOP."""
    block = WIDTH * 3 * WIDTH + WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH
    attention = (
        2 * POSITIONS * WIDTH
    )  # scores and their use, over half the window on average in the causal kernel's count
    return 6 * (LAYERS * (block + attention / 2) + head_rows * WIDTH) / 1e6


def muon_products(precision: str) -> float:
    """Multiplications and additions in the matrix products of an update by Muon, in MFLOP.

    Of each layer four matrices are square (queries, keys, values and the projection) and two are four times as wide.
    """
    square = 2 * WIDTH**3
    iterations = len(POLAR_EXPRESS)
    directly = iterations * (2 * 4 + 1) * square  # of a wide matrix: Gram matrix and product with it, polynomial
    by_gram = (4 + 2 * iterations + 2 * (iterations - 1) + 4) * square
    wide = by_gram if precision == "fp32" else directly
    return LAYERS * (4 * iterations * 3 * square + 2 * wide) / 1e6


class Products:
    """The model's matrix products alone, forward and backward, for one micro-batch."""

    def __init__(self, head_rows: int, precision: str) -> None:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        tokens = MICRO_BATCH * POSITIONS
        self._layers = [
            tuple(torch.randn(shape, dtype=kind) for shape in ((tokens, rows), (rows, columns), (tokens, columns)))
            for rows, columns in ((320, 960), (320, 320), (320, 1280), (1280, 320))
        ]
        self._head = [torch.randn(shape, dtype=kind) for shape in ((256, WIDTH), (head_rows, WIDTH))]
        self._logits = torch.randn(256, head_rows, dtype=kind)
        self._flop = 6 * tokens * (LAYERS * sum(w.numel() for _, w, _ in self._layers) + head_rows * WIDTH)

    def rate(self) -> float:
        """Measured once: GFLOP/s."""
        start = time.perf_counter()
        for _ in range(LAYERS):
            for inputs, weights, outputs in self._layers:
                torch.mm(inputs, weights)
                torch.mm(outputs, weights.T)
                torch.mm(inputs.T, outputs)
        for _ in range(MICRO_BATCH):
            hidden, weights = self._head
            torch.mm(hidden, weights.T)
            torch.mm(self._logits, weights)
            torch.mm(self._logits.T, hidden)
        return self._flop / (time.perf_counter() - start) / 1e9


def steps(rows: dict[str, Setup], rounds: int, precision: str) -> None:
    """Take turns, a step each, and print a table."""
    products = {name: Products(rows_of, precision) for name, rows_of in (("all", VOCABULARY), ("part", SAMPLED))}
    speeds: dict[str, list[float]] = {name: [] for name in rows}
    rates: dict[str, list[float]] = {name: [] for name in products}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, setup)) for name, setup in rows.items()]
        for worker in workers:
            worker.ask("step")  # the first one sets everything up
        for _ in range(rounds):
            for worker in workers:
                answer = worker.ask("step")
                speeds[worker.name].append(answer["tokens"] / answer["seconds"])
            for name, product in products.items():
                rates[name].append(max(product.rate() for _ in range(3)))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"  matrix products alone: {rate['all']:.0f} GFLOP/s with the whole head, {rate['part']:.0f} with a sampled one"
    )
    baseline = statistics.median(next(iter(speeds.values())))
    print(f"  {'':44} {'tokens/s':>9} {'ratio':>6} {'MFLOP/token':>12} {'of product rate':>16}")
    for name, setup in rows.items():
        speed = statistics.median(speeds[name])
        line = f"  {name:44} {speed:9,.0f} {speed / baseline:6.2f}"
        if setup.phase == 1:
            is_part = setup.kind == "svitlo" and setup.head.get("sampled_fraction", 0.0) > 0
            flop = products_per_token(SAMPLED if is_part else VOCABULARY)
            training = configuration(setup).training if setup.kind == "svitlo" else None
            if training is not None and training.optimizer == "muon":
                sequences = training.micro_batch * training.gradient_accumulation
                flop += muon_products(precision) / (sequences * POSITIONS)
            line += f" {flop:12.1f} {speed * flop / 1e3 / rate['part' if is_part else 'all']:15.0%}"
        print(line, flush=True)


def start_up() -> None:
    """How long the commands that people type take, in medians of 5."""
    for arguments in (["--help"], ["status"]):
        seconds = []
        with tempfile.TemporaryDirectory() as volumes:
            command = [sys.executable, "-m", "svitlo", *arguments]
            environment = {"PYTHONPATH": str(ROOT / "app"), "SVITLO_VOLUMES": volumes, "PATH": "/usr/bin:/bin"}
            subprocess.run([sys.executable, "-m", "svitlo", "setup"], env=environment, capture_output=True, check=True)
            for _ in range(5):
                start = time.perf_counter()
                subprocess.run(command, env=environment, capture_output=True, check=False)
                seconds.append(time.perf_counter() - start)
        print(f"  svitlo {arguments[0]:8} {statistics.median(seconds):.2f} s")


def save() -> None:
    """How long a checkpoint of the full-size model takes."""
    from svitlo.config import Phase1Config
    from svitlo.durability.checkpoints import TrainingState, save_checkpoint
    from svitlo.training.model import GPT2
    from svitlo.training.optimizer import PhaseOptimizer

    config = Phase1Config()
    model = GPT2(config.model, VOCABULARY)
    optimizer = PhaseOptimizer(model, config.training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1.0)
    seconds = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for step in range(4):
            state = TrainingState(1, VOCABULARY, {}, {}, "", "", {}, "", global_step=step)
            state.model_state_dict, state.optimizer_state_dict = model.state_dict(), optimizer.state_dict()
            seconds.append(save_checkpoint(state, Path(folder) / "phase1", keep=3))
        size = (Path(folder) / "phase1" / "last_checkpoint.pt").stat().st_size
    print(f"  a checkpoint of {size / 1e6:.0f} MB: {statistics.median(seconds):.2f} s, with fsync and verification")


@contextlib.contextmanager
def prepared(volumes: Path) -> Any:
    """Volumes with prepared data: those given, or the demo's made in a temporary folder."""
    if all((volumes / "data" / f"phase{phase}" / "manifest.json").is_file() for phase in (1, 2)):
        yield volumes
        return
    print(f"{volumes} holds no prepared data: the demo's is prepared (speeds hold, losses would mean nothing)")
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PYTHONPATH": str(ROOT / "app"), "SVITLO_VOLUMES": folder, "PATH": "/usr/bin:/bin"}
        svitlo = [sys.executable, "-m", "svitlo"]
        subprocess.run([*svitlo, "setup"], env=environment, check=True, capture_output=True)
        subprocess.run(["cp", "-r", f"{ROOT}/config/demo/raw/.", f"{folder}/raw/"], check=True)
        config = str(ROOT / "config" / "demo")
        subprocess.run([*svitlo, "prepare", "--config", config], env=environment, check=True, capture_output=True)
        yield Path(folder)


def main() -> None:
    """Everything, in about five minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path, default=Path("volumes"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    numerics.keep_freed_memory()
    numerics.set_threads(options.threads)
    print(json.dumps({**machine(), "threads": options.threads}))
    with prepared(options.volumes) as volumes:

        def setup(kind: str, **values: Any) -> Setup:
            return Setup(kind, str(volumes), 1_000, threads=options.threads, **values)

        part, whole = {"sampled_fraction": 1.0}, {"sampled_fraction": 0.0}
        precisions = ["fp32", *(["bf16"] if numerics.has_hardware_bf16() else [])]
        for precision in precisions:
            print(f"\nphase 1, {precision}: an optimizer step, 8,192 tokens of the Trainer and 4,096 of ours")
            rows = {
                "Trainer": setup("trainer", precision=precision, keeps_memory=False),
                "Trainer, memory kept": setup("trainer", precision=precision),
                "Svitlo, whole head, AdamW": setup(
                    "svitlo", precision=precision, head=whole, training={"optimizer": "adamw"}
                ),
                "Svitlo, whole head, Muon": setup("svitlo", precision=precision, head=whole),
                "Svitlo, sampled head, Muon": setup("svitlo", precision=precision, head=part),
            }
            steps(rows, options.rounds, precision)
            print(f"\nphase 2, {precision}: an optimizer step of 32 conversations; tokens are those of conversations")
            steps(
                {
                    "Trainer, padded to 256, memory kept": setup("trainer", phase=2, precision=precision),
                    "Svitlo, whole head": setup("svitlo", phase=2, precision=precision, head=whole),
                    "Svitlo, sampled head": setup("svitlo", phase=2, precision=precision, head=part),
                },
                options.rounds,
                precision,
            )
        print("\nstart-up (median of 5)")
        start_up()
        restart.measure(volumes, options.threads, options.rounds)
    print("\nsaving (median of 4)")
    save()


if __name__ == "__main__":
    main()
