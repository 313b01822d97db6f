"""`svitlo train` through the real command: both phases, every kind of interruption, the same bits in the end."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from svitlo.reporting.metrics import read_metrics
from svitlo.training.checkpoints import load_checkpoint
from svitlo.training.saving import save_checkpoint
from tests.conftest import Job, kill, wait_for_line
from tests.support import assert_same_run, events, last, metrics


def test_a_run_learns_in_both_phases_and_is_exported(trained: Job) -> None:
    first, second = last(trained, 1), last(trained, 2)
    assert first["finished"]
    assert second["finished"]
    assert first["global_step"] == second["global_step"] == 24
    assert (first["vocab_size"], second["vocab_size"]) == (50_257, 50_258)
    for phase, least in ((1, 1.0), (2, 0.5)):
        losses = [r["validation_loss"] for r in metrics(trained) if r["kind"] == "evaluation" and r["phase"] == phase]
        assert len(losses) == 4
        assert losses[0] - losses[-1] > least
    steps = [(r["phase"], r["step"]) for r in metrics(trained) if r["kind"] == "step"]
    assert steps == [(phase, step) for phase in (1, 2) for step in range(1, 25)]
    assert (trained.volumes / "export" / "model" / "model.safetensors").is_file()


def test_two_runs_end_in_the_same_bits_whatever_the_save_interval(trained: Job, prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    for file in ("phase1_pretraining.yaml", "phase2_instruction_tuning.yaml"):
        job.change(file, "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    job.run("train")
    assert_same_run(job, trained)


@pytest.mark.crash
def test_killed_again_and_again_it_ends_in_the_same_bits(trained: Job, prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kills = 0
    # Lines that are still to come wherever the last kill hit: a fast machine does several steps before it.
    for pattern in ("phase 1 begins", "phase 1 .* step [1-9]", "phase 1, step (16|24)", "phase 2", r"phase 2, step \d"):
        process = job.start("train")
        wait_for_line(process, pattern)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "it must still run when it is killed"
        kill(process)
        kills += 1
    job.run("train")
    assert_same_run(job, trained)
    cut_off = [event for event in events(job) if event["event"] == "cut off"]
    assert len(cut_off) == kills, "every cut is noticed"
    resumed = [event for event in events(job) if event["event"] == "resumed"]
    assert resumed
    assert all("of work repeated" in event["message"] or "no work repeated" in event["message"] for event in resumed)


@pytest.mark.crash
def test_a_run_in_bf16_is_killed_and_ends_in_the_same_bits(prepared: Job, tmp_path: Path) -> None:
    """bf16 is emulated if the CPU does not have it, so this runs only a few steps."""
    runs = []
    for name in ("undisturbed", "killed"):
        job = prepared.copy(tmp_path / name)
        job.change("phase1_pretraining.yaml", "numerics", precision="bf16")
        for file in ("phase1_pretraining.yaml", "phase2_instruction_tuning.yaml"):
            job.change(file, "training", max_steps=6)
        runs.append(job)
    undisturbed, killed = runs
    undisturbed.run("train")
    for pattern in ("phase 1 .* step [2-4]", "phase 2 .* step [2-4]"):
        process = killed.start("train")
        wait_for_line(process, pattern)
        kill(process)
    killed.run("train")
    assert_same_run(killed, undisturbed)
    assert [last(killed, phase)["numerics"]["precision"] for phase in (1, 2)] == ["bf16", "bf16"]


@pytest.mark.crash
def test_a_signal_saves_the_last_finished_step_at_once(trained: Job, prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    for file in ("phase1_pretraining.yaml", "phase2_instruction_tuning.yaml"):
        job.change(file, "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    moments = {
        "phase 1 .* step [1-7] ": signal.SIGTERM,
        "phase 1, step 8": signal.SIGINT,
        "phase 2 .* step ([1-9]|1[0-9]) ": signal.SIGTERM,
    }
    for pattern, number in moments.items():
        process = job.start("train")
        wait_for_line(process, pattern)
        start = time.monotonic()
        assert kill(process, number) == 128 + number
        assert time.monotonic() - start < 10
    steps = [r["step"] for r in read_metrics(job.volumes / "logs" / "metrics.jsonl") if r["kind"] == "step"]
    assert last(job, 2)["global_step"] == steps[-1], "no finished step is lost"
    job.run("train")
    assert_same_run(job, trained)
    resumed = [event for event in events(job) if event["event"] == "resumed"]
    assert [event["repeated_steps"] for event in resumed] == [0] * len(resumed)


@pytest.mark.crash
def test_a_resumption_says_how_much_work_is_repeated(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    job.change("phase1_pretraining.yaml", "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    process = job.start("train", "--phase", "1")
    wait_for_line(process, "phase 1 .* step [3-7] of")
    kill(process)
    done = read_metrics(job.volumes / "logs" / "metrics.jsonl")
    num_steps = sum(record["kind"] == "step" for record in done)
    assert num_steps >= 3
    process = job.start("train", "--phase", "1")
    line = wait_for_line(process, "resumed at")
    kill(process)
    assert f"resumed at step 0 of 24 (phase 1, epoch 1); {num_steps} steps and 1 evaluation, " in line


@pytest.mark.crash
def test_a_damaged_last_checkpoint_costs_a_few_steps_and_not_the_result(
    trained: Job, prepared: Job, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    process = job.start("train")
    wait_for_line(process, "phase 1, step 16")
    kill(process)
    path = job.volumes / "checkpoints" / "phase1" / "last_checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    job.run("train")
    assert_same_run(job, trained)
    fell_back = [event for event in events(job) if event["event"] == "fell back"]
    # At an evaluation the best checkpoint is a second name for the last one, so it is damaged with it.
    assert [Path(event["path"]).name for event in fell_back] in (
        ["last_checkpoint.pt"],
        ["last_checkpoint.pt", "best_checkpoint.pt"],
    )
    assert all("checksum" in event["message"] for event in fell_back)
    assert (path.parent / "last_checkpoint.pt.broken").exists()


def test_nothing_usable_stops_with_an_explanation(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    (job.volumes / "checkpoints" / "complete.json").unlink()
    for path in (job.volumes / "checkpoints" / "phase1").glob("*.pt"):
        path.write_bytes(b"")
    done = job.run("train", check=2)
    assert "none of them is usable" in done.stderr
    assert "make restore" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.crash
def test_a_start_imports_neither_transformers_nor_torchs_compiler(
    prepared: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes about as long to import as torch itself, and that after each power cut."""
    job = prepared.copy(tmp_path)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    process = job.start("train")
    assert process.stdout is not None
    lines = list(itertools.takewhile(lambda line: "| step " not in line, process.stdout))
    kill(process)
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    assert "torch.optim.adamw" in imported
    assert not {"transformers", "torch._dynamo", "sympy"} & imported


