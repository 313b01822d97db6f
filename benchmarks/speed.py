"""How fast a training step is: against the machine's own matrix products, and against the Hugging Face Trainer.

    make bench                                     # about 5 minutes
    python -m benchmarks.speed --volumes volumes   # prepared data is taken from there; without it, the demo's is made

Everything is measured in turns within one run, because absolute times on a shared machine mean nothing; figures are
medians. "Of the step" is what share of its time the matrix products would take with nothing in between, multiplied as
Svitlo does; "by torch" is how fast torch multiplies the same, as the Trainer does.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import restart
from benchmarks.workers import ROOT, Setup, Worker, configuration
from svitlo.training import numerics
from svitlo.training.attention import blocks
from svitlo.training.loss import CHUNK
from svitlo.training.optimizer import POLAR_EXPRESS
from svitlo.training.products import SLICE, product

LAYERS, WIDTH, HEADS, POSITIONS, VOCABULARY = 6, 320, 5, 256, 50_257
MICRO_BATCH, MICRO_BATCHES = 4, 4
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


class Products:
    """The matrix products of one step of 4,096 tokens and nothing else: blocks, head, and Muon's if it is used.

    Attention multiplies by blocks of positions, as ours does; the Trainer's whole window is 1.5 MFLOP a token more.
    """

    def __init__(self, head_rows: int, precision: str, *, muon: bool) -> None:
        kind = numerics.DTYPES[precision]

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=kind)

        def with_gradients(left: Tensor, right: Tensor) -> list[tuple[Tensor, Tensor]]:
            result = random(*left.shape[:-1], right.shape[-1])
            return [(left, right), (result, right.mT), (left.mT, result)]

        tokens = MICRO_BATCH * POSITIONS
        layer = [
            pair
            for rows, columns in ((1, 3), (1, 1), (1, 4), (4, 1))
            for pair in with_gradients(random(tokens, rows * WIDTH), random(rows * WIDTH, columns * WIDTH))
        ]
        queries, values = (random(MICRO_BATCH * HEADS, POSITIONS, WIDTH // HEADS) for _ in range(2))
        for first, end in blocks(POSITIONS):
            layer += with_gradients(queries[:, first:end], values[:, :end].mT)
            layer += with_gradients(random(MICRO_BATCH * HEADS, end - first, end), values[:, :end])
        head = with_gradients(random(CHUNK, WIDTH), random(head_rows, WIDTH).T)
        self._products = (layer * LAYERS + head * (tokens // CHUNK)) * MICRO_BATCHES
        if muon:
            self._products += muon_products(precision, random)
        flop = sum(2 * left.numel() * right.shape[-1] for left, right in self._products)
        self.mflop_per_token = flop / (MICRO_BATCHES * tokens) / 1e6

    def tokens_per_second(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Measured once; `multiply` is for all but attention, which torch multiplies in any case."""
        start = time.perf_counter()
        for left, right in self._products:
            if left.ndim == 3:
                torch.bmm(left, right)
            else:  # in parts, as the head does: new memory for all of its result would cost more than the product
                for columns in right.split(SLICE, dim=1):
                    multiply(left, columns)
        return MICRO_BATCHES * MICRO_BATCH * POSITIONS / (time.perf_counter() - start)


def muon_products(precision: str, random: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Those of an update by Muon (`orthogonalised` in training/optimizer.py).

    Of each layer four matrices are square (queries, keys, values and the projection) and two are four times as wide.
    """
    square, wide = random(WIDTH, WIDTH), random(WIDTH, 4 * WIDTH)
    iterations = len(POLAR_EXPRESS)
    of_squares = [(square, square)] * (3 * iterations)
    if precision == "fp32":  # through the Gram matrix
        of_wide = [(wide, wide.mT), (square, wide)] + [(square, square)] * (4 * iterations - 2)
    else:
        of_wide = [(wide, wide.mT), (square, square), (square, wide)] * iterations
    return (of_squares * 4 + of_wide * 2) * LAYERS


def steps(rows: dict[str, Setup], rounds: int, precision: str) -> None:
    """Take turns, a step each, and print a table."""
    kinds = {name: kind_of_products(setup) for name, setup in rows.items() if setup.phase == 1}
    products = {kind: Products(kind[0], precision, muon=kind[1]) for kind in dict.fromkeys(kinds.values())}
    speeds: dict[str, list[float]] = {name: [] for name in rows}
    alone: dict[tuple[int, bool], list[float]] = {kind: [] for kind in products}
    by_torch: dict[tuple[int, bool], list[float]] = {kind: [] for kind in products}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, setup)) for name, setup in rows.items()]
        for worker in workers:
            worker.ask("step")  # the first one sets everything up
        for _ in range(rounds):
            for worker in workers:
                answer = worker.ask("step")
                speeds[worker.name].append(answer["tokens"] / answer["seconds"])
            for kind, its_products in products.items():
                alone[kind].append(its_products.tokens_per_second(product))
                if precision == "fp32":  # in bf16 torch multiplies by oneDNN, too
                    by_torch[kind].append(its_products.tokens_per_second(torch.mm))
    baseline = statistics.median(next(iter(speeds.values())))
    columns = f" {'MFLOP/token':>12} {'GFLOP/s alone':>14} {'by torch':>9} {'of the step':>12}" if products else ""
    print(f"  {'':44} {'tokens/s':>9} {'ratio':>6}{columns}")
    for name in rows:
        speed = statistics.median(speeds[name])
        line = f"  {name:44} {speed:9,.0f} {speed / baseline:6.2f}"
        if name in kinds:
            kind = kinds[name]
            mflop = products[kind].mflop_per_token
            limit, torchs = statistics.median(alone[kind]), statistics.median(by_torch[kind] or alone[kind])
            line += f" {mflop:12.1f} {limit * mflop / 1e3:14.0f} {torchs * mflop / 1e3:9.0f} {speed / limit:12.0%}"
        print(line, flush=True)


def kind_of_products(setup: Setup) -> tuple[int, bool]:
    """Rows of the head that a step computes, and whether Muon multiplies as well."""
    if setup.kind == "trainer":
        return VOCABULARY, False
    config = configuration(setup)
    return SAMPLED if config.head.sampled_fraction else VOCABULARY, config.training.optimizer == "muon"


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
    from svitlo.config import PretrainingConfig
    from svitlo.training.model import GPT2
    from svitlo.training.optimizer import PhaseOptimizer
    from svitlo.training.saving import save_checkpoint
    from svitlo.training.state import TrainingState

    config = PretrainingConfig()
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
