"""The exported model is the trained model, also for users who have only transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from svitlo.config import ModelConfig
from svitlo.data.conversations import prompt_text, render
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import CheckpointError, ConfigError, VolumeError
from svitlo.model.card import card_text
from svitlo.model.export import export_model, hugging_face_model
from svitlo.model.generate import answer
from svitlo.model.weights import NoModelYet, best_state, model_from, newest_state
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING
from svitlo.reporting.metrics import MetricsLog
from svitlo.reporting.status import write_status
from svitlo.storage.files import replaced_name
from svitlo.storage.sums import read_sums, sum_problem
from svitlo.training.model import GPT2, grow_vocabulary
from svitlo.training.sampling import REPETITION_PENALTY, complete
from svitlo.training.saving import mark_best, save_checkpoint
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes

SHAPE = ModelConfig(layers=2, width=64, heads=2, positions=64)


def make_state(phase: int, step: int, seed: int = 0, **fields: object) -> TrainingState:
    """A real model with random weights, in the state of a finished or unfinished phase."""
    torch.manual_seed(seed)
    weights = GPT2(SHAPE, 50_257).state_dict()
    if phase == 2:
        weights = grow_vocabulary(weights, 50_258)
    values = {
        "phase": phase,
        "vocab_size": 50_256 + phase,
        "model": SHAPE.model_dump(),
        "configuration": {"training": {"learning_rate": 1e-3, "seed": 1}, "numerics": {"threads": 2}},
        "configuration_digest": "c" * 64,
        "data_digest": "d" * 64,
        "numerics": {"threads": 2, "precision": "fp32", "instruction_set": "AVX2", "torch": "2.13.0"},
        "run_id": "abcdef012345",
        "global_step": step,
        "model_state_dict": weights,
        "tokens_seen": step * 1_000,
        "finished": "all steps done",
        "training_seconds": 125.0,
        **fields,
    }
    return TrainingState(**values)  # type: ignore[arg-type]


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    return volumes


@pytest.fixture
def trained(volumes: Volumes) -> Volumes:
    """Both phases done. The best state of phase 2 is not its last one."""
    save_checkpoint(make_state(1, 40, best_loss=5.5, best_step=40), volumes.checkpoints(PRETRAINING), keep=3)
    save_checkpoint(make_state(2, 10, seed=1), volumes.checkpoints(INSTRUCTION_TUNING), keep=3)
    mark_best(volumes.checkpoints(INSTRUCTION_TUNING))
    save_checkpoint(
        make_state(2, 30, seed=2, best_loss=3.25, best_step=10), volumes.checkpoints(INSTRUCTION_TUNING), keep=3
    )
    metrics = MetricsLog(volumes.metrics)
    for phase, steps, start in ((1, 40, 10.8), (2, 30, 6.0)):
        for step in range(steps + 1):
            loss = start - step / 10
            if step:
                metrics.append({"kind": "step", "phase": phase, "step": step, "loss": loss})
            if step % 10 == 0:
                metrics.append({"kind": "evaluation", "phase": phase, "step": step, "validation_loss": loss + 0.1})
    metrics.close()
    return volumes


# A separate process with only transformers prints what it loads as JSON.
FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, text = sys.argv[1], sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(ids).logits
torch.save(logits, sys.argv[3])
question = [{"role": "user", "content": " What is water? "}]
dialogue = [*question, {"role": "assistant", "content": "A liquid."}, {"role": "user", "content": "And ice?"},
            {"role": "assistant", "content": "Frozen water."}]
writer = pipeline("text-generation", model=folder)
has_template = tokenizer.chat_template is not None
print(json.dumps({
    "ids": ids[0].tolist(),
    "size": len(tokenizer),
    "specials": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
    "config": [model.config.vocab_size, model.config.eos_token_id, model.config.pad_token_id],
    "tied": model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr(),
    "parameters": sum(parameter.numel() for parameter in model.parameters()),
    "prompt": has_template
    and tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    or "",
    "dialogue": tokenizer.apply_chat_template(dialogue, return_dict=True)["input_ids"] if has_template else [],
    "written": writer("The sun is")[0]["generated_text"],
    "replied": writer(question)[0]["generated_text"][-1]["role"] if has_template else "",
    "svitlo": "svitlo" in sys.modules,
}))
"""


