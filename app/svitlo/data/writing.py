"""Shards to disk, durably and one at a time."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svitlo.data.shards import ShardFile
from svitlo.storage.files import sha256_of, write_durably


def write_array(path: Path, array: Any) -> ShardFile:
    """Write a NumPy array as `.npy`: the same bytes for the same array. Read back and compared before it counts."""
    import numpy as np

    content = io.BytesIO()
    np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
    return write_bytes(path, content.getvalue())


def write_bytes(path: Path, content: bytes) -> ShardFile:
    """Write a file durably; it is read back and compared before it takes its name."""
    expected = hashlib.sha256(content).hexdigest()

    def verify(temporary: Path) -> None:
        if sha256_of(temporary) != expected:
            raise OSError(5, "what was read back is not what was written", str(path))

    write_durably(path, lambda file: file.write(content), verify=verify)
    return ShardFile(path.name, expected, len(content))


@dataclass
class Pending:
    """Tokens of one split that do not fill a shard yet."""

    tokens: bytearray = field(default_factory=bytearray)
    mask: bytearray = field(default_factory=bytearray)
    lengths: list[int] = field(default_factory=list)
    """Tokens in each conversation (phase 2)."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // 2


Begin = dict[str, int]
"""Where a shard begins: `source`, `unit`, `number` of a document, the count `kept` of documents kept before it, and the
`offset` in tokens within it."""


class SplitWriter:
    """Collects one split's tokens and writes a shard whenever one is full."""

    def __init__(
        self,
        folder: Path,
        phase: int,
        split: str,
        shard_size: int,
        shards: list[dict[str, Any]],
        pending: Pending | None = None,
        begin: Begin | None = None,
    ) -> None:
        """`shard_size`: tokens (phase 1) or conversations (phase 2). `shards`: entries of those on disk, added to."""
        self._folder = folder
        self._phase = phase
        self._split = split
        self._shard_size = shard_size
        self.shards = shards
        self.pending = pending or Pending()
        self.begin = begin
        """Where the shard that is being collected begins; None where nothing is collected."""

    @property
    def num_tokens(self) -> int:
        """Tokens on disk and collected."""
        return sum(int(shard["tokens"]) for shard in self.shards) + self.pending.num_tokens

    def add(self, tokens: bytes, mask: bytes, begin: Begin) -> bool:
        """Take a document or conversation whose place is `begin`. Returns whether a shard was written."""
        pending = self.pending
        if self.begin is None:
            self.begin = begin
        pending.tokens += tokens
        if self._phase == 2:
            pending.mask += mask
            pending.lengths.append(len(mask))
            if len(pending.lengths) < self._shard_size:
                return False
            self._write(len(pending.mask), len(pending.lengths))
            return True
        has_written = False
        while pending.num_tokens >= self._shard_size:
            self._write(self._shard_size, 0)
            has_written = True
            if pending.tokens:
                self.begin = {**begin, "offset": begin["offset"] + len(tokens) // 2 - pending.num_tokens}
        return has_written

    def finish(self) -> None:
        """Write what is collected as the last, shorter shard."""
        if self.pending.num_tokens:
            self._write(self.pending.num_tokens, len(self.pending.lengths))

    def _write(self, num_tokens: int, num_sequences: int) -> None:
        assert self.begin is not None
        files = write_shard(self._folder, self._phase, self._split, len(self.shards), self.pending, num_tokens)
        entry: dict[str, Any] = {
            "files": [{"name": file.name, "sha256": file.sha256, "bytes": file.num_bytes} for file in files],
            "tokens": num_tokens,
            "begin": self.begin,
        }
        if self._phase == 2:
            entry["sequences"] = num_sequences
        self.shards.append(entry)
        del self.pending.tokens[: 2 * num_tokens]
        del self.pending.mask[:num_tokens]
        del self.pending.lengths[:num_sequences]
        self.begin = None


def write_shard(
    folder: Path, phase: int, split: str, number: int, pending: Pending, num_tokens: int
) -> list[ShardFile]:
    """Write the first `num_tokens` collected tokens (phase 2: all of them) as shard `number`."""
    import numpy as np

    name = f"{split}-{number:05d}"
    tokens = np.frombuffer(bytes(pending.tokens[: 2 * num_tokens]), dtype="<u2")
    if phase == 1:
        return [write_array(folder / f"{name}.npy", tokens)]
    mask = np.frombuffer(bytes(pending.mask), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(pending.lengths)]).astype("<i8")
    return [
        write_array(folder / f"{name}.tokens.npy", tokens),
        write_array(folder / f"{name}.mask.npy", mask),
        write_array(folder / f"{name}.offsets.npy", offsets),
    ]
