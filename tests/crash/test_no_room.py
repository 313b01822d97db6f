"""A full disk, a failing disk, a read-only disk: the good checkpoint stays, and one line says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from svitlo.config import ReportingConfig
from svitlo.errors import VolumeError
from svitlo.phases import PRETRAINING
from svitlo.reporting.progress import Progress
from svitlo.reporting.status import read_status
from svitlo.training.checkpoints import LAST, load_checkpoint
from svitlo.training.saving import mark_best, require_room, save_checkpoint
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes
from tests.conftest import Job, wait_for_line
from tests.crash.model_filesystem import Recorder
from tests.support import assert_same_run, checkpoint_state, events, newest

pytestmark = pytest.mark.crash

NOBODY = 65534


def state_of_step(step: int) -> TrainingState:
    # More than one block of the seal, so that there are several writes.
    return checkpoint_state(step, {"weight": torch.full((1_500_000,), float(step)), "bias": torch.zeros(10)})


def save_and_mark(folder: Path, step: int) -> None:
    save_checkpoint(state_of_step(step), folder, keep=2)
    mark_best(folder)


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_whichever_operation_of_a_save_fails_a_good_checkpoint_stays(
    fast_folder: Path, error: int, has_links: bool
) -> None:
    """Each write, fsync, link, rename and removal of a save in turn."""
    before = fast_folder / "before"
    for step in (1, 2, 3):
        save_and_mark(before, step)
    counted = shutil.copytree(before, fast_folder / "counted", copy_function=os.link)
    with Recorder(counted, has_links=has_links) as recorder:
        save_and_mark(fast_folder / "counted", 4)
    kinds = recorder.attempted
    assert kinds.count("write") >= 3
    assert kinds.count("fsync") >= 1
    for number in range(len(kinds)):
        folder = fast_folder / "now"
        shutil.copytree(before, folder, copy_function=os.link)
        recorder = Recorder(folder, fail_at=number, error=error, has_links=has_links)
        with recorder, pytest.raises(OSError, match=re.escape(os.strerror(error))):
            save_and_mark(folder, 4)
        last = load_checkpoint(folder / LAST)
        is_renamed = kinds[:number].count("rename") >= 2  # the generation's name, then the last one's
        assert last.global_step == (4 if is_renamed else 3), kinds[number]
        for path in folder.glob("*.pt"):
            load_checkpoint(path)
        temporaries = [path.name for path in folder.glob("*.tmp")]
        # If removing is what fails, nothing can be removed. The next start does it.
        assert not temporaries or kinds[number] in ("unlink", "rename", "link"), kinds[number]
        save_and_mark(folder, 5)  # the space is back
        state = newest(folder)
        assert state is not None
        assert state.global_step == 5
        assert sorted(path.name for path in folder.iterdir()) == [
            "best_checkpoint.pt", f"checkpoint-{last.global_step:09d}.pt", LAST,
        ]  # fmt: skip
        shutil.rmtree(folder)
    print(f"\n{len(kinds)} operations of a save, each failed once with {errno.errorcode[error]}")


def test_a_failed_save_is_told_and_forgotten_when_the_next_succeeds(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path)
    volumes.set_up()
    progress = Progress(volumes, ReportingConfig())
    for code, remedy in ((errno.ENOSPC, "Free some space in"), (errno.EIO, "Check the disk that holds")):
        progress.save_failed(state_of_step(7), OSError(code, os.strerror(code)))
        progress.exporting()
        status = read_status(volumes.status)
        assert status is not None
        assert status.checkpoint_problem == os.strerror(code)
        event = json.loads(volumes.events.read_text().splitlines()[-1])
        assert event["event"] == "save failed"
        assert remedy in event["message"]
        assert "\n" not in event["message"]
    progress.saved(state_of_step(7), 0.1)
    progress.exporting()
    status = read_status(volumes.status)
    assert status is not None
    assert status.checkpoint_problem == ""


# --- a real file system that is full ------------------------------------------------------------


@contextlib.contextmanager
def checkpoints_in_memory(job: Job, size: str) -> Iterator[Path]:
    """The job's checkpoints on a separate disk, set up as a volume. Skips if it cannot be mounted."""
    checkpoints = job.volumes / "checkpoints"
    marker = (checkpoints / ".svitlo-volume").read_bytes()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "svitlo-test", checkpoints], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        (checkpoints / ".svitlo-volume").write_bytes(marker)
        yield checkpoints
    finally:
        subprocess.run(["umount", "--lazy", checkpoints], check=True)