def open_elsewhere(folder: Path, text: str, logits: Path) -> dict[str, object]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), text, str(logits)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.parametrize("phase", [1, 2])
def test_a_fresh_process_has_the_same_model_and_tokenizer(trained: Volumes, tmp_path: Path, phase: int) -> None:
    if phase == 1:
        for path in trained.checkpoints(INSTRUCTION_TUNING).iterdir():
            path.unlink()
    export_model(trained, say=lambda _: None)
    state = make_state(2, 10, seed=1) if phase == 2 else make_state(1, 40)
    text = "Water — H₂O — is wet;  the sun\nis 4.6 billion years old. Café!"
    seen = open_elsewhere(trained.model, text, tmp_path / "logits.pt")

    tokenizer = Tokenizer()
    assert seen["ids"] == tokenizer.encode(text)
    with torch.no_grad():
        expected = model_from(state)(torch.tensor([seen["ids"]]))
    assert (torch.load(tmp_path / "logits.pt") - expected).abs().max() <= 1e-5
    assert seen["size"] == 50_256 + phase
    assert seen["specials"] == [50_256, 50_256, 50_257 if phase == 2 else 50_256]
    assert seen["config"] == [50_256 + phase, 50_256, 50_257 if phase == 2 else None]
    assert seen["tied"]
    assert seen["parameters"] == (50_256 + phase) * 64 + 64 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64
    assert str(seen["written"]).startswith("The sun is")
    assert not seen["svitlo"]
    if phase == 2:
        assert seen["prompt"] == prompt_text(" What is water? ")
        tokens, _ = render(tokenizer, ["What is water?", "A liquid.", "And ice?", "Frozen water."])
        assert seen["dialogue"] == torch.frombuffer(bytearray(tokens), dtype=torch.uint16).tolist()
        assert seen["replied"] == "assistant"


def test_the_folder_is_complete_and_checks_out(trained: Volumes) -> None:
    export_model(trained, say=lambda _: None)
    names = {path.name for path in trained.model.iterdir()}
    sums = read_sums(trained.model)
    assert set(sums) == names - {"SHA256SUMS"}
    assert {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "README.md",
        "loss.png",
    } < names
    assert all(sum_problem(trained.model, name, expected) is None for name, expected in sums.items())
    # Tied: the embedding is stored once.
    num_bytes = (trained.model / "model.safetensors").stat().st_size
    num_parameters = 50_258 * 64 + 64 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64
    assert num_parameters * 4 <= num_bytes < num_parameters * 4 + 20_000
    assert (trained.model / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in trained.model.parent.iterdir() if "partial" in path.name] == []


def test_card_and_record_tell_how_the_model_came_to_be(trained: Volumes) -> None:
    export_model(trained, say=lambda _: None)
    record = json.loads((trained.model / "training_record.json").read_bytes())
    assert (record["phase"], record["step"], record["last_step"]) == (2, 10, 30)
    assert record["phases"]["1"]["first_validation_loss"] == pytest.approx(10.9)
    assert record["phases"]["2"]["best_validation_loss"] == 3.25
    card = (trained.model / "README.md").read_text()
    for expected in (
        "6.1000 → 3.2500",
        "d" * 64,
        "CC BY-NC",
        "non-commercial",
        "30,000",
        "learning_rate: 0.001",
        "AVX2",
    ):
        assert expected in card, expected


def test_card_names_sources_and_their_licences(trained: Volumes) -> None:
    export_model(trained, say=lambda _: None)
    record = json.loads((trained.model / "training_record.json").read_bytes())
    record["phases"]["2"]["data"]["sources"] = [
        {"name": "alpaca", "identity": {"repository": "tatsu-lab/alpaca", "revision": "dce01c9b08f87459cf36a430"}},
        {"name": "mine", "identity": {"files": [{"name": f"part{number}.json"} for number in range(5)]}},
    ]
    text = card_text(record, has_curve=False)
    assert "| 2 | alpaca | `tatsu-lab/alpaca` at `dce01c9b08f8` | CC BY-NC: not for commercial use |" in text
    assert "| 2 | mine | `part0.json`, `part1.json`, `part2.json` and 2 more | that of these files; see below |" in text


