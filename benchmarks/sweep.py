"""Recipes against each other: the exact validation loss of each after the same number of sequences.

    python -m benchmarks.sweep recipes.yaml --sequences 3200 --seeds 1 2 3 --volumes volumes

`recipes.yaml` names what differs from the defaults, in the words of the configuration:

    default: {}
    hotter: {training: {muon_learning_rate: 0.04}}
    whole head: {head: {sampled_fraction: 0}}

Losses do not depend on how busy the machine is, so runs go side by side, one thread each. Every result is a line of
JSON in the output file, and runs that stand there already are not made again: a sweep that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workers import Setup, Worker, configuration


def run(name: str, setup: Setup, evaluations: int) -> dict[str, Any]:
    """Train one recipe with one seed to its end."""
    curve = []
    tokens = seconds = 0.0
    with Worker(name, setup) as worker:
        for step in range(1, setup.num_steps + 1):
            answer = worker.ask("step")
            tokens += answer["tokens"]
            seconds += answer["seconds"]
            if step == setup.num_steps or step % max(1, setup.num_steps // evaluations) == 0:
                curve.append({"step": step, "tokens": tokens, "loss": worker.ask("evaluate")["loss"]})
    return {**identity(name, setup), "loss": curve[-1]["loss"], "seconds": seconds, "curve": curve}


def setup_of(recipe: dict[str, Any], seed: int, options: argparse.Namespace) -> Setup:
    """A run of a recipe, with the number of steps in which it sees as many sequences as are asked for."""
    setup = Setup(
        "svitlo",
        str(options.volumes),
        num_steps=1,
        phase=options.phase,
        threads=1,
        seed=seed,
        start=options.start,
        precision=options.precision,
        training=recipe.get("training", {}),
        head=recipe.get("head", {}),
    )
    training = configuration(setup).training
    return replace(setup, num_steps=options.sequences // (training.micro_batch * training.gradient_accumulation))


def identity(name: str, setup: Setup) -> dict[str, Any]:
    """What a result belongs to."""
    return {
        "name": name,
        "phase": setup.phase,
        "steps": setup.num_steps,
        "seed": setup.seed,
        "start": setup.start,
        "precision": setup.precision,
        "configuration": configuration(setup).identity(),  # whole, because the defaults may change
    }


def table(results: list[dict[str, Any]]) -> str:
    """Mean loss of each recipe, best first, with the loss of each seed."""
    losses: dict[str, list[float]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        losses.setdefault(f"{result['name']}, {result['steps']} steps, phase {result['phase']}", []).append(
            result["loss"]
        )
    rows = sorted((statistics.mean(values), name, values) for name, values in losses.items())
    return "\n".join(f"{mean:8.4f}  {name:50} {' '.join(f'{loss:.4f}' for loss in all_)}" for mean, name, all_ in rows)


def main() -> None:
    """All recipes with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--sequences", type=int, required=True, help="that each run sees: windows or conversations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--phase", type=int, choices=(1, 2), default=1)
    parser.add_argument("--start", default="", help="phase 2: the checkpoint of phase 1 to start from")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--volumes", type=Path, default=Path("volumes"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sweep.jsonl"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--evaluations", type=int, default=4)
    options = parser.parse_args()
    recipes = yaml.safe_load(options.recipes.read_text())
    wanted = [(name, setup_of(recipe, seed, options)) for seed in options.seeds for name, recipe in recipes.items()]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    results = [result for result in known if any(identity(*one).items() <= result.items() for one in wanted)]
    missing = [one for one in wanted if not any(identity(*one).items() <= result.items() for result in results)]
    with ThreadPoolExecutor(options.jobs) as pool, options.output.open("a") as file:
        for result in pool.map(lambda one: run(one[0], one[1], options.evaluations), missing):
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{result['name']}, seed {result['seed']}: {result['loss']:.4f}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
