"""What the kernel says about the file system that holds a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_READ_ONLY = {"ro", "emergency_ro"}
"""The second is ext4's own word, since Linux 6.15, for a disk that it has closed after an error."""


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    kind: str
    """Such as ext4, nfs4, cifs, exfat."""
    is_read_only: bool
    """The file system itself. One that is only mounted read-only here, as into a container, is not."""


def mount_of(path: Path) -> Mount | None:
    """The file system that holds `path`, or None if that is unknown."""
    found: tuple[int, Mount] | None = None
    try:
        where = path.resolve()
        for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            place, _, system = line.partition(" - ")
            point = Path(_plain(place.split(" ")[4]))
            if where.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):  # the last one covers
                kind, _, options = system.split(" ", 2)
                found = len(point.parts), Mount(kind, bool(_READ_ONLY & set(options.split(","))))
    except (OSError, ValueError, IndexError):
        return None
    return None if found is None else found[1]


def disk_in_words(path: Path) -> str:
    """Such as "this disk (exfat)"."""
    mount = mount_of(path)
    return "this disk" if mount is None else f"this disk ({mount.kind})"


def _plain(text: str) -> str:
    """A path of the table: blanks and the like are written there as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
