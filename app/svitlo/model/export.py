"""`svitlo export`: the trained model as a folder that the field's tools open.

    volumes/export/model/
        model.safetensors, config.json, generation_config.json      AutoModelForCausalLM.from_pretrained
        tokenizer.json, tokenizer_config.json, chat_template.jinja  AutoTokenizer.from_pretrained
        vocab.json, merges.txt                                      the same for tools that read GPT-2's older format
        README.md, loss.png, training_record.json                   what it is and how it came to be
        SHA256SUMS                                                  written last

The folder is built beside the old one, loaded and compared with the checkpoint, brought to the disk, and exchanged with
the old one in one step: who looks finds a complete model at every instant.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.data.tokenizer import END_OF_TEXT, END_OF_TEXT_TOKEN
from svitlo.errors import CheckpointError, DataError, SvitloError, VolumeError
from svitlo.model.weights import best_state, model_from
from svitlo.phases import PHASES, phase_numbered
from svitlo.reporting.events import print_line
from svitlo.storage.files import (
    fsync_tree,
    make_folder,
    name_with_suffix,
    rename_durably,
    replace_folder,
    replaced_name,
)
from svitlo.storage.locks import exclusive_lock
from svitlo.storage.owner import give_to_owner_of
from svitlo.storage.space import reason_of, remedy_for
from svitlo.storage.sums import SUMS, read_sums, shown, sum_problem, write_sums
from svitlo.training.checkpoints import find_newest
from svitlo.training.state import TrainingState
from svitlo.units import file_size
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from svitlo.training.model import GPT2

PAD = "<|pad|>"
TOLERANCE = 1e-5
"""The exported model's logits are those of the checkpoint to this much."""
_SECONDS_TO_WAIT_FOR_ANOTHER_EXPORT = 300.0


def export_model(volumes: Volumes, say: Callable[[str], object] = print_line) -> Path:
    """Export the best checkpoint of the last phase that was begun. Returns the folder.

    May be called while training goes on. Raises `NoModelYet`, `CheckpointError` where no checkpoint is usable and
    `VolumeError` where the export cannot be written; an older export then stays as it was.
    """
    volumes.require("checkpoints")
    volumes.require_writable("export")
    state, last = best_state(volumes, say)
    partial = volumes.model.with_name(f".{volumes.model.name}.partial")
    with _only_export(volumes):
        try:
            replaced = replaced_name(volumes.model)
            if replaced.exists() and not volumes.model.exists():  # the power failed between two renames
                rename_durably(replaced, volumes.model)
            if partial.exists():
                shutil.rmtree(partial)
            make_folder(partial)
            _write(partial, volumes, state, last)
            write_sums(partial)
            kept = _carry_over(volumes.model, partial)
            give_to_owner_of(partial, partial.parent)
            fsync_tree(partial)
            replace_folder(partial, volumes.model)
        except SvitloError:
            raise
        except Exception as error:
            if not (isinstance(error, OSError) or type(error).__name__ == "SafetensorError"):
                raise
            raise VolumeError(
                f"{partial.parent}: the model cannot be written ({reason_of(error)}). "
                f"{remedy_for(error, partial.parent)}. Then run `svitlo export` again"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for name in kept:
        say(f"kept, because no export has written it: {shown(volumes.model / name)}")
    size = sum((volumes.model / name).stat().st_size for name in read_sums(volumes.model))
    say(f"model exported to {volumes.model} ({file_size(size)}; phase {state.phase}, step {state.global_step:,})")
    return volumes.model


def _write(folder: Path, volumes: Volumes, state: TrainingState, last: TrainingState) -> None:
    from transformers.utils import logging

    from svitlo.model.card import write_card, write_loss_curve
    from svitlo.training.model import num_parameters

    logging.disable_progress_bar()

    model = model_from(state)
    _write_weights(state, folder)
    _write_tokenizer(folder, state)
    _compare(model, folder, state)
    record = training_record(volumes, state, last, num_parameters(model))
    has_curve = write_loss_curve(volumes.metrics, folder / "loss.png", state.phase)
    write_card(folder, record, has_curve)
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # a disk without permissions lets everybody read anyway
            path.chmod(0o644)  # safetensors makes files for their owner alone


def _carry_over(present: Path, new: Path) -> list[str]:
    """Copy into `new` what somebody has put into the present export, or changed there. Returns the new names.

    Before the two change places: at every instant each of these files is in one of them.
    """
    if not present.is_dir():
        return []
    try:
        ours = read_sums(present)
    except DataError:  # not an export, or one that was never finished: everything in it may be somebody's
        ours = {}
    kept = []
    for path in sorted(present.rglob("*")):
        name = path.relative_to(present).as_posix()
        is_ours = name == SUMS or (name in ours and sum_problem(present, name, ours[name]) is None)
        if is_ours or (path.is_dir() and not path.is_symlink()):
            continue
        target = new / name
        if target.exists():
            target = name_with_suffix(target, ".kept")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)
        with contextlib.suppress(OSError):  # times and permissions, where the disk keeps them
            shutil.copystat(path, target, follow_symlinks=False)
        kept.append(target.relative_to(new).as_posix())
    return kept


