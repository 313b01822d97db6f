"""Volumes: an unmounted disk is never taken for a new, empty one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from svitlo.errors import VolumeError
from svitlo.volumes import MARKER, VOLUME_NAMES, Volumes


def test_a_set_up_is_done_once_and_changes_nothing_later(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path / "volumes")
    assert volumes.set_up() == list(VOLUME_NAMES)
    before = {path: path.read_bytes() for path in volumes.root.rglob("*") if path.is_file()}
    assert volumes.set_up() == []
    assert {path: path.read_bytes() for path in volumes.root.rglob("*") if path.is_file()} == before


def test_a_volume_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    """What `docker compose start` does after a disk was not mounted: the set-up runs again, over an empty folder."""
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
