"""Whoever runs a command, files in the volumes belong to the volumes' owner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svitlo.config import ModelConfig
from svitlo.phases import PRETRAINING
from svitlo.storage.owner import give_to_owner_of
from svitlo.storage.sums import write_sums
from svitlo.training.model import GPT2
from svitlo.training.saving import save_checkpoint
from svitlo.volumes import VOLUME_NAMES, Volumes
from tests.support import checkpoint_state

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
USER, GROUP = 1234, 4321


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """Volumes of a user who is not root."""
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    shape = ModelConfig(layers=2, width=64, heads=2, positions=64)
    configuration = {"training": {"learning_rate": 1e-3, "seed": 1}, "numerics": {"threads": 2}}
    state = checkpoint_state(
        10, GPT2(shape, 50_257).state_dict(), model=shape.model_dump(), vocab_size=50_257, configuration=configuration
    )
    save_checkpoint(state, volumes.checkpoints(PRETRAINING), keep=3)
    volumes.model.mkdir()
    (volumes.model / "config.json").write_text("{}")
    write_sums(volumes.model)
    (volumes.raw / "of-root.txt").write_text("")
    for path in (volumes.root, *volumes.root.rglob("*")):
        if path.name != "of-root.txt":
            os.chown(path, USER, GROUP)
    return volumes


def svitlo(volumes: Volumes, *arguments: str) -> None:
    command = [sys.executable, "-m", "svitlo", arguments[0], "--volumes", str(volumes.root), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def not_of_the_user(folder: Path) -> set[str]:
    found = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {str(path) for path, status in found.items() if (status.st_uid, status.st_gid) != (USER, GROUP)}


@pytest.mark.parametrize("command", ["setup", "export", "generate", "status", "verify", "new-run"])
def test_no_command_leaves_a_file_of_root(volumes: Volumes, command: str) -> None:
    (volumes.logs / "events.jsonl").touch()
    svitlo(volumes, command, *{"generate": ["Hello"], "new-run": ["--yes"]}.get(command, []))
    assert not_of_the_user(volumes.root) == {str(volumes.raw / "of-root.txt")}


def test_a_backup_and_what_it_restores_belong_to_the_user(volumes: Volumes, tmp_path: Path) -> None:
    svitlo(volumes, "backup", str(tmp_path / "backups"))
    (folder,) = (tmp_path / "backups").iterdir()
    assert not_of_the_user(folder) == set()
    svitlo(volumes, "restore", str(folder))
    assert len(list((volumes.root / "runs").iterdir())) == 1
    assert not_of_the_user(volumes.root) == {str(volumes.raw / "of-root.txt")}


def test_nothing_behind_a_link_is_given_away(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "shadow").write_text("")
    (volumes.root / "logs" / "folder").symlink_to(tmp_path / "etc")
    (volumes.root / "logs" / "file").symlink_to(tmp_path / "etc" / "shadow")
    svitlo(volumes, "new-run", "--yes")
    svitlo(volumes, "status")
    assert (tmp_path / "etc").stat().st_uid == (tmp_path / "etc" / "shadow").stat().st_uid == 0
    assert not_of_the_user(volumes.root) == {str(volumes.raw / "of-root.txt")}


def test_what_cannot_be_given_is_said(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from svitlo.operations.shared import give_volumes_to_their_owners

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (volumes.logs / "file").touch()
    monkeypatch.setattr(os, "chown", forbidden)
    give_volumes_to_their_owners(volumes)
    assert f"chown -R {USER}:{GROUP} {volumes.root}" in capsys.readouterr().err


def test_volumes_of_root_stay_his(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert give_to_owner_of(tmp_path, tmp_path) == 0
    assert (tmp_path / "file").stat().st_uid == 0
    assert set(VOLUME_NAMES) >= {"raw", "cache"}
