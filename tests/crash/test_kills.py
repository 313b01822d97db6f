"""Interruption anywhere: SIGKILL at random moments, SIGTERM at exact ones. The bits are those of the undisturbed run.

`make test` kills 15 times, SVITLO_TORTURE=1 200 times. The seed is printed, and SVITLO_SEED repeats it.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from svitlo.appliance.endings import MOST_DEATHS
from svitlo.operations.restore import verify_backup
from svitlo.operations.shared import BackupError
from svitlo.reporting.metrics import last_step
from tests.conftest import Job, kill
from tests.crash.forks import At, fork, new_seed, torture
from tests.support import assert_same_run, events, last

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200 if torture() else 900)]

NUM_KILLS = 200 if torture() else 15
MOST_LINES = (6, 40)
"""A process is killed after at most so many lines of output, half of them early: kills spread over the whole run."""
COLD_SHARE = 0.1
"""So many of the processes begin with Python's first instruction, and are killed during their imports or after."""
COLD_SECONDS = 8.0
SECONDS_TO_STOP = 10.0
PHASE_FILES = ("phase1_pretraining.yaml", "phase2_instruction_tuning.yaml")


class Killer:
    """Starts trainers on one job and kills them, until the run is complete or enough were killed."""

    def __init__(self, job: Job, rng: random.Random) -> None:
        self.job = job
        self.kills = 0
        self.moments: Counter[str] = Counter()
        """What they were at, as far as they had said so."""
        self._rng = rng
        self._least_noticed = 0
        self._furthest = (0, 0)
        self._fruitless = 0
        for file in PHASE_FILES:
            job.change(file, "reporting", line_every_seconds=0.05)

    def kill_up_to(self, times: int) -> bool:
        """Returns whether the run is complete."""
        while self.kills < times:
            had_checkpoint = [phase for phase in (1, 2) if self._has_checkpoint(phase)]
            # With more kills in a row and no progress, the trainer would take it for an error that does not go away.
            may_be_fruitless = self._fruitless < MOST_DEATHS - 1
            if may_be_fruitless and self._rng.random() < COLD_SHARE:
                code, said = self._kill_cold()
            else:
                code, said = self._kill_fork(may_be_fruitless)
            if code == 0:
                return True
            assert code == -signal.SIGKILL, said
            for phase in had_checkpoint:
                assert f"phase {phase} begins" not in said, "it never starts again from zero over a checkpoint"
            self._note(said)
        return False

    def check_events(self) -> None:
        """Every kill is noticed, except before the trainer has begun and after it has completed the run."""
        assert self._least_noticed <= len([e for e in events(self.job) if e["event"] == "cut off"]) <= self.kills

    def _kill_fork(self, may_be_fruitless: bool) -> tuple[int | None, str]:
        """At a random moment after a random number of lines. Returns exit code and output."""
        num_lines = self._rng.randint(0, self._rng.choice(MOST_LINES))
        with fork(self.job, "train") as trainer:
            while trainer.is_running() and (
                trainer.output().count("\n") < num_lines if may_be_fruitless else self._reached() <= self._furthest
            ):
                time.sleep(0.005)
            trainer.wait(self._rng.uniform(0, 0.4))
            code = trainer.kill() if trainer.is_running() else trainer.wait(60)
            return code, trainer.output()

    def _kill_cold(self) -> tuple[int, str]:
        process = self.job.start("train")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._rng.uniform(0, COLD_SECONDS))
        process.kill()
        assert process.stdout is not None
        said = process.stdout.read()
        return kill(process), said

    def _note(self, said: str) -> None:
        self.kills += 1
        is_complete = (self.job.volumes / "checkpoints" / "complete.json").exists()
        self._least_noticed += "trainer started" in said and not is_complete
        status = self.job.volumes / "logs" / "status.json"
        known = json.loads(status.read_text()) if "trainer started" in said else {"state": "imports"}
        self.moments[f"{known['state']} {known.get('phase') or ''}".strip()] += 1
        reached = self._reached()
        self._fruitless = 1 if reached > self._furthest else self._fruitless + 1
        self._furthest = max(reached, self._furthest)

    def _reached(self) -> tuple[int, int]:
        return last_step(self.job.volumes / "logs" / "metrics.jsonl")

    def _has_checkpoint(self, phase: int) -> bool:
        return (self.job.volumes / "checkpoints" / f"phase{phase}" / "last_checkpoint.pt").exists()


def test_killed_at_random_moments_it_ends_in_the_same_bits(trained: Job, prepared: Job, tmp_path: Path) -> None:
    rng = random.Random(new_seed())
    kills, moments = 0, Counter[str]()
    for number in range(NUM_KILLS):
        job = prepared.copy(tmp_path / str(number))
        killer = Killer(job, rng)
        if not killer.kill_up_to(NUM_KILLS - kills):
            with fork(job, "train") as trainer:
                assert trainer.wait(600) == 0, trainer.output()
        assert_same_run(job, trained)
        killer.check_events()
        kills += killer.kills
        moments += killer.moments
        shutil.rmtree(tmp_path / str(number))
        if kills == NUM_KILLS:
            break
    where = ", ".join(f"{state} {count}" for state, count in sorted(moments.items()))
    print(f"{kills} kills in {number + 1} runs, while: {where}")
    assert kills == NUM_KILLS


