"""How a conversation becomes tokens: for data preparation, for `generate` and for the exported model.

    ### User:
    {question}

    ### Assistant:
    {reply}<|endoftext|>

    ### User:
    ...

Only replies and the <|endoftext|> after each carry loss. `CHAT_TEMPLATE` makes the same text from `messages` as other
tools use them. Tokenised as a whole, that text gives the same tokens that `render` makes from the parts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from svitlo.data.tokenizer import END_OF_TEXT, END_OF_TEXT_TOKEN, Tokenizer, pack

USER = "### User:\n"
ASSISTANT = "### Assistant:\n"
SEPARATOR = "\n\n"

# White space around a content would merge with the template's own into different tokens, so it is cut off.
# System texts go before the first user turn, as in training (data/formats/messages.py).
CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' and (message['content'] | trim) -%}"
    "{%- set ns.system = ns.system ~ (message['content'] | trim) ~ '\\n\\n' -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '### User:\\n' ~ ns.system ~ (message['content'] | trim) ~ '\\n\\n' -}}"
    "{%- set ns.system = '' -%}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '### Assistant:\\n' ~ (message['content'] | trim) ~ '<|endoftext|>' -}}"
    "{%- if add_generation_prompt or not loop.last -%}{{- '\\n\\n' -}}{%- endif -%}"
    "{%- elif message['role'] != 'system' -%}"
    "{{- raise_exception('this model knows the roles system, user and assistant, not ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if ns.system -%}{{- '### User:\\n' ~ ns.system -}}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:\\n' -}}{%- endif -%}"
)

_END_OF_TEXT = pack([END_OF_TEXT_TOKEN])
assert END_OF_TEXT in CHAT_TEMPLATE


def prompt_text(question: str) -> str:
    """The text after which the model writes its reply to `question`."""
    return USER + question.strip() + SEPARATOR + ASSISTANT


def render(tokenizer: Tokenizer, contents: Sequence[str]) -> tuple[bytes, bytes]:
    """The tokens (little-endian uint16) and the mask (one byte each, 1 = carries loss) of a conversation.

    `contents` are the turns: user, assistant, user, ... Their number is even and none is blank.
    """
    assert contents
    assert len(contents) % 2 == 0
    tokens, mask = [], []
    for number, content in enumerate(contents):
        is_reply = number % 2 == 1
        lead = (SEPARATOR if number else "") + (ASSISTANT if is_reply else USER)
        before, body = _pack_lead(tokenizer, lead), tokenizer.pack(content.strip())
        if is_reply:
            body += _END_OF_TEXT
        tokens += [before, body]
        mask += [bytes(len(before) // 2), (b"\x01" if is_reply else b"\x00") * (len(body) // 2)]
    return b"".join(tokens), b"".join(mask)


@functools.lru_cache(maxsize=16)
def _pack_lead(tokenizer: Tokenizer, lead: str) -> bytes:
    return tokenizer.pack(lead)
