"""A process that trains one optimizer step at a time, on command: Svitlo's own loop, or the Hugging Face Trainer.

Two trainers on a shared machine can only be compared when the same noise hits both, so the benchmarks let them take
turns, a step each. A worker reads commands from standard input, one a line, and answers each with one line of JSON:

    step        → {"seconds": …, "tokens": …}                 one optimizer step; tokens without padding
    evaluate    → {"loss": …, "perplexity": …}                exact full softmax on the same validation data for all
    quit

    python -m benchmarks.workers '{"kind": "svitlo", "volumes": "volumes", "phase": 1, "num_steps": 100}'
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from svitlo.config import PhaseConfig, load_phase_config
from svitlo.phases import phase_numbered

ROOT = Path(__file__).resolve().parents[1]
# Blocks of all sizes, because the Trainer makes many large ones in each step.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(64 * 2**20)}


@dataclass(frozen=True)
class Setup:
    """What a worker trains, and how."""

    kind: str
    """`svitlo` or `trainer`."""
    volumes: str
    """Where prepared data is."""
    num_steps: int
    """The length that the learning-rate schedule is made for."""
    phase: int = 1
    threads: int = 2
    precision: str = "fp32"
    keeps_memory: bool = True
    """`trainer`: whether glibc is told to keep freed memory, as Svitlo does by itself; it is a row of its own."""
    seed: int = 1
    validation_sequences: int = 100
    start: str = ""
    """Phase 2: a checkpoint of phase 1 to start from; empty: random weights."""
    training: dict[str, Any] = field(default_factory=dict)
    """What differs: `svitlo`: from the configuration's `training` section; `trainer`: from `TrainingArguments`."""
    head: dict[str, Any] = field(default_factory=dict)
    """What differs from the configuration's `head` section."""


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        self.setup = setup
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        environment |= {"PYTHONPATH": f"{ROOT / 'app'}:{ROOT}", "TOKENIZERS_PARALLELISM": "false"}
        if setup.kind == "trainer" and setup.keeps_memory:
            environment |= KEPT_MEMORY
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers", json.dumps(asdict(setup))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._answer()  # ready

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, command: str) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"'):  # the Trainer prints lines of its own, also in braces
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the worker {self.name} ended with code {self._process.wait()}")


def default_configuration(phase: int) -> PhaseConfig:
    """What the project comes with."""
    return load_phase_config(ROOT / "config", phase_numbered(phase))


def configuration(setup: Setup) -> PhaseConfig:
    """The default configuration of the phase with what a `svitlo` setup changes."""
    config = default_configuration(setup.phase)
    values = config.model_dump()
    values["training"] |= {"max_epochs": 1_000, "max_steps": setup.num_steps, "seed": setup.seed, **setup.training}
    values["head"] |= setup.head
    return type(config).model_validate(values)


# --- the child's end -------------------------------------------------------------------------------------------------


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    """The worker process."""
    setup = Setup(**json.loads(sys.argv[1]))
    from svitlo.training import numerics

    numerics.set_threads(setup.threads)
    if setup.kind == "svitlo":
        numerics.keep_freed_memory()
    (_svitlo if setup.kind == "svitlo" else _trainer)(setup)


def _data(setup: Setup, split: str, micro_batch: int, accumulation: int) -> Any:
    from svitlo.data.shards import ConversationSet, TokenStream
    from svitlo.data.tokenizer import VOCAB_SIZE
    from svitlo.manifest import load_manifest
    from svitlo.training.batches import ConversationBatches, TextBatches
    from svitlo.volumes import Volumes

    phase = phase_numbered(setup.phase)
    folder = Volumes(Path(setup.volumes)).data(phase)
    manifest = load_manifest(folder)
    if not phase.is_chat:
        return TextBatches(TokenStream(folder, manifest, split), 256, micro_batch, accumulation, setup.seed)
    conversations = ConversationSet(folder, manifest, split)
    return ConversationBatches(conversations, 256, VOCAB_SIZE, micro_batch, accumulation, setup.seed)


def _fresh_model(setup: Setup, dropout: float) -> Any:
    """The 6 × 320 model: random weights from the seed, or a checkpoint's, grown by the padding token in phase 2.

    Svitlo's own class, or the same weights in transformers' class for the Trainer.
    """
    import torch

    from svitlo.config import ModelConfig
    from svitlo.data.tokenizer import VOCAB_SIZE
    from svitlo.training.checkpoints import load_checkpoint
    from svitlo.training.model import GPT2, grow_vocabulary
    from svitlo.training.numerics import seed_for

    vocab_size = VOCAB_SIZE + phase_numbered(setup.phase).is_chat
    torch.manual_seed(seed_for("weights", setup.seed))
    model = GPT2(ModelConfig(), vocab_size, dropout)
    if setup.start:
        model.load_state_dict(grow_vocabulary(load_checkpoint(Path(setup.start)).model_state_dict, vocab_size))
    if setup.kind == "svitlo":
        return model
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=256,
            n_embd=320,
            n_layer=6,
            n_head=5,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    )
    theirs.load_state_dict(model.state_dict())
    return theirs


