"""`manifest.json`: what data preparation hands to the trainer, and how a reader knows that it is complete.

The file is written last: no manifest, no data. It names every shard with its SHA-256, the sources, the configuration
and the counts. Nothing in it depends on when or how fast it was made, so the SHA-256 of its bytes identifies the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svitlo.errors import DamagedData, DataError, SvitloError
from svitlo.phases import Phase, phase_numbered
from svitlo.storage.files import digest_of, sha256_of
from svitlo.storage.space import reason_of

MANIFEST = "manifest.json"
FORMAT = 1
SPLITS = ("train", "validation")
_KEYS = {"format", "phase", "configuration", "configuration_digest", "tokenizer", "sources", "splits", "digest"}


class DataNotReady(SvitloError):  # noqa: N818
    """There is no manifest yet: the data was never prepared, or is being prepared now."""

    is_permanent = False


@dataclass(frozen=True)
class ShardFile:
    """One file of a shard."""

    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Shard:
    """One shard: one file in phase 1, three files (tokens, mask and offsets) in phase 2."""

    files: tuple[ShardFile, ...]
    num_tokens: int
    num_sequences: int
    """Conversations in the shard; 0 in phase 1."""


@dataclass(frozen=True)
class Manifest:
    """The shards of one phase, and what they were made from."""

    digest: str
    """SHA-256 of the manifest's bytes: the identity of the data."""
    phase: Phase
    content: dict[str, Any]
    """The content of the file, unchanged."""

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
        """Tokens that carry loss. In phase 1 that is all of them."""
        return int(self.content["splits"][split].get("reply_tokens", self.num_tokens(split)))


def load_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`. Raises `DataNotReady` if there is none, `DataError` if it is damaged."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataNotReady(f"{path}: missing, so the data is not prepared yet. Run `svitlo prepare`") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from error
    try:
        content = json.loads(data)
        _check(content)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DamagedData(
            f"{path}: damaged or not a manifest of this version ({reason}). Remove the file and run `svitlo prepare`"
        ) from error
    return Manifest(digest=hashlib.sha256(data).hexdigest(), phase=phase_numbered(content["phase"]), content=content)


def verify_shards(folder: Path, manifest: Manifest, *, content: Callable[[str], bool] = lambda _: True) -> None:
    """Check every file of every shard: its size and, where `content` says so of its name, its SHA-256.

    `DamagedData` names the first bad file.
    """
    for split in SPLITS:
        for shard in manifest.shards(split):
            for file in shard.files:
                problem = file_problem(folder, file, content=content(file.name))
                if problem:
                    raise damage_of(folder, file, problem)


def damage_of(folder: Path, file: ShardFile, problem: str) -> DamagedData:
    """The error that says what is wrong with a file of a shard, and what to do."""
    return DamagedData(
        f"{folder / file.name}: {problem}. `svitlo prepare` makes this shard again "
        f"(`docker compose restart data-prep`; after a power cut it does so by itself)",
        file.name,
    )


def file_problem(folder: Path, file: ShardFile, *, content: bool = True) -> str | None:
    """How the file differs from the one that was written, or None if it does not. Without `content`: only its size."""
    path = folder / file.name
    try:
        num_bytes = path.stat().st_size
        if num_bytes != file.num_bytes:
            return f"has {num_bytes:,} bytes instead of {file.num_bytes:,}"
        if not content:
            return None
        found = sha256_of(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({reason_of(error)})"
    return None if found == file.sha256 else f"is damaged (SHA-256 {found[:12]}… instead of {file.sha256[:12]}…)"


def _check(content: Any) -> None:
    """Raise `ValueError`, `KeyError` or `TypeError` unless the manifest has everything that its readers use."""
    if not isinstance(content, dict):
        raise ValueError(f"found {type(content).__name__} instead of an object")
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
    unknown = set(content) - _KEYS
    if unknown:
        raise ValueError(f"{min(unknown)!r} is unknown")
    # The earliest manifests have no digest. If the key itself is damaged, it counts as unknown.
    if "digest" in content and content["digest"] != digest_of(
        {key: content[key] for key in content.keys() - {"digest"}}
    ):
        raise ValueError("its own digest is wrong: at least one bit is not what was written")
    phase = phase_numbered(content["phase"])
    for key, kind in (("configuration", dict), ("configuration_digest", str), ("tokenizer", dict), ("sources", list)):
        if not isinstance(content[key], kind):
            raise ValueError(f"{key} is not of type {kind.__name__}")
    _text(content["tokenizer"]["sha256"])
    _count(content["tokenizer"]["vocab_size"])
    for split in SPLITS:
        part = content["splits"][split]
        counted = ("documents", "words", "tokens") + (("reply_tokens",) if phase.is_chat else ())
        for key in counted:
            _count(part[key])
        for shard in part["shards"]:
            _count(shard["tokens"])
            if phase.is_chat:
                _count(shard["sequences"])
            if len(shard["files"]) != (3 if phase.is_chat else 1):
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
