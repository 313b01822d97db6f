"""`svitlo backup`, `restore`, `verify` and `new-run`: everything arrives whole, and no mistake loses anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Job, kill, wait_for_line
from tests.support import assert_same_run


def restored_elsewhere(job: Job, backup: Path, folder: Path) -> Job:
    """The backup restored into fresh volumes."""
    other = Job(folder / "config", folder / "volumes")
    shutil.copytree(job.config, other.config)
    other.run("setup")
    other.run("restore", str(backup))
    return other


@pytest.fixture(scope="module")
def backed_up(trained: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("backups")
    trained.run("backup", str(destination))
    (folder,) = destination.iterdir()
    return folder


@pytest.mark.crash
def test_a_backup_of_a_running_job_goes_on_elsewhere_to_the_same_bits(
    trained: Job, prepared: Job, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path / "here")
    process = job.start("train")
    wait_for_line(process, "phase 1, step 8")
    job.run("backup", str(tmp_path / "backups"))
    assert process.poll() is None, "the trainer goes on meanwhile"
    kill(process)
    (backup,) = (tmp_path / "backups").iterdir()
    other = restored_elsewhere(job, backup, tmp_path / "there")
    assert "resumed at step" in other.run("train").stdout
    assert_same_run(other, trained)


def test_a_backup_is_checked_with_ordinary_tools(backed_up: Path) -> None:
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=backed_up, check=False).returncode == 0
    assert (backed_up / "config" / "data.yaml").is_file()
    assert (backed_up / "checkpoints" / "phase2" / "last_checkpoint.pt").is_file()
    assert not list(backed_up.rglob("*.tmp"))


def test_a_finished_run_restored_is_finished(trained: Job, backed_up: Path, tmp_path: Path) -> None:
    other = restored_elsewhere(trained, backed_up, tmp_path)
    assert "training is complete" in other.run("train").stdout
    assert "all good" in other.run("verify").stdout


def tamper_flip(folder: Path) -> str:
    path = folder / "checkpoints" / "phase1" / "last_checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    return "is damaged"


def tamper_missing(folder: Path) -> str:
    (folder / "data" / "phase1" / "manifest.json").unlink()
    return "is missing"


def tamper_extra(folder: Path) -> str:
    (folder / "checkpoints" / "extra.pt").write_text("x")
    return "not named in SHA256SUMS"


def tamper_symbolic_link(folder: Path) -> str:
    (folder / "logs" / "link").symlink_to("/etc/passwd")
    return "only files and folders"


def tamper_device(folder: Path) -> str:
    os.mkfifo(folder / "logs" / "pipe")
    return "only files and folders"


def tamper_bomb(folder: Path) -> str:
    with open(folder / "checkpoints" / "phase1" / "checkpoint-000000001.pt", "wb") as file:
        file.truncate(8 << 40)  # of holes: it takes up nothing where it lies
    return "are needed"


def tamper_hard_link_outside(folder: Path) -> str:
    path = folder / "logs" / "metrics.jsonl"
    path.unlink()
    os.link(folder.parent / "outside", path)
    return "is damaged"


def tamper_climb(folder: Path) -> str:
    with open(folder / "SHA256SUMS", "a") as file:
        file.write("0" * 64 + "  ../outside\n")
    return "not a plain path"


def tamper_absolute(folder: Path) -> str:
    with open(folder / "SHA256SUMS", "a") as file:
        file.write("0" * 64 + "  /etc/passwd\n")
    return "not a plain path"


def tamper_unfinished(folder: Path) -> str:
    (folder / "SHA256SUMS").unlink()
    return "never finished"


@pytest.mark.parametrize(
    "tamper",
    [
        tamper_flip, tamper_missing, tamper_extra, tamper_symbolic_link, tamper_device, tamper_bomb,
        tamper_hard_link_outside, tamper_climb, tamper_absolute, tamper_unfinished,
    ],
)  # fmt: skip
def test_what_is_not_whole_is_refused_and_changes_nothing(
    trained: Job, backed_up: Path, tmp_path: Path, tamper: object
) -> None:
    copy = tmp_path / backed_up.name
    shutil.copytree(backed_up, copy)
    (tmp_path / "outside").write_text("not part of any backup")
    expected = tamper(copy)  # type: ignore[operator]
    other = Job(trained.config, tmp_path / "volumes")
    other.run("setup")
    refused = other.run("restore", str(copy), check=None, timeout=60)
    assert refused.returncode in (1, 2)
    assert expected in refused.stderr
    assert "Traceback" not in refused.stderr
    names = {path.name for path in other.volumes.rglob("*") if path.is_file()}
    assert names <= {".svitlo-volume", ".svitlo-volumes", ".lock"}


def test_an_interrupted_backup_never_looks_complete(trained: Job, tmp_path: Path) -> None:
    process = trained.start("backup", str(tmp_path / "backups"))
    while not list((tmp_path / "backups").glob("*/data")):
        assert process.poll() is None
    kill(process)
    (left,) = (tmp_path / "backups").iterdir()
    assert left.name.endswith(".partial")
    assert "not complete" in trained.run("restore", str(left), check=2).stderr


def test_a_newer_run_is_not_replaced_unless_told_to(
    trained: Job, prepared: Job, backed_up: Path, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    job.run("train", "--phase", "1")
    message = job.run("restore", str(backed_up), check=2).stderr
    assert "not put over a newer or another run" in message
    assert "--force" in message
    old = (job.volumes / "checkpoints" / "phase1" / "last_checkpoint.pt").read_bytes()
    job.run("restore", str(backed_up), "--force")
    assert_same_run(job, trained)
    (aside,) = (job.volumes / "runs").iterdir()
    assert (aside / "checkpoints" / "phase1" / "last_checkpoint.pt").read_bytes() == old


def test_a_new_run_moves_the_old_one_aside_and_deletes_nothing(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    before = {
        str(path.relative_to(job.volumes)): path.read_bytes()
        for name in ("checkpoints", "logs", "export")
        for path in (job.volumes / name).rglob("*")
        if path.is_file() and path.name not in (".svitlo-volume", ".lock")
    }
    job.run("new-run", "--yes")
    (aside,) = (job.volumes / "runs").iterdir()
    after = {str(path.relative_to(aside)): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    assert after == before
    assert "phase 1 begins with random weights" in job.run("train", "--phase", "1").stdout


def test_what_a_file_system_keeps_for_itself_is_left_alone(trained: Job, tmp_path: Path) -> None:
    """`lost+found` in the root of a disk: only root can read it, and fsck needs it where it is."""
    job = trained.copy(tmp_path)
    found = job.volumes / "logs" / "lost+found"
    found.mkdir()
    (found / "#12").write_text("what fsck has found")
    job.run("backup", str(tmp_path / "backups"))
    assert not list((tmp_path / "backups").rglob("lost+found"))
    job.run("new-run", "--yes")
    assert (found / "#12").exists()


def test_verify_names_what_is_damaged(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    path = job.volumes / "data" / "phase1" / "train-00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    done = job.run("verify", check=1)
    assert "data/phase1/train-00000.npy: " in done.stdout
    assert "1 NOT GOOD" in done.stdout
