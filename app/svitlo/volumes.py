"""Where every file lives on the volumes. No other module builds such a path.

Each volume (a sub-folder of the root, or a mount of its own) holds a marker file that only `svitlo setup` writes.
A disk that mounts late looks like an empty folder: without its marker it is never taken for a new, empty volume.
The marker also notes what its user has accepted that the disk cannot do.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svitlo.errors import VolumeError
from svitlo.phases import Phase
from svitlo.storage.files import accept_no_folder_fsync, write_json
from svitlo.storage.mounts import disk_in_words
from svitlo.storage.probe import FOLDER_FSYNC, require_able_disk
from svitlo.storage.space import volume_error

VOLUME_NAMES = ("raw", "data", "checkpoints", "logs", "export", "cache")
MARKER = ".svitlo-volume"
SET_UP = ".svitlo-volumes"
"""In the root folder, written after the markers: which volumes have one. `docker compose start` runs the set-up again,
and an empty folder where a volume was must not become a new one then."""
NOT_OURS = ("lost+found",)
"""What a file system keeps for itself in the root of a disk. Only root can look into it."""
_CANNOT_CHOWN = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

Say = Callable[[str], object]


def _ignore(note: str) -> None:
    """The default: say nothing."""


@dataclass(frozen=True)
class Volumes:
    """The paths below one root folder."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def data(self, phase: Phase) -> Path:
        """The folder of one phase's shards and manifest."""
        return self.root / "data" / phase.name

    def next_data(self, phase: Phase) -> Path:
        """Where data that will replace a phase's present data is prepared."""
        return self.root / "data" / f".{phase.name}.next"

    def checkpoints(self, phase: Phase) -> Path:
        """The folder of one phase's checkpoints."""
        return self.root / "checkpoints" / phase.name

    @property
    def trainer_lock(self) -> Path:
        return self.root / "checkpoints" / ".lock"

    @property
    def prepare_lock(self) -> Path:
        return self.root / "data" / ".lock"

    @property
    def completion(self) -> Path:
        """Written last of all: the run is finished and its model exported."""
        return self.root / "checkpoints" / "complete.json"

    @property
    def run_record(self) -> Path:
        """Which run the checkpoints belong to."""
        return self.root / "checkpoints" / "run.json"

    @property
    def trainer_state(self) -> Path:
        """Which process trains, or how the last one ended: what tells a power cut from a stop."""
        return self.root / "checkpoints" / "process.json"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.root / "export" / "model"

    @property
    def status(self) -> Path:
        return self.logs / "status.json"

    @property
    def prepare_status(self) -> Path:
        return self.logs / "data-prep.json"

    @property
    def metrics(self) -> Path:
        return self.logs / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.logs / "events.jsonl"

    @property
    def restore_journal(self) -> Path:
        """There while a backup is being put back: what lies in the volumes is then a mixture of two runs."""
        return self.root / "checkpoints" / ".restoring"

    def require(self, *names: str) -> None:
        """Raise `VolumeError` unless each named volume is there, was set up, and can be used as it must be."""
        for name in names:
            folder = self.root / name
            if not (folder / MARKER).is_file():
                raise VolumeError(
                    f"volume {folder}: its marker file {MARKER} is missing, so the folder was never set up or its disk "
                    f"is not mounted (yet). Mount the disk, or set the volumes up once: `svitlo setup --volumes "
                    f"{self.root}` (in containers `docker compose up -d` does it)"
                )
            self._do_without_what_was_accepted(folder)
            if name == self.restore_journal.parent.name and self.restore_journal.exists():
                raise VolumeError(
                    f"{self.restore_journal}: a restore was interrupted, so these volumes mix two runs and nothing may "
                    f"train on them. Run the same `make restore FROM=...` again; it finishes the work"
                )

    def require_writable(self, *names: str, say: Say = _ignore) -> None:
        """Like `require`, and also raise `VolumeError` where files cannot be written, or not as safely as they must be.

        `say` is told what the disks cannot do and how that is made up for.
        """
        self.require(*names)
        for folder in (path for name in names for path in (self.root / name, *filter(Path.is_dir, entries_of(self.root / name)))):
            if not os.access(folder, os.W_OK | os.X_OK):
                owner = folder.stat()
                raise VolumeError(
                    f"volume {folder}: not writable for user {os.getuid()}:{os.getgid()} (it belongs to "
                    f"{owner.st_uid}:{owner.st_gid}, or is mounted read-only). Give it to this user with "
                    f"`chown -R {os.getuid()}:{os.getgid()} {folder}`, or set PUID and PGID in .env to its owner"
                )
        self._require_able_disks([self.root / name for name in names], (), say)

    def set_up(
        self, owner: tuple[int, int] | None = None, accepted: Collection[str] = (), say: Say = _ignore
    ) -> list[str]:
        """Create the volumes and their markers where missing; give them to `owner` (uid, gid) when run as root.

        `accepted` are the promises (`probe.ACCEPTABLE`) that the user gives up where a disk cannot keep them. The
        markers note that, so it is asked once. `say` is told what the disks cannot do. Never touches what is inside a
        volume that has a marker. Returns the names of the volumes made ready now.
        """
        made = []
        known = self._set_up_before()
        try:
            folders = [self.root, *(self.root / name for name in VOLUME_NAMES)]
            for folder in folders:
                _make_owned_folder(folder, owner)
            without = self._require_able_disks(folders, accepted, say)
            for name in VOLUME_NAMES:
                folder = self.root / name
                marker = folder / MARKER
                if not marker.is_file():
                    if name in known:
                        raise VolumeError(
                            f"volume {folder}: was set up before, and its marker file {MARKER} is gone: its disk is not "
                            f"mounted, or the folder was emptied. Mount the disk. If it shall really begin empty, remove "
                            f"{self.root / SET_UP} and try again"
                        )
                    accepts = {"accepted": [FOLDER_FSYNC]} if folder in without else {}
                    write_json(marker, {"volume": name, "id": uuid.uuid4().hex, **accepts})
                    _give(marker, owner)
                    made.append(name)
                elif folder in without and FOLDER_FSYNC not in _accepted_in(folder):
                    write_json(marker, {**_marker_of(folder), "accepted": [FOLDER_FSYNC]})
                    _give(marker, owner)
            if made:
                write_json(self.root / SET_UP, sorted({*known, *made}))
                _give(self.root / SET_UP, owner)
        except OSError as error:
            note = "The volumes cannot be set up; another folder can be named with --volumes or SVITLO_VOLUMES"
            raise volume_error(error, self.root, note) from error
        return made

    def _require_able_disks(self, folders: list[Path], accepted: Collection[str], say: Say) -> list[Path]:
        """Raise `VolumeError` where a disk cannot keep a promise that nobody has given up. Tries each disk once.

        Returns the folders on disks that cannot sync folders, which was accepted.
        """
        command = f"`svitlo setup --volumes {self.root} --accept {FOLDER_FSYNC}`"
        how = f"{command} (in containers `docker/tools.sh setup --accept {FOLDER_FSYNC}`)"
        tried: dict[int, bool] = {}
        for folder in folders:
            disk = folder.stat().st_dev
            if disk not in tried:
                beside = [other for other in (folder, *folders) if other.stat().st_dev == disk]
                agreed = {*accepted, *(name for other in beside for name in _accepted_in(other))}
                disk_can = require_able_disk(folder, agreed, how)
                tried[disk] = disk_can.folder_fsync
                if not disk_can.folder_fsync:
                    accept_no_folder_fsync(folder)
                if disk_can.note:
                    say(disk_can.note)
        return [folder for folder in folders if not tried[folder.stat().st_dev]]

    def _do_without_what_was_accepted(self, folder: Path) -> None:
        if FOLDER_FSYNC in _accepted_in(folder):
            accept_no_folder_fsync(folder)

    def _set_up_before(self) -> list[str]:
        """The volumes that a finished set-up has listed in the root folder."""
        try:
            names = json.loads((self.root / SET_UP).read_bytes())
        except (OSError, ValueError):
            return []
        return [str(name) for name in names] if isinstance(names, list) else []


