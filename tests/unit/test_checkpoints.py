"""Checkpoints: complete at every instant, verified before use, never overwritten by a start from zero."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from svitlo.config import CheckpointConfig
from svitlo.errors import CheckpointError, VolumeError
from svitlo.interruption import Interruption
from svitlo.phases import PRETRAINING
from svitlo.reporting.observer import Observer, RunState
from svitlo.storage import files
from svitlo.training import checkpoints
from svitlo.training.checkpoints import BEST, LAST, find_best, load_checkpoint
from svitlo.training.saving import Saver, SaveSchedule, mark_best, save_checkpoint
from svitlo.training.state import TrainingState
from svitlo.volumes import MARKER, Volumes
from tests.support import Rejections, newest


def make_state(step: int, phase: int = 1) -> TrainingState:
    return TrainingState(
        phase=phase,
        vocab_size=10,
        model={"layers": 1, "width": 8, "heads": 1, "positions": 32},
        configuration={"training": {"seed": 1}},
        configuration_digest="c",
        data_digest="d",
        numerics={"threads": 1, "precision": "fp32"},
        run_id="r",
        global_step=step,
        model_state_dict={"weight": torch.full((50, 8), float(step))},
        optimizer_state_dict={"state": {0: {"exp_avg": torch.full((50, 8), -float(step))}}},
    )


def save_steps(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_checkpoint(make_state(step), folder, keep)


def test_a_saved_state_comes_back_whole(tmp_path: Path) -> None:
    save_steps(tmp_path, 7)
    state = newest(tmp_path)
    assert state is not None
    assert state.global_step == 7
    assert state.model_state_dict["weight"].equal(torch.full((50, 8), 7.0))
    assert state.optimizer_state_dict["state"][0]["exp_avg"].equal(torch.full((50, 8), -7.0))
    # The promise to other tools: a plain dictionary that needs no class of Svitlo.
    content = torch.load(tmp_path / LAST, weights_only=True)
    assert {
        "phase", "epoch", "global_step", "model_state_dict", "optimizer_state_dict", "loss", "timestamp",
        "periodic_save", "vocab_size",
    } <= set(content)  # fmt: skip


def test_generations_are_kept_and_the_oldest_removed(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3, 4, 5, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000003.pt",
        "checkpoint-000000004.pt",
        LAST,
    ]


def test_a_complete_last_checkpoint_exists_at_every_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the folder at every system call that changes names."""
    save_steps(tmp_path, 1)
    seen = []
    for name in ("rename", "link", "unlink"):
        real = getattr(os, name)

        def watched(*arguments: object, real: object = real, **options: object) -> object:
            seen.append(load_checkpoint(tmp_path / LAST).global_step)
            result = real(*arguments, **options)  # type: ignore[operator]
            seen.append(load_checkpoint(tmp_path / LAST).global_step)
            return result

        monkeypatch.setattr(os, name, watched)
    save_steps(tmp_path, 2, 3)
    assert len(seen) >= 8
    assert seen == sorted(seen)
    assert set(seen) == {1, 2, 3}


def damage_truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def damage_empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_tensor_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.find(torch.full((50,), 3.0).numpy().tobytes()) + 17
    content[position] ^= 1
    path.write_bytes(content)


def damage_zero_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.find(torch.full((50,), 3.0).numpy().tobytes())
    content[position : position + 1024] = bytes(1024)
    path.write_bytes(content)


def damage_text(path: Path) -> None:
    path.write_text("not a checkpoint\n" * 100)


def damage_pickle_bomb(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {path.parent / 'exploded'}",)

    torch.save({"global_step": 10**6, "bomb": Bomb()}, path, pickle_module=pickle)


def damage_other_phase(path: Path) -> None:
    save_checkpoint(make_state(99, phase=2), path.parent / "elsewhere", 3)
    (path.parent / "elsewhere" / LAST).replace(path)


def damage_symbolic_link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate, damage_empty, damage_tensor_bit, damage_zero_page, damage_text, damage_pickle_bomb,
        damage_other_phase, damage_symbolic_link,
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path: Path, damage: object) -> None:
    save_steps(tmp_path, 1, 2, 3)
    damage(tmp_path / LAST)  # type: ignore[operator]
    rejections = Rejections()
    state = newest(tmp_path, rejections)
    assert state is not None
    assert state.global_step == 2
    assert [path.name for path, _ in rejections] == [LAST]
    assert rejections[0][1]
    assert (tmp_path / (LAST + ".broken")).exists() or (tmp_path / (LAST + ".broken")).is_symlink()
    assert load_checkpoint(tmp_path / LAST).global_step == 2, "the good one takes the name"
    assert not (tmp_path / "exploded").exists(), "nothing from a checkpoint is ever executed"


