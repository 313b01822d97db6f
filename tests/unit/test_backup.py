"""Backups are consistent while training goes on. A restore cut off anywhere is noticed and can be repeated."""

from __future__ import annotations

import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svitlo.errors import VolumeError
from svitlo.operations import backup as module
from svitlo.operations import restore as restore_module
from svitlo.operations import shared
from svitlo.operations.backup import backup
from svitlo.operations.new_run import new_run
from svitlo.operations.restore import restore, verify_backup
from svitlo.operations.shared import BackupError
from svitlo.operations.verify import verify_volumes
from svitlo.phases import PRETRAINING, phase_numbered
from svitlo.reporting.overview import overview
from svitlo.storage import files
from svitlo.storage.locks import exclusive_lock
from svitlo.storage.sums import write_sums
from svitlo.training.saving import mark_best, save_checkpoint
from svitlo.training.state import TrainingState
from svitlo.volumes import MARKER, Volumes
from tests.support import Rejections, newest, quiet


def save(volumes: Volumes, step: int, phase: int = 1, run_id: str = "run-a") -> None:
    """A real checkpoint file, with a small tensor for a model."""
    state = TrainingState(
        phase=phase,
        vocab_size=50_257,
        model={},
        configuration={},
        configuration_digest="c",
        data_digest="d",
        numerics={},
        run_id=run_id,
        global_step=step,
        model_state_dict={"weight": torch.full((1000,), float(step))},
    )
    save_checkpoint(state, volumes.checkpoints(phase_numbered(phase)), keep=3)


def make_volumes(root: Path) -> Volumes:
    volumes = Volumes(root)
    volumes.set_up()
    return volumes


def write_model(volumes: Volumes, content: str) -> None:
    volumes.model.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (volumes.model / name).write_text(content)
    write_sums(volumes.model)


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    volumes = make_volumes(tmp_path / "volumes")
    for step in (10, 20):
        save(volumes, step)
    mark_best(volumes.checkpoints(PRETRAINING))
    save(volumes, 30)
    volumes.data(PRETRAINING).mkdir()
    (volumes.data(PRETRAINING) / "train-00000.npy").write_bytes(b"tokens")
    volumes.metrics.write_text("{}\n")
    write_model(volumes, "first")
    return volumes


def make_backup(volumes: Volumes, destination: Path) -> Path:
    name = backup(volumes, destination, say=quiet).removeprefix("complete: ")
    return destination / name


