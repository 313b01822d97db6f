"""Shards on disk, and their reader: what the trainer knows about data.

    data/phase1/train-00000.npy ...       uint16 tokens, one stream over all shards; <|endoftext|> ends each document
    data/phase2/train-00000.tokens.npy    uint16 tokens of whole conversations, one after the other
    data/phase2/train-00000.mask.npy      uint8, 1 where the token carries loss
    data/phase2/train-00000.offsets.npy   int64, n + 1 offsets of the shard's n conversations
    data/phase{1,2}/manifest.json         written last: no manifest, no data

`validation-*` files are the same. The manifest holds nothing that depends on when or how fast it was made, so the
SHA-256 of its bytes is the identity of the data.

numpy is imported when arrays are opened, not before: a trainer that waits for data stays small.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.errors import DataError, SvitloError
from svitlo.storage.files import digest_of, sha256_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    TokenArray = npt.NDArray[np.uint16]
    MaskArray = npt.NDArray[np.uint8]
    OffsetArray = npt.NDArray[np.int64]

MANIFEST = "manifest.json"
FORMAT = 1
SPLITS = ("train", "validation")
_KEYS = {"format", "phase", "configuration", "configuration_digest", "tokenizer", "sources", "splits", "digest"}
END_OF_TEXT = 50256
"""The token `<|endoftext|>`: ends each document of phase 1 and each reply of phase 2."""


class DataNotReady(SvitloError):  # noqa: N818
    """There is no manifest (yet): the data was never prepared, or is being prepared now."""

    is_permanent = False


@dataclass(frozen=True)
class ShardFile:
    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Shard:
    """One shard: a file in phase 1; in phase 2 three files: tokens, mask and offsets."""

    files: tuple[ShardFile, ...]
    num_tokens: int
    num_sequences: int
    """Conversations in the shard; 0 in phase 1."""


@dataclass(frozen=True)
class Manifest:
    """What one phase's shards are and what they were made of."""

    digest: str
    """SHA-256 of the manifest's bytes: the identity of the data."""
    phase: int
    content: dict[str, Any]
    """The file as it is."""

    @property
    def configuration(self) -> dict[str, Any]:
        return dict(self.content["configuration"])

    @property
    def configuration_digest(self) -> str:
        return str(self.content["configuration_digest"])

    @property
    def tokenizer_sha256(self) -> str:
        return str(self.content["tokenizer"]["sha256"])

    @property
    def vocab_size(self) -> int:
        return int(self.content["tokenizer"]["vocab_size"])

    @property
    def sources(self) -> list[dict[str, Any]]:
        return list(self.content["sources"])

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of `train` or `validation`, in order."""
        return tuple(
            Shard(
                files=tuple(ShardFile(file["name"], file["sha256"], file["bytes"]) for file in shard["files"]),
                num_tokens=shard["tokens"],
                num_sequences=shard.get("sequences", 0),
            )
            for shard in self.content["splits"][split]["shards"]
        )

    def num_tokens(self, split: str) -> int:
        return int(self.content["splits"][split]["tokens"])

    def num_documents(self, split: str) -> int:
        """Documents (phase 1) or conversations (phase 2)."""
        return int(self.content["splits"][split]["documents"])

    def num_words(self, split: str) -> int:
        return int(self.content["splits"][split]["words"])

    def num_reply_tokens(self, split: str) -> int:
        """Tokens that carry loss; all of them in phase 1."""
        return int(self.content["splits"][split].get("reply_tokens", self.num_tokens(split)))


def load_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`. Raises `DataNotReady` where there is none and `DataError` where it is damaged."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataNotReady(f"{path}: not there, so the data is not prepared (yet): `svitlo prepare` makes it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        content = json.loads(data)
        _check(content)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}: damaged or not a manifest of this version ({reason}). Remove the file and run `svitlo prepare`"
        ) from error
    return Manifest(digest=hashlib.sha256(data).hexdigest(), phase=content["phase"], content=content)


def verify_shards(folder: Path, manifest: Manifest) -> None:
    """Compare every shard file with its SHA-256 in the manifest. Raises `DataError` that names the first bad file."""
    for split in SPLITS:
        for shard in manifest.shards(split):
            for file in shard.files:
                problem = file_problem(folder, file)
                if problem:
                    raise DataError(f"{folder / file.name}: {problem}. `svitlo prepare` makes this shard again")


def file_problem(folder: Path, file: ShardFile) -> str | None:
    """Why the file is not the one that was written, or None where it is."""
    path = folder / file.name
    try:
        num_bytes = path.stat().st_size
        if num_bytes != file.num_bytes:
            return f"has {num_bytes:,} bytes instead of {file.num_bytes:,}"
        found = sha256_of(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == file.sha256 else f"is damaged (SHA-256 {found[:12]}… instead of {file.sha256[:12]}…)"


class TokenStream:
    """Phase 1: one split's tokens as one long sequence, whatever shards it lies in.

    `verify_shards` first: only shapes and types are checked here. Raises `DataError` where they do not fit.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        _require_phase(folder, manifest, 1)
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
    """Phase 2: one split's conversations by number, with the mask that says which tokens carry loss.

    `verify_shards` first: only shapes and types are checked here. Raises `DataError` where they do not fit.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        import numpy as np

        _require_phase(folder, manifest, 2)
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


def _require_phase(folder: Path, manifest: Manifest, phase: int) -> None:
    if manifest.phase != phase:
        raise DataError(f"{folder / MANIFEST}: is of phase {manifest.phase}, phase {phase} is needed")


def _check(content: Any) -> None:
    """Raise `ValueError`, `KeyError` or `TypeError` unless the manifest has everything that its readers use."""
    if not isinstance(content, dict):
        raise ValueError(f"found {type(content).__name__} instead of an object")
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
    unknown = set(content) - _KEYS
    if unknown:
        raise ValueError(f"{min(unknown)!r} is unknown")
    # Manifests of the first days have none; a damaged word "digest" is an unknown one.
    if "digest" in content and content["digest"] != digest_of(
        {key: content[key] for key in content.keys() - {"digest"}}
    ):
        raise ValueError("its own digest is wrong: at least one bit is not what was written")
    phase = content["phase"]
    if phase not in (1, 2):
        raise ValueError(f"phase {phase!r}")
    for key, kind in (("configuration", dict), ("configuration_digest", str), ("tokenizer", dict), ("sources", list)):
        if not isinstance(content[key], kind):
            raise ValueError(f"{key} is not of type {kind.__name__}")
    _text(content["tokenizer"]["sha256"])
    _count(content["tokenizer"]["vocab_size"])
    for split in SPLITS:
        part = content["splits"][split]
        counted = ("documents", "words", "tokens") + (("reply_tokens",) if phase == 2 else ())
        for key in counted:
            _count(part[key])
        for shard in part["shards"]:
            _count(shard["tokens"])
            if phase == 2:
                _count(shard["sequences"])
            if len(shard["files"]) != (1 if phase == 1 else 3):
                raise ValueError(f"a shard of {split} has {len(shard['files'])} files")
            for file in shard["files"]:
                _count(file["bytes"])
                _text(file["sha256"])
                if "/" in _text(file["name"]):
                    raise ValueError(f"file name {file['name']!r}")
        total = sum(shard["tokens"] for shard in part["shards"])
        if total != part["tokens"]:
            raise ValueError(f"{split}: shards have {total} tokens together instead of {part['tokens']}")


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} where a count should be")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a text should be")
    return value