def test_a_power_cut_between_the_end_and_the_word_that_it_is_the_end(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    path = job.volumes / "logs" / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "exporting"}))
    with fork(job, "train") as trainer:
        assert trainer.wait(60) == 0
    status = json.loads(path.read_text())
    assert status["state"] == "complete"
    assert "training is complete" in status["message"]
    assert (status["phase"], status["step"]) == (2, 24)


TERM, INT = signal.SIGTERM, signal.SIGINT
STOPS = {
    "while shards are verified": At("svitlo.data.shards", "file_problem", signals=(TERM,)),
    "while the state is read": At("svitlo.training.setup", "find_newest", after=True, signals=(TERM,)),
    "before the first step": At("svitlo.training.gradient", "Gradient.warm_up", signals=(TERM,)),
    "in the first evaluation": At("svitlo.training.evaluation", "hidden_states", call=3, signals=(TERM,)),
    "while a sample is written": At("svitlo.training.setup", "complete", signals=(TERM,)),
    "in the middle of a step": At("svitlo.training.gradient", "hidden_states", call=8, signals=(TERM,)),
    "twice, at once": At("svitlo.training.gradient", "hidden_states", call=8, signals=(INT, TERM)),
    "before an evaluation's save": At("svitlo.training.saving", "Saver.save_at_any_price", signals=(TERM,)),
    "in the middle of a save": At("torch", "save", after=True, signals=(TERM,)),
    "twice in the middle of a save": At("torch", "save", after=True, signals=(TERM, TERM)),
    "at the change of phase": At("svitlo.training.setup", "find_best", signals=(TERM,)),
    "in the middle of a step of phase 2": At("svitlo.training.gradient", "hidden_states", call=8, signals=(TERM,)),
    "when the export begins": At("svitlo.model.export", "best_state", signals=(TERM,)),
    "in the middle of the export": At("svitlo.model.export", "write_sums", signals=(TERM, TERM)),
}


def test_asked_to_stop_at_any_moment_it_saves_and_ends_within_10_s(trained: Job, prepared: Job, tmp_path: Path) -> None:
    """One run, stopped at each of these moments in turn."""
    job = prepared.copy(tmp_path)
    for file in PHASE_FILES:  # so that only the signal is a reason to save between two evaluations
        job.change(file, "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    note = tmp_path / "note"
    for moment, at in STOPS.items():
        with fork(job, "train", hook=At(**{**vars(at), "note": str(note)})) as trainer:
            code = trainer.wait(300)
            seconds = time.monotonic() - float(note.read_text())
            assert code == 128 + at.signals[0], f"{moment}: exit code {code}\n{trainer.output()[-3000:]}"
            assert "Traceback" not in trainer.output(), moment
        print(f"stopped {moment}: {seconds:.2f} s")
        assert seconds < SECONDS_TO_STOP, moment
        note.unlink()
        phase, step = last_step(job.volumes / "logs" / "metrics.jsonl")
        assert phase == 0 or last(job, phase)["global_step"] == step, f"{moment}: a finished step is lost"
        assert not list((job.volumes / "checkpoints").rglob("*.tmp")), moment
        assert not list((job.volumes / "checkpoints").rglob("*.broken*")), moment
    assert not (job.volumes / "export" / "model").exists()
    with fork(job, "train") as trainer:
        assert trainer.wait(300) == 0, trainer.output()
    assert_same_run(job, trained)
    assert not [event for event in events(job) if event["event"] == "cut off"], "all of these were orderly ends"
    assert {event["repeated_steps"] for event in events(job) if event["event"] == "resumed"} == {0}


def test_asked_to_stop_while_it_waits_for_data_it_ends_at_once(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    (job.volumes / "data" / "phase1" / "manifest.json").unlink()
    with fork(job, "train") as trainer:
        trainer.wait_for_line("waiting for the data of phase 1")
        start = time.monotonic()
        assert trainer.kill(TERM) == 143
        assert time.monotonic() - start < SECONDS_TO_STOP


def test_a_backup_killed_at_random_moments_never_looks_complete(trained: Job, tmp_path: Path) -> None:
    rng = random.Random(new_seed())
    destination = tmp_path / "backups"
    with fork(trained, "backup", str(destination)) as process:
        start = time.monotonic()
        assert process.wait(300) == 0
    seconds = time.monotonic() - start
    (complete,) = destination.iterdir()
    num_files = len(verify_backup(complete))
    for _ in range(50 if torture() else 8):
        with fork(trained, "backup", str(destination)) as process:
            process.wait(rng.uniform(0, seconds))
    outcomes = Counter[str]()
    for folder in destination.iterdir():
        if folder.name.endswith(".partial"):
            outcomes["refused"] += 1
            with pytest.raises(BackupError, match="not complete"):
                verify_backup(folder)
        else:
            outcomes["complete"] += 1
            assert len(verify_backup(folder)) == num_files
    print(f"backups killed at random moments: {dict(outcomes)}")
    assert outcomes["refused"] > 0
