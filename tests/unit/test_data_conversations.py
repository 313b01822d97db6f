"""Conversations as tokens: the template's whole text gives the tokens of the parts, and only replies carry loss."""

from __future__ import annotations

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data.conversations import CHAT_TEMPLATE, prompt_text, render
from svitlo.data.tokenizer import Tokenizer, tokenizer_path

contents_strategy = st.lists(
    st.text(min_size=1, max_size=40).map(lambda text: text.encode("utf-8", "ignore").decode()).filter(str.strip),
    min_size=1,
    max_size=3,
).map(lambda texts: [part for text in texts for part in (text, text[::-1])])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def whole():  # type: ignore[no-untyped-def]
    """The tokenizer as other tools load it: special tokens in a text are special."""
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(tokenizer_path()))


def raise_exception(message: str) -> None:
    raise ValueError(message)


def from_template(contents: list[str], *, add_generation_prompt: bool = False) -> str:
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(CHAT_TEMPLATE)
    return template.render(
        messages=messages, add_generation_prompt=add_generation_prompt, raise_exception=raise_exception
    )


def test_layout() -> None:
    assert from_template(["Hi ", "Hello.", " Who?", "Me."]) == (
        "### User:\nHi\n\n### Assistant:\nHello.<|endoftext|>\n\n### User:\nWho?\n\n### Assistant:\nMe.<|endoftext|>"
    )
    assert (
        from_template([" Hi"], add_generation_prompt=True)
        == prompt_text("Hi ")
        == ("### User:\nHi\n\n### Assistant:\n")
    )
    assert from_template(["Hi", "Yes.", "So?"], add_generation_prompt=True).endswith(
        "Yes.<|endoftext|>\n\n### User:\nSo?\n\n### Assistant:\n"
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("system", " Be brief. "), ("user", "Hi")], "### User:\nBe brief.\n\nHi\n\n### Assistant:\n"),
        ([("system", ""), ("user", "Hi")], "### User:\nHi\n\n### Assistant:\n"),
        ([("user", "Hi"), ("system", "Be brief.")], "### User:\nBe brief.\n\nHi\n\n### Assistant:\n"),
        (
            [("system", "A."), ("system", "B."), ("user", "Hi"), ("assistant", "Yes."), ("user", "So?")],
            "### User:\nA.\n\nB.\n\nHi\n\n### Assistant:\nYes.<|endoftext|>\n\n### User:\nSo?\n\n### Assistant:\n",
        ),
        ([("system", "Be brief.")], "### User:\nBe brief.\n\n### Assistant:\n"),
    ],
)
def test_a_system_text_stands_in_front_of_the_first_user_turn(messages: list[tuple[str, str]], text: str) -> None:
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(CHAT_TEMPLATE)
    given = [{"role": role, "content": content} for role, content in messages]
    assert template.render(messages=given, add_generation_prompt=True, raise_exception=raise_exception) == text


def test_unknown_role_is_refused() -> None:
    template = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE)
    with pytest.raises(ValueError, match="tool"):
        template.render(messages=[{"role": "tool", "content": "x"}], raise_exception=raise_exception)


@settings(max_examples=150, deadline=None)
@given(contents=contents_strategy)
def test_template_as_a_whole_gives_the_tokens_of_the_parts(tokenizer, whole, contents) -> None:  # type: ignore[no-untyped-def]
    tokens, mask = render(tokenizer, contents)
    ids = np.frombuffer(tokens, dtype="<u2").tolist()
    assert ids == whole.encode(from_template(contents), add_special_tokens=False).ids
    assert len(mask) == len(ids)


@settings(max_examples=100, deadline=None)
@given(contents=contents_strategy)
def test_mask_covers_exactly_the_replies(tokenizer: Tokenizer, contents: list[str]) -> None:
    tokens, mask = render(tokenizer, contents)
    ids = np.frombuffer(tokens, dtype="<u2")
    learned = ids[np.frombuffer(mask, dtype=np.uint8) == 1].tolist()
    expected = [token for reply in contents[1::2] for token in [*tokenizer.encode(reply.strip()), 50256]]
    assert learned == expected
    assert mask[-1] == 1


def test_special_token_in_a_content_does_not_end_the_reply(tokenizer: Tokenizer) -> None:
    tokens, _ = render(tokenizer, ["What ends a text?", "The token <|endoftext|> does."])
    assert np.frombuffer(tokens, dtype="<u2").tolist().count(50256) == 1


def test_prompt_is_the_beginning_of_a_conversation(tokenizer: Tokenizer) -> None:
    tokens, mask = render(tokenizer, ["Why?", "Because."])
    prompt = tokenizer.encode(prompt_text("Why?"))
    assert np.frombuffer(tokens, dtype="<u2").tolist()[: len(prompt)] == prompt
    assert not any(mask[: len(prompt)])
    assert all(mask[len(prompt) :])
