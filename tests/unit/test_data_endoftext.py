"""The end-of-text marker of GPT-2's tools ends a document and is never learnt as characters."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from svitlo.config import Source
from svitlo.data.formats import Raw, Text, all_formats, raw_documents, to_conversation
from svitlo.data.formats.alpaca import Instruction
from svitlo.data.formats.messages import Message, Role
from svitlo.data.formats.squad import Question
from svitlo.data.tasks import TextTask
from svitlo.data.tokenizer import END_OF_TEXT, Tokenizer

LINE = "Thing {} is a small object that people keep in a house by the river."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def decoded(tokenizer: Tokenizer, tokens: bytes) -> str:
    """The text, with the real marker as `#`: what is left as `<|endoftext|>` was learnt as characters."""
    numbers = np.frombuffer(tokens, dtype="<u2").tolist()
    return "".join("#" if number == 50256 else tokenizer.decode([number]) for number in numbers)


@pytest.mark.parametrize("between", ["\n<|endoftext|>\n\n", "<|endoftext|>", "\n<|endoftext|>\n", " <|endoftext|> "])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_the_marker_ends_a_document(monkeypatch: pytest.MonkeyPatch, between: str, block: int) -> None:
    monkeypatch.setattr("svitlo.data.formats.text.BLOCK_CHARACTERS", block)
    lines = [LINE.format(number) for number in range(40)]
    content = "".join(line + between for line in lines).encode()
    source = Source(name="s", format="text", files=["x"])
    found = raw_documents(source, "x", io.BufferedReader(io.BytesIO(content)))  # type: ignore[arg-type]
    assert [raw.content for raw in found] == [Text("", line) for line in lines]


def test_the_marker_divides_a_record(tokenizer: Tokenizer) -> None:
    raw = Raw("jsonl", Text("Things", f"One is here.{END_OF_TEXT}Two &lt;|endo\u200bftext|&gt; there.\n{END_OF_TEXT}"))
    outcome = TextTask(0.1).outcome(raw, tokenizer)
    assert decoded(tokenizer, outcome.tokens) == "Things\nOne is here.#Two\nthere.#"
    assert (outcome.words, outcome.changed) == (6, "divided at end-of-text markers")
    assert TextTask(0.1).outcome(Raw("jsonl", Text("", END_OF_TEXT)), tokenizer).dropped == "empty"


@pytest.mark.parametrize(
    ("format_name", "content"),
    [
        ("alpaca", Instruction("Say it", "", f"It is{END_OF_TEXT}")),
        ("messages", [Message(Role.USER, f"Say it{END_OF_TEXT}"), Message(Role.ASSISTANT, f"It is{END_OF_TEXT}")]),
        ("dailydialog", [f"Say it{END_OF_TEXT}", "It is"]),
        ("squad", Question("T", f"{END_OF_TEXT}It is", f"Say it{END_OF_TEXT}", "It is", 13, None)),
    ],
)
def test_conversations_lose_it_and_it_is_counted(tokenizer: Tokenizer, format_name: str, content: Any) -> None:
    assert format_name in all_formats()
    outcome = to_conversation(Raw(format_name, content), tokenizer, 64)
    text = decoded(tokenizer, outcome.tokens)
    assert text.endswith("Say it\n\n### Assistant:\nIt is#")
    assert END_OF_TEXT not in text
    assert outcome.changed == "end-of-text markers left out"