@pytest.fixture
def small_disk(prepared: Job, tmp_path: Path) -> Iterator[Job]:
    """The job with its checkpoints on a separate disk that has room for all of them. Each has 39 MB."""
    job = prepared.copy(tmp_path)
    with checkpoints_in_memory(job, "600m"):
        yield job


def test_a_full_disk_is_survived_and_the_result_is_the_same(small_disk: Job, trained: Job) -> None:
    job = small_disk
    process = job.start("train")
    wait_for_line(process, "phase 1, step 8")
    with kept_full(job.volumes / "checkpoints" / ".ballast"):
        line = wait_for_line(process, "could not be saved")
    assert "No space left on device" in line
    assert "The last good checkpoint is untouched" in line
    good = load_checkpoint(job.volumes / "checkpoints" / "phase1" / LAST)
    assert good.global_step >= 8
    assert process.stdout is not None
    rest = process.stdout.read()
    assert process.wait(60) == 0, rest[-2000:]
    assert_same_run(job, trained)
    kinds = [event["event"] for event in events(job)]
    assert "save failed" in kinds
    assert "saved" in kinds[kinds.index("save failed") :]
    assert not list((job.volumes / "checkpoints").rglob("*.tmp"))


@contextlib.contextmanager
def kept_full(path: Path) -> Iterator[None]:
    """Keep the disk full: a save that was under way removes an older checkpoint, which makes room."""
    is_over = threading.Event()

    def fill_again() -> None:
        while not is_over.wait(0.01):
            fill(path)

    thread = threading.Thread(target=fill_again)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        path.unlink()


def fill(path: Path) -> None:
    with open(path, "ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1 << 20))
            except OSError:  # full
                return


def test_a_start_without_room_for_two_checkpoints_says_so(small_disk: Job) -> None:
    job = small_disk
    fill(job.volumes / "checkpoints" / ".ballast")
    (job.volumes / "checkpoints" / ".ballast").write_bytes(bytes(550 << 20))
    done = job.run("train", check=1)
    assert re.search(r"phase1: \d+ MB are free, and \d+ MB are needed: two checkpoints must fit", done.stderr)
    assert "Make room on this disk" in done.stderr
    assert "Traceback" not in done.stderr


def test_room_is_counted_for_what_is_still_missing(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_room(tmp_path, free // 3)
    with pytest.raises(VolumeError, match="two checkpoints must fit"):
        require_room(tmp_path, int(free * 0.8))
    save_checkpoint(state_of_step(1), tmp_path, 2)
    require_room(tmp_path, int(free * 0.8))


# --- a disk that may not be written ------------------------------------------------------------


def test_a_read_only_volume_is_one_line(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    with checkpoints_in_memory(job, "1m") as checkpoints:
        subprocess.run(["mount", "-o", "remount,ro", checkpoints], check=True)
        done = job.run("train", check=1)
        assert one_line(done.stderr).startswith(f"error: volume {checkpoints}: not writable")
        assert "mounted read-only" in done.stderr


def test_a_missing_marker_is_one_line(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    (job.volumes / "checkpoints" / ".svitlo-volume").unlink()
    assert "Mount the disk, or set the volumes up once" in one_line(job.run("train", check=1).stderr)


@pytest.mark.skipif(os.getuid() != 0, reason="giving a folder to somebody else needs root")
@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/phase1", "logs"])
def test_a_folder_of_somebody_else_is_one_line(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volumes = Volumes(Path(folder) / "volumes")
        volumes.set_up()
        volumes.checkpoints(PRETRAINING).mkdir()
        for path in (Path(folder), volumes.root, *volumes.root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.chown(path, NOBODY, NOBODY)
        os.chown(volumes.root / name, 12345, 12345)
        message = as_nobody(lambda: volumes.require_writable("checkpoints", "logs"))
        assert message.startswith(f"VolumeError: volume {volumes.root / name}: not writable for user {NOBODY}:{NOBODY}")
        assert "it belongs to 12345:12345" in message
        assert f"chown -R {NOBODY}:{NOBODY} {volumes.root / name}" in message
        assert "\n" not in message


def as_nobody(call: Callable[[], object]) -> str:
    """Call in a process of an unprivileged user. Returns the error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            call()
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        return file.read()


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text
