"""Writes shards to disk, durably and one at a time."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from svitlo.manifest import ShardFile
from svitlo.storage.files import sha256_of, write_durably


def write_array(path: Path, array: Any) -> ShardFile:
    """Durably write a NumPy array as `.npy`. The same array gives the same bytes. Verified by reading it back."""
    import numpy as np

    content = io.BytesIO()
    np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
    return write_bytes(path, content.getvalue())


def write_bytes(path: Path, content: bytes) -> ShardFile:
    """Write a file durably. It is read back and compared before it gets its name."""
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
"""Where a shard begins: `source`, `unit` and `number` of a document, how many documents were `kept` before it, and the
`offset` in tokens within it."""


class SplitWriter(ABC):
    """Collects the tokens of one split and writes a shard whenever one is full."""

    size_key: ClassVar[str]
    """The key in the manifest's entry for a shard that holds its size."""

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_size: int,
        shards: list[dict[str, Any]],
        pending: Pending | None = None,
        begin: Begin | None = None,
    ) -> None:
        """`shard_size`: what fills a shard. `shards`: the entries of those on disk. New ones are appended."""
        self._folder = folder
        self._split = split
        self._shard_size = shard_size
        self.shards = shards
        self.pending = pending or Pending()
        self.begin = begin
        """Where the shard being collected begins. None if nothing is collected yet."""

    @property
    def num_tokens(self) -> int:
        """Tokens on disk and collected so far."""
        return sum(int(shard["tokens"]) for shard in self.shards) + self.pending.num_tokens

    @abstractmethod
    def add(self, tokens: bytes, mask: bytes, begin: Begin) -> bool:
        """Add a document or conversation whose place is `begin`. Returns whether a shard was written."""

    @abstractmethod
    def _arrays(self, num_tokens: int) -> dict[str, Any]:
        """The arrays of the next shard, by file name ending."""

    def finish(self) -> None:
        """Write the remaining tokens as the last, shorter shard."""
        if self.pending.num_tokens:
            self._write(self.pending.num_tokens)

    def _write(self, num_tokens: int) -> None:
        """Write the first `num_tokens` of the collected tokens as the next shard."""
        assert self.begin is not None
        name = f"{self._split}-{len(self.shards):05d}"
        files = [
            write_array(self._folder / f"{name}{ending}.npy", array)
            for ending, array in self._arrays(num_tokens).items()
        ]
        self.shards.append(
            {
                "files": [{"name": file.name, "sha256": file.sha256, "bytes": file.num_bytes} for file in files],
                "tokens": num_tokens,
                "begin": self.begin,
                **self._forget(num_tokens),
            }
        )
        self.begin = None

    def _forget(self, num_tokens: int) -> dict[str, Any]:
        """Drop what was written. Returns additional keys for the shard's entry."""
        del self.pending.tokens[: 2 * num_tokens]
        return {}


class TextWriter(SplitWriter):
    """Plain text: shards of a fixed number of tokens. A cut may fall within a document."""

    size_key = "tokens"

    def add(self, tokens: bytes, mask: bytes, begin: Begin) -> bool:
        pending = self.pending
        if self.begin is None:
            self.begin = begin
        pending.tokens += tokens
        has_written = False
        while pending.num_tokens >= self._shard_size:
            self._write(self._shard_size)
            has_written = True
            if pending.tokens:
                self.begin = {**begin, "offset": begin["offset"] + len(tokens) // 2 - pending.num_tokens}
        return has_written

    def _arrays(self, num_tokens: int) -> dict[str, Any]:
        return {"": _tokens(self.pending, num_tokens)}


class ConversationWriter(SplitWriter):
    """Conversations: shards of a fixed number of whole conversations, with their masks and offsets."""

    size_key = "sequences"

    def add(self, tokens: bytes, mask: bytes, begin: Begin) -> bool:
        pending = self.pending
        if self.begin is None:
            self.begin = begin
        pending.tokens += tokens
        pending.mask += mask
        pending.lengths.append(len(mask))
        if len(pending.lengths) < self._shard_size:
            return False
        self._write(len(pending.mask))
        return True

    def _arrays(self, num_tokens: int) -> dict[str, Any]:
        import numpy as np

        return {
            ".tokens": _tokens(self.pending, num_tokens),
            ".mask": np.frombuffer(bytes(self.pending.mask), dtype=np.uint8),
            ".offsets": np.concatenate([[0], np.cumsum(self.pending.lengths)]).astype("<i8"),
        }

    def _forget(self, num_tokens: int) -> dict[str, Any]:
        num_sequences = len(self.pending.lengths)
        self.pending.mask.clear()
        self.pending.lengths.clear()
        return {**super()._forget(num_tokens), "sequences": num_sequences}


def _tokens(pending: Pending, num_tokens: int) -> Any:
    import numpy as np

    return np.frombuffer(bytes(pending.tokens[: 2 * num_tokens]), dtype="<u2")
