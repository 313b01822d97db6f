"""The GPT-2 tokenizer: byte-level BPE with 50257 tokens, from the file that the image (or `.venv`) was built with.

Text is encoded word by word through a table of words already seen. This gives the very tokens that encoding the whole
text gives, because GPT-2's pre-tokenizer always splits before a space between two non-spaces, and it is several times
as fast: natural text is a few hundred thousand words, over and over.
"""

from __future__ import annotations

import hashlib
import re
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from svitlo.errors import SvitloError

if TYPE_CHECKING:
    import tokenizers

NAME = "gpt2"
VOCAB_SIZE = 50257
END_OF_TEXT = "<|endoftext|>"

MAX_TABLE_CHARACTERS = 1_000_000
"""A table with more is set aside and a new one begun; words met again move over. About 30 MB for both."""
MAX_STARTS = 20_000
MAX_START_LENGTH = 48
WORDS_AT_ONCE = 2_000
"""The library's own record of an encoding is large: so many are held at a time."""


_LETTERS_AND_MARKS = re.compile(r"(\n?[A-Za-z]+)([.,;:!?)\"\]]+)")


class TokenizerMissing(SvitloError):  # noqa: N818
    """The installation lacks its tokenizer file, or the file is another one."""


def tokenizer_path() -> Path:
    """Where the tokenizer of this installation lies."""
    return Path(sys.prefix) / "share" / "svitlo" / "tokenizer.json"


def tokenizer_sha256(path: Path | None = None) -> str:
    """The SHA-256 of the tokenizer's file, without loading it. Raises `TokenizerMissing`."""
    return hashlib.sha256(_read(path or tokenizer_path())).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerMissing(
            f"{path}: the tokenizer cannot be read ({error.strerror}). It is made when the image or .venv is built: "
            f"build it again"
        ) from error


def load_tokenizer(path: Path | None = None) -> tokenizers.Tokenizer:
    """The tokenizer as the `tokenizers` library has it, set to spell out special tokens that stand in a text.

    Raises `TokenizerMissing` where the file is missing or not GPT-2's.
    """
    import tokenizers

    path = path or tokenizer_path()
    content = _read(path)
    try:
        loaded = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise TokenizerMissing(f"{path}: not a tokenizer file ({error}). Build the image or .venv again") from error
    if loaded.get_vocab_size() != VOCAB_SIZE or loaded.token_to_id(END_OF_TEXT) != VOCAB_SIZE - 1:
        raise TokenizerMissing(
            f"{path}: has {loaded.get_vocab_size():,} tokens and is not GPT-2's with {VOCAB_SIZE:,}. Build the image "
            f"or .venv again"
        )
    loaded.encode_special_tokens = True
    return loaded


class Tokenizer:
    """Text to tokens and back. Text never becomes a special token: `<|endoftext|>` in it is spelled out."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises `TokenizerMissing` where the file is missing or not GPT-2's."""
        self._bpe = load_tokenizer(path)
        self._table: dict[str, bytes] = {}
        self._last_table: dict[str, bytes] = {}
        self._table_characters = 0
        self._starts: dict[str, bytes] = {}

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones spelled out; bytes that are not UTF-8 become U+FFFD."""
        return str(self._bpe.decode(list(tokens), skip_special_tokens=False))

    def pack(self, text: str) -> bytes:
        """The tokens of `text` as little-endian uint16: the same tokens as `encode` gives."""
        return self.pack_all([text])[0]

    def pack_all(self, texts: Sequence[str]) -> list[bytes]:
        """The tokens of each text as little-endian uint16, much faster than with `encode`."""
        if self._table_characters > MAX_TABLE_CHARACTERS:
            self._last_table, self._table, self._table_characters = self._table, {}, 0
        table = self._table
        # Two places where the pre-tokenizer always splits: before a space, and before a line break, that stands between
        # two characters which are not white space. So the text is its first word and then words with one or the other
        # before them. The break is kept in the word, the space is not.
        split = [text.replace("\n", " \n").split(" ") for text in texts]
        firsts = [words.pop(0) for words in split]
        self._learn(set().union(*split).difference(table))
        packed = []
        for text, first, words in zip(texts, firsts, split, strict=True):
            if words and (not first or first[-1].isspace()):
                packed.append(pack(self.encode(text)))
                continue
            try:
                packed.append(self._pack_start(first) + b"".join(map(table.__getitem__, words)))
            except KeyError:  # white space side by side or at an edge: no such word was learned
                packed.append(pack(self.encode(text)))
        return packed

    def _learn(self, unknown: set[str]) -> None:
        """Put the tokens of words that have a space or line break before them into the table."""
        missing: list[str] = []
        endings: list[tuple[str, str, str]] = []
        for word in unknown:
            packed = self._last_table.get(word)
            if packed is not None:
                self._table[word] = packed
                self._table_characters += len(word)
            elif parts := _LETTERS_AND_MARKS.fullmatch(word):
                # Letters and the marks after them are always split, and the letters alone are often known.
                stem, marks = parts.groups()
                endings.append((word, stem, marks))
                if stem not in self._table and stem not in unknown:
                    missing.append(stem)
            elif _is_word(word):
                missing.append(word)
        for start in range(0, len(missing), WORDS_AT_ONCE):
            part = missing[start : start + WORDS_AT_ONCE]
            encodings = self._bpe.encode_batch_fast(
                [word if word[0] == "\n" else " " + word for word in part], add_special_tokens=False
            )
            for word, encoding in zip(part, encodings, strict=True):
                self._table[word] = pack(encoding.ids)
                self._table_characters += len(word)
        for word, stem, marks in endings:
            self._table[word] = self._table[stem] + self._pack_start(marks)
            self._table_characters += len(word)

    def _pack_start(self, word: str) -> bytes:
        """The tokens of a word with nothing before it."""
        packed = self._starts.get(word)
        if packed is None:
            packed = pack(self.encode(word))
            if len(self._starts) >= MAX_STARTS:
                self._starts.clear()
            if len(word) <= MAX_START_LENGTH:
                self._starts[word] = packed
        return packed


def _is_word(word: str) -> bool:
    """Whether the word begins and ends with something else than white space, but for a line break before it."""
    inner = word[1:] if word.startswith("\n") else word
    return bool(inner) and not inner[0].isspace() and not inner[-1].isspace()


def pack(tokens: Sequence[int]) -> bytes:
    """Tokens as little-endian uint16."""
    packed = array("H", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
