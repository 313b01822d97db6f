"""Whether everything on the volumes is what was once written there: shards, checkpoints, the exported model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from svitlo.errors import DataError, SvitloError
from svitlo.manifest import MANIFEST, SPLITS, DataNotReady, file_problem, load_manifest
from svitlo.operations.shared import NothingThere
from svitlo.phases import PHASES
from svitlo.reporting.events import print_line
from svitlo.storage.sums import read_sums, shown, sum_problem
from svitlo.training.checkpoints import load_checkpoint
from svitlo.volumes import Volumes

_VERIFIED = ("data", "checkpoints", "export")


def verify_volumes(volumes: Volumes, say: Callable[[str], object] = print_line) -> bool:
    """Check shards, checkpoints and exported files, and say of each what was found. Returns whether all are good.

    Raises `NothingThere` where there is no file to check, and `VolumeError` where a volume is not there.
    """
    volumes.require(*_VERIFIED)
    problems = num_files = 0
    links = [path for name in _VERIFIED for path in sorted((volumes.root / name).rglob("*")) if path.is_symlink()]
    dangling = [path for path in links if not path.exists()]

    def report(path: Path, problem: str | None) -> None:
        nonlocal problems, num_files
        num_files += 1
        problems += problem is not None
        say(f"{shown(path.relative_to(volumes.root))}: {problem or 'good'}")

    for path in dangling:
        report(path, f"a link to {shown(path.readlink())}, and nothing is there. Mount its disk, or remove the link")
    for phase in PHASES:
        folder = volumes.data(phase)
        try:
            manifest = load_manifest(folder)
        except DataNotReady:
            say(f"data of {phase}: not prepared (yet)")
            continue
        except DataError as error:
            report(folder / MANIFEST, str(error))
            continue
        for split in SPLITS:
            for shard in manifest.shards(split):
                for file in shard.files:
                    report(folder / file.name, file_problem(folder, file) or None)
    for phase in PHASES:
        files = sorted(volumes.checkpoints(phase).glob("*.pt"))
        if not files:
            say(f"checkpoints of {phase}: none (yet)")
        for path in files:
            try:
                load_checkpoint(path, phase)
            except SvitloError as error:
                if path.exists():  # and was not just removed by a trainer, as older ones are
                    report(path, str(error))
            else:
                report(path, None)
    if volumes.model.is_dir():
        try:
            for name, expected in read_sums(volumes.model).items():
                path = volumes.model / name
                if path not in dangling:
                    real = path.resolve()  # a large file may have been moved to another disk and linked back
                    report(path, sum_problem(real.parent, real.name, expected))
        except DataError as error:
            report(volumes.model, str(error))
    else:
        say("exported model: none (yet)")
    if not num_files:
        raise NothingThere(
            f"{volumes.root}: nothing to verify: no shards, no checkpoints, no exported model. If there was something, "
            f"mount the disk that holds it or restore a backup (`make restore FROM=...`)"
        )
    say(f"{num_files} files checked: " + ("all good" if not problems else f"{problems} NOT GOOD"))
    return not problems
