"""The GPT-2 tokenizer: byte-level BPE with 50257 tokens, from the file that the image (or `.venv`) was built with.

The exported model carries the same file, for Hugging Face's library. Here tiktoken encodes the text: it gives the same
tokens several times as fast, and imports in a fraction of the time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path

from svitlo.errors import SvitloError
from svitlo.storage.space import reason_of

NAME = "gpt2"
VOCAB_SIZE = 50257
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_TOKEN = VOCAB_SIZE - 1
"""Ends each document of plain text and each reply of a conversation."""

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""How GPT-2 splits text before merging. Possessive, to avoid backtracking."""


class TokenizerMissing(SvitloError):  # noqa: N818
    """The tokenizer file of the installation is missing, or it is not GPT-2's."""


def tokenizer_path() -> Path:
    """Where the tokenizer of this installation is."""
    return Path(sys.prefix) / "share" / "svitlo" / "tokenizer.json"


def tokenizer_sha256(path: Path | None = None) -> str:
    """The SHA-256 of the tokenizer file, without loading the tokenizer. Raises `TokenizerMissing`."""
    return hashlib.sha256(_read(path or tokenizer_path())).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerMissing(
            f"{path}: the tokenizer cannot be read ({reason_of(error)}). It is made when the image or .venv is built: "
            f"build it again"
        ) from error


def _read_ranks(path: Path) -> dict[bytes, int]:
    """The bytes of each token and its number, which is also its rank in merging. Raises `TokenizerMissing`."""
    content = _read(path)
    byte_of = _byte_of_each_character()
    try:
        vocabulary = json.loads(content)["model"]["vocab"]
        ranks = {bytes(byte_of[character] for character in token): rank for token, rank in vocabulary.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerMissing(f"{path}: not a tokenizer file ({error!r}). Build the image or .venv again") from error
    if sorted(ranks.values()) != list(range(VOCAB_SIZE - 1)):
        raise TokenizerMissing(
            f"{path}: has {len(ranks):,} tokens and is not GPT-2's with {VOCAB_SIZE - 1:,} and {END_OF_TEXT}. Build "
            f"the image or .venv again"
        )
    return ranks


def _byte_of_each_character() -> dict[str, int]:
    """GPT-2's files write each byte as a visible character: itself, or a letter from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


class Tokenizer:
    """Text to tokens and back. Text never becomes a special token: `<|endoftext|>` in a text is spelled out."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises `TokenizerMissing` if the file is missing or not GPT-2's."""
        import tiktoken

        self._bpe = tiktoken.Encoding(
            NAME,
            pat_str=_WORDS,
            mergeable_ranks=_read_ranks(path or tokenizer_path()),
            special_tokens={END_OF_TEXT: END_OF_TEXT_TOKEN},
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`."""
        return self._bpe.encode_ordinary(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, with special ones spelled out. Bytes that are not UTF-8 become U+FFFD."""
        return self._bpe.decode(tokens)

    def pack(self, text: str) -> bytes:
        """The tokens of `text` as little-endian uint16."""
        return pack(self.encode(text))


def pack(tokens: Sequence[int]) -> bytes:
    """Tokens as little-endian uint16."""
    packed = array("H", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
