"""Validation loss over time: Svitlo and the Hugging Face Trainer train side by side, a step in turn.

    make bench-loss MINUTES=30                          # volumes/ must hold the prepared data of a real corpus
    python -m benchmarks.loss --minutes 30 --volumes volumes --output benchmarks/results

The Trainer gets so many minutes of its own steps; Svitlo gets a fifth of them, and once more as many as the Trainer.
A tuned Trainer (AdamW at 1e-3 with warm-up and cosine, 4,096 tokens a step, memory kept) is the third competitor. Each
one's learning-rate schedule is made for the number of steps that its time allows, measured before the race. Clocks
count only a competitor's own steps: one works while the others wait, so that the noise of the machine hits all alike.
Validation is the exact full softmax on the same sequences for all, outside of the clocks. Writes loss-phase1.json and
.png. With `--phase 2 --start CHECKPOINT` all start from the same weights of phase 1 and learn conversations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.speed import machine
from benchmarks.workers import Setup, Worker, configuration


@dataclass
class Competitor:
    """One curve."""

    name: str
    setup: Setup
    share: float
    """Of the minutes."""
    seconds: float = 0.0
    tokens: float = 0
    steps: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


TUNED = {
    "learning_rate": 1e-3,
    "gradient_accumulation_steps": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.02,
    "adam_beta2": 0.99,
}


def competitors(base: Setup) -> list[Competitor]:
    """Who takes part in a race whose Trainer is `base`."""
    svitlo = replace(base, kind="svitlo")
    return [
        Competitor("Trainer, seed recipe", replace(base, keeps_memory=False), 1.0),
        Competitor("Trainer, tuned AdamW, memory kept", replace(base, training=TUNED), 1.0),
        Competitor("Svitlo, a fifth of the time", svitlo, 0.2),
        Competitor("Svitlo, a third of the time", svitlo, 1 / 3),
        Competitor("Svitlo, the same time", svitlo, 1.0),
    ]


def steps_of(setup: Setup) -> list[tuple[float, Setup]]:
    """The kinds of steps that a run consists of, with their shares: the last of Svitlo's take the whole vocabulary."""
    probe = replace(setup, num_steps=100)
    if setup.kind == "trainer":
        return [(1.0, probe)]
    sampled = configuration(probe).head.sampled_fraction
    return [(sampled, probe), (1 - sampled, replace(probe, head={**setup.head, "sampled_fraction": 0}))]


def seconds_per_step(all_: list[Competitor]) -> dict[str, float]:
    """Means over a run, from medians of 3 steps of each kind, in turns."""
    kinds = {repr(step): step for one in all_ for _, step in steps_of(one.setup)}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with contextlib.ExitStack() as stack:
        workers = {kind: stack.enter_context(Worker(kind, setup)) for kind, setup in kinds.items()}
        for worker in workers.values():
            worker.ask("step")
        for _ in range(3):
            for kind, worker in workers.items():
                times[kind].append(worker.ask("step")["seconds"])
    return {
        one.name: sum(share * statistics.median(times[repr(step)]) for share, step in steps_of(one.setup))
        for one in all_
    }


def race(all_: list[Competitor], minutes: float, evaluations: int, write: Callable[[], None]) -> None:
    """Train all of them to the end of their time; `write` is called after each evaluation."""
    times = seconds_per_step(all_)
    with contextlib.ExitStack() as stack:
        workers = []
        for one in all_:
            num_steps = max(4, round(one.share * minutes * 60 / times[one.name]))
            one.setup = replace(one.setup, num_steps=num_steps)
            workers.append(stack.enter_context(Worker(one.name, one.setup)))
            print(f"{one.name}: {num_steps} steps of about {times[one.name]:.1f} s", flush=True)
        # All advance at the same rate of their own plan, so that every one meets the same quiet and noisy minutes.
        for slot in range(1, max(one.setup.num_steps for one in all_) + 1):
            share = slot / max(one.setup.num_steps for one in all_)
            for one, worker in zip(all_, workers, strict=True):
                while one.steps < round(share * one.setup.num_steps):
                    answer = worker.ask("step")
                    one.steps += 1
                    one.seconds += answer["seconds"]
                    one.tokens += answer["tokens"]
                    if one.steps == one.setup.num_steps or one.steps % max(1, one.setup.num_steps // evaluations) == 0:
                        loss = worker.ask("evaluate")["loss"]
                        one.curve.append({"seconds": one.seconds, "tokens": one.tokens, "loss": loss})
                        print(
                            f"{one.name}: {one.seconds / 60:.1f} min, {one.tokens:,.0f} tokens, loss {loss:.4f}",
                            flush=True,
                        )
                        write()


def draw(all_: list[Competitor], path: Path) -> None:
    """Loss over minutes, one curve each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    for one in all_:
        minutes = [point["seconds"] / 60 for point in one.curve]
        axes.plot(minutes, [point["loss"] for point in one.curve], marker="o", markersize=3, label=one.name)
    axes.set_xlabel("minutes of training, validation not counted")
    axes.set_ylabel("validation loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def verdict(all_: list[Competitor]) -> list[str]:
    """When each Svitlo run passed the final loss of each Trainer that has reached its end."""
    lines = []
    for trainer in (one for one in all_ if one.setup.kind == "trainer" and one.steps == one.setup.num_steps):
        goal = trainer.curve[-1]["loss"]
        for one in (one for one in all_ if one.setup.kind == "svitlo"):
            passed = next((point["seconds"] for point in one.curve if point["loss"] <= goal), None)
            when = f"after {passed / trainer.seconds:.0%} of its time" if passed else "not reached"
            lines.append(
                f"{trainer.name} ends with {goal:.4f} after {trainer.seconds / 60:.1f} min; {one.name}: {when}"
            )
    return lines


def main() -> None:
    """The race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--phase", type=int, choices=(1, 2), default=1)
    parser.add_argument("--start", default="", help="phase 2: the checkpoint of phase 1 that all start from")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of all alike")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--volumes", type=Path, default=Path("volumes"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=[""], help="take part only where the name contains one of these")
    options = parser.parse_args()
    if not (options.volumes / "data" / f"phase{options.phase}" / "manifest.json").is_file():
        raise SystemExit(
            f"{options.volumes}: no prepared data. Run `svitlo prepare`, or name its folder with --volumes"
        )
    base = Setup(
        "trainer",
        str(options.volumes),
        0,
        phase=options.phase,
        threads=options.threads,
        precision=options.precision,
        seed=options.seed,
        start=options.start,
    )
    all_ = [one for one in competitors(base) if any(part in one.name for part in options.only)]
    options.output.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        content: dict[str, Any] = {
            "machine": machine(),
            "minutes": options.minutes,
            "phase": options.phase,
            "precision": options.precision,
            "seed": options.seed,
            "verdict": verdict(all_),
            "curves": {
                one.name: {"training": one.setup.training, "num_steps": one.setup.num_steps, "points": one.curve}
                for one in all_
            },
        }
        (options.output / f"loss-phase{options.phase}.json").write_text(json.dumps(content, indent=2) + "\n")
        draw(all_, options.output / f"loss-phase{options.phase}.png")

    race(all_, options.minutes, options.evaluations, write)
    print("\n".join(verdict(all_)))


if __name__ == "__main__":
    main()
