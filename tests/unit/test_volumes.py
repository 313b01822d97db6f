"""Volumes: an unmounted disk is never taken for a new, empty one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from svitlo.errors import VolumeError
from svitlo.reporting.overview import overview
from svitlo.storage import files, mounts
from svitlo.storage.files import accept_no_folder_fsync, fsync_folder
from svitlo.storage.locks import exclusive_lock
from svitlo.storage.mounts import Mount, mount_of
from svitlo.storage.probe import Abilities, abilities_of
from svitlo.volumes import MARKER, VOLUME_NAMES, Volumes
from tests.conftest import ROOT


def test_a_set_up_is_done_once_and_changes_nothing_later(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path / "volumes")
    assert volumes.set_up() == list(VOLUME_NAMES)
    before = {path: path.read_bytes() for path in volumes.root.rglob("*") if path.is_file()}
    assert volumes.set_up() == []
    assert {path: path.read_bytes() for path in volumes.root.rglob("*") if path.is_file()} == before


def test_a_volume_that_vanished_is_not_recreated(tmp_path: Path) -> None:
    """What `docker compose start` does while a disk is not mounted: the set-up runs again, over an empty folder."""
    volumes = Volumes(tmp_path)
    volumes.set_up()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(VolumeError, match="its disk is not mounted"):
        volumes.set_up()
    assert not (tmp_path / "checkpoints" / MARKER).exists()
    with pytest.raises(VolumeError, match="marker file"):
        volumes.require("checkpoints")
    (tmp_path / ".svitlo-volumes").unlink()  # a person has decided
    assert volumes.set_up() == ["checkpoints"]


def test_an_interrupted_set_up_goes_on(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path)
    volumes.set_up()
    (tmp_path / ".svitlo-volumes").unlink()
    (tmp_path / "export" / MARKER).unlink()
    assert volumes.set_up() == ["export"]
    assert volumes.set_up() == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VolumeError, match="cannot be set up"):
        Volumes(tmp_path / "file").set_up()


def test_the_folder_in_the_repository_is_not_taken_for_one_that_was_set_up(tmp_path: Path) -> None:
    """A fresh clone holds volumes/README.md and nothing else."""
    tracked = subprocess.run(["git", "ls-files", "volumes"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert tracked.stdout.split() == ["volumes/README.md"]
    volumes = Volumes(tmp_path / "volumes")
    volumes.root.mkdir()
    shutil.copy(ROOT / "volumes" / "README.md", volumes.root)
    with pytest.raises(VolumeError, match="never set up"):
        volumes.require("raw")
    assert overview(volumes)["state"] == "not set up"
    assert volumes.set_up() == list(VOLUME_NAMES)
    text = (volumes.root / "README.md").read_text()
    assert all(f"`{name}/`" in text for name in VOLUME_NAMES)


def test_a_lock_that_the_disk_does_not_know_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock_service(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock_service)
    with (
        pytest.raises(VolumeError, match=r"this disk \(\w+\) cannot lock files.*local_lock=flock.*SVITLO_VOLUMES"),
        exclusive_lock(tmp_path / ".lock"),
    ):
        raise AssertionError("nothing is done without the lock")


def test_only_where_it_was_accepted_a_folder_need_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", unknown)
    monkeypatch.setattr(files, "_without_folder_fsync", set())
    number = errno.EINVAL
    with pytest.raises(OSError, match="cannot make the names in a folder durable"):
        fsync_folder(tmp_path)
    accept_no_folder_fsync(tmp_path)
    fsync_folder(tmp_path)
    number = errno.EIO  # a disk that fails is never accepted
    with pytest.raises(OSError, match="Input/output error"):
        fsync_folder(tmp_path)


def test_a_probe_that_was_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    old, new = tmp_path / ".svitlo-probe-old", tmp_path / ".svitlo-probe-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    assert abilities_of(tmp_path) == Abilities()
    assert list(tmp_path.iterdir()) == [new], "another process may be at it"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ext4 /dev/sdb rw,errors=remount-ro", Mount("ext4", False)),
        ("ext4 /dev/sdb rw,errors=remount-ro,emergency_ro", Mount("ext4", True)),
        ("ext4 /dev/sdb ro", Mount("ext4", True)),
    ],
)
def test_what_the_kernel_says_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: Mount
) -> None:
    place = tmp_path / "a disk"
    (place / "volumes").mkdir(parents=True)
    escaped = str(place).replace(" ", "\\040")
    table = tmp_path / "mountinfo"
    table.write_text(
        f"1 0 8:1 / / ro - xfs /dev/sda ro\n2 1 8:2 / {escaped} ro,relatime shared:1 - xfs /dev/sdc rw\n"
        f"3 1 8:2 / {escaped} ro,relatime shared:1 - {line}\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    assert mount_of(place / "volumes") == expected
    assert mount_of(tmp_path / "elsewhere") == Mount("xfs", True)
