"""Conversations of several turns: what OpenAI and ShareGPT call messages, and the other fields of Alpaca's records."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svitlo.config import Source
from svitlo.data.formats import raw_documents, to_conversation
from svitlo.data.instructions import Outcome
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def outcome(tokenizer: Tokenizer, record: Any, window: int = 128, format_name: str = "messages") -> Outcome:
    source = Source(name="s", format=format_name, files=["x"])
    stream = io.BufferedReader(io.BytesIO(json.dumps([record]).encode()))  # type: ignore[arg-type]
    (raw,) = raw_documents(source, "x", stream)
    return to_conversation(raw, tokenizer, window)


def turns(tokenizer: Tokenizer, found: Outcome) -> list[str]:
    """User, assistant, user, ... as in the conversation."""
    assert found.dropped is None, found.dropped
    text = tokenizer.decode(np.frombuffer(found.tokens, dtype="<u2").tolist())
    assert text.endswith("<|endoftext|>")
    parts = [part.split("\n\n### Assistant:\n") for part in text.split("### User:\n")[1:]]
    return [turn.removesuffix("\n\n").removesuffix("<|endoftext|>") for pair in parts for turn in pair]


def said(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def test_messages_and_conversations_are_the_same(tokenizer: Tokenizer) -> None:
    messages = said(("user", "Hi "), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Me."))
    shared = {
        "id": 7,
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "Who?"},
            {"from": "gpt", "value": "Me."},
        ],
    }
    one = outcome(tokenizer, messages)
    assert turns(tokenizer, one) == ["Hi", "Hello.", "Who?", "Me."]
    assert outcome(tokenizer, shared) == one
    assert outcome(tokenizer, {"messages": json.dumps(messages["messages"])}) == one  # as a table holds it
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, messages["messages"][1]]}
    assert turns(tokenizer, outcome(tokenizer, parts)) == ["Hi", "Hello."]


@pytest.mark.parametrize(
    "record",
    [
        said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")),
        said(("user", "Hi"), ("assistant", "Hello."), ("system", "Be brief.")),
        {**said(("user", "Hi"), ("assistant", "Hello.")), "system": "Be brief."},
    ],
)
def test_a_system_text_stands_in_front_of_the_first_user_turn(tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    assert turns(tokenizer, outcome(tokenizer, record)) == ["Be brief.\n\nHi", "Hello."]


def test_training_and_the_template_say_it_in_the_same_way(tokenizer: Tokenizer) -> None:
    import jinja2

    from svitlo.data.conversations import CHAT_TEMPLATE

    record = said(
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Me.")
    )
    found = outcome(tokenizer, record)
    text = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE).render(messages=record["messages"])
    assert text == tokenizer.decode(np.frombuffer(found.tokens, dtype="<u2").tolist())


def test_turns_that_do_not_alternate(tokenizer: Tokenizer) -> None:
    found = outcome(tokenizer, said(("user", "Hi"), ("user", "there"), ("assistant", "Hello."), ("assistant", "Yes?")))
    assert turns(tokenizer, found) == ["Hi\n\nthere", "Hello.\n\nYes?"]
    found = outcome(tokenizer, said(("assistant", "Welcome."), ("user", "Hi"), ("assistant", "Hello.")))
    assert turns(tokenizer, found) == ["Hi", "Hello."]
    assert found.changed == "replies before the first question left out"
    found = outcome(tokenizer, said(("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")))
    assert turns(tokenizer, found) == ["Hi", "Hello."]
    assert found.changed == "last turn without a reply left out"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("user", "Hi")], "no question with a reply"),
        ([("assistant", "Hi")], "no question with a reply"),
        ([], "no question with a reply"),
        ([("user", "Hi"), ("assistant", " ")], "an empty turn"),
        ([("user", "Hi"), ("tool", "{}"), ("assistant", "Hello.")], "a turn of another role than user and assistant"),
        ([("user", "word " * 70), ("assistant", "Hello.")], "longer than 64 tokens"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_a_reason(
    tokenizer: Tokenizer, messages: list[tuple[str, str]], reason: str
) -> None:
    assert outcome(tokenizer, said(*messages), 64).dropped == reason


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"messages": 5}, "the field `messages` should be a list of messages and is 5"),
        ({"messages": "Hi"}, "the field `messages` should be a list of messages and is 'Hi'"),
        ({"messages": ["Hi"]}, "message 1 should have `role` and `content` and is 'Hi'"),
        ({"messages": [{"content": "Hi"}]}, "message 1 has no `role` (or `from`) to say who speaks"),
        ({"messages": [{"role": "user", "content": 5}]}, "`content of message 1` should be text and is int 5"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "message 1 holds something other than text",
        ),
        ({"chat": []}, "no field `messages`"),
    ],
)
def test_wrong_messages_are_explained(tokenizer: Tokenizer, record: object, part: str) -> None:
    with pytest.raises(DataError, match=r"^x: record 1: ") as error:
        outcome(tokenizer, record)
    assert part in str(error.value)


@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=12), window=st.integers(32, 128))
def test_whole_pairs_from_the_start_as_many_as_fit(tokenizer: Tokenizer, lengths: list[int], window: int) -> None:
    contents = [" ".join([f"t{number}"] * length) for number, length in enumerate(lengths)]
    record = said(*((("user", "assistant")[number % 2], content) for number, content in enumerate(contents)))
    found = outcome(tokenizer, record, window)
    if found.dropped:
        assert found.dropped == f"longer than {window} tokens"
        assert len(outcome(tokenizer, said(("user", contents[0]), ("assistant", contents[1])), 4_096).mask) > window
        return
    assert len(found.mask) <= window
    kept = turns(tokenizer, found)
    assert len(kept) % 2 == 0
    assert kept == contents[: len(kept)]
    if len(kept) + 2 <= len(contents):
        assert found.changed == "later turns left out"
        more = said(*((("user", "assistant")[n % 2], content) for n, content in enumerate(contents[: len(kept) + 2])))
        assert len(outcome(tokenizer, more, 4_096).mask) > window


def test_the_first_question_decides_about_the_split(tokenizer: Tokenizer) -> None:
    one = outcome(tokenizer, said(("system", "A"), ("user", "Hi"), ("assistant", "Hello.")))
    other = outcome(tokenizer, said(("system", "B"), ("user", "hi"), ("assistant", "Bye.")))
    assert one.split_digest == other.split_digest
    assert one.digest != other.digest


# --- Alpaca's other fields


def test_alpaca_history_and_system(tokenizer: Tokenizer) -> None:
    record = {
        "instruction": "Say it.", "input": "Now.", "output": "It is.", "system": "Be brief.",
        "history": [["Hi", "Hello."], ["Who?", "Me."]],
    }  # fmt: skip
    found = outcome(tokenizer, record, format_name="alpaca")
    assert turns(tokenizer, found) == ["Be brief.\n\nHi", "Hello.", "Who?", "Me.", "Say it.\n\nNow.", "It is."]
    plain = outcome(tokenizer, {"instruction": "Say it.", "input": "x", "output": "y"}, format_name="alpaca")
    assert found.split_digest == plain.split_digest
    empty = {"instruction": "Say it.", "input": "x", "output": "y", "system": None, "history": []}
    assert outcome(tokenizer, empty, format_name="alpaca") == plain


@pytest.mark.parametrize("history", ["Hi", [["Hi"]], ["Hi", "Hello."], {"Hi": "Hello."}, [["Hi", 5]]])
def test_alpaca_with_another_history_is_explained(tokenizer: Tokenizer, history: object) -> None:
    with pytest.raises(DataError, match="x: record 1: the field `history` should be"):
        outcome(tokenizer, {"instruction": "a", "output": "b", "history": history}, format_name="alpaca")


@pytest.mark.parametrize(
    "nothing", ["nan", "NaN", "none", "N/A", "null", "No input.", "--- no input ---", None, float("nan")]
)
def test_alpaca_words_for_nothing(tokenizer: Tokenizer, nothing: object) -> None:
    found = outcome(tokenizer, {"instruction": "Say it.", "input": nothing, "output": "It is."}, format_name="alpaca")
    assert turns(tokenizer, found) == ["Say it.", "It is."]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("line", ["-" * 300_000, "- " * 150_000, "no " + "-" * 300_000, "not" * 100_000])
def test_a_drawn_line_costs_what_its_length_costs(tokenizer: Tokenizer, line: str) -> None:
    """With quadratic time, this would take hours."""
    found = outcome(tokenizer, {"instruction": "Say it.", "input": line, "output": "It is."}, format_name="alpaca")
    assert found.dropped == "longer than 128 tokens"
