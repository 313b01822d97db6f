"""Shards on disk and their readers: all that the trainer knows about data.

    data/phase1/train-00000.npy ...       uint16 tokens, one stream over all shards; <|endoftext|> ends each document
    data/phase2/train-00000.tokens.npy    uint16 tokens of whole conversations, one after the other
    data/phase2/train-00000.mask.npy      uint8, 1 where the token carries loss
    data/phase2/train-00000.offsets.npy   int64, n + 1 offsets of the shard's n conversations

`validation-*` files are the same; `manifest.json` names them all.

A power cut can damage any file, so each process checks a shard against its SHA-256 before it uses it the first time.
Opening the data reads nothing: a start takes no longer with a thousand times the data.

numpy is imported only when arrays are opened: a trainer that waits for data stays small.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.errors import DataError
from svitlo.manifest import MANIFEST, Manifest, Shard, damage_of, file_problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    TokenArray = npt.NDArray[np.uint16]
    MaskArray = npt.NDArray[np.uint8]
    OffsetArray = npt.NDArray[np.int64]

_MOST_OPEN = 2_048
"""Shards that are mapped into memory at the same time. The kernel allows 65,530 mappings."""
_MOST_COUNTED = 1 << 25
"""Tokens are counted in shards that hold at most so many tokens together: 67 MB."""


class _Split:
    """The shards of one split, by number. Verifies and opens each when it is first used. Threads may share it.

    Everything that reads from a shard raises `DamagedData` where it is not what was written.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, kinds: tuple[str, ...]) -> None:
        """`kinds`: the types of a shard's arrays, in the order of its files."""
        self._folder = folder
        self._shards = manifest.shards(split)
        self._kinds = kinds
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._opened = functools.lru_cache(maxsize=_MOST_OPEN)(self._open)

    def _starts_by(self, length: Callable[[Shard], int]) -> list[int]:
        """Where each shard begins if all lie one after the other, and where the last one ends."""
        return [0, *itertools.accumulate(length(shard) for shard in self._shards)]

    def verify(self, number: int) -> None:
        """Check a shard against its SHA-256, if this process has not done that yet. Raises `DamagedData`."""
        with self._lock:
            if number in self._verified:
                return
            for file in self._shards[number].files:
                problem = file_problem(self._folder, file)
                if problem:
                    raise damage_of(self._folder, file, problem)
            self._verified.add(number)

    def unverified(self, numbers: Callable[[], Iterable[int]]) -> list[int]:
        """Those of the shards that were not verified yet. `numbers` is not called once all were."""
        if len(self._verified) == len(self._shards):
            return []
        return [number for number in numbers() if number not in self._verified]

    def _arrays(self, number: int) -> list[Any]:
        """A shard's arrays, memory-mapped."""
        self.verify(number)
        return self._opened(number)

    def _typical(self) -> Iterator[list[Any]]:
        """The arrays of all shards, or of so many, evenly spaced, that they hold `_MOST_COUNTED` tokens."""
        num_tokens = sum(shard.num_tokens for shard in self._shards)
        step = max(1, -(-num_tokens // _MOST_COUNTED))
        return (self._arrays(number) for number in range(0, len(self._shards), step))

    def _open(self, number: int) -> list[Any]:
        import numpy as np

        shard = self._shards[number]
        arrays = []
        for file, kind in zip(shard.files, self._kinds, strict=True):
            path = self._folder / file.name
            length = shard.num_sequences + 1 if kind == "int64" else shard.num_tokens
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise damage_of(self._folder, file, f"cannot be opened ({error})") from error
            if array.dtype != np.dtype(kind) or array.shape != (length,):
                found = f"holds {array.dtype}{array.shape} instead of {kind}({length},)"
                raise damage_of(self._folder, file, found)
            arrays.append(array)
        return arrays


class TokenStream(_Split):
    """Plain text: the tokens of one split as one long sequence across its shards."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        _require_kind(folder, manifest, is_chat=False)
        super().__init__(folder, manifest, split, ("uint16",))
        self._starts = self._starts_by(lambda shard: shard.num_tokens)

    @property
    def num_tokens(self) -> int:
        return self._starts[-1]

    def token_counts(self, vocab_size: int) -> OffsetArray:
        """How often each token occurs, int64, shape (vocab_size,). Large data is sampled: up to 33 million tokens."""
        import numpy as np

        counts = (np.bincount(tokens, minlength=vocab_size) for (tokens,) in self._typical())
        return sum(counts, np.zeros(vocab_size, np.int64))

    def shards_of(self, start: int, stop: int) -> range:
        """The numbers of the shards that hold tokens `start` to `stop` (exclusive)."""
        return range(bisect.bisect_right(self._starts, start) - 1, bisect.bisect_left(self._starts, stop))

    def read(self, start: int, stop: int) -> TokenArray:
        """Tokens `start` to `stop` (exclusive) as a new array of shape (stop - start,). Raises `IndexError` outside."""
        import numpy as np

        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens}")
        result: TokenArray = np.empty(stop - start, dtype=np.uint16)
        for number in self.shards_of(start, stop):
            first, end = max(start, self._starts[number]), min(stop, self._starts[number + 1])
            (tokens,) = self._arrays(number)
            result[first - start : end - start] = tokens[first - self._starts[number] : end - self._starts[number]]
        return result


class ConversationSet(_Split):
    """Conversations of one split by number, with the mask that says which tokens carry loss."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        _require_kind(folder, manifest, is_chat=True)
        super().__init__(folder, manifest, split, ("uint16", "uint8", "int64"))
        self._starts = self._starts_by(lambda shard: shard.num_sequences)

    def __len__(self) -> int:
        return self._starts[-1]

    def token_counts(self, vocab_size: int) -> OffsetArray:
        """How often each token carries loss, int64, shape (vocab_size,). Large data is sampled."""
        import numpy as np

        with_loss = (np.bincount(tokens[mask == 1], minlength=vocab_size) for tokens, mask, _ in self._typical())
        return sum(with_loss, np.zeros(vocab_size, np.int64))

    def shard_of(self, number: int) -> int:
        """The number of the shard that holds this conversation. Raises `IndexError` outside 0 to len(self) - 1."""
        if not 0 <= number < len(self):
            raise IndexError(f"conversation {number} of {len(self)}")
        return bisect.bisect_right(self._starts, number) - 1

    def length(self, number: int) -> int:
        """Tokens in this conversation. Raises `IndexError` outside 0 to len(self) - 1."""
        _, _, (start, stop) = self._place(number)
        return stop - start

    def conversation(self, number: int) -> tuple[TokenArray, MaskArray]:
        """Tokens (uint16) and mask (uint8, 1 = carries loss), each of shape (length(number),).

        Raises `IndexError` outside 0 to len(self) - 1.
        """
        import numpy as np

        tokens, mask, (start, stop) = self._place(number)
        return np.array(tokens[start:stop]), np.array(mask[start:stop])

    def _place(self, number: int) -> tuple[TokenArray, MaskArray, tuple[int, int]]:
        shard = self.shard_of(number)
        tokens, mask, offsets = self._arrays(shard)
        within = number - self._starts[shard]
        return tokens, mask, (int(offsets[within]), int(offsets[within + 1]))


def _require_kind(folder: Path, manifest: Manifest, *, is_chat: bool) -> None:
    if manifest.phase.is_chat != is_chat:
        wanted = "conversations" if is_chat else "text"
        raise DataError(f"{folder / MANIFEST}: belongs to {manifest.phase}, which has no {wanted}")
