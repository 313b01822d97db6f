"""The journal of a preparation: how far it has come, so that after a power cut it goes on instead of beginning again.

    data/phase1/.journal/journal.json       written after each shard: where each shard begins in the sources, the next
                                            document, statistics so far; with its own digest
    data/phase1/.journal/digests-00000.npy  digests of the documents kept between two writes of the journal
    data/phase1/.journal/pending-00000.npz  tokens that do not fill a shard yet
    data/phase1/.journal/files.json         digests of the source files with size and time (only to save time)

It stays when the preparation is complete (8 bytes for each document), so that a damaged shard can be made again alone.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.data.digestset import DigestSet
from svitlo.data.division import Division
from svitlo.data.writing import Begin, Pending, SplitWriter, write_array, write_bytes
from svitlo.manifest import MANIFEST, SPLITS, ShardFile, file_problem
from svitlo.storage.files import (
    TEMPORARY_SUFFIX,
    digest_of,
    fsync_folder,
    make_folder,
    remove_temporaries,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FOLDER = ".journal"
VERSION = 1


@dataclass
class SourceCounts:
    """What became of one source's documents."""

    documents: int = 0
    words: int = 0
    tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)


@dataclass
class SplitCounts:
    documents: int = 0
    words: int = 0
    tokens: int = 0
    reply_tokens: int = 0


@dataclass
class Progress:
    """Everything that a preparation has to remember between two shards."""

    identities: list[dict[str, Any]]
    """Where each source's data comes from."""
    sources: list[SourceCounts]
    splits: dict[str, SplitCounts] = field(default_factory=lambda: {split: SplitCounts() for split in SPLITS})
    shards: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    pending: dict[str, Pending] = field(default_factory=lambda: {split: Pending() for split in SPLITS})
    begins: dict[str, Begin | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))
    position: tuple[int, int, int] = (0, 0, 0)
    """Source, unit and number of the next document."""
    digest_files: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[list[str]] = field(default_factory=list)
    """What each source leaves out: files as it was when the preparation began, and members of archives read so far."""
    had_markup: list[int] = field(default_factory=list)
    """Documents of each source that markup was removed from. For the report: the manifest stays that of version 0.1."""
    groups: dict[int, int] = field(default_factory=dict)
    """Conversations in each group that is divided as a whole."""
    division: Division | None = None
    """How the data is divided, if not by hashes alone."""
    is_finished: bool = False


