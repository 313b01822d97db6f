"""The tokenizer: GPT-2's tokens, the same as the exported tokenizer's. Text never gives special tokens."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data.tokenizer import Tokenizer, TokenizerMissing, tokenizer_path, tokenizer_sha256
from tests.conftest import SHARED_DATA

ENCYCLOPEDIA = SHARED_DATA / "derived" / "encyclopedia_plain.txt.xz"
WORDS = [
    "the", "The", "of", "don't", "it's", "(1912–1955)", "naïve", "東京", "Київ", "3,000", "...", "a\nb", "end.\nStart",
    "\n", "\n\n", "", "\u3000", "\u00a0", "I'll", "\t", "'s", "U.S.,", "<|endoftext|>", "x" * 80, "😀", "e\u0301", "_",
    "\r",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def exported() -> tokenizers.Tokenizer:
    """The tokenizer as users of the exported model get it."""
    return tokenizers.Tokenizer.from_file(str(tokenizer_path()))


def test_known_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"
    assert tokenizer.pack("Hello world") == bytes([0x88, 0x3C, 0xE3, 0x03])


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=20),
    between=st.sampled_from(" \n\t"),
)
def test_tokens_are_those_of_the_exported_tokenizer(
    tokenizer: Tokenizer, exported: tokenizers.Tokenizer, words: list[str], between: str
) -> None:
    text = between.join(words).encode("utf-8", "ignore").decode().replace("<|endoftext|>", "")
    tokens = tokenizer.encode(text)
    assert tokens == exported.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokens) == exported.decode(tokens, skip_special_tokens=False) == text


@pytest.mark.skipif(not ENCYCLOPEDIA.exists(), reason="needs ../shared")
def test_tokens_of_real_text_are_those_of_the_exported_tokenizer(
    tokenizer: Tokenizer, exported: tokenizers.Tokenizer
) -> None:
    with lzma.open(ENCYCLOPEDIA, "rt", encoding="utf-8") as file:
        texts = file.read(2_000_000).split("\n\n")
    assert [tokenizer.encode(text) for text in texts] == [
        encoding.ids for encoding in exported.encode_batch(texts, add_special_tokens=False)
    ]


def test_tokens_cut_in_the_middle_of_a_character_are_marked(
    tokenizer: Tokenizer, exported: tokenizers.Tokenizer
) -> None:
    tokens = tokenizer.encode("東京")[:-1]
    assert tokenizer.decode(tokens) == exported.decode(tokens)
    assert tokenizer.decode(tokens).endswith("\N{REPLACEMENT CHARACTER}")


def test_special_token_in_a_text_is_spelled_out(tokenizer: Tokenizer) -> None:
    assert 50256 not in tokenizer.encode("a <|endoftext|> b")


def test_missing_and_wrong_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing, match=r"absent\.json"):
        Tokenizer(tmp_path / "absent.json")
    with pytest.raises(TokenizerMissing, match=r"absent\.json"):
        tokenizer_sha256(tmp_path / "absent.json")
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(TokenizerMissing, match="not a tokenizer file"):
        Tokenizer(tmp_path / "wrong.json")
    (tmp_path / "other.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    with pytest.raises(TokenizerMissing, match="has 2 tokens and is not GPT-2's"):
        Tokenizer(tmp_path / "other.json")