def _evaluate(setup: Setup, trained: Any) -> None:
    from svitlo.config import ModelConfig
    from svitlo.training.evaluation import loss_of, mean_loss
    from svitlo.training.model import GPT2

    model = GPT2(ModelConfig(), trained.lm_head.weight.shape[0])
    model.load_state_dict(trained.state_dict())
    batches = _data(setup, "validation", 4, 1)
    num_sequences = min(setup.validation_sequences, batches.num_sequences)
    loss = mean_loss([loss_of(model, batch, "fp32") for batch in batches.in_order(num_sequences)])
    _say(loss=loss, perplexity=math.exp(loss))


def _svitlo(setup: Setup) -> None:
    """The functions of the real loop, with nobody who watches it."""
    from svitlo.interruption import Interruption
    from svitlo.reporting.observer import Observer
    from svitlo.training.gradient import Gradient
    from svitlo.training.loop import PhaseRun, train_step
    from svitlo.training.loss import VocabularySampler
    from svitlo.training.machine_check import MachineCheck
    from svitlo.training.numerics import DTYPES
    from svitlo.training.optimizer import PhaseOptimizer
    from svitlo.training.saving import Saver
    from svitlo.training.state import TrainingState

    config = configuration(setup)
    model = _fresh_model(setup, config.training.dropout)
    model.train()
    training = config.training
    train = _data(setup, "train", training.micro_batch, training.gradient_accumulation)
    sampler = VocabularySampler(train.target_counts(model.vocab_size), config.head.sampled_tokens)
    interruption, observer = Interruption(signals=()), Observer()
    run = PhaseRun(
        state=TrainingState(setup.phase, model.vocab_size, {}, {}, "", "", {"precision": setup.precision}, ""),
        config=config,
        model=model,
        gradient=Gradient(model, sampler, setup.precision, setup.phase, training.seed),
        optimizer=PhaseOptimizer(model, training, DTYPES[setup.precision]),
        train=train,
        validation=train,
        saver=Saver(Path(), config.checkpoints, observer, interruption),
        interruption=interruption,
        observer=observer,
        write_samples=lambda _: [],
        machine_check=MachineCheck(observer.clock),
        whole_head_cost=1.0,
    )
    run.gradient.warm_up(train.step(0), 0, is_sampled=run.is_sampled)
    _say(ready=True)
    for line in sys.stdin:
        if line.strip() == "evaluate":
            _evaluate(setup, model)
        elif line.strip() == "step":
            padding = model.vocab_size - 1 if phase_numbered(setup.phase).is_chat else -1
            tokens = sum(int((batch.inputs != padding).sum()) for batch in train.step(run.state.global_step))
            start = time.perf_counter()
            train_step(run)
            _say(seconds=time.perf_counter() - start, tokens=tokens)
        else:
            return


def _trainer(setup: Setup) -> None:
    """The Hugging Face Trainer as a user of it would write it, stopped before each step until it is asked for."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from svitlo.training.batches import IGNORED

    # The shape, dropout included, belongs to the model and is the same for all.
    model = _fresh_model(setup, default_configuration(setup.phase).training.dropout)
    data = _data(setup, "train", 1, 1)
    length = 256
    conversations = None if setup.phase == 1 else data._conversations
    mean_length = (
        statistics.mean(conversations.length(number) for number in range(len(conversations))) - 1
        if conversations
        else float(length)
    )

    class Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return int(data.num_sequences)

        def __getitem__(self, index: int) -> dict[str, Any]:
            batch = data._load([index])
            inputs, targets = batch.inputs[0], batch.targets[0]
            if setup.phase == 1:
                return {"input_ids": inputs, "labels": inputs}
            # The model shifts labels itself; conversations are padded to the window, as the usual recipes do.
            labels = torch.cat([torch.tensor([IGNORED]), targets])[:length]
            tokens = torch.cat([inputs, targets[-1:].clamp_min(0)])[:length]
            missing = length - len(tokens)
            return {
                "input_ids": torch.nn.functional.pad(tokens, (0, missing), value=model.config.vocab_size - 1),
                "labels": torch.nn.functional.pad(labels, (0, missing), value=IGNORED),
                "attention_mask": (torch.arange(length) < len(tokens)).long(),
            }

    class Turns(TrainerCallback):
        started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                _say(ready=True)
            for line in sys.stdin:
                if line.strip() == "evaluate":
                    _evaluate(setup, model)
                elif line.strip() == "step":
                    break
                else:
                    os._exit(0)
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps
            _say(seconds=time.perf_counter() - self.started, tokens=sequences * mean_length)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for line in sys.stdin:
                if line.strip() != "evaluate":
                    os._exit(0)
                _evaluate(setup, model)

    arguments: dict[str, Any] = {
        "learning_rate": 5e-4,
        "weight_decay": 0.1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        **setup.training,
    }
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(),
            max_steps=setup.num_steps,
            use_cpu=True,
            bf16=setup.precision == "bf16",
            seed=setup.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **arguments,
        ),
        train_dataset=Sequences(),
        callbacks=[Turns()],
    ).train()


if __name__ == "__main__":
    main()