def test_a_second_export_replaces_the_first_and_a_failed_one_does_not(
    trained: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(trained, say=lambda _: None)
    first = (trained.model / "model.safetensors").read_bytes()
    save_checkpoint(
        make_state(2, 50, seed=3, best_loss=2.0, best_step=50), trained.checkpoints(INSTRUCTION_TUNING), keep=3
    )
    (trained.model.parent / ".model.partial").mkdir()  # what a power cut left
    (trained.model.parent / ".model.partial" / "left-over.safetensors").write_text("half")
    export_model(trained, say=lambda _: None)
    second = (trained.model / "model.safetensors").read_bytes()
    assert second != first
    assert not (trained.model / "left-over.safetensors").exists()

    import svitlo.model.export

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(svitlo.model.export, "write_sums", disk_full)
    with pytest.raises(VolumeError, match="No space left on device"):
        export_model(trained, say=lambda _: None)
    assert (trained.model / "model.safetensors").read_bytes() == second
    assert all(sum_problem(trained.model, *item) is None for item in read_sums(trained.model).items())
    assert not (trained.model.parent / ".model.partial").exists()


def test_best_and_newest_are_found_without_touching_anything(trained: Volumes) -> None:
    best, last = best_state(trained)
    assert (best.global_step, last.global_step) == (10, 30)
    folder = trained.checkpoints(INSTRUCTION_TUNING)
    (folder / "last_checkpoint.pt").write_bytes(b"torn")
    before = sorted((path.name, path.stat().st_size) for path in folder.iterdir())
    assert newest_state(trained).global_step == 10
    assert sorted((path.name, path.stat().st_size) for path in folder.iterdir()) == before
    for path in folder.iterdir():
        path.write_bytes(b"torn")
    assert newest_state(trained).phase == 1
    (trained.checkpoints(PRETRAINING) / "last_checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged"):
        newest_state(trained)


def test_nothing_trained_is_said_clearly(volumes: Volumes) -> None:
    def say(service: Path, state: str, message: str = "") -> None:
        write_status(service, state=state, message=message)

    def assert_why(words: str) -> None:
        for command in (export_model, lambda volumes: answer(volumes, "Hello")):
            with pytest.raises(NoModelYet, match=rf"there is no model yet\. .*{words}"):
                command(volumes)

    assert_why("Nothing was prepared or trained yet: `docker compose up -d` or `svitlo prepare`")
    say(volumes.prepare_status, "preparing", "phase 1: 90 documents")
    say(volumes.status, "waiting for data", "waiting for the data of phase 1")
    assert_why(r"Data is being prepared \(phase 1: 90 documents\)\. Try again when training has begun")
    say(volumes.prepare_status, "error", "raw: no file fits `a.txt`. Put the file there")
    assert_why(r"Data preparation failed: raw: no file fits `a.txt`\. Put the file there")
    say(volumes.status, "stopped", "stopped by SIGTERM")
    assert_why("Data preparation failed")
    say(volumes.prepare_status, "complete", "data is prepared")
    assert_why("Training ended before it saved anything. Start it again")
    say(volumes.status, "training")
    assert_why("Training has begun and has not saved anything yet")
    say(volumes.status, "error", "phase1.yaml: 1 mistake: seed = -1")
    assert_why("Phase1.yaml: 1 mistake: seed = -1")


def test_an_earlier_phase_stands_in_only_with_a_warning(trained: Volumes) -> None:
    for path in trained.checkpoints(INSTRUCTION_TUNING).iterdir():
        path.write_bytes(b"torn")
    said: list[str] = []
    export_model(trained, say=said.append)
    assert "phase2: checkpoints exist and none of them is usable" in said[0]
    assert said[0].endswith("Until then this is the model of phase 1")


def test_answers_come_from_the_newest_model(trained: Volumes) -> None:
    said: list[str] = []
    first = answer(trained, "What is water?", max_new_tokens=5, say=said.append)
    export_model(trained, say=lambda _: None)
    exported = answer(trained, "What is water?", max_new_tokens=5, say=said.append)
    save_checkpoint(
        make_state(2, 60, seed=4, best_loss=3.25, best_step=10), trained.checkpoints(INSTRUCTION_TUNING), keep=3
    )
    answer(trained, "What is water?", max_new_tokens=5, say=said.append)
    assert "checkpoint (phase 2, step 30)" in said[0]
    assert "exported model (phase 2, step 10)" in said[1]
    assert "checkpoint (phase 2, step 60)" in said[2]
    assert exported != first  # the best weights are not the last ones
    (trained.model / "model.safetensors").write_bytes(b"damaged")
    save_checkpoint(make_state(2, 61), trained.checkpoints(INSTRUCTION_TUNING), keep=3)
    answer(trained, "x", max_new_tokens=1, say=said.append)
    assert "step 61" in said[3]


def test_generation_stops_at_the_end_of_text_and_fits_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer()
    state = make_state(2, 1)
    model = model_from(state)
    model.train()
    long = complete(model, tokenizer, "a" * 20 + " word" * 200, PRETRAINING, max_new_tokens=1_000)
    assert model.training
    assert 0 < len(tokenizer.encode(long)) <= 70
    greedy = [complete(model, tokenizer, "What is water?", INSTRUCTION_TUNING, 8) for _ in range(2)]
    assert greedy[0] == greedy[1]

    # A model that writes "yes", and then the end of text forever.
    calls: list[int] = []
    (yes,) = tokenizer.encode("yes")

    def scripted(_: object, ids: list[int]) -> torch.Tensor:
        calls.append(len(ids))
        logits = torch.zeros(50_258)
        logits[50_256 if ids[-1] == yes else yes] = 1.0
        return logits

    monkeypatch.setattr("svitlo.training.sampling.last_logits", scripted)
    assert complete(model, tokenizer, "What is water?", INSTRUCTION_TUNING, 8) == "yes"
    prompt = len(tokenizer.encode(prompt_text("What is water?")))
    assert calls == [prompt, prompt + 1]


def test_what_is_written_is_what_transformers_would_write() -> None:
    """Greedy, with the repetition penalty on what is written but not on the prompt."""
    tokenizer = Tokenizer()
    state = make_state(2, 1)
    ids = tokenizer.encode(prompt_text("What is water?"))
    penalty = transformers.RepetitionPenaltyLogitsProcessor(REPETITION_PENALTY, prompt_ignore_length=len(ids))
    expected = (
        hugging_face_model(state)
        .eval()
        .generate(  # type: ignore[misc]
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=12,
            do_sample=False,
            logits_processor=transformers.LogitsProcessorList([penalty]),
            pad_token_id=50_256,
        )
    )
    assert (
        complete(model_from(state), tokenizer, "What is water?", INSTRUCTION_TUNING, 12)
        == tokenizer.decode(expected[0, len(ids) :].tolist()).strip()
    )


def test_loss_and_gradients_are_those_of_transformers_class() -> None:
    """Forward and backward, through the whole model, to the precision of float32."""
    state = make_state(1, 1)
    ours, theirs = model_from(state), hugging_face_model(state).eval()
    tokens = torch.randint(0, 50_257, (3, 33))
    expected = theirs(input_ids=tokens, labels=tokens)
    expected.loss.backward()
    logits = ours(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_mistakes_are_explained(trained: Volumes) -> None:
    for question, message in (("  ", "question is empty"), ("word " * 100, "110 tokens.*only 64")):
        with pytest.raises(ConfigError, match=message):
            answer(trained, question)


def test_an_export_keeps_what_somebody_has_put_beside_the_model(trained: Volumes) -> None:
    export_model(trained, say=lambda _: None)
    (trained.model / "notes.txt").write_text("mine")
    (trained.model / "gguf").mkdir()
    (trained.model / "gguf" / "model.gguf").write_bytes(b"converted")
    (trained.model / "README.md").write_text("my own card")
    said: list[str] = []
    for times in (1, 2):
        export_model(trained, say=said.append)
        assert (trained.model / "notes.txt").read_text() == "mine"
        assert (trained.model / "gguf" / "model.gguf").read_bytes() == b"converted"
        assert (trained.model / "README.md.kept").read_text() == "my own card", times
        assert (trained.model / "README.md").read_text().startswith("---")
        sums = read_sums(trained.model)
        assert not {"notes.txt", "gguf/model.gguf", "README.md.kept"} & set(sums), "no export has written them"
        assert all(sum_problem(trained.model, name, expected) is None for name, expected in sums.items())
    assert len([line for line in said if line.startswith("kept, because no export has written it")]) == 6
    assert sorted(path.name for path in trained.model.parent.iterdir() if not path.name.startswith(".")) == ["model"]


def test_what_somebody_has_put_there_survives_a_cut_between_two_renames(trained: Volumes) -> None:
    export_model(trained, say=lambda _: None)
    (trained.model / "notes.txt").write_text("mine")
    trained.model.rename(replaced_name(trained.model))
    export_model(trained, say=lambda _: None)
    assert (trained.model / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_no_export_is_kept_whole(trained: Volumes) -> None:
    trained.model.mkdir()
    (trained.model / "config.json").write_text("another model")
    export_model(trained, say=lambda _: None)
    assert (trained.model / "config.json.kept").read_text() == "another model"
    assert "n_embd" in (trained.model / "config.json").read_text()


def test_an_empty_prompt_begins_like_a_document(volumes: Volumes) -> None:
    """As a sample prompt of an evaluation, and for `generate ""` after pre-training."""
    state = make_state(1, 1)
    written = complete(model_from(state), Tokenizer(), "", PRETRAINING, 5)
    assert written == complete(model_from(state), Tokenizer(), "", PRETRAINING, 5)
    save_checkpoint(state, volumes.checkpoints(PRETRAINING), keep=3)
    assert answer(volumes, "", max_new_tokens=5, say=lambda _: None) == written


def test_a_long_prompt_cannot_lead_beyond_the_window(trained: Volumes) -> None:
    export_model(trained, say=lambda _: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(trained.model, local_files_only=True)
    window = SHAPE.positions
    assert model.generate(torch.randint(0, 50_000, (1, window - 1))).shape[1] <= window
    with pytest.raises(ValueError, match="max_length"):
        model.generate(torch.randint(0, 50_000, (1, window + 5)))
    assert f"A prompt may have {window - 1} at most" in (trained.model / "README.md").read_text()
