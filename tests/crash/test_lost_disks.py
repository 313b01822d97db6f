"""A disk that turns read-only or goes away while training runs. Needs root and loop devices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Job, kill, wait_for_line
from tests.support import assert_same_run

pytestmark = [pytest.mark.crash, pytest.mark.skipif(os.getuid() != 0, reason="mounting a disk needs root")]


@dataclass
class Disk:
    """An ext4 disk in a file."""

    device: str
    point: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "errors=remount-ro", self.device, self.point], check=True, capture_output=True)

    def vanish(self) -> None:
        """As a USB disk that resets: the name is gone, what is open stays open."""
        subprocess.run(["umount", "--lazy", self.point], check=True)

    def fail(self) -> None:
        """An error that makes ext4 close the disk for writing."""
        Path(f"/sys/fs/ext4/{Path(self.device).name}/trigger_fs_error").write_text("1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs a loop device and mkfs.ext4")
    disk = Disk(done.stdout.strip(), point)
    try:
        subprocess.run(["mkfs.ext4", "-q", disk.device], check=True)
        disk.mount()
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        subprocess.run(["losetup", "--detach", disk.device], check=False)


def on_disk(prepared: Job, disk: Disk) -> Job:
    job = Job(prepared.config, disk.point / "volumes")
    shutil.copytree(prepared.volumes, job.volumes)
    return job


def alone_on_disk(prepared: Job, disk: Disk, folder: Path, name: str) -> Job:
    """A job whose other volumes are on another disk."""
    job = prepared.copy(folder)
    shutil.copytree(job.volumes / name, disk.point, dirs_exist_ok=True)
    shutil.rmtree(job.volumes / name)
    (job.volumes / name).symlink_to(disk.point)
    return job


def test_a_disk_that_turns_read_only_is_told_by_log_and_status(prepared: Job, disk: Disk) -> None:
    job = on_disk(prepared, disk)
    process = job.start("train")
    wait_for_line(process, "phase 1, step 8")
    assert json.loads(job.run("status", "--json").stdout)["state"] in ("training", "evaluating")
    disk.fail()
    for _ in range(3):  # it waits with the next evaluation, and says again why
        wait_for_line(process, r"could not be saved \(Read-only file system\).* Mount the disk that holds")
    known = json.loads(job.run("status", "--json").stdout)
    assert known["state"] == "error"
    assert not known["is_running"]
    assert (
        "its disk (ext4) is read-only, so nothing is saved and nothing reported: the last report is of"
        in (known["message"])
    )
    assert "ago" in known["message"]
    kill(process)


def test_nothing_is_written_where_the_disk_was(prepared: Job, trained: Job, disk: Disk) -> None:
    job = on_disk(prepared, disk)
    process = job.start("train")
    wait_for_line(process, "phase 1, step 8")
    disk.vanish()
    wait_for_line(process, r"could not be saved .*not mounted any more.* Mount the disk that holds .* again")
    wait_for_line(process, r"could not be saved .*not mounted any more")
    assert not list(disk.point.iterdir()), "the folder below the mount point stays empty"
    disk.mount()
    assert process.stdout is not None
    rest = process.stdout.read()
    assert process.wait(60) == 0, rest[-2000:]
    assert_same_run(job, trained)


@pytest.mark.parametrize("name", ["logs", "checkpoints"])
def test_nothing_is_reported_where_the_disk_was(prepared: Job, disk: Disk, tmp_path: Path, name: str) -> None:
    """Events, metrics, status and how the process ended: a file among them would hide that the disk is gone."""
    job = alone_on_disk(prepared, disk, tmp_path / "job", name)
    process = job.start("train")
    wait_for_line(process, "phase 1, step 8")
    disk.vanish()
    wait_for_line(process, "phase 1, step 16|could not be saved")
    kill(process, signal.SIGTERM)
    assert not list(disk.point.iterdir())
