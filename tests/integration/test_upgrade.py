"""An upgrade never ends a run: volumes made by the last version go on with this one, to the same bits.

The last version comes from the repository's history, so these tests skip if that is missing.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from svitlo.manifest import load_manifest
from svitlo.phases import PHASES
from svitlo.reporting.overview import overview
from svitlo.volumes import Volumes
from tests.conftest import RAW, ROOT, Job, environment, kill, new_job, wait_for_line
from tests.support import assert_same, assert_same_run, events, last, metrics

LAST_VERSION = "a3d077d00d0c6989241ec7a17d6f31ba41b7f777"
"""0.1.0. To be raised with each release."""


@pytest.fixture(scope="module")
def last_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last version of the program, to be put on Python's path."""
    command = ["git", "-C", str(ROOT), "archive", "--format", "zip", LAST_VERSION, "app"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip("the last version is not in the history of this checkout (a shallow clone, or no clone at all)")
    folder = tmp_path_factory.mktemp("last-version")
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as content:
        content.extractall(folder)
    return folder / "app"


def start_old(version: Path, job: Job, name: str) -> subprocess.Popen[str]:
    """The command of the last version, on a job of this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "svitlo", name, "--config", str(job.config), "--volumes", str(job.volumes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "PYTHONPATH": f"{version}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )


def without_what_evaluations_leave(state: dict[str, Any]) -> dict[str, Any]:
    """The last version multiplied in float32 in evaluations, also in a bf16 run: up to 0.0002 nats of difference."""
    left = ("best_loss", "evaluated_batches", "validation_batches")
    return {key: value for key, value in state.items() if key not in left}


def test_a_run_of_the_last_version_goes_on_to_the_same_bits(last_version: Path, trained: Job, tmp_path: Path) -> None:
    """Prepared and begun by the last version, killed in both phases, finished by this one."""
    job = new_job(tmp_path / "job")
    job.change("phase2_instruction_tuning.yaml", "numerics", threads=2)  # it had to be in both files
    shutil.rmtree(job.volumes)
    for name in ("setup", "prepare"):
        if name == "prepare":
            shutil.copytree(RAW, job.volumes / "raw", dirs_exist_ok=True)
        done = start_old(last_version, job, name)
        assert done.wait(300) == 0, done.stdout
    data = {phase: load_manifest(Volumes(job.volumes).data(phase)).digest for phase in PHASES}
    assert data == {phase: load_manifest(Volumes(trained.volumes).data(phase)).digest for phase in PHASES}

    old = start_old(last_version, job, "train")
    wait_for_line(old, r"phase 1 \| step (1[0-9]) of")
    kill(old)
    assert overview(Volumes(job.volumes))["phases"][0]["step"] is not None, "its status is read, too"
    new = job.start("train")
    wait_for_line(new, r"phase 1 \| step (1[5-9]|2[0-9]) of")
    kill(new)
    old = start_old(last_version, job, "train")  # and back: what this version has written is read by the last one
    wait_for_line(old, r"phase 2 \| step ([3-9]|1[0-9]) of")
    kill(old)

    prepared = job.run("prepare")
    assert prepared.stdout.count("already prepared and unchanged") == 2
    job.run("train")
    for phase in (1, 2):
        found, expected = (without_what_evaluations_leave(last(run, phase)) for run in (job, trained))
        assert_same(found, expected)
    found, expected = ([r for r in metrics(run) if r["kind"] != "evaluation"] for run in (job, trained))
    assert found == expected
    model = "export/model/model.safetensors"
    assert (job.volumes / model).read_bytes() == (trained.volumes / model).read_bytes()
    kinds = [event["event"] for event in events(job)]
    assert kinds.count("resumed") >= 3
    assert "fell back" not in kinds
    assert job.run("verify").stdout.splitlines()[-1].endswith("all good")


def test_a_backup_of_the_last_version_is_put_back_by_this_one(last_version: Path, trained: Job, tmp_path: Path) -> None:
    old = trained.copy(tmp_path / "old")
    command = [sys.executable, "-m", "svitlo", "backup", "--volumes", str(old.volumes), str(tmp_path / "backups")]
    subprocess.run(command, env={**environment(), "PYTHONPATH": str(last_version)}, check=True, capture_output=True)
    (backup,) = (tmp_path / "backups").iterdir()
    job = Job(trained.config, tmp_path / "new" / "volumes")
    job.run("setup")
    job.run("restore", str(backup))
    job.run("train")
    assert_same_run(job, trained)
