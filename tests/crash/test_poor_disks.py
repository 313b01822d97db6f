"""Disks that lack an operation: exFAT, FAT, network and FUSE disks. What can be done without it is, the rest is said.

`poor_disk.c` stands between the real command and the C library and makes operations fail as they do there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from svitlo.training.checkpoints import BEST, LAST
from tests.conftest import Job, kill, wait_for_line
from tests.support import assert_same_run

pytestmark = pytest.mark.crash

Lacks = Callable[..., None]


@pytest.fixture(scope="module")
def poor_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("poor-disk") / "poor_disk.so"
    source = Path(__file__).with_name("poor_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def lacks(poor_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Lacks:
    """Call it with the operations that fail in every command from then on."""

    def set_lacks(*operations: str) -> None:
        monkeypatch.setenv("LD_PRELOAD", str(poor_disk))
        monkeypatch.setenv("POOR_DISK", " ".join(operations))

    return set_lacks


def test_without_hard_links_a_killed_run_ends_in_the_same_bits(
    trained: Job, prepared: Job, tmp_path: Path, lacks: Lacks
) -> None:
    job = prepared.copy(tmp_path)
    lacks("link", "chmod")
    for pattern in ("phase 1, step 16", r"phase 2, step [1-9]"):
        process = job.start("train")
        wait_for_line(process, pattern)
        kill(process)
    job.run("train")
    assert_same_run(job, trained)
    for phase in (1, 2):
        names = list((job.volumes / "checkpoints" / f"phase{phase}").glob("*.pt"))
        assert {LAST, BEST} < {path.name for path in names}
        assert {path.stat().st_nlink for path in names} == {1}


def test_the_export_needs_no_permissions(trained: Job, tmp_path: Path, lacks: Lacks) -> None:
    job = trained.copy(tmp_path)
    model = job.volumes / "export" / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    (model / "notes.txt").write_text("mine")
    lacks("chmod")
    assert "Operation not permitted" not in job.run("export").stderr
    assert (model / "notes.txt").read_text() == "mine"
    assert (model / "model.safetensors").read_bytes() == before["model.safetensors"]


@pytest.mark.parametrize("command", ["setup", "prepare", "train", "new-run"])
def test_a_disk_that_cannot_lock_is_one_message(prepared: Job, tmp_path: Path, lacks: Lacks, command: str) -> None:
    job = prepared.copy(tmp_path)
    lacks("flock")
    done = job.run(command, *(["--yes"] if command == "new-run" else []), check=1)
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.match(rf"error: {job.volumes}\S*: this disk \(\w+\) cannot lock files", done.stderr)
    assert "local_lock=flock" in done.stderr
    assert "SVITLO_VOLUMES" in done.stderr


def test_a_disk_that_cannot_sync_folders_is_refused_or_accepted_by_name(
    prepared: Job, tmp_path: Path, lacks: Lacks
) -> None:
    lacks("fsync-folder")
    job = Job(prepared.config, tmp_path / "volumes")
    refused = job.run("setup", check=1)
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "cannot promise that a renamed file is there after a power cut" in refused.stderr
    command = f"svitlo setup --volumes {job.volumes} --accept folder-fsync"
    assert f"`{command}`" in refused.stderr
    assert not list(job.volumes.rglob(".svitlo*")), "nothing is marked as set up"
    assert "after a power cut (accepted)" in job.run("setup", "--accept", "folder-fsync").stdout
    assert "all set up already" in job.run("setup").stdout, "asked once"
    shutil.copytree(prepared.volumes / "raw", job.volumes / "raw", dirs_exist_ok=True)
    assert "data is prepared" in job.run("prepare").stdout


def test_volumes_that_were_brought_to_such_a_disk_are_refused_by_every_service(
    prepared: Job, tmp_path: Path, lacks: Lacks
) -> None:
    job = prepared.copy(tmp_path)
    markers = {path: path.read_bytes() for path in job.volumes.rglob(".svitlo-volume")}
    lacks("fsync-folder", "link", "chmod")
    for command in ("prepare", "train"):
        refused = job.run(command, check=1)
        assert refused.stderr.count("\n") == 1, refused.stderr
        assert "--accept folder-fsync" in refused.stderr
        assert "also cannot give a file a second name" in refused.stderr
    job.run("setup", "--accept", "folder-fsync")
    for path, before in markers.items():
        assert json.loads(path.read_bytes()) == {**json.loads(before), "accepted": ["folder-fsync"]}
    process = job.start("train")
    wait_for_line(process, "note: .* give a file a second name, so each save .* also copies a whole checkpoint")
    wait_for_line(process, "phase 1, step 8: validation loss")
    kill(process)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_disk_without_owners_is_taken_if_the_owner_may_write(tmp_path: Path, lacks: Lacks) -> None:
    lacks("chown")
    job = Job(tmp_path, tmp_path / "volumes")
    refused = job.run("setup", "--owner", "1234:1234", check=1)
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "-o uid=1234,gid=1234" in refused.stderr
    job.run("setup", "--owner", "0:1234")


def test_nothing_is_said_of_a_disk_that_can_do_everything(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path / "volumes")
    assert job.run("setup").stdout.count("\n") == 1
    assert not list(job.volumes.rglob("*probe*"))