class Journal:
    """The journal of one phase, for one configuration."""

    def __init__(self, folder: Path, key: str) -> None:
        """`key` identifies the configuration, the tokenizer and the recipe: a journal of another one is not used."""
        self._data = folder
        self._folder = folder / FOLDER
        self._key = key
        self._pending_file: ShardFile | None = None
        self._count = 0

    # --- reading ---

    def saved_identities(self) -> list[dict[str, Any]] | None:
        """The origins that the journal was begun with, or None where there is no usable journal."""
        body = self._body()
        return None if body is None else list(body["identities"])

    def load(self) -> Progress | None:
        """The progress so far; None where there is none, of another configuration, or not whole."""
        body = self._body()
        if body is None:
            return None
        files = [ShardFile(file["name"], file["sha256"], file["bytes"]) for file in body["digest_files"]]
        pending_file = ShardFile(**body["pending_file"])
        if any(file_problem(self._folder, file) for file in [*files, pending_file]):
            return None
        self._pending_file = pending_file
        self._count = body["count"]
        return Progress(
            identities=body["identities"],
            sources=[SourceCounts(**counts) for counts in body["sources"]],
            splits={split: SplitCounts(**body["splits"][split]) for split in SPLITS},
            shards=body["shards"],
            pending=self._load_pending(pending_file),
            begins=body["begins"],
            position=tuple(body["position"]),
            digest_files=body["digest_files"],
            left_out=body.get("left_out", []),
            had_markup=body.get("had_markup", []),
            groups={int(group): count for group, count in body.get("groups", {}).items()},
            division=Division.from_dict(body["division"]) if body.get("division") else None,
            is_finished=body["is_finished"],
        )

    def _body(self) -> dict[str, Any] | None:
        try:
            value = json.loads((self._folder / "journal.json").read_bytes())
            body: dict[str, Any] = value["body"]
            is_whole = value["digest"] == digest_of(body) and body["version"] == VERSION and body["key"] == self._key
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return body if is_whole else None

    def _load_pending(self, file: ShardFile) -> dict[str, Pending]:
        import numpy as np

        with np.load(self._folder / file.name, allow_pickle=False) as arrays:
            return {
                split: Pending(
                    bytearray(arrays[f"{split}_tokens"].tobytes()),
                    bytearray(arrays[f"{split}_mask"].tobytes()),
                    arrays[f"{split}_lengths"].tolist(),
                )
                for split in SPLITS
            }

    def digests(self, progress: Progress, count: int | None = None) -> npt.NDArray[np.uint64]:
        """The digests of the first `count` documents kept (all where None), in order."""
        import numpy as np

        parts = [np.load(self._folder / file["name"], allow_pickle=False) for file in progress.digest_files]
        joined: npt.NDArray[np.uint64] = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
        return joined if count is None else joined[:count]

    # --- writing ---

    def save(self, progress: Progress, writers: dict[str, SplitWriter], digests: DigestSet) -> None:
        """Note the progress durably. Called when a shard has been written, and at the end."""
        import numpy as np

        make_folder(self._folder)
        self._count += 1
        new = digests.take_new()
        if len(new):
            file = write_array(self._folder / f"digests-{self._count:05d}.npy", new.astype("<u8"))
            progress.digest_files.append({"name": file.name, "sha256": file.sha256, "bytes": file.num_bytes})
        arrays: dict[str, Any] = {}
        for split, writer in writers.items():
            arrays[f"{split}_tokens"] = np.frombuffer(bytes(writer.pending.tokens), dtype="<u2")
            arrays[f"{split}_mask"] = np.frombuffer(bytes(writer.pending.mask), dtype=np.uint8)
            arrays[f"{split}_lengths"] = np.array(writer.pending.lengths, dtype="<i8")
            progress.begins[split] = writer.begin
        content = io.BytesIO()
        np.savez(content, **arrays)
        before, self._pending_file = (
            self._pending_file,
            write_bytes(self._folder / f"pending-{self._count:05d}.npz", content.getvalue()),
        )
        body = {
            "version": VERSION,
            "key": self._key,
            "count": self._count,
            "identities": progress.identities,
            "sources": [vars(counts) for counts in progress.sources],
            "splits": {split: vars(counts) for split, counts in progress.splits.items()},
            "shards": progress.shards,
            "begins": progress.begins,
            "position": list(progress.position),
            "digest_files": progress.digest_files,
            "pending_file": vars(self._pending_file),
            "left_out": progress.left_out,
            "had_markup": progress.had_markup,
            "groups": {str(group): count for group, count in progress.groups.items()},
            "division": progress.division and progress.division.as_dict(),
            "is_finished": progress.is_finished,
        }
        write_json(self._folder / "journal.json", {"digest": digest_of(body), "body": body})
        if before is not None:
            (self._folder / before.name).unlink(missing_ok=True)

    # --- digests of source files ---

    def known_digests(self) -> dict[str, list[Any]]:
        try:
            known = json.loads((self._folder / "files.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def save_known_digests(self, known: dict[str, list[Any]]) -> None:
        if known != self.known_digests():
            make_folder(self._folder)
            write_json(self._folder / "files.json", known, fsync=False)

    # --- what is in the folder ---

    def remove_leftovers(self) -> None:
        """Remove what an interrupted write left behind."""
        for folder in (self._data, self._folder):
            if folder.is_dir():
                remove_temporaries(folder)

    def is_empty(self) -> bool:
        """Whether the data folder holds nothing of an earlier preparation."""
        return not any(
            path.name != FOLDER and not path.name.endswith(TEMPORARY_SUFFIX) for path in self._data.iterdir()
        )


def remove_prepared(folder: Path) -> None:
    """Remove what a preparation has written: the manifest first, then every shard, then the journal. All else stays."""
    if not folder.is_dir():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    fsync_folder(folder)
    for split in SPLITS:
        for path in folder.glob(f"{split}-*.npy*"):
            path.unlink()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    remove_temporaries(folder)
    fsync_folder(folder)
