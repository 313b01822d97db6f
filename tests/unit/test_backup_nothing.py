"""Commands that find nothing to do do not look like commands that found everything good."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svitlo.errors import VolumeError
from svitlo.operations.restore import restore
from svitlo.operations.shared import BackupError
from svitlo.operations.verify import verify_volumes
from svitlo.phases import PRETRAINING
from svitlo.storage.sums import write_sums
from svitlo.volumes import Volumes
from tests.support import quiet


def test_nothing_to_verify_or_to_back_up_is_not_good(tmp_path: Path) -> None:
    empty = Volumes(tmp_path / "empty")
    empty.set_up()
    empty.data(PRETRAINING).mkdir()
    for command in (["verify"], ["backup", str(tmp_path / "backups")]):
        done = subprocess.run(
            [sys.executable, "-m", "svitlo", command[0], "--volumes", str(empty.root), *command[1:]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        assert f"{empty.root}: nothing to " in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "good" not in done.stdout
    assert not (tmp_path / "backups").exists()


def test_a_backup_of_nothing_but_configuration_replaces_nothing(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "old" / "config").mkdir(parents=True)
    (tmp_path / "old" / "config" / "data.yaml").write_text("")
    write_sums(tmp_path / "old")
    with pytest.raises(BackupError, match="holds nothing that belongs"):
        restore(volumes, tmp_path / "old", force=True, say=quiet)
    assert volumes.metrics.read_text() == "{}\n"


def test_verify_names_the_volume_that_is_not_there(volumes: Volumes) -> None:
    shutil.rmtree(volumes.root / "checkpoints")
    with pytest.raises(VolumeError, match=r"volume .*checkpoints: its marker"):
        verify_volumes(volumes, quiet)
