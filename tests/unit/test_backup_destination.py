"""A backup does not go into what it copies, and it is said where it shares a disk with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from svitlo.operations import destination
from svitlo.operations.backup import backup
from svitlo.operations.shared import BackupError
from svitlo.volumes import Volumes
from tests.conftest import ROOT
from tests.support import quiet


def test_a_destination_inside_the_volumes_is_refused(volumes: Volumes) -> None:
    (volumes.root.parent / "link").symlink_to(volumes.raw)
    for name in ("volumes", "volumes/backups", "volumes/logs", "volumes/raw/not/there/yet", "link/below"):
        before = sorted(volumes.root.rglob("*"))
        with pytest.raises(BackupError, match=r"lies inside .*volumes.*Choose a folder outside"):
            backup(volumes, volumes.root.parent / name, say=quiet)
        assert sorted(volumes.root.rglob("*")) == before


def test_a_destination_that_a_link_in_the_volumes_leads_to_is_refused(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "disk" / "backups").mkdir(parents=True)
    (volumes.root / "export" / "old").symlink_to(tmp_path / "disk")
    with pytest.raises(BackupError, match=r"lies inside .*export/old"):
        backup(volumes, tmp_path / "disk" / "backups", say=quiet)


def test_a_backup_on_the_same_disk_says_what_it_does_not_survive(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    backup(volumes, tmp_path / "backups", say=lines.append)
    assert "does not survive that disk" in lines[-1]
    lines.clear()
    # Where docker/backup.sh gathers what it sends away, seen from inside the container.
    (volumes.root / ".backup").mkdir()
    (tmp_path / "mounted").mkdir()
    samefile = Path.samefile
    monkeypatch.setattr(
        Path, "samefile", lambda one, two: (one.name, two.name) == (".backup", "mounted") or samefile(one, two)
    )
    backup(volumes, tmp_path / "mounted", say=lines.append)
    monkeypatch.setattr(destination, "_disk_of", lambda path: "usb" if path.name == "backups" else "system")
    backup(volumes, tmp_path / "backups", say=lines.append)
    assert not [line for line in lines if "warning" in line]


@pytest.mark.parametrize("where", ["", "/checkpoints", "/raw/new/folder", "/../link"])
def test_the_script_refuses_a_destination_inside_the_volumes(volumes: Volumes, where: str) -> None:
    (volumes.root.parent / "link").symlink_to(volumes.root / "export")
    before = sorted(volumes.root.rglob("*"))
    done = run_script(volumes, f"{volumes.root}{where}")
    assert done.returncode == 2
    assert "lies inside" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(volumes.root.rglob("*")) == before


def test_the_script_mounts_a_destination_outside_the_volumes(volumes: Volumes, tmp_path: Path) -> None:
    for name in ("backups", "volumes-2"):  # the second one's name only begins like that of the volumes
        done = run_script(volumes, str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert f"-v {tmp_path / name}:/backup" in done.stdout
    done = run_script(volumes, str(tmp_path / "a:b"))
    assert done.returncode == 2
    assert "has a colon" in done.stderr


def run_script(volumes: Volumes, target: str) -> subprocess.CompletedProcess[str]:
    """docker/backup.sh with an engine that only says what it was asked, and no Compose that could read settings."""
    engine = volumes.root.parent / "bin" / "docker"
    engine.parent.mkdir(exist_ok=True)
    engine.write_text('#!/bin/sh\ncase "$1 $2" in "compose config" | "compose version") exit 1 ;; esac\necho "$*"\n')
    engine.chmod(0o755)
    environment = {**os.environ, "SVITLO_VOLUMES": str(volumes.root), "PATH": f"{engine.parent}:{os.environ['PATH']}"}
    script = ROOT / "docker" / "backup.sh"
    return subprocess.run([script, target], env=environment, capture_output=True, text=True, check=False)