def content_of(volumes: Volumes) -> dict[str, bytes]:
    """Every file that belongs to a run, markers and locks aside."""
    return {
        str(path.relative_to(volumes.root)): path.read_bytes()
        for name in module.BACKUP_VOLUMES
        for path in (volumes.root / name).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_what_is_put_back_is_what_was_saved(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    other = make_volumes(tmp_path / "other")
    markers = {path: path.read_text() for path in other.root.glob(f"*/{MARKER}")}
    assert "phase 1, step 30" in restore(other, folder, say=quiet)
    assert content_of(other) == content_of(volumes)
    assert {path: path.read_text() for path in other.root.glob(f"*/{MARKER}")} == markers
    assert not list(other.root.rglob("*.partial"))


def test_what_is_only_true_here_and_now_is_left_out(volumes: Volumes, tmp_path: Path) -> None:
    (volumes.checkpoints(PRETRAINING) / "last_checkpoint.pt.tmp").write_text("half")
    (volumes.checkpoints(PRETRAINING) / "checkpoint-000000005.pt.broken").write_text("damaged")
    (volumes.data(PRETRAINING) / ".journal").mkdir()
    (volumes.data(PRETRAINING) / ".journal" / "journal.json").write_text("{}")
    volumes.trainer_state.write_text('{"state": "running"}')
    volumes.status.write_text('{"state": "training"}')
    volumes.trainer_lock.touch()
    names = set(verify_backup(make_backup(volumes, tmp_path)))
    assert names == {
        "checkpoints/phase1/best_checkpoint.pt",
        "checkpoints/phase1/checkpoint-000000010.pt",
        "checkpoints/phase1/checkpoint-000000020.pt",
        "checkpoints/phase1/last_checkpoint.pt",
        "data/phase1/train-00000.npy",
        "export/model/SHA256SUMS",
        "export/model/config.json",
        "export/model/model.safetensors",
        "logs/metrics.jsonl",
    }


def test_one_file_with_two_names_is_stored_once(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    other = make_volumes(tmp_path / "other")
    restore(other, folder, say=quiet)
    for root in (folder, other.root):
        phase = root / "checkpoints" / "phase1"
        assert (phase / "best_checkpoint.pt").samefile(phase / "checkpoint-000000020.pt")
        assert not (phase / "last_checkpoint.pt").samefile(phase / "checkpoint-000000020.pt")


def test_a_disk_without_hard_links_takes_copies(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    folder = make_backup(volumes, tmp_path)
    assert "checkpoints/phase1/best_checkpoint.pt" in verify_backup(folder)


def test_backups_taken_while_checkpoints_come_and_go_are_whole(volumes: Volumes, tmp_path: Path) -> None:
    is_over = threading.Event()

    def train() -> None:
        step = 30
        while not is_over.is_set():
            step += 1
            save(volumes, step)
            if step % 3 == 0:
                mark_best(volumes.checkpoints(PRETRAINING))

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for number in range(10):
            folder = make_backup(volumes, tmp_path / "backups")
            other = make_volumes(tmp_path / f"other{number}")
            restore(other, folder, say=quiet)
            rejected = Rejections()
            state = newest(other.checkpoints(PRETRAINING), rejected)
            assert state is not None
            assert state.global_step >= 30
            assert rejected == []
    finally:
        is_over.set()
        trainer.join()
    assert len(list((tmp_path / "backups").iterdir())) == 10, "also those taken in the same second"


def test_a_model_exported_again_in_the_middle_is_not_half_old(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = module.copy_durably

    def copy_and_export(source: Any, target: Path) -> str:
        digest = copy(source, target)
        if target.name == "config.json" and (volumes.model / "config.json").read_text() == "first":
            write_model(volumes, "second")
        return digest

    monkeypatch.setattr(module, "copy_durably", copy_and_export)
    folder = make_backup(volumes, tmp_path)
    verify_backup(folder)
    assert (folder / "export" / "model" / "config.json").read_text() == "second"
    assert (folder / "export" / "model" / "model.safetensors").read_text() == "second"


class PowerCut(BaseException):
    """The machine is off: no error handler of the program runs."""


def cut_after(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    original: Callable[..., Any] = getattr(files, name)
    calls = [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        if calls[0] == count:
            raise PowerCut
        calls[0] += 1
        return original(*arguments, **options)

    for part in (restore_module, shared):
        if hasattr(part, name):
            monkeypatch.setattr(part, name, counted)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # no clean-up happens either


@pytest.mark.parametrize("count", range(9))
def test_a_restore_cut_off_while_files_change_places_is_noticed_and_repeated(
    volumes: Volumes, tmp_path: Path, count: int
) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    wanted = content_of(volumes)
    other = make_volumes(tmp_path / "other")
    save(other, 5, run_id="run-b")
    (other.logs / "metrics.jsonl").write_text("old\n")
    old = content_of(other)
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, "rename_durably", count)
        try:
            restore(other, folder, force=True, say=quiet)
        except PowerCut:
            was_cut = True
        else:
            was_cut = False
    assert was_cut == (count < 6), "2 renames move the old run aside, 4 put the new one in place"
    if was_cut:
        with pytest.raises(VolumeError, match="restore was interrupted"):
            other.require_writable("checkpoints")
        assert "restore was interrupted" in overview(other)["message"]
        with pytest.raises(VolumeError, match="restore was interrupted"):
            new_run(other)
        restore(other, folder, say=quiet)  # not forced: finishing it is no new decision
    other.require_writable("checkpoints")
    assert content_of(other) == wanted
    kept = {path.name: path.read_bytes() for path in (other.root / "runs").rglob("*") if path.is_file()}
    assert all(kept[Path(name).name] in (content, wanted.get(name)) for name, content in old.items())
    assert old["checkpoints/phase1/last_checkpoint.pt"] in [
        path.read_bytes() for path in (other.root / "runs").rglob("last_checkpoint.pt")
    ]


@pytest.mark.parametrize("count", range(8))
def test_a_restore_cut_off_while_copying_has_changed_nothing(volumes: Volumes, tmp_path: Path, count: int) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    other = make_volumes(tmp_path / "other")
    save(other, 5)
    before = content_of(other)
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, "copy_durably", count)
        with pytest.raises(PowerCut):
            restore(other, folder, say=quiet)
    other.require_writable("checkpoints")
    assert {name: data for name, data in content_of(other).items() if ".restore.partial" not in name} == before
    restore(other, folder, say=quiet)
    assert content_of(other) == content_of(volumes)


def test_volumes_on_disks_of_their_own_keep_the_old_run_there(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content_of(volumes)
    rename = os.rename

    def rename_within_a_volume(source: Path, target: Path) -> None:
        parts = [Path(path).relative_to(volumes.root).parts[0] for path in (source, target)]
        if parts[0] != parts[1]:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_within_a_volume)
    new_run(volumes)
    assert not (volumes.checkpoints(PRETRAINING)).exists()
    (aside,) = (volumes.root / "checkpoints" / ".runs").iterdir()
    name = "phase1/last_checkpoint.pt"
    assert (aside / name).read_bytes() == before[f"checkpoints/{name}"]


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_before_anything_happens(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    before = content_of(volumes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1_000_000, 999_000, 1_000))
    with pytest.raises(VolumeError, match=r"kB are needed and 1.0 kB are free"):
        backup(volumes, tmp_path / "backups", say=quiet)
    with pytest.raises(VolumeError, match="are needed"):
        restore(volumes, folder, say=quiet)
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [folder.name]
    assert content_of(volumes) == before


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_backup(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> str:
        raise OSError(28, "No space left on device", "/disk/file")

    monkeypatch.setattr(module, "copy_durably", disk_full)
    with pytest.raises(VolumeError, match=r"/disk/file: no space is left"):
        backup(volumes, tmp_path / "backups", say=quiet)
    assert list((tmp_path / "backups").iterdir()) == []


def test_nothing_is_moved_while_a_trainer_works(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    before = content_of(volumes)
    with exclusive_lock(volumes.trainer_lock) as is_mine:
        assert is_mine
        with pytest.raises(BackupError, match="a trainer is at work"):
            new_run(volumes)
        with pytest.raises(BackupError, match="a trainer is at work"):
            restore(volumes, folder, force=True, say=quiet)
    assert content_of(volumes) == before


@pytest.mark.parametrize(
    ("step", "phase", "run_id", "is_refused"),
    [
        (31, 1, "run-a", True),
        (1, 2, "run-a", True),
        (5, 1, "run-b", True),
        (30, 1, "run-a", False),
        (5, 1, "run-a", False),
    ],
)
def test_only_an_older_state_of_the_same_run_is_replaced_unasked(
    volumes: Volumes, tmp_path: Path, step: int, phase: int, run_id: str, is_refused: bool
) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    other = make_volumes(tmp_path / "other")
    save(other, step, phase, run_id)
    before = content_of(other)
    if is_refused:
        with pytest.raises(BackupError, match="newer or another run"):
            restore(other, folder, say=quiet)
        assert content_of(other) == before
    else:
        restore(other, folder, say=quiet)
        assert content_of(other) == content_of(volumes)


def test_a_damaged_run_is_replaced_and_kept(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    wanted = content_of(volumes)
    for path in volumes.checkpoints(PRETRAINING).iterdir():
        path.write_bytes(b"torn")
    message = restore(volumes, folder, say=quiet)
    assert content_of(volumes) == wanted
    (aside,) = (volumes.root / "runs").iterdir()
    assert str(aside) in message
    assert (aside / "checkpoints" / "phase1" / "last_checkpoint.pt").read_bytes() == b"torn"


def test_a_backup_with_hidden_files_is_refused(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    (folder / "checkpoints" / MARKER).write_text("{}")
    write_sums(folder)
    with pytest.raises(BackupError, match="hidden file"):
        restore(make_volumes(tmp_path / "other"), folder, say=quiet)


def test_a_folder_of_backups_is_not_a_backup(volumes: Volumes, tmp_path: Path) -> None:
    folder = make_backup(volumes, tmp_path / "backups")
    with pytest.raises(BackupError, match=f"holds 1 backups.*{folder.name}"):
        verify_backup(tmp_path / "backups")


def test_verify_names_every_damaged_file(volumes: Volumes) -> None:
    lines: list[str] = []
    assert verify_volumes(volumes, lines.append)
    path = volumes.checkpoints(PRETRAINING) / "checkpoint-000000010.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (volumes.model / "config.json").write_text("other")
    lines.clear()
    assert not verify_volumes(volumes, lines.append)
    assert [line.split(": ")[0] for line in lines[:-1] if " is " in line or "damaged" in line] == [
        "checkpoints/phase1/checkpoint-000000010.pt",
        "export/model/config.json",
    ]
    assert "2 NOT GOOD" in lines[-1]
