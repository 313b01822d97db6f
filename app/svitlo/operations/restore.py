"""`svitlo restore`: a backup back into the volumes, after verifying it. What is there now is moved aside."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from svitlo.operations.contents import contents
from svitlo.operations.shared import (
    BACKUP_VOLUMES,
    BackupError,
    Say,
    copy_file,
    is_in_model,
    link,
    move_aside,
    nobody_at_work,
    total_bytes,
)
from svitlo.reporting.events import now_as_text, print_line
from svitlo.storage.files import fsync_tree, make_folder, remove_durably, rename_durably, write_json
from svitlo.storage.owner import give_to_owner_of
from svitlo.storage.space import explained, require_space
from svitlo.storage.sums import SUMS, read_sums, shown, sum_problem
from svitlo.training.checkpoints import newest_position, position_of
from svitlo.volumes import Volumes

_STAGING = ".restore.partial"


def restore(volumes: Volumes, source: Path, force: bool = False, say: Say = print_line) -> str:
    """Verify the backup at `source` and put it into the volumes; what is there now is moved aside first.

    Refuses to replace a newer run, or another one, unless `force` is given. Raises `BackupError`, `DataError` or
    `VolumeError`; nothing has changed then. A power cut in the middle leaves a journal: nothing trains on the volumes
    until the restore is run again.
    """
    is_repeated = volumes.restore_journal.exists()
    volumes.require_writable(*(name for name in BACKUP_VOLUMES if name != "checkpoints" or not is_repeated))
    # Before anything is read: a file of holes can claim a million times the size of its disk.
    require_space(volumes.root, total_bytes(path for path in source.rglob("*") if path.is_file()))
    sums = verify_backup(source)
    if not any(name.split("/")[0] in BACKUP_VOLUMES for name in sums):
        raise BackupError(f"{shown(source)}: holds nothing that belongs into the volumes. Choose another backup")
    say(f"{len(sums)} files verified")
    wanted = newest_position(source / "checkpoints")
    with nobody_at_work(volumes):
        present = None if is_repeated or force else _present(volumes)
        if present is not None and (wanted is None or present[0] != wanted[0] or present > wanted):
            raise BackupError(
                f"{volumes.root}: holds {_in_words(present)}, and the backup {source} holds {_in_words(wanted)}. It is "
                f"not put over a newer or another run; to do so all the same: `svitlo restore --force` or "
                f"`make restore FROM=... FORCE=1` (the present run is moved aside)"
            )
        with explained(volumes.root):
            try:
                _stage(volumes, source, sums)
                write_json(volumes.restore_journal, {"from": shown(source), "began": now_as_text()})
                aside = move_aside(volumes, BACKUP_VOLUMES)
                for volume in BACKUP_VOLUMES:
                    staging = volumes.root / volume / _STAGING
                    for path in sorted(staging.iterdir()) if staging.is_dir() else []:
                        rename_durably(path, volumes.root / volume / path.name)
                remove_durably(volumes.restore_journal)
            finally:
                for volume in BACKUP_VOLUMES:
                    shutil.rmtree(volumes.root / volume / _STAGING, ignore_errors=True)
    if (source / "config").is_dir():
        say(f"its configuration is in {shown(source / 'config')}: a run goes on only with the same")
    return f"restored {_in_words(wanted)}" + (f"; what was there is now in {shown(aside)}" if aside is not None else "")


def _present(volumes: Volumes) -> tuple[str, int, int] | None:
    """The newest checkpoint in the volumes, whatever its folder is called and whichever links lead there."""
    with explained(volumes.root):
        files = contents(volumes.root / "checkpoints", lambda path: not path.name.startswith(".")).files
    positions = [position_of(Path(os.path.realpath(path))) for path in files if path.suffix.lower() == ".pt"]
    return max(filter(None, positions), key=lambda position: position[1:], default=None)


def _stage(volumes: Volumes, source: Path, sums: dict[str, str]) -> None:
    """Copy the backup beside its places, each part on its own volume, and bring it to the disk."""
    for volume in BACKUP_VOLUMES:
        shutil.rmtree(volumes.root / volume / _STAGING, ignore_errors=True)
    names = [name for name in sums if name.split("/")[0] in BACKUP_VOLUMES]
    require_space(volumes.root, total_bytes(source / name for name in names))
    copied: dict[str, Path] = {}
    for name in names:
        volume, _, rest = name.partition("/")
        target = volumes.root / volume / _STAGING / rest
        make_folder(target.parent)
        first = copied.get(sums[name]) if volume == "checkpoints" else None
        if first is not None and link(first, target):
            continue
        if copy_file(source / name, target) != sums[name]:
            raise BackupError(f"{shown(source / name)}: changed while it was being read. Try again")
        if volume == "checkpoints":
            copied[sums[name]] = target
    for volume in BACKUP_VOLUMES:
        staging = volumes.root / volume / _STAGING
        if staging.is_dir():
            give_to_owner_of(staging, volumes.root / volume)
            fsync_tree(staging)


def verify_backup(source: Path) -> dict[str, str]:
    """Compare every file with its sum. Raises `BackupError` that names what is wrong, `DataError` without sums."""
    if not source.is_dir():
        raise BackupError(f"{source}: there is no such folder. Name one that `make backup` made (svitlo-…)")
    if source.name.endswith(".partial"):
        raise BackupError(f"{source}: this backup was interrupted and is not complete. Choose another one")
    inside = sorted(path.parent.name for path in source.glob(f"svitlo-*/{SUMS}"))
    if inside and not (source / SUMS).exists():
        raise BackupError(
            f"{source}: holds {len(inside)} backups; name one of them, for example {source.name}/{inside[-1]}"
        )
    return verify_files(source)


def verify_files(source: Path) -> dict[str, str]:
    """Compare every file in a folder with its sum, whatever the folder is called. Returns the sums."""
    sums = read_sums(source)
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BackupError(f"{shown(path)}: a backup holds only files and folders, and this is neither")
        if path.is_file() and name not in sums and name != SUMS:
            raise BackupError(f"{shown(path)}: not named in {SUMS}, so it does not belong to this backup. Remove it")
    for name, expected in sums.items():
        if any(part.startswith(".") for part in name.split("/")) and not is_in_model(name):
            raise BackupError(f"{shown(source / name)}: a hidden file, and no backup holds one. Choose another backup")
        problem = sum_problem(source, name, expected)
        if problem:
            raise BackupError(f"{shown(source / name)}: {problem}. Choose another backup")
    return sums


def _in_words(position: tuple[str, int, int] | None) -> str:
    return "no checkpoint" if position is None else "run {} at phase {}, step {:,}".format(*position)
