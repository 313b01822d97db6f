"""Links inside the volumes: what lies behind them is part of the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from svitlo.operations.backup import backup
from svitlo.operations.new_run import new_run
from svitlo.operations.restore import restore, verify_backup
from svitlo.operations.shared import BackupError
from svitlo.operations.verify import verify_volumes
from svitlo.phases import PRETRAINING
from svitlo.storage.sums import write_sums
from svitlo.training.saving import save_checkpoint
from svitlo.volumes import Volumes
from tests.support import checkpoint_state, quiet


def make_volumes(root: Path, *steps: int, run_id: str = "r") -> Volumes:
    volumes = Volumes(root)
    volumes.set_up()
    for step in steps:
        save_checkpoint(checkpoint_state(step, {}, run_id=run_id), volumes.checkpoints(PRETRAINING), keep=3)
    return volumes


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    volumes = make_volumes(tmp_path / "volumes", 10, 20)
    volumes.model.mkdir()
    (volumes.model / "model.safetensors").write_bytes(b"weights")
    write_sums(volumes.model)
    return volumes


def move_away(path: Path, larger_disk: Path, relative: bool = False) -> Path:
    larger_disk.mkdir(exist_ok=True)
    there = path.rename(larger_disk / path.name)
    path.symlink_to(os.path.relpath(there, path.parent) if relative else there)
    return there


def make_backup(volumes: Volumes, destination: Path) -> Path:
    return destination / backup(volumes, destination, say=quiet).removeprefix("complete: ")


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_and_a_file_on_another_disk_are_backed_up(volumes: Volumes, tmp_path: Path, relative: bool) -> None:
    names = set(verify_backup(make_backup(volumes, tmp_path / "before")))
    move_away(volumes.checkpoints(PRETRAINING), tmp_path / "large", relative)
    move_away(volumes.model / "model.safetensors", tmp_path / "large", relative)
    folder = make_backup(volumes, tmp_path / "backups")
    assert set(verify_backup(folder)) == names
    other = make_volumes(tmp_path / "other")
    assert "step 20" in restore(other, folder, say=quiet)
    assert verify_volumes(other, quiet)


def test_a_file_under_a_linked_name_is_stored_once(volumes: Volumes, tmp_path: Path) -> None:
    (volumes.model / "again").symlink_to("model.safetensors")
    model = make_backup(volumes, tmp_path / "backups") / "export" / "model"
    assert (model / "again").samefile(model / "model.safetensors")


@pytest.mark.parametrize("goal", [".", "..", "../..", "../beside", "self", "/nowhere"])
def test_a_link_that_cannot_be_followed_to_its_end_is_no_complete_backup(
    volumes: Volumes, tmp_path: Path, goal: str
) -> None:
    (volumes.checkpoints(PRETRAINING) / "self").symlink_to(goal)
    if goal == "../beside":
        beside = volumes.root / "checkpoints" / "beside"
        beside.mkdir()
        (beside / "back").symlink_to("../phase1")
    with pytest.raises(BackupError, match=r"(circle|nothing is there).*[Rr]emove"):
        backup(volumes, tmp_path / "backups", say=quiet)
    assert not (tmp_path / "backups").exists() or not list((tmp_path / "backups").iterdir())


def test_what_is_neither_file_nor_folder_is_named(volumes: Volumes, tmp_path: Path) -> None:
    os.mkfifo(volumes.logs / "pipe")
    lines: list[str] = []
    backup(volumes, tmp_path / "backups", say=lines.append)
    assert [line for line in lines if line.startswith("left out") and line.endswith("logs/pipe")]


def test_a_run_behind_links_is_not_replaced_unasked(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    other = make_volumes(tmp_path / "other", 30, run_id="another")
    for number, path in enumerate(sorted(other.checkpoints(PRETRAINING).glob("*.pt"))):
        move_away(path, tmp_path / f"large{number}")
    with pytest.raises(BackupError, match=r"holds run another at phase 1, step 30"):
        restore(other, folder, say=quiet)
    other.checkpoints(PRETRAINING).rename(other.root / "checkpoints" / "Phase1")
    with pytest.raises(BackupError, match=r"holds run another at phase 1, step 30"):
        restore(other, folder, say=quiet)


def test_a_disk_that_is_not_mounted_is_not_an_empty_run(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    there = move_away(volumes.checkpoints(PRETRAINING), tmp_path / "large")
    there.rename(tmp_path / "unplugged")
    with pytest.raises(BackupError, match=r"phase1: a link to .*large/phase1, and nothing is there"):
        restore(volumes, folder, say=quiet)
    lines: list[str] = []
    assert not verify_volumes(volumes, lines.append)
    assert lines[0].startswith("checkpoints/phase1: a link to")
    assert "1 NOT GOOD" in lines[-1]
    restore(volumes, folder, force=True, say=quiet)
    assert verify_volumes(volumes, quiet)


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_that_is_moved_aside_still_leads_to_the_same_place(
    volumes: Volumes, tmp_path: Path, relative: bool
) -> None:
    there = move_away(volumes.checkpoints(PRETRAINING), tmp_path / "large", relative)
    weights = move_away(volumes.model / "model.safetensors", tmp_path / "large", relative)
    (volumes.model / "inside").symlink_to("SHA256SUMS")
    new_run(volumes)
    (aside,) = (volumes.root / "runs").iterdir()
    assert (aside / "checkpoints" / "phase1").samefile(there)
    assert (aside / "export" / "model" / "model.safetensors").samefile(weights)
    assert str((aside / "export" / "model" / "inside").readlink()) == "SHA256SUMS"


def test_verify_follows_links(volumes: Volumes, tmp_path: Path) -> None:
    there = move_away(volumes.checkpoints(PRETRAINING), tmp_path / "large")
    weights = move_away(volumes.model / "model.safetensors", tmp_path / "large")
    assert verify_volumes(volumes, quiet)
    (there / "last_checkpoint.pt").write_bytes(b"torn")
    weights.write_bytes(b"torn")
    lines: list[str] = []
    assert not verify_volumes(volumes, lines.append)
    assert "2 NOT GOOD" in lines[-1]
