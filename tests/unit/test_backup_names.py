"""Every name that Linux allows goes into a backup and comes out of it, and `sha256sum` understands the sums."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from svitlo.errors import DataError
from svitlo.operations import backup as module
from svitlo.operations.backup import backup
from svitlo.operations.restore import restore, verify_backup
from svitlo.operations.shared import BackupError
from svitlo.operations.verify import verify_volumes
from svitlo.storage.sums import SUMS, read_sums, shown, write_sums
from svitlo.volumes import Volumes
from tests.support import quiet

NAMES = [
    b"a\nb.txt", b"a\rb.txt", b"ends\r", b"ends\n", b"back\\slash.txt", b"\\n", b"\\", b"caf\xe9.txt", b"\xed\xa0\x80",
    b"\xff\n\\", "їжак.txt".encode(), "a\u2028b\u0085c".encode(), b"\x1c\x0b\x0c", b" two  spaces ", b"-c", b"*", b"~",
    b"x" * 255, b"notes.old", b".gitattributes", b"status.json", b"why.broken.txt", b"new\nfolder/caf\xe9/\\",
]  # fmt: skip


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    for name in NAMES:
        path = volumes.model / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
    return volumes


def test_every_name_comes_back(volumes: Volumes, tmp_path: Path) -> None:
    folder = tmp_path / "backups" / backup(volumes, tmp_path / "backups", say=quiet).removeprefix("complete: ")
    checked = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(b": OK") == len(NAMES)
    other = Volumes(tmp_path / "other")
    other.set_up()
    restore(other, folder, say=quiet)
    for name in NAMES:
        assert (other.model / os.fsdecode(name)).read_bytes() == name


def test_the_lines_are_those_of_sha256sum(volumes: Volumes) -> None:
    names = [path.relative_to(volumes.model) for path in volumes.model.rglob("*") if path.is_file()]
    written = subprocess.run(["sha256sum", "--", *names], cwd=volumes.model, capture_output=True, check=True).stdout
    write_sums(volumes.model)
    assert sorted((volumes.model / SUMS).read_bytes().split(b"\n")) == sorted(written.split(b"\n"))
    assert read_sums(volumes.model) == {str(name): hashlib.sha256(os.fsencode(name)).hexdigest() for name in names}


def test_sums_of_the_last_version_and_from_windows_are_read(tmp_path: Path) -> None:
    digest = "0" * 64
    (tmp_path / SUMS).write_bytes(f"{digest}  back\\slash\n{digest}  with\\n\n{digest}  plain\r\n".encode())
    assert list(read_sums(tmp_path)) == ["back\\slash", "with\\n", "plain"]
    (tmp_path / SUMS).write_bytes(b"\\" + digest.encode() + b"  ..\\n/../x\n")
    with pytest.raises(DataError, match="not a plain path"):
        read_sums(tmp_path)


def test_messages_stay_one_printable_line(volumes: Volumes) -> None:
    write_sums(volumes.model)
    for path in volumes.model.rglob("*"):
        if path.is_file() and path.name != SUMS:
            path.write_bytes(b"damaged")
    lines: list[str] = []
    verify_volumes(volumes, lines.append)
    assert [line for line in lines if "caf\\xe9.txt: is damaged" in line]
    for line in lines:
        assert "\n" not in line
        line.encode()
    assert shown("a\nb\udce9 ї") == "a\\nb\\xe9 ї"


def test_what_is_not_on_the_disk_as_it_was_copied_is_not_complete(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = module.copy_durably

    def lie(source: Any, target: Path) -> str:
        digest = copy(source, target)
        if target.name == "~":
            target.write_bytes(b"another byte")
        return digest

    monkeypatch.setattr(module, "copy_durably", lie)
    with pytest.raises(BackupError, match=r"export/model/~: is damaged .* cannot be read back"):
        backup(volumes, tmp_path / "backups", say=quiet)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_name_that_the_destination_cannot_take_is_named(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = module.copy_durably

    def like_fat(source: Any, target: Path) -> str:
        if "\n" in target.name:
            raise OSError(22, "Invalid argument", str(target))
        return copy(source, target)

    monkeypatch.setattr(module, "copy_durably", like_fat)
    with pytest.raises(BackupError, match=r"cannot take the name .*\\n.*Invalid argument.*Rename"):
        backup(volumes, tmp_path / "backups", say=quiet)


def test_a_backup_of_odd_names_can_be_verified_again(volumes: Volumes, tmp_path: Path) -> None:
    name = backup(volumes, tmp_path / "backups", say=quiet).removeprefix("complete: ")
    assert len(verify_backup(tmp_path / "backups" / name)) == len(NAMES)
