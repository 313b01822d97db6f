"""Shards on disk and their readers: all that the trainer knows about data.

    data/phase1/train-00000.npy ...       uint16 tokens, one stream over all shards; <|endoftext|> ends each document
    data/phase2/train-00000.tokens.npy    uint16 tokens of whole conversations, one after the other
    data/phase2/train-00000.mask.npy      uint8, 1 where the token carries loss
    data/phase2/train-00000.offsets.npy   int64, n + 1 offsets of the shard's n conversations

`validation-*` files are the same; `manifest.json` names them all.

numpy is imported only when arrays are opened: a trainer that waits for data stays small.
"""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.errors import DataError
from svitlo.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    TokenArray = npt.NDArray[np.uint16]
    MaskArray = npt.NDArray[np.uint8]
    OffsetArray = npt.NDArray[np.int64]


class TokenStream:
    """Plain text: the tokens of one split as one long sequence across its shards.

    Call `verify_shards` first: only shapes and types are checked here. Raises `DataError` if they do not fit.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        _require_kind(folder, manifest, is_chat=False)
        self._arrays: list[TokenArray] = []
        self._starts = [0]
        for shard in manifest.shards(split):
            self._arrays.append(_open(folder / shard.files[0].name, "uint16", shard.num_tokens))
            self._starts.append(self._starts[-1] + shard.num_tokens)

    @property
    def num_tokens(self) -> int:
        return self._starts[-1]

    def token_counts(self, vocab_size: int) -> OffsetArray:
        """How often each token occurs, int64, shape (vocab_size,)."""
        import numpy as np

        return sum((np.bincount(part, minlength=vocab_size) for part in self._arrays), np.zeros(vocab_size, np.int64))

    def read(self, start: int, stop: int) -> TokenArray:
        """Tokens `start` to `stop` (exclusive) as a new array of shape (stop - start,). Raises `IndexError` outside."""
        import numpy as np

        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens}")
        result: TokenArray = np.empty(stop - start, dtype=np.uint16)
        index = bisect.bisect_right(self._starts, start) - 1
        position = start
        while position < stop:
            shard_start, shard_stop = self._starts[index], self._starts[index + 1]
            end = min(stop, shard_stop)
            result[position - start : end - start] = self._arrays[index][position - shard_start : end - shard_start]
            position, index = end, index + 1
        return result


class ConversationSet:
    """Conversations of one split by number, with the mask that says which tokens carry loss.

    Call `verify_shards` first: only shapes and types are checked here. Raises `DataError` if they do not fit.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        import numpy as np

        _require_kind(folder, manifest, is_chat=True)
        self._tokens: list[TokenArray] = []
        self._masks: list[MaskArray] = []
        self._offsets: list[OffsetArray] = []
        self._starts = [0]
        for shard in manifest.shards(split):
            tokens, mask, offsets = (folder / file.name for file in shard.files)
            self._tokens.append(_open(tokens, "uint16", shard.num_tokens))
            self._masks.append(_open(mask, "uint8", shard.num_tokens))
            self._offsets.append(_open(offsets, "int64", shard.num_sequences + 1))
            self._starts.append(self._starts[-1] + shard.num_sequences)
        self.lengths: OffsetArray = (
            np.concatenate([np.diff(offsets) for offsets in self._offsets])
            if self._offsets
            else np.zeros(0, dtype=np.int64)
        )
        """Tokens in each conversation, int64, shape (len(self),)."""

    def __len__(self) -> int:
        return self._starts[-1]

    def token_counts(self, vocab_size: int) -> OffsetArray:
        """How often each token carries loss, int64, shape (vocab_size,)."""
        import numpy as np

        parts = zip(self._tokens, self._masks, strict=True)
        with_loss = (np.bincount(tokens[mask == 1], minlength=vocab_size) for tokens, mask in parts)
        return sum(with_loss, np.zeros(vocab_size, np.int64))

    def conversation(self, number: int) -> tuple[TokenArray, MaskArray]:
        """Tokens (uint16) and mask (uint8, 1 = carries loss), each of shape (lengths[number],).

        Raises `IndexError` outside 0 to len(self) - 1.
        """
        import numpy as np

        if not 0 <= number < len(self):
            raise IndexError(f"conversation {number} of {len(self)}")
        index = bisect.bisect_right(self._starts, number) - 1
        offsets = self._offsets[index]
        within = number - self._starts[index]
        start, stop = int(offsets[within]), int(offsets[within + 1])
        return np.array(self._tokens[index][start:stop]), np.array(self._masks[index][start:stop])


def _open(path: Path, kind: str, length: int) -> Any:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be opened ({error}). `svitlo prepare` makes this shard again") from error
    if array.dtype != np.dtype(kind) or array.shape != (length,):
        raise DataError(
            f"{path}: holds {array.dtype}{array.shape} instead of {kind}({length},). Run `svitlo verify` to see what "
            f"else is damaged, and `svitlo prepare` to make it again"
        )
    return array


def _require_kind(folder: Path, manifest: Manifest, *, is_chat: bool) -> None:
    if manifest.phase.is_chat != is_chat:
        wanted = "conversations" if is_chat else "text"
        raise DataError(f"{folder / MANIFEST}: belongs to {manifest.phase}, which has no {wanted}")