class VolumeWatch:
    """Notices that the folder of a volume is no longer the one that it was at the start.

    A disk that goes away leaves the empty folder that it was mounted on, or another disk takes its place. Nothing may
    be written there.
    """

    def __init__(self, folder: Path) -> None:
        """Watches nothing where `folder` is not a volume that was set up."""
        self._folder = folder
        self._id = _marker_of(folder).get("id")

    @property
    def is_there(self) -> bool:
        return self._id is None or _marker_of(self._folder).get("id") == self._id

    def require(self) -> None:
        """Raise `OSError` (ENODEV) unless the volume is there."""
        if not self.is_there:
            reason = f"the disk of {self._folder} is not mounted any more"
            raise OSError(errno.ENODEV, reason, str(self._folder))


def _marker_of(folder: Path) -> dict[str, Any]:
    """What the marker of a volume says. Empty where there is none, or where it is torn."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _accepted_in(folder: Path) -> list[str]:
    """The promises that were given up for the disk of this volume."""
    accepted = _marker_of(folder).get("accepted")
    return [str(name) for name in accepted] if isinstance(accepted, list) else []


def entries_of(volume: Path) -> list[Path]:
    """What lies in a volume, by name, but for markers, locks and what the file system keeps for itself."""
    return sorted(path for path in volume.iterdir() if path.name not in NOT_OURS and not path.name.startswith("."))


def _make_owned_folder(folder: Path, owner: tuple[int, int] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _give(folder, owner)


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    """Give one file or folder, not what is in it, to `owner`: only root can.

    FAT, exFAT and CIFS have no owners: the mount options say whose everything is.
    """
    status = path.stat()
    if owner is None or os.getuid() != 0 or (status.st_uid, status.st_gid) == owner:
        return
    try:
        os.chown(path, *owner)
    except OSError as error:
        if error.errno not in _CANNOT_CHOWN:
            raise
        may_write = status.st_uid == owner[0] or status.st_mode & stat.S_IWOTH
        if path.is_dir() and not may_write:
            raise VolumeError(
                f"{path}: belongs to {status.st_uid}:{status.st_gid}, and {disk_in_words(path)} cannot give it to "
                f"{owner[0]}:{owner[1]}. Mount the disk with `-o uid={owner[0]},gid={owner[1]}`, or set PUID and PGID in "
                f".env to {status.st_uid} and {status.st_gid}"
            ) from error