def test_a_finished_run_is_recognised_without_torch(trained: Job) -> None:
    done = subprocess.run(
        [trained.command("train")[0], "-X", "importtime", *trained.command("train")[1:]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "training is complete" in done.stdout
    assert " torch" not in done.stderr


def test_a_changed_configuration_is_refused_and_named(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    job.change("phase1_pretraining.yaml", "training", learning_rate=1e-4)
    message = job.run("train", check=2).stderr
    assert "is complete" in message
    assert "training.learning_rate was 0.006, is now 0.0001" in message
    (job.volumes / "checkpoints" / "complete.json").unlink()
    message = job.run("train", check=2).stderr
    assert "training.learning_rate was 0.006, is now 0.0001" in message
    assert "make new-run" in message


def test_changed_data_is_refused(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    (job.volumes / "checkpoints" / "complete.json").unlink()
    with open(job.volumes / "raw" / "encyclopedia.txt", "a", encoding="utf-8") as file:
        file.write("\nNew article\nThis text was not there before, and it is long enough to be kept as a document.\n")
    job.run("prepare")
    assert "not the data that this run began with" in job.run("train", check=2).stderr


def test_phase_2_alone_explains_what_is_missing(prepared: Job, tmp_path: Path) -> None:
    assert "Run phase 1 first" in prepared.copy(tmp_path).run("train", "--phase", "2", check=2).stderr


def test_one_phase_at_a_time_gives_the_same_run(trained: Job, prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    assert "phase 1 finished" in job.run("train", "--phase", "1").stdout
    assert not (job.volumes / "checkpoints" / "phase2").exists()
    job.run("train", "--phase", "2")
    assert_same_run(job, trained)


def test_resume_from_a_chosen_checkpoint(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    older = sorted((job.volumes / "checkpoints" / "phase2").glob("checkpoint-*.pt"))[0]
    done = job.run("train", "--resume", str(older))
    assert f"resumed at step {int(older.stem.split('-')[1])} of 24" in done.stdout
    assert list((job.volumes / "checkpoints" / "phase2").glob("*.superseded"))
    assert_same_run(job, trained)


def test_a_chosen_checkpoint_that_is_refused_moves_nothing(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    folder = job.volumes / "checkpoints" / "phase2"
    before = sorted(path.name for path in folder.iterdir())
    job.change("phase2_instruction_tuning.yaml", "training", seed=7)
    older = min(folder.glob("checkpoint-*.pt"))
    assert "training.seed" in job.run("train", "--resume", str(older), check=2).stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_auto_resume_off_refuses_to_start_over_checkpoints(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    (job.volumes / "checkpoints" / "complete.json").unlink()
    folder = job.volumes / "checkpoints" / "phase1"
    state = load_checkpoint(folder / "last_checkpoint.pt")
    assert state.finished
    state.finished = ""
    save_checkpoint(state, folder, keep=3)
    job.change("phase1_pretraining.yaml", "training", auto_resume=False)
    assert "auto_resume" in job.run("train", check=2).stderr


def test_early_stopping_survives_interruptions(prepared: Job, tmp_path: Path) -> None:
    """Nothing improves by 5 nats, so the second evaluation after the first ends the phase, interrupted or not."""
    job = prepared.copy(tmp_path)
    job.change("phase1_pretraining.yaml", "training", min_improvement=5.0, early_stopping_patience=2)
    process = job.start("train", "--phase", "1")
    wait_for_line(process, "phase 1, step 8")
    kill(process, signal.SIGTERM)
    done = job.run("train", "--phase", "1")
    assert "stopped early at step 16" in done.stdout
    assert last(job, 1)["global_step"] == 16


def test_it_waits_for_data_and_stops_when_asked(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    (job.volumes / "data" / "phase1" / "manifest.json").rename(tmp_path / "manifest.json")
    process = job.start("train", "--phase", "1")
    wait_for_line(process, "waiting for the data of phase 1")
    assert json.loads((job.volumes / "logs" / "status.json").read_text())["state"] == "waiting for data"
    (tmp_path / "manifest.json").rename(job.volumes / "data" / "phase1" / "manifest.json")
    wait_for_line(process, "phase 1 begins")
    assert kill(process, signal.SIGTERM) == 143


def test_a_volume_that_was_never_set_up_is_not_taken_for_an_empty_one(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    (job.volumes / "checkpoints" / ".svitlo-volume").unlink()
    for command in (("train",), ("train", "--hold")):
        done = job.run(*command, check=1)
        assert "marker file" in done.stderr
        assert "svitlo setup" in done.stderr


def test_two_trainers_do_not_share_a_volume(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    process = job.start("train", "--phase", "1")
    wait_for_line(process, "phase 1 begins")
    assert "another trainer" in job.run("train", check=2).stderr
    kill(process)


def test_threads_and_cores_that_do_not_match_are_told_when_a_run_begins(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    for file, steps in (("phase1_pretraining.yaml", 2), ("phase2_instruction_tuning.yaml", 1)):
        job.change(file, "training", max_steps=steps)
        job.change(file, "evaluation", max_sequences=2)
    one_core = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    done = subprocess.run([*one_core, *job.command("train")], capture_output=True, text=True, check=True)
    assert "phase1_pretraining.yaml: numerics.threads = 2, and 1 core may be used, so steps are slower" in done.stdout
    told = [event["message"] for event in events(job) if event["event"] == "threads"]
    assert len(told) == 1, "once for the whole run"
    assert "set it to 1 in this file" in told[0]