def test_truncation_at_any_length_is_noticed(tmp_path: Path) -> None:
    save_steps(tmp_path, 3)
    content = (tmp_path / LAST).read_bytes()
    lengths = random.Random(1).sample(range(len(content)), 150)
    for length in lengths:
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "cut.pt")


def test_where_nothing_is_usable_training_never_starts_from_zero(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for path in tmp_path.glob("*.pt"):
        damage_empty(path)
    for _ in range(2):  # also on the next start, when only the set-aside files are left
        with pytest.raises(CheckpointError, match="none of them is usable"):
            newest(tmp_path, Rejections())


def test_an_empty_folder_means_a_new_run(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "missing") is None


def test_order_is_by_the_step_inside_not_by_the_clock(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    os.utime(tmp_path / "checkpoint-000000001.pt", (4e9, 4e9))
    os.utime(tmp_path / LAST, (1, 1))
    state = newest(tmp_path)
    assert state is not None
    assert state.global_step == 2


def test_the_best_state_outlives_newer_ones_and_its_loss_falls_back(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    mark_best(tmp_path)
    for step in (2, 3, 4, 5, 6):
        state = make_state(step)
        state.best_step, state.best_loss = 1, 1.0
        save_checkpoint(state, tmp_path, 3)
    assert find_best(tmp_path, PRETRAINING).global_step == 1
    damage_truncate(tmp_path / BEST)
    rejections = Rejections()
    assert find_best(tmp_path, PRETRAINING, on_rejected=rejections).global_step == 6
    assert rejections


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_or_broken_disk_leaves_the_old_checkpoint_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save_steps(tmp_path, 1, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", _raise_io_error)
    else:
        monkeypatch.setattr(torch, "save", _write_a_little_then_fail)
    with pytest.raises(OSError):  # noqa: PT011 — whatever the system says
        save_steps(tmp_path, 3)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_steps(tmp_path, 3)
    assert load_checkpoint(tmp_path / LAST).global_step == 3


def _raise_io_error(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def _write_a_little_then_fail(_: object, file: object) -> None:
    file.write(b"x" * 5000)  # type: ignore[attr-defined]
    raise OSError(errno.ENOSPC, "No space left on device")


def test_fsync_comes_before_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    save_steps(tmp_path, 1)
    assert calls[-3:] == ["fsync", "rename", "fsync"] or calls[-4:] == ["fsync", "rename", "fsync", "fsync"]
    assert not list(tmp_path.glob("*.tmp"))
    assert checkpoints.LAST == LAST


def gaps_in_an_hour(seconds_of_a_step: float, costs: Iterator[float]) -> list[float]:
    """Seconds of training between the saves in one hour, if each save takes this long."""
    now, gaps, last = [0.0], [], 0.0
    schedule = SaveSchedule(CheckpointConfig(save_every_seconds=60, max_cost=0.01), clock=lambda: now[0])
    for step in range(1, int(3600 / seconds_of_a_step) + 1):
        now[0] += seconds_of_a_step
        if schedule.is_due(step):
            gaps.append(now[0] - last)
            cost = next(costs)
            now[0] += cost
            last = now[0]
            schedule.saved(step, cost)
    return gaps


def test_saving_is_as_often_as_configured_unless_it_is_slow() -> None:
    assert set(gaps_in_an_hour(6.0, itertools.repeat(0.5))) == {60.0}
    first, *others = gaps_in_an_hour(6.0, itertools.repeat(3.0))
    assert first == 60.0, "what a save costs is not known yet"
    assert set(others) == {300.0}, "3 s of saving are 1 % of 300 s"


def test_a_single_slow_save_puts_the_next_one_off_by_nothing() -> None:
    assert set(gaps_in_an_hour(6.0, itertools.cycle([0.5, 0.5, 5.0, 0.5, 0.5]))) == {60.0}


def test_a_disk_that_becomes_slow_is_noticed_after_three_saves() -> None:
    gaps = gaps_in_an_hour(6.0, itertools.chain([0.5] * 10, itertools.repeat(10.0)))
    assert gaps[:13] == [60.0] * 13
    assert set(gaps[13:]) == {1002.0}


def test_no_more_than_the_interval_is_ever_at_stake() -> None:
    """A power cut just before the next step ends costs that step too, so the save comes before it."""
    assert set(gaps_in_an_hour(7.0, itertools.repeat(0.5))) == {56.0}


def test_saving_every_n_steps_happens_once_per_milestone() -> None:
    schedule = SaveSchedule(CheckpointConfig(save_every_n_steps=5), clock=lambda: 0.0)
    assert [step for step in range(1, 12) if schedule.is_due(step)] == [5, 10]
    schedule.saved(10, seconds=0.1)
    assert not schedule.is_due(10)


class Failures(Observer):
    """Collects why saves failed. Everything else goes unheard."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def save_failed(self, state: RunState, error: BaseException) -> None:
        self.errors.append(error)


class Trained:
    """Stands for a model or an optimizer: something with a state."""

    def state_dict(self) -> dict[str, object]:
        return {"weight": torch.zeros(3)}


def saver_on(volumes: Volumes) -> tuple[Saver, Failures]:
    volumes.set_up()
    observer = Failures()
    folder = volumes.checkpoints(PRETRAINING)
    return Saver(folder, CheckpointConfig(), observer, Interruption(signals=())), observer


def save(saver: Saver, step: int) -> bool:
    return saver.save(make_state(step), Trained(), Trained())  # type: ignore[arg-type]


def test_nothing_is_saved_where_the_disk_was(tmp_path: Path) -> None:
    """The folder that a disk was mounted on, or another disk in its place, is not the volume that was set up."""
    volumes = Volumes(tmp_path / "volumes")
    saver, observer = saver_on(volumes)
    assert save(saver, 1)
    place = volumes.root / "checkpoints"
    away = place.rename(tmp_path / "away")
    place.mkdir()
    assert not save(saver, 2)
    assert not list(place.iterdir())
    (place / MARKER).write_text(json.dumps({"volume": "checkpoints", "id": "another"}))
    assert not save(saver, 3)
    assert [path.name for path in place.iterdir()] == [MARKER]
    assert ["not mounted any more" in str(error) for error in observer.errors] == [True, True]
    (place / MARKER).unlink()
    place.rmdir()
    away.rename(place)
    assert save(saver, 4)
    assert load_checkpoint(place / "phase1" / LAST).global_step == 4


def test_the_best_one_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = Volumes(tmp_path / "volumes")
    saver, observer = saver_on(volumes)
    save(saver, 1)
    marker = volumes.root / "checkpoints" / MARKER
    content = marker.read_bytes()
    marker.unlink()
    monkeypatch.setattr(Interruption, "wait", lambda self, seconds: marker.write_bytes(content))
    saver.mark_best()
    assert len(observer.errors) == 1
    assert load_checkpoint(marker.parent / "phase1" / BEST).global_step == 1


def test_a_checkpoint_that_is_lost_is_not_waited_for(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path / "volumes")
    saver, _ = saver_on(volumes)
    save(saver, 1)
    (volumes.checkpoints(PRETRAINING) / LAST).unlink()
    with pytest.raises(FileNotFoundError):
        saver.mark_best()


def test_without_hard_links_the_copy_is_compared_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def damage(file: BinaryIO) -> None:
        file.seek(100)
        file.write(b"?")
        file.flush()

    save_steps(tmp_path, 1)
    monkeypatch.setattr(os, "link", refuse)
    mark_best(tmp_path)
    assert load_checkpoint(tmp_path / BEST).global_step == 1
    save_steps(tmp_path, 2)
    monkeypatch.setattr(files, "fsync_file", damage)
    with pytest.raises(OSError, match="not what was copied"):
        mark_best(tmp_path)
    assert load_checkpoint(tmp_path / BEST).global_step == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_without_room_for_a_copy_the_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_steps(tmp_path, 1, 2)
    (tmp_path / LAST).unlink()
    monkeypatch.setattr(checkpoints, "link_durably", full)
    with pytest.raises(VolumeError, match=r"no space is left on this disk\. All checkpoints are kept"):
        newest(tmp_path)
