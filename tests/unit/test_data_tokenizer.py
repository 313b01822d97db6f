"""The tokenizer: GPT-2's tokens, the fast way equal to the plain way, no special tokens out of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data import tokenizer as module
from svitlo.data.tokenizer import Tokenizer, TokenizerMissing, tokenizer_sha256

WORDS = [
    "the", "The", "of", "don't", "it's", "(1912–1955)", "naïve", "東京", "Київ", "3,000", "...", "a\nb", "end.\nStart",
    "\n", "\n\n", "", "\u3000", "\u00a0", "I'll", "\t", "'s", "U.S.,", "<|endoftext|>", "x" * 80, "😀", "e\u0301", "_",
    "\r",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def unpack(packed: bytes) -> list[int]:
    return list(np.frombuffer(packed, dtype="<u2").tolist())


def test_known_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=20))
def test_packed_tokens_are_the_plain_tokens(tokenizer: Tokenizer, words: list[str]) -> None:
    text = " ".join(words).encode("utf-8", "ignore").decode()
    assert unpack(tokenizer.pack(text)) == tokenizer.encode(text)


def test_words_moving_between_tables_keep_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLE_CHARACTERS", 300)
    monkeypatch.setattr(module, "MAX_STARTS", 5)
    tokenizer = Tokenizer()
    texts = [f"Start{n % 7} the word{n % 31}, and word{n % 13}.\nAgain number {n % 50}!" for n in range(200)]
    for first in range(0, len(texts), 8):
        batch = texts[first : first + 8]
        assert [unpack(packed) for packed in tokenizer.pack_all(batch)] == [tokenizer.encode(text) for text in batch]


def test_special_token_in_a_text_is_spelled_out(tokenizer: Tokenizer) -> None:
    assert 50256 not in tokenizer.encode("a <|endoftext|> b")
    assert 50256 not in unpack(tokenizer.pack("a <|endoftext|> b"))


def test_missing_and_wrong_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing, match=r"absent\.json"):
        Tokenizer(tmp_path / "absent.json")
    with pytest.raises(TokenizerMissing, match=r"absent\.json"):
        tokenizer_sha256(tmp_path / "absent.json")
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(TokenizerMissing, match="not a tokenizer file"):
        Tokenizer(tmp_path / "wrong.json")