def hugging_face_model(state: TrainingState) -> GPT2LMHeadModel:
    """The weights of a checkpoint in the class that everybody opens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=state.vocab_size,
        n_positions=state.model["positions"],
        n_embd=state.model["width"],
        n_layer=state.model["layers"],
        n_head=state.model["heads"],
        bos_token_id=END_OF_TEXT_TOKEN,
        eos_token_id=END_OF_TEXT_TOKEN,
        pad_token_id=state.vocab_size - 1 if phase_numbered(state.phase).is_chat else None,
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict(state.model_state_dict)
    return model


def _write_weights(state: TrainingState, folder: Path) -> None:
    from transformers import GenerationConfig

    from svitlo.training.sampling import REPETITION_PENALTY

    is_chat = phase_numbered(state.phase).is_chat
    model = hugging_face_model(state)
    model.generation_config = GenerationConfig(
        bos_token_id=END_OF_TEXT_TOKEN,
        eos_token_id=END_OF_TEXT_TOKEN,
        pad_token_id=state.vocab_size - 1 if is_chat else END_OF_TEXT_TOKEN,
        do_sample=False,
        # It counts the prompt too, and an answer is often made of words of the question: only for plain text.
        repetition_penalty=1.0 if is_chat else REPETITION_PENALTY,
        # Positions end at the window, prompt included: a position beyond it would be an error inside torch.
        max_length=state.model["positions"],
    )
    model.save_pretrained(folder)


def _write_tokenizer(folder: Path, state: TrainingState) -> None:
    """The tokenizer with what surrounds it: special tokens and, where the model replies, the conversation format."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from svitlo.data.conversations import CHAT_TEMPLATE
    from svitlo.data.tokenizer import tokenizer_path

    is_chat = phase_numbered(state.phase).is_chat
    bpe = tokenizers.Tokenizer.from_file(str(tokenizer_path()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        # Pre-training has no token for padding: the end of text stands in, as everywhere with GPT-2.
        pad_token=PAD if is_chat else END_OF_TEXT,
        padding_side="left",
        model_max_length=state.model["positions"],
        clean_up_tokenization_spaces=False,
    )
    if is_chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    assert len(tokenizer) == state.vocab_size, (len(tokenizer), state.vocab_size)
    tokenizer.save_pretrained(folder)
    # The name of the class that transformers 4 and 5 both know.
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_bytes())
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    bpe.model.save(str(folder))  # vocab.json and merges.txt


def _compare(model: GPT2, folder: Path, state: TrainingState) -> None:
    """Open the export the way that its users will, and compare. Raises `VolumeError` where it is not the same model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    opened = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    ids = torch.tensor([tokenizer.encode("The sun is a star, and water is wet.")[: state.model["positions"]]])
    with torch.inference_mode():
        difference = float((model(ids) - opened(ids).logits).abs().max())
    if not difference <= TOLERANCE:  # also where it is not a number
        raise VolumeError(
            f"{folder}: what was written is not the trained model (logits differ by {difference:g}). The disk or the "
            f"memory of this machine may be faulty; run `svitlo verify`, then `svitlo export` again"
        )


def training_record(volumes: Volumes, state: TrainingState, last: TrainingState, num_parameters: int) -> dict[str, Any]:
    """Everything that went into the model, as JSON values: `training_record.json`."""
    from svitlo.model.record import phase_record, versions

    phases = {}
    for phase in PHASES[: last.phase - 1]:
        with contextlib.suppress(CheckpointError):
            before = find_newest(volumes.checkpoints(phase), phase)
            if before is not None:
                phases[str(phase.number)] = phase_record(volumes, before)
    phases[str(last.phase)] = phase_record(volumes, last)
    return {
        "format": 1,
        "run_id": state.run_id,
        "phase": state.phase,
        "step": state.global_step,
        "last_step": last.global_step,
        "is_finished": bool(last.finished),
        "parameters": num_parameters,
        "model": dict(state.model),
        "vocab_size": state.vocab_size,
        "phases": phases,
        "versions": versions(),
    }


@contextlib.contextmanager
def _only_export(volumes: Volumes) -> Iterator[None]:
    """Wait for another export, such as the trainer's own, instead of getting in its way."""
    deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_ANOTHER_EXPORT
    while True:
        with exclusive_lock(volumes.model.with_name(".lock")) as is_mine:
            if is_mine:
                give_to_owner_of(volumes.model.with_name(".lock"), volumes.model.parent)
                yield
                return
        if time.monotonic() > deadline:
            raise VolumeError(
                f"{volumes.model.parent}: another export has been at work for 5 minutes. End it, try again"
            )
        time.sleep(0.5)
