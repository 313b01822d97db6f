"""Volumes: an unmounted disk is never taken for a new, empty one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from svitlo.errors import VolumeError
from svitlo.reporting.overview import overview
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
